"""Answers of a fine-tuned run are scored as the official scorers do, in the job as by hand."""

import json
import shutil

import numpy as np
import pytest

from realm_jax.answering.loading import load_answerer
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.questions import Question, read_questions
from realm_jax.evaluation.answering import answering_table, score
from realm_jax.evaluation.bm25 import Bm25Index
from realm_jax.evaluation.queries import texts_for_search
from realm_jax.evaluation.retrieval import evaluate
from realm_jax.retrieval.embedder import Embedder
from realm_jax.run_dir import RunDir
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import tiny


def test_scores_by_hand():
    questions = [
        Question("a?", ("the Oslo fjord", "Oslo")),
        Question("b?", ("Rome",)),
        Question("c?", (r"19\d\d",), is_regex=True),
        Question("d?", (r"19\d\d",), is_regex=True),
    ]
    found = score(["Oslo", "in Rome", "1904 or so", "in 1904"], questions)
    assert found.questions == 4 and found.exact_match == 0.5  # a and c: a pattern matches from the beginning
    assert found.f1 == pytest.approx((1.0 + 2 / 3) / 2)  # of a and b alone
    assert score(["1904"], questions[2:3]).f1 is None
    with pytest.raises(ValueError, match="no questions to score"):
        score([], [])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("answering")
    corpus = make_corpus(root / "corpus", tiny.blocks(), tiny.tokenizer())
    task = tiny.open_qa(corpus.directory, tiny.questions_file(root / "questions.jsonl"))
    train(
        run_dir=str(root / "run"),
        task=task,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        num_steps=4,
        batch_size=8,
        dropout=False,
        refresh=RefreshConfig(mode="frozen", embedder="in_trainer", timeout_secs=120.0),
    )
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
    } | changes
    return evaluate(**settings)


def test_the_job_scores_the_answers_it_writes(places, capsys):
    root, _ = places
    figures = run_job(places, name="dev", max_queries=12)["answers"]
    written = json.loads(RunDir.of(root / "run").evaluation("dev-answers").read_text())
    assert {name: written[name] for name in figures} == figures
    ours = figures["rows"]["open_qa"]
    assert ours["version"] == 0 and 0.9 <= ours["search_recall"] <= 1.0 and figures["step"] == 4
    predictions = written["predictions"]
    assert len(predictions) == figures["rows"]["open_qa"]["questions"] == 12
    right = np.mean(
        [row["prediction"] in row["answer"] for row in predictions]
    )  # words of one piece: nothing to normalise
    assert figures["rows"]["open_qa"]["exact_match"] == pytest.approx(right)
    assert all(len(row["prediction"].split()) <= 3 and row["prediction"] for row in predictions)
    assert figures["rows"]["closed_book"]["exact_match"] == 0.0
    # every question asked is a training question here, so that it is its own nearest one
    assert figures["rows"]["nearest_question"]["exact_match"] == 1.0
    shown = capsys.readouterr().out
    assert "12 questions answered" in shown and "nearest_question |  100.0  100.0" in shown
    # how often the documents found hold an answer stands beside the answers: of the retriever's, and of BM25's
    found = run_job(places, name="dev", max_queries=12)["rows"]
    for row, searched in (("open_qa", "served_index"), ("bm25", "bm25")):
        for figure in ("answer_recall_at_1", "answer_recall_at_5", "answer_recall_at_20"):
            assert figures["rows"][row][figure] == found[searched][figure]


def test_predictions_know_a_question_as_its_source_writes_it(places):
    root, _ = places
    rows = [json.loads(line) for line in (root / "questions.jsonl").read_text().splitlines()[:3]]
    spread = [f"  {row['question'].replace(' ', chr(9) + ' ')}\n" for row in rows]
    odd = root / "odd.jsonl"
    odd.write_text("".join(json.dumps(row | {"question": text}) + "\n" for row, text in zip(rows, spread, strict=True)))
    plain = root / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = {}
    for source in (odd, plain):
        run_job(places, name=source.stem, questions=str(source))
        written = json.loads(RunDir.of(root / "run").evaluation(f"{source.stem}-answers").read_text())["predictions"]
        predictions[source] = {row["question"]: row["prediction"] for row in written}
    assert list(predictions[odd]) == spread  # and is answered as if it stood on one line
    assert list(predictions[odd].values()) == list(predictions[plain].values())


def test_bm25s_row_is_the_reader_over_the_documents_of_bm25(places):
    root, task = places
    rows = run_job(places, name="dev")["answers"]["rows"]
    corpus = Corpus.open(root / "corpus")
    run = RunDir.of(root / "run")
    answerer = load_answerer(run, task).answerer
    questions = read_questions(root / "questions.jsonl").questions
    words = Bm25Index(texts_for_search(corpus))
    ids = words.search([question.text for question in questions], task.num_read).ids
    right = []
    for question, documents in zip(questions, ids, strict=True):
        (answer,) = answerer.answer([question.text], lambda texts, num_read, documents=documents: documents[None])
        assert {found.document for found in answer.documents} == {-1, *documents[documents >= 0].tolist()}
        right.append(answer.text in question.answers)
    assert rows["bm25"]["exact_match"] == pytest.approx(np.mean(right))
    others = [answer.text in question.answers for question, answer in
              zip(questions, answerer.answer([question.text for question in questions]), strict=True)]  # fmt: skip
    assert rows["open_qa"]["exact_match"] == pytest.approx(np.mean(others))
    assert right != others, "the two rows could be swapped unseen"


def test_what_cannot_be_answered_with_is_refused_first(places):
    root, _ = places
    with pytest.raises(ValueError, match=r"evaluate.answering expects questions, got sentences to mask"):
        run_job(places, questions=None, x_corpus=str(root / "corpus"))
    with pytest.raises(ValueError, match=r"evaluate.retriever and the retriever of evaluate.answering differ"):
        run_job(places, retriever=tiny.retriever())
    (root / "bare.jsonl").write_text('{"question": "who", "answer": []}\n')
    with pytest.raises(ValueError, match="no question of retrieval has an answer to compare with"):
        run_job(places, questions=str(root / "bare.jsonl"), bm25=False)


def test_the_served_index_alone_needs_no_embedding(places, monkeypatch):
    """With a frozen document side it holds what embedding afresh would make."""
    root, _ = places
    expected = run_job(places, name="dev", max_queries=12)
    monkeypatch.setattr(Embedder, "embed_corpus", lambda *_: pytest.fail("documents were embedded"))
    found = run_job(places, name="dev", max_queries=12, afresh=False)
    assert sorted(found["rows"]) == ["bm25", "served_index"]
    assert found["rows"]["served_index"] == expected["rows"]["served_index"]
    assert found["answers"]["rows"] == expected["answers"]["rows"]
    shutil.copytree(root / "run", root / "no_index", ignore=shutil.ignore_patterns("index"))
    with pytest.raises(
        ValueError, match=r"evaluate.afresh=False measures the index that a run serves, but .*no version"
    ):
        run_job(places, run_dir=str(root / "no_index"), afresh=False)


def test_documents_that_a_run_has_never_seen(places, monkeypatch):
    """Another corpus is searched afresh: the served index is of the run's own, and is left alone."""
    root, _ = places
    fewer = make_corpus(root / "fewer", tiny.blocks()[:-2], tiny.tokenizer())
    with pytest.raises(ValueError, match="corpus"):
        run_job(places, corpus=str(fewer.directory), name="other")
    found = run_job(places, corpus=str(fewer.directory), name="other", served=False)
    assert sorted(found["rows"]) == ["bm25", "checkpoint"]
    own = run_job(places, name="own", served=False)
    assert found["corpus"]["documents"] == own["corpus"]["documents"] - 2
    assert "version" not in own["answers"]["rows"]["open_qa"]
    assert own["answers"]["rows"]["open_qa"]["exact_match"] == run_job(places, name="own")["answers"]["rows"]["open_qa"]["exact_match"]  # fmt: skip
    with pytest.raises(ValueError, match="both False"):
        run_job(places, afresh=False, served=False)


def test_the_table_leaves_out_what_is_not_known():
    known = {"answer_recall_at_1": 0.25, "answer_recall_at_5": 0.5, "answer_recall_at_20": 1.0}
    rows = {
        "open_qa": {"questions": 2, "exact_match": 0.5, "f1": None, **known, "version": 40, "search_recall": 0.97},
        "closed_book": {"questions": 2, "exact_match": 0.0, "f1": 0.125},
    }
    assert answering_table(rows).splitlines() == [
        "2 questions answered",
        "            |     EM     F1 |    R@1    R@5   R@20 | index search recall",
        "open_qa     |   50.0        |   25.0   50.0  100.0 |    40          97.0",
        "closed_book |    0.0   12.5 |                      |",
    ]
    of_no_index = {"open_qa": {"questions": 2, "exact_match": 0.5, "f1": 1.0, **known}}
    assert answering_table(of_no_index).splitlines()[-1] == "open_qa |   50.0  100.0 |   25.0   50.0  100.0 |  none"
