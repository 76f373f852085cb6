"""Training, evaluation, `predict` and the page ask the same text, however a file writes it."""

import json

import pytest

from realm_jax.answering.answerer import Answerer
from realm_jax.answering.collection import Collection
from realm_jax.answering.predict import predict
from realm_jax.data.open_qa import OpenQuestions
from realm_jax.data.questions import read_questions
from realm_jax.evaluation.answering import answer_all
from realm_jax.evaluation.queries import questions as queries_of
from tests.answering import made_run, made_world

WRITTEN = {
    "where was Ada Brook born?": "where was Ada Brook born?",
    "  where\twas  Ada\u00a0Brook\nborn? ": "where was Ada Brook born?",
    "where was Ad\x00a Br\x07ook\u2028born\ufeff?": "where was Ada Brook born?",
    "where\u3000was\r\nCleo Dahl\x85born": "where was Cleo Dahl born",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("questions") / "dev.jsonl"
    rows = [{"question": text, "answer": "Oslo"} for text in (*WRITTEN, "\x00 \u3000\x07")]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture
def heard(monkeypatch):
    """What answerers are asked."""
    texts, answer = [], Answerer.answer

    def listen(self, questions, *arguments):
        texts.extend(questions)
        return answer(self, questions, *arguments)

    monkeypatch.setattr(Answerer, "answer", listen)
    return texts


def test_one_text_is_asked_and_the_written_one_kept(file, heard, answerer, corpus, index, params, tmp_path):
    found = read_questions(file)
    assert [question.text for question in found.questions] == list(WRITTEN.values())
    assert [question.as_written for question in found.questions] == list(WRITTEN)
    assert [question.original for question in found.questions] == ["", *list(WRITTEN)[1:]]
    assert found.dropped == {"empty question": 1}

    answer_all(answerer, queries_of(file, corpus, corpus.tokenizer).queries)  # evaluation
    assert heard == list(WRITTEN.values())
    heard.clear()
    run = made_run.make_run(tmp_path / "run", params, corpus)
    task = made_world.task(corpus.directory)
    predict(run_dir=str(run.path), task=task, questions=str(file))
    assert heard == list(WRITTEN.values())
    # scorers look a question up as their own file has it
    rows = [json.loads(line) for line in run.predictions("dev.jsonl").read_text().strip().split("\n")]
    assert [row["question"] for row in rows] == list(WRITTEN)
    heard.clear()
    collection = Collection(answerer, corpus, index)  # the page
    for text in WRITTEN:
        collection.answer(text)
    assert heard == list(WRITTEN.values())


def test_training_reads_the_same_pieces(file, corpus):
    questions = read_questions(file).questions
    batch = OpenQuestions(questions, corpus, query_len=24, seed=0).batch(0, len(questions), slice(0, len(questions)))
    for question, ids in zip(batch.questions, batch.query.ids, strict=True):
        expected = corpus.tokenizer.encode(WRITTEN[question.as_written]).ids
        assert ids[1 : 1 + len(expected)].tolist() == expected.tolist() and not ids[2 + len(expected) :].any()
