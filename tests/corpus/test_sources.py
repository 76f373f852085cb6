"""Every source format, whole and damaged: what is read, what is dropped, and under which cause."""

import bz2
import collections
import gzip
import itertools
import json
import lzma
import sys
import tracemalloc
import types

import pytest

from realm_jax.corpus.sources import FORMATS, Article, read_articles, read_sources


def read(path, source_format="auto", **settings):
    dropped = collections.Counter()
    articles = list(read_articles(path, source_format, lambda cause: dropped.update([cause]), **settings))
    return articles, dict(dropped)


def json_line(**record):
    return json.dumps(record, ensure_ascii=False) + "\n"


PASSAGES = "".join(json_line(id=f"p{i}", title=f"Title {i}", text=f"Text number {i} is here.") for i in range(200))


# Several sources


def test_several_sources_share_no_id(tmp_path):
    for name, ids in (("a", ["1", "2", "2:2"]), ("b", ["2", "3"]), ("c", ["2", "2:2"])):
        (tmp_path / name).write_text("".join(json_line(id=i, title=name, text=f"Of {name}.") for i in ids))
    renamed = []
    articles = read_sources([tmp_path / name for name in "abc"], on_rename=lambda *pair: renamed.append(pair))
    assert [(article.title, article.id) for article in articles] == [
        ("a", "1"),
        ("a", "2"),
        ("a", "2:2"),
        ("b", "2:2:2"),  # "2:2" was taken
        ("b", "3"),
        ("c", "3:2"),
        ("c", "3:2:2"),
    ]
    assert renamed == [("2", "2:2:2"), ("2", "3:2"), ("2:2", "3:2:2")]


def test_the_last_of_several_sources_is_looked_at_before_the_first_is_read(tmp_path):
    (tmp_path / "a").write_text(PASSAGES)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_sources([tmp_path / "a", tmp_path / "absent"])


# JSON lines


def test_json_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"id": 7, "title": "Ada", "text": "One.\\r\\nTwo."}\n\n'
        '{"text": "No id."}\n{"_id": "x", "contents": "Other keys."}\n'
    )
    articles, dropped = read(file)
    assert articles == [
        Article("7", "Ada", "One.\nTwo."),
        Article("a.jsonl:3", "", "No id."),
        Article("x", "", "Other keys."),
    ]
    assert articles[0].salient_spans is None
    assert articles[0].gold_id == ""
    assert dropped == {}


def test_records_without_ids_in_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_text(json_line(text=f"Of {folder}.") + json_line(id="7", text=folder))
    articles, dropped = read(tmp_path)
    assert [article.id for article in articles] == ["a/part.jsonl:1", "7", "b/part.jsonl:1"]
    assert dropped == {"duplicate id": 1}


def test_bad_json_lines_are_counted_by_cause(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf"  # byte order mark
        + b'{"id": "1", "title": "T", "text": "Good \\u0000one."}\r\n'
        + b'{"id": "2", "text": "cut off\n'
        + b"[1, 2]\n"
        + b"[" * 100_000
        + b"\n"
        + b'{"id": "3", "text": ""}\n'
        + b'{"id": "4", "text": " \\n\\u0000 "}\n'
        + b'{"id": "5", "text": "caf\xe9"}\n'
        + b'{"id": "6", "text": "half a pair \\ud800"}\n'
        + b'{"id": "1", "text": "Another with the same id."}\n'
        + b'{"id": "7", "text": 5}\n'
        + b'{"id": "8", "title": {"a": 1}, "text": "x"}\n'
        + b'{"id": "9", "text": "' + b"x" * 200_000 + b'"}\n'
        + b'{"id": "10", "text": "' + b"x" * 3_000_000 + b'"}\n'
        + b"\x00\x00\x00\x00\n"
        + b'{"id": "11", "text": "Last, without a line end."}'
    )  # fmt: skip
    articles, dropped = read(file, "jsonl", max_text_chars=150_000)
    assert articles == [Article("1", "T", "Good one."), Article("11", "", "Last, without a line end.")]
    assert dropped == {
        "malformed record": 6,
        "empty text": 2,
        "not UTF-8": 2,
        "duplicate id": 1,
        "over-long record": 2,
    }


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_compression_is_told_by_content_and_damage_is_counted(tmp_path, compress):
    whole = compress(PASSAGES.encode())
    (tmp_path / "whole").write_bytes(whole)
    articles, dropped = read(tmp_path / "whole")
    assert len(articles) == 200
    assert dropped == {}
    if compress is bytes:
        return
    big = "".join(
        json_line(id=f"p{i}", text=f"{[(i + j) * 7919 % 104729 for j in range(100)]}") for i in range(4000)
    ).encode()
    packed = compress(big)
    (tmp_path / "cut").write_bytes(packed[: len(packed) * 3 // 4])
    articles, dropped = read(tmp_path / "cut")
    assert 500 < len(articles) < 4000  # what came before the cut is used
    assert articles == list(read_articles_head(big, len(articles)))
    assert dropped == {"truncated or corrupted file": 1}
    flipped = bytearray(packed)
    flipped[len(packed) // 2 : len(packed) // 2 + 8] = b"\xff" * 8
    (tmp_path / "flipped").write_bytes(flipped)
    articles, dropped = read(tmp_path / "flipped", "jsonl")
    assert dropped.get("truncated or corrupted file") == 1


def read_articles_head(content, count):
    for line in itertools.islice(content.decode().splitlines(), count):
        record = json.loads(line)
        yield Article(record["id"], "", record["text"])


def test_memory_stays_flat(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for i in range(2000):
            file.write(json_line(id=str(i), text=f"{i} " * 4000))  # 40 MB
    tracemalloc.start()
    count = sum(1 for _ in read_articles(tmp_path / "a.jsonl.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 12_000_000


# WikiExtractor

WIKI_DOC = """<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="A "quoted" title &amp; more">
A "quoted" title & more

It began in 1990 &lt;ca.&gt;.

Early life.
He lived.
</doc>
"""


def test_wikiextractor_doc_folders(tmp_path):
    for folder in ("AA", "AB"):
        (tmp_path / folder).mkdir()
    (tmp_path / "AA" / "wiki_00").write_text(WIKI_DOC)
    (tmp_path / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(WIKI_DOC.replace('id="12"', 'id="13"').encode()))
    (tmp_path / "AB" / "wiki_00").write_bytes(WIKI_DOC.replace('id="12"', 'id="14"').replace("\n", "\r\n").encode())
    (tmp_path / "AB" / ".wiki_00.swp").write_bytes(b"\x00")
    articles, dropped = read(tmp_path)
    assert [article.id for article in articles] == ["12", "13", "14"]
    assert {article.title for article in articles} == {'A "quoted" title & more'}
    assert {article.text for article in articles} == {"It began in 1990 <ca.>.\n\nEarly life.\nHe lived."}
    assert dropped == {"hidden file": 1}


def test_bad_wikiextractor_docs(tmp_path):
    (tmp_path / "wiki_00").write_text(
        '<doc id="1" url="u" title="Redirect">\nRedirect\n\n</doc>\n'
        + "stray\nlines\n"
        + '<doc id="2" url="u" title="Not closed">\nNot closed\ntext\n'
        + '<doc id="3" no title>\ntext\n</doc>\n'
        + '<doc id="4" url="u" title="Long">\n'
        + "word " * 500
        + "\n</doc>\n"
        + '<doc id="5" revid="9" url="u" title="Good">\nGood\n\ntext\n</doc>\n'
        + '<doc id="6" url="u" title="Cut">\nCut\ntex'
    )
    articles, dropped = read(tmp_path / "wiki_00", max_text_chars=1000)
    assert articles == [Article("5", "Good", "text")]
    assert dropped == {
        "page without text (a redirect, or only lists and tables)": 1,
        "malformed record": 4,
        "over-long record": 1,
    }


def test_wikiextractor_json(tmp_path):
    (tmp_path / "wiki_00").write_text(
        json_line(id="1", revid="2", url="u", title="Ada", text="Ada\n\nShe wrote.\nNotes.\nMore.")
        + json_line(id="2", revid="2", url="u", title="Redirect", text="")
        + json_line(id="3", url="u", title="No text")
    )
    articles, dropped = read(tmp_path)
    assert articles == [Article("1", "Ada", "She wrote.\nNotes.\nMore.")]
    assert dropped == {"page without text (a redirect, or only lists and tables)": 1, "malformed record": 1}


# MediaWiki

DUMP_HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n<siteinfo/>\n'


def page(page_id, title, wikitext, namespace=0, extra=""):
    text = wikitext.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page>\n<title>{title}</title>\n<ns>{namespace}</ns>\n<id>{page_id}</id>\n{extra}<revision><id>1{page_id}</id>"
        "<timestamp>2020-01-01T00:00:00Z</timestamp><model>wikitext</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve">{text}</text>'
        "<sha1>x</sha1></revision>\n</page>\n"
    )


WIKITEXT = """{{Short description|x}}{{Infobox|name=A|born={{date|1}}}}
[[File:x.jpg|thumb|A ''caption'' with a [[link]]]]
'''Ada''' (''née'' {{lang|fr|Béa}}; {{IPA|x}})
ran {{convert|5|km|mi}} to [[London|the city]]<ref>Cite</ref>.<!-- no --> She&nbsp;won.
== Life ==
* First [[item]]
# ''Second'' [http://x.y named link] http://bare.url
{| class="wikitable"
! A !! B
|-
| 1 || 2
|}
=== Empty ===
== References ==
<references/>
{{reflist}}
[[Category:People]] [[de:Ada]]
"""


def test_mediawiki_dump(tmp_path):
    dump = DUMP_HEAD + page(1, "Ada", WIKITEXT) + page(2, "Talk:Ada", "Hello.", namespace=1)
    dump += page(3, "Moved", "#REDIRECT [[Ada]]", extra='<redirect title="Ada" />\n') + page(
        4, "Old move", "#redirect [[Ada]]"
    )
    dump += page(8, "No title", "x").replace("<title>No title</title>", "") + page(9, "No id", "x").replace(
        "<id>9</id>", ""
    )
    dump += page(5, "Table only", "{|\n|x\n|}") + page(6, "Broken", "x").replace("<ns>", "<n>")
    dump += page(7, "Last &amp; good", "Some text.") + "</mediawiki>\n"
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    articles, dropped = read(tmp_path)
    assert articles == [
        Article(
            "1",
            "Ada",
            "Ada (née Béa)\nran 5 km to the city. She won.\nLife\nFirst item\nSecond named link",
        ),
        Article("7", "Last & good", "Some text."),
    ]
    assert dropped == {
        "page outside the article namespace": 1,
        "redirect": 2,
        "page without text (a redirect, or only lists and tables)": 1,
        "malformed record": 3,
    }


def test_mediawiki_dump_on_one_line_cut_short(tmp_path):
    dump = (DUMP_HEAD + "".join(page(i, f"P{i}", f"Text {i}.") for i in range(50))).replace("\n", "")
    (tmp_path / "dump.xml").write_bytes(dump.encode()[:-100])
    articles, dropped = read(tmp_path / "dump.xml")
    assert [article.text for article in articles] == [f"Text {i}." for i in range(49)]
    assert dropped == {"malformed record": 1}


def test_mediawiki_pages_that_are_too_long_or_not_utf8(tmp_path):
    dump = DUMP_HEAD + page(1, "Long", "word " * 2_000_000) + page(2, "Latin", "caf%") + page(3, "Good", "Text.")
    (tmp_path / "dump.xml").write_bytes(dump.encode().replace(b"caf%", b"caf\xe9"))
    articles, dropped = read(tmp_path / "dump.xml", max_text_chars=10_000)
    assert articles == [Article("3", "Good", "Text.")]
    assert dropped == {"over-long record": 1, "not UTF-8": 1}


# DPR


def test_dpr_tsv(tmp_path):
    file = tmp_path / "psgs.tsv.gz"
    file.write_bytes(
        gzip.compress(
            b'id\ttext\ttitle\n1\t"Aaron Aaron ( or ; ""Ahar"") is, \'so\'."\tAaron\r\n'
            b'2\tPlain text\t"""Hello"" song"\n'
            b'3\t"not closed\tTitle\n4\ttoo few\n\n5\t\tEmpty\n6\tNo title\t\n'
        )
    )
    articles, dropped = read(file)
    assert articles == [
        Article("1", "Aaron", "Aaron Aaron ( or ; \"Ahar\") is, 'so'."),
        Article("2", '"Hello" song', "Plain text"),
        Article("6", "", "No title"),
    ]
    assert dropped == {"malformed record": 2, "empty text": 1}


def test_dpr_tsv_needs_its_header(tmp_path):
    (tmp_path / "a.tsv").write_text("1\ttext\ttitle\n")
    with pytest.raises(
        ValueError, match=r"a\.tsv, line 1: expected a header that names the columns id, text and title.*got '1"
    ):
        read(tmp_path / "a.tsv", "dpr_tsv")


# Folders of documents

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


# Telling formats apart


def test_companions_of_records_are_left_out(tmp_path):
    (tmp_path / "README.md").write_text("# About\n")
    (tmp_path / "part-0.jsonl").write_text(PASSAGES)
    articles, dropped = read(tmp_path)
    assert len(articles) == 200
    assert dropped == {"file of another type": 1}


def test_mixed_folders_are_refused_listing_the_formats(tmp_path):
    (tmp_path / "notes.txt").write_text("Some prose.")
    (tmp_path / "part-0.jsonl").write_text(PASSAGES)
    with pytest.raises(ValueError, match=r"more than one format \(jsonl, text_folder\)") as error:
        read(tmp_path)
    assert all(name in str(error.value) for name in FORMATS)
    assert len(read(tmp_path, "jsonl")[0]) == 200
    assert [article.id for article in read(tmp_path, "text_folder")[0]] == ["notes.txt"]


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"PK\x03\x04\x00\x00", b"", bytes(range(128, 256)) * 10])
def test_unknown_content_lists_the_formats(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot tell the format of .*wikiextractor_json.*dpr_tsv.*text_folder.*tfds"):
        read(tmp_path)


def test_missing_path_empty_folder_and_unknown_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or directory at"):
        read_articles(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no file"):
        read_articles(tmp_path)
    with pytest.raises(ValueError, match=r"expected a source format among \['auto', 'wikiextractor_json'.*got 'xml'"):
        read_articles(tmp_path, "xml")


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A TFDS data set of 250 articles, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")
    module = types.ModuleType("tiny_articles_builder")  # TFDS wants its builders in an importable module
    sys.modules[module.__name__] = module

    class TinyArticles(tfds.core.GeneratorBasedBuilder):
        """Articles."""

        __module__ = module.__name__
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = data_dir

        def _info(self):
            features = tfds.features.FeaturesDict({"heading": tfds.features.Text(), "text": tfds.features.Text()})
            return self.dataset_info_from_configs(features=features, description="Articles.")

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(250):
                yield i, {"heading": f"Title {i}", "text": f"Text of {i}." if i != 3 else b"caf\xe9"}

    TinyArticles(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds(tfds_dir):
    articles, dropped = read(f"tfds:tiny_articles:1.0.0?split=train[:50%]&title=heading&data_dir={tfds_dir}")
    assert "tensorflow" not in sys.modules or sys.modules["tensorflow"] is None
    assert len(articles) + sum(dropped.values()) == 125
    number = articles[7].title.removeprefix("Title ")
    assert articles[7].text == f"Text of {number}."
    whole, dropped = read(f"tfds:tiny_articles?data_dir={tfds_dir}", "tfds")
    assert (len(whole), dropped) == (249, {"not UTF-8": 1})
    assert {article.title for article in whole} == {""}
    assert len({article.id for article in whole}) == 249


def test_tfds_errors(tfds_dir):
    with pytest.raises(ValueError, match=r"expected a feature 'body', got one with \['heading', 'text'\]"):
        read(f"tfds:tiny_articles?text=body&data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"cannot read the TFDS data set 'no_such_set'"):
        read(f"tfds:no_such_set?data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"cannot read the TFDS data set 'tiny_articles', split 'dev'"):
        read(f"tfds:tiny_articles?split=dev&data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"parameters among \['split', 'title', 'text', 'id', 'data_dir'\]"):
        read("tfds:wikipedia?spilt=train")


# Real files


@pytest.mark.needs_data
def test_real_wikipedia_json_lines(shared_data):
    articles, dropped = read(shared_data / "wiki_early")
    assert len(articles) == 181
    assert sum(len(article.text.encode()) for article in articles) == pytest.approx(4061303, rel=1e-3)
    assert dropped == {}
    passages, dropped = read(shared_data / "openqa" / "passages.jsonl.gz")
    assert (len(passages), dropped) == (5340, {})


@pytest.mark.needs_data
def test_real_mediawiki_dump(shared_data):
    articles, dropped = read(shared_data / "mediawiki_dump" / "enwiki-table-markup.xml.bz2")
    assert (len(articles), dropped) == (5, {})
    for article in articles:
        assert len(article.text) > 100
        for mark in ("{{", "}}", "[[", "]]", "{|", "|}", "<ref", "'''"):
            assert mark not in article.text, article.title
