"""A BEIR folder as a source: its corpus.jsonl alone."""

import gzip

import pytest

from tests.corpus.sources.reading import json_line, read


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_the_documents_of_a_folder(tmp_path, name):
    rows = [
        json_line(_id="d1", title="Oslo", text="A town.", metadata={"url": "x"}),
        json_line(_id="d2", title="Rome", text=""),  # a title alone
        json_line(_id="d3", title=None, text="No title."),
        json_line(_id="d4", title="", text=""),
        json_line(title="no id", text="x"),
    ]
    content = "".join(rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "queries.jsonl").write_text(json_line(_id="q1", text="Which town?"))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    found, dropped = read(tmp_path)
    assert [(a.id, a.title, a.text) for a in found] == [
        ("d1", "Oslo", "A town."),
        ("d2", "Rome", "Rome"),
        ("d3", "", "No title."),
    ]
    assert dropped == {"empty text": 1, "malformed record": 1}
    assert read(tmp_path, "beir")[0] == found
    assert next(a.id for a in read(tmp_path / name)[0]) == "d1"  # JSON lines, by themselves


def test_another_folder_by_that_name(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json_line(_id="d1", text="A town."))
    with pytest.raises(ValueError, match=r"expected a BEIR folder with corpus\.jsonl and queries\.jsonl, got"):
        read(tmp_path, "beir")
