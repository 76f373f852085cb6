"""JSON lines, of WikiExtractor too: what is read, what is dropped, and under which cause."""

import pytest

from realm_jax.corpus.sources import Article
from tests.corpus.sources.reading import json_line, read


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


def test_wikiextractor_json(tmp_path):
    (tmp_path / "wiki_00").write_text(
        json_line(id="1", revid="2", url="u", title="Ada", text="Ada\n\nShe wrote.\nNotes.\nMore.")
        + json_line(id="2", revid="2", url="u", title="Redirect", text="")
        + json_line(id="3", url="u", title="No text")
    )
    articles, dropped = read(tmp_path)
    assert articles == [Article("1", "Ada", "She wrote.\nNotes.\nMore.")]
    assert dropped == {"page without text (a redirect, or only lists and tables)": 1, "malformed record": 1}


@pytest.mark.needs_data
def test_real_wikipedia_json_lines(shared_data):
    articles, dropped = read(shared_data / "wiki_early")
    assert len(articles) == 181
    assert sum(len(article.text.encode()) for article in articles) == pytest.approx(4061303, rel=1e-3)
    assert dropped == {}
    passages, dropped = read(shared_data / "openqa" / "passages.jsonl.gz")
    assert (len(passages), dropped) == (5340, {})
