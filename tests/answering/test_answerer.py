"""Answers on a made-up encyclopedia: what is found, read and chosen, against numbers worked out without the models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.answering import Answerer
from realm_jax.answering.documents import CorpusDocuments
from realm_jax.corpus.writer import make_corpus
from realm_jax.models import SpanReader, span_bounds
from realm_jax.retrieval.exact import ExactIndex
from tests import tiny
from tests.answering import made_world
from tests.answering.made_world import SCALE, TEXTS, bag

TITLES = list(TEXTS)


def ask(answerer, question):
    (answer,) = answerer.answer([question])
    return answer


@pytest.mark.parametrize(
    ("question", "title", "text"),
    [
        ("Where was Ada Brook born?", "Ada Brook", "Oslo"),
        ("where did ELIN FROST sing", "Elin Frost", "Bern"),
        ("Which place has the festival?", "Night festival", "Cork"),
        ("Over which river does the bridge lead?", "The Old Bridge", "Lima"),
    ],
)
def test_the_document_nearest_to_the_question_answers(answerer, question, title, text):
    answer = ask(answerer, question)
    assert (answer.document.title, answer.text) == (title, text)
    span = answer.document.best_span
    assert TEXTS[title][span.start : span.end] == span.text == text and answer.document.text == TEXTS[title]


def test_documents_are_weighed_by_the_retriever_with_the_null_document_among_them(answerer):
    question = "Where was the painter Cleo Dahl born?"
    answer = ask(answerer, question)
    cosines = np.array([bag(question) @ bag(f"{title} {text}") for title, text in TEXTS.items()])
    best = np.argsort(-cosines)[:3]
    weights = np.exp(SCALE * np.append(cosines[best], 0.0))  # the null document's embedding is zero
    assert [found.document for found in answer.documents] == [*best, -1]
    np.testing.assert_allclose([found.retrieval_score for found in answer.documents][:3], SCALE * cosines[best], 1e-4)
    np.testing.assert_allclose([found.prob for found in answer.documents], weights / weights.sum(), rtol=1e-4)
    null = answer.documents[-1]
    assert (null.title, null.text, null.best_span) == ("", "", None)


def test_a_spans_probability_is_over_all_spans_of_all_documents(answerer, corpus, params):
    question = "Where was Ada Brook born?"
    answer = ask(answerer, question)
    reader = made_world.task("").reader
    pieces = corpus.tokenizer.encode(question).ids
    every, best = [], []
    for found in answer.documents[:-1]:
        body = np.asarray(corpus.bodies[found.document])
        ids = jnp.asarray(np.concatenate([[2], pieces, [3], body, [3]]), jnp.int32)[None]
        segments = (jnp.arange(ids.shape[1]) > len(pieces) + 1).astype(jnp.int32)[None]
        logits = np.asarray(SpanReader(reader).apply({"params": params["span_reader"]}, ids, segments, ids != 0))[0]
        starts, ends = span_bounds(ids.shape[1], reader.max_span_width)
        inside = (starts > len(pieces) + 1) & (ends < ids.shape[1] - 1)
        every.append(logits[inside].astype(np.float64) + found.retrieval_score)
        best.append(every[-1].max())
    total = np.logaddexp.reduce(np.concatenate(every))
    for found, score in zip(answer.documents[:-1], best, strict=True):
        assert found.best_span.score == pytest.approx(score, rel=1e-5)
        assert found.best_span.prob == pytest.approx(np.exp(score - total), rel=1e-3)
    assert answer.prob == pytest.approx(np.exp(max(best) - total), rel=1e-3)


def test_a_question_alone_is_answered_as_in_a_batch(answerer):
    questions = [
        "Where was Ada Brook born?",
        "the festival",
        "Where is the library of forty glass plates, and why there?",
    ]
    together = answerer.answer(questions)
    for question, answer in zip(questions, together, strict=True):
        alone = ask(answerer, question)
        assert alone.question == answer.question == question and alone.text == answer.text
        assert [d.document for d in alone.documents] == [d.document for d in answer.documents]
        for one, other in zip(alone.documents, answer.documents, strict=True):
            assert one.retrieval_score == pytest.approx(other.retrieval_score, abs=1e-5)
            assert (one.best_span and one.best_span[:3]) == (other.best_span and other.best_span[:3])
    assert answerer.answer([]) == []


def test_who_finds_documents_otherwise_may_name_them(answerer):
    def find(questions, num_read):
        assert (list(questions), num_read) == (["Where was Ada Brook born?"], 3)
        return np.array([[6, 0, -1]])

    (answer,) = answerer.answer(["Where was Ada Brook born?"], find)
    assert [found.document for found in answer.documents] == [
        0,
        6,
        -1,
    ]  # the retriever's order; the missing one left out
    assert sum(found.prob for found in answer.documents) == pytest.approx(1.0) and answer.text == "Oslo"


def test_stages_are_told_in_order(answerer):
    stages = []
    answerer.answer(["the river"], on_stage=stages.append)
    assert stages == ["tokenise", "embed", "search", "gather", "read", "choose"]


def test_odd_questions_are_answered(answerer):
    for question in [
        "",
        "   ",
        "?" * 500,
        "ада брук",
        "東京はどこ",
        "\x00\x07",
        "ada " * 10_000,
        "🙂",
        "[SEP] [MASK] oslo",
    ]:
        answer = ask(answerer, question)
        assert answer.text in made_world.PLACES or answer.text.lower() in made_world.PLACES
        assert sum(found.prob for found in answer.documents) == pytest.approx(1.0)
    assert ask(answerer, "ada " * 10_000).pieces_left_out == 10_000 - 22
    assert ask(answerer, "ada " * 22).pieces_left_out == 0
    with pytest.raises(ValueError, match="expected a question in Unicode, got half a surrogate pair"):
        answerer.answer(["ada", "\ud800"])


def other(answerer, documents, embeds):
    return answerer.over(documents, ExactIndex(np.asarray(embeds, np.float32)))


def test_fewer_documents_than_are_read_and_documents_without_text(answerer, tmp_path):
    """A document of no pieces has no span; with no other there is no answer."""
    empty = tiny.article("Ada", [""], source="empty")._replace(sentence_spans=np.zeros((0, 2), np.int32))
    full = tiny.article("Ada", ["ada , oslo"], source="full")
    lone = other(
        answerer, CorpusDocuments(make_corpus(tmp_path / "a", [empty], answerer.documents.tokenizer)), [bag("a")]
    )
    answer = ask(lone, "ada")
    assert (answer.text, answer.prob, answer.document) == ("", 0.0, None)
    assert [(found.document, found.best_span) for found in answer.documents] == [(0, None), (-1, None)]
    both = CorpusDocuments(make_corpus(tmp_path / "b", [empty, full], answerer.documents.tokenizer))
    answer = ask(other(answerer, both, [bag("ada"), bag("ada oslo")]), "ada")
    assert answer.text == "oslo" and [found.best_span is None for found in answer.documents] == [True, False, True]
    assert answer.document.document == 1


def test_long_documents_are_cut_to_what_the_reader_takes(answerer, tmp_path):
    text = "festival " * 70 + "oslo"
    documents = CorpusDocuments(make_corpus(tmp_path, [tiny.article("", [text])], answerer.documents.tokenizer))
    answer = ask(other(answerer, documents, [bag(text)]), "festival")
    assert answer.document.best_span.text.startswith("festival") and "oslo" not in answer.text


def test_characters_of_a_text_that_was_cut_out_of_a_longer_one(tmp_path):
    """Its pieces were made in the article: alone, the text begins with another piece."""
    corpus = make_corpus(tmp_path, [tiny.article("", ["ada brook born"])], made_world.tokenizer())
    documents = CorpusDocuments(corpus)
    assert documents.characters(0, 1, 2) == (4, 14)
    values = np.array([*corpus.bodies[0][:1], 1, *corpus.bodies[0][1:]])  # one more piece than the text has alone
    corpus.bodies = type(corpus.bodies)(values, np.array([0, 4]))
    documents = CorpusDocuments(corpus)
    assert [documents.characters(0, piece, piece) for piece in range(4)] == [(0, 3), (3, 3), (4, 9), (10, 14)]
    with pytest.raises(ValueError, match="expected pieces within 0 to 3, got 2 to 4"):
        documents.characters(0, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_len": 65}, "query_len must be at most the encoder's max_length 64, got 65"),
        ({"document_len": 65}, "document_len must be at most the encoder's max_length 64, got 65"),
        ({"joint_len": 65}, "joint_len must be at most the encoder's max_length 64, got 65"),
        ({"joint_len": 24}, "joint_len must exceed query_len=24, got 24"),
        ({"num_read": 0}, "num_read must be at least 1, got 0"),
        ({"params": {"retriever": {}}}, "got retriever without span_reader; name a run that was fine-tuned"),
        ({"width": 8}, "the index has embeddings of 8, this retriever makes 32"),
    ],
)
def test_what_does_not_fit_is_refused(corpus, index, params, changes, message):
    task = made_world.task(corpus.directory)
    settings = {"query_len": 24, "document_len": 48, "joint_len": 64, "num_read": 3, "params": params, "width": 0}
    settings |= changes
    if width := settings.pop("width"):
        index = ExactIndex(np.zeros((7, width), np.float32))
    with pytest.raises(ValueError, match=message):
        Answerer(CorpusDocuments(corpus), index, task.retriever, task.reader, settings.pop("params"), **settings)


def test_parameters_of_another_reader_are_refused(corpus, index, params):
    task = made_world.task(corpus.directory)
    reader = dataclasses.replace(task.reader, span_hidden_size=9)
    with pytest.raises(
        ValueError, match=r"not of this span reader: parameter span_hidden/bias: expected \(18,\), got \(16,\)"
    ):
        Answerer(
            CorpusDocuments(corpus), index, task.retriever, reader, params, query_len=24, joint_len=64, document_len=48
        )
    retriever = jax.tree.map(lambda leaf: leaf, params["retriever"])
    del retriever["query_encoder"]
    with pytest.raises(ValueError, match=r"not of this retriever: parameter query_encoder/.*: expected .*, got none"):
        Answerer(
            CorpusDocuments(corpus), index, task.retriever, task.reader, params | {"retriever": retriever},
            query_len=24, joint_len=64, document_len=48,
        )  # fmt: skip


def test_a_corpus_without_text_cannot_be_shown(tmp_path):
    corpus = make_corpus(tmp_path, made_world.blocks(), made_world.tokenizer(), with_text=False)
    with pytest.raises(ValueError, match="was made without text; build it with the corpus job to show answers"):
        CorpusDocuments(corpus)
