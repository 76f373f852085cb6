"""Folders of documents: titles, paragraphs, and which files are left out under which cause."""

import gzip

import pytest

from realm_jax.corpus.sources import Article
from tests.corpus.sources.reading import read

MARKDOWN = """---
layout: post
---

A Title
=======

First *paragraph* with a [link](http://x.y) and
`code`, wrapped   over lines.

## Second _part_ ##

- item one
- item **two**

```python
dropped()
```

| a | b |
|---|---|
"""


def test_text_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "a.md").write_text(MARKDOWN)
    (tmp_path / "my_first-note.txt").write_bytes(b"\xef\xbb\xbfJust one line of prose.\r\n\r\nAnother.")
    (tmp_path / "sub" / "b.txt").write_text("The Heading\n\nSome text here.\n")
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"Zipped text."))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "nul.txt").write_bytes(b"abc\x00def")
    (tmp_path / "utf16.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    articles, dropped = read(tmp_path)
    assert articles == [
        Article(
            "a.md",
            "A Title",
            "First paragraph with a link and code, wrapped   over lines.\nSecond part\nitem one\nitem two",
        ),
        Article("my_first-note.txt", "my first note", "Just one line of prose.\nAnother."),
        Article("sub/b.txt", "The Heading", "Some text here."),
        Article("sub/c.txt.gz", "c", "Zipped text."),
    ]
    assert dropped == {"hidden file": 1, "empty text": 1, "not UTF-8": 1, "binary file": 2, "file of another type": 1}


def test_wrapped_lines_of_plain_text_are_joined(tmp_path):
    wrapped = "The quick brown fox jumps over\nthe lazy dog, and it goes on to\nrun. It stops.\n\n"
    wrapped += "A new paragraph begins here now\nand ends.\n"
    (tmp_path / "a.txt").write_text(wrapped)
    (tmp_path / "b.txt").write_text(
        "Milk\nTwo breads and a very long line of other things to buy there\nEggs\nButter\n"
    )
    articles, _ = read(tmp_path)
    assert articles[0].text == (
        "The quick brown fox jumps over the lazy dog, and it goes on to run. It stops.\n"
        "A new paragraph begins here now and ends."
    )
    assert articles[1].text.count("\n") == 3  # a list stays a list


def test_a_single_text_file(tmp_path):
    (tmp_path / "note.txt").write_text("Only this.")
    assert read(tmp_path / "note.txt") == ([Article("note.txt", "note", "Only this.")], {})


@pytest.mark.parametrize(
    ("markdown", "title", "text"),
    [
        ("---\ntitle: 'A \"b\"' \n---\nText.", 'A "b"', "Text."),
        ("---\ntitle:  ''\n---\nText.", "''", "Text."),
        ("# A # b ## \nText.", "A # b", "Text."),
        ("# #\nText.", "a", "Text."),
        ("A [b [c](d) e](f) ![g](h) ``i`` <!-- j --> <!-- k", "a", "A [b c e](f)  i  <!-- k"),
        ("*" + "a" * 300 + "* *" + "b" * 301 + "*", "a", "a" * 300 + " *" + "b" * 301 + "*"),
    ],
)
def test_marks(tmp_path, markdown, title, text):
    (tmp_path / "a.md").write_text(markdown)
    articles, _ = read(tmp_path)
    assert [(article.title, article.text) for article in articles] == [(title, text)]


@pytest.mark.parametrize(
    "marks",
    ["# a" + " " * 300_000 + "x\nb", "<!--" * 100_000, " *a" * 50_000, "[" * 300_000, "[a](" * 50_000, "![" * 100_000, "a " + "`" * 300_000 + "x",
     "---\ntitle: a" + " " * 300_000 + "b\n---\nc"],
)  # fmt: skip
def test_marks_without_an_end_are_not_searched_for_again_and_again(tmp_path, marks):
    """Each took minutes to years when the time grew with the square or the cube of their number."""
    (tmp_path / "a.md").write_text(marks)
    articles, _ = read(tmp_path)
    assert len(articles) == 1
