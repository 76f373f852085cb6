"""A RAG that was trained through the job is asked through the jobs: evaluate, predict, and the refusals before them."""

import dataclasses
import json
import shutil

import pytest

from realm_jax.answering.loading import load_answerer
from realm_jax.answering.predict import predict
from realm_jax.corpus.writer import make_corpus
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.generation import GenerationConfig
from realm_jax.run_dir import RunDir
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import tiny

NUM_QUESTIONS = 6


def trained(root, name, task):
    train(
        run_dir=str(root / name),
        task=task,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        num_steps=2,
        batch_size=8,
        dropout=False,
        refresh=RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0),
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("rag")
    corpus = make_corpus(root / "corpus", tiny.blocks(), tiny.tokenizer())
    questions = tiny.questions_file(root / "questions.jsonl")
    task = tiny.rag(
        corpus.directory, questions, marginal="token", generation=GenerationConfig(num_beams=2, max_length=6)
    )
    trained(root, "run", task)
    return root, task


def run_job(places, **changes):
    root, task = places
    settings = {
        "run_dir": str(root / "run"),
        "corpus": str(root / "corpus"),
        "retriever": task.retriever,
        "questions": str(root / "questions.jsonl"),
        "answering": task,
        "query_len": task.query_len,
        "document_len": task.document_len,
        "batch_size": 8,
        "max_queries": NUM_QUESTIONS,
    } | changes
    return evaluate(**settings)


def test_answers_are_scored_as_texts_too(places, capsys):
    root, task = places
    figures = run_job(places, name="dev", answer_texts=True)["answers"]
    assert list(figures["rows"]) == ["rag", "bm25", "closed_book", "nearest_question"]
    for row in figures["rows"].values():
        assert row["questions"] == NUM_QUESTIONS and 0 <= row["rouge_l"] <= 1 and 0 <= row["bleu"] <= 1
    assert figures["rows"]["nearest_question"]["rouge_l"] == 1.0  # all are training questions
    assert figures["rows"]["rag"]["version"] == 0
    assert "RougeL" in capsys.readouterr().out
    written = json.loads(RunDir.of(root / "run").evaluation("dev-answers").read_text())["predictions"]
    answerer = load_answerer(RunDir.of(root / "run"), task).answerer
    expected = [answer.text for answer in answerer.answer([row["question"] for row in written])]
    assert [row["prediction"] for row in written] == expected


@pytest.mark.slow
def test_claims_are_judged_by_writing_their_label(places):
    """FEVER's records go through training and evaluation; exact match is how often the label was written."""
    root, task = places
    labels = ["rome", "oslo"]  # in the words of this small corpus, whose tokenizer knows no others
    claims = [
        {"id": number, "claim": f"ann lived in {label}", "label": label} for number, label in enumerate(labels * 4)
    ]
    (root / "fever.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
    judging = dataclasses.replace(task, questions=str(root / "fever.jsonl"))
    train(
        run_dir=str(root / "fever"),
        task=judging,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        num_steps=60,
        batch_size=8,
        dropout=False,
        refresh=RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0),
        warm_start=(str(root / "run"),),
    )
    asked = {"run_dir": str(root / "fever"), "answering": judging, "questions": str(root / "fever.jsonl")}
    figures = run_job(places, **asked, name="fever", bm25=False, max_queries=None)["answers"]
    written = json.loads(RunDir.of(root / "fever").evaluation("fever-answers").read_text())["predictions"]
    assert [row["answer"] for row in written] == [[label] for label in labels * 4]
    assert figures["rows"]["rag"]["exact_match"] == 1.0  # it has learned which claim is of which label
    assert {row["prediction"] for row in written} == set(labels)


def test_predict_says_where_an_answer_comes_from(places, capsys):
    root, task = places
    predict(
        run_dir=str(root / "run"),
        task=task,
        questions="ada 1901 lived in?",
        output=str(root / "out.jsonl"),
        explain=True,
    )
    shown = capsys.readouterr().out
    assert "p(z|x)  and p(z|x,y)" in shown and shown.count(" score ") == task.num_documents


def test_a_generator_without_documents(places):
    root, task = places
    alone = dataclasses.replace(task, num_documents=0)
    trained(root, "alone", alone)
    found = run_job(places, run_dir=str(root / "alone"), answering=alone, retriever=None, bm25=True, name="alone")
    assert list(found["answers"]["rows"]) == ["rag"] and found["answers"]["rows"]["rag"]["questions"] == NUM_QUESTIONS
    with pytest.raises(ValueError, match=r"evaluate\.retriever must be None for a generator without documents"):
        run_job(places, run_dir=str(root / "alone"), answering=alone)
    with pytest.raises(ValueError, match="a generator without retrieval has no index to answer from"):
        predict(run_dir=str(root / "alone"), task=alone, questions="who?")
    with pytest.raises(ValueError, match="has trained generator, expected a retriever and a generator"):
        run_job(places, run_dir=str(root / "alone"))


def test_a_generator_of_other_pieces_is_refused(places):
    """A corpus of the same words in another order: as many pieces, and each another word."""
    root, task = places
    words = list(tiny.WORDS)
    other = make_corpus(root / "other", tiny.blocks(), tiny.tokenizer([*words[1:], words[0]]))
    alone = dataclasses.replace(task, num_documents=0, corpus=str(other.directory))
    shutil.copytree(root / "run", root / "copy")
    with pytest.raises(ValueError, match="was trained on the pieces of tokenizer"):
        run_job(places, run_dir=str(root / "copy"), answering=alone, retriever=None, corpus=str(other.directory))
