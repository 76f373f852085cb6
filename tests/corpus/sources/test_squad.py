"""Paragraphs of SQuAD's files as documents, under the ids that their questions name."""

import json

import pytest

from realm_jax.data.questions import read_questions
from tests.corpus.sources.reading import read


def content(*articles):
    return {"version": "1.1", "data": [{"title": title, "paragraphs": paragraphs} for title, paragraphs in articles]}


def paragraph(text, *questions):
    return {"qas": [{"id": q, "question": q, "answers": []} for q in questions], "context": text}


@pytest.mark.parametrize("indent", [None, 1])
def test_squad(tmp_path, indent):
    path = tmp_path / "dev.json"
    articles = [
        ("New_York", [paragraph("One."), paragraph("Two.", "a")]),
        ("Oslo", [paragraph(""), paragraph("Three.", "b")]),
    ]
    path.write_text(json.dumps(content(*articles), indent=indent))
    found, dropped = read(path)
    assert [(a.id, a.title, a.text) for a in found] == [
        ("New_York#0", "New York", "One."), ("New_York#1", "New York", "Two."), ("Oslo#1", "Oslo", "Three."),
    ]  # fmt: skip
    assert dropped == {"empty text": 1}
    assert [question.gold_passage for question in read_questions(path).questions] == ["New_York#1", "Oslo#1"]
    without_version = json.dumps({"data": content(*articles)["data"]}, indent=indent)
    path.write_text(without_version)
    assert read(path)[0] == found


def test_a_file_that_is_not_as_squad_has_it_is_named(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(content(("x", [{"context": 3, "qas": []}]))))
    with pytest.raises(ValueError, match=r"dev\.json, article 1: expected"):
        read(path)


@pytest.mark.needs_data
def test_real_paragraphs(shared_data):
    path = shared_data / "openqa" / "squad_subset.squad.json"
    found, dropped = read(path)
    questions = read_questions(path).questions
    texts = {article.id: article.text for article in found}
    assert dropped == {} and len(texts) == len(found) and {q.gold_passage for q in questions} <= set(texts)
    assert all(any(answer in texts[q.gold_passage] for answer in q.answers) for q in questions)
