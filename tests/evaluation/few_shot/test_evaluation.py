"""The whole evaluation with a model that answers what it is told to: what it is asked, and the figures of what it says."""

import json
import math

import numpy as np
import pytest

from realm_jax.evaluation.few_shot import evaluate_few_shot, few_shot_task
from realm_jax.evaluation.few_shot.evaluation import FEWER, LEFT_OUT, NOT_ASKED, NOT_JUDGED, draw
from tests.evaluation.few_shot.fake_model import FakeModel

RIGHT = {"law": "ABB", "art": "CD"}  # the right letters of each subject's questions


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory):
    root = tmp_path_factory.mktemp("mmlu")
    for part in ("dev", "test"):
        (root / part).mkdir()
        for subject, letters in RIGHT.items():
            rows = [f"{part} {subject} {place}?,w,x,y,z,{letter}\n" for place, letter in enumerate(letters)]
            (root / part / f"{subject}_{part}.csv").write_text("".join(rows))
    return few_shot_task("mmlu", str(root / "test"), str(root / "dev"))


@pytest.fixture(scope="module")
def nq(tmp_path_factory):
    root = tmp_path_factory.mktemp("nq")
    for part, number in (("train", 30), ("dev", 20)):
        rows = [json.dumps({"question": f"{part} {place}", "answer": [f"town {place}"]}) for place in range(number)]
        (root / f"{part}.jsonl").write_text("\n".join(rows))
    return few_shot_task("nq", str(root / "dev.jsonl"), str(root / "train.jsonl"))


def test_choices(mmlu, tmp_path, capsys):
    model = FakeModel(likes=lambda prompt, continuation, query: -0.5 if continuation == " B" else -3.0)
    figures = evaluate_few_shot(model, [mmlu], [0, 2], run_dir=str(tmp_path), name="tiny")
    row = figures["rows"]["mmlu 2-shot"]
    assert row["mean"]["accuracy"] == {
        "mean": pytest.approx(2 / 5),
        "standard_error": pytest.approx(math.sqrt(0.4 * 0.6 / 4)),
        "questions": 5,
    }
    assert row["macro"]["accuracy"]["mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert row["subjects"]["accuracy"]["law"]["questions"] == 3 and row["cut"] == {}
    # every option of every question, with its query
    assert len(model.asked) == 2 * 5 * 4
    assert model.asked[0] == (
        "Question: test art 0?\nA. w\nB. x\nC. y\nD. z\nA:",
        " A",
        "test art 0?\nA. w\nB. x\nC. y\nD. z",
    )
    prompt, continuation, query = model.asked[-1]
    assert continuation == " D" and query.startswith("test law 2?\n")
    assert prompt.startswith("Question: dev law 0?\nA. w\nB. x\nC. y\nD. z\nA: A\n\nQuestion: dev law 1?")
    assert prompt.endswith("\n\nQuestion: test law 2?\nA. w\nB. x\nC. y\nD. z\nA:")
    written = json.loads((tmp_path / "evaluation" / "tiny-few_shot.json").read_text())
    assert written["rows"] == figures["rows"]
    assert written["predictions"]["mmlu 0-shot"][3] == {
        "id": "law-2",
        "question": "test law 1?",
        "subject": "law",
        "answer": ["B"],
        "prediction": "B",
        "log_probs": {"A": -3.0, "B": -0.5, "C": -3.0, "D": -3.0},
        "demonstrations": 0,
        "accuracy": 1.0,
    }
    printed = capsys.readouterr().out
    assert "with retrieved documents" in printed and "mmlu 2-shot |         5 |  40.0 ± 24.5  33.3 ± 16.7" in printed


def test_written_answers(nq, capsys):
    known = {f"dev {place}": f" town {place}." for place in range(10)}
    model = FakeModel(writes=lambda prompt, query: known.get(query, " a town"))
    figures = evaluate_few_shot(model, [nq], [5])
    row = figures["rows"]["nq 5-shot"]
    assert row["mean"]["exact_match"]["mean"] == 0.5
    assert row["mean"]["f1"]["mean"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    prompt, settings, query = model.asked[7]
    assert settings == (32, ("\n",)) and query == "dev 7" and prompt.endswith("\n\nQ: dev 7\nA:")
    assert prompt.count("Q: train") == 5 and prompt.count("\nA: town") == 5
    shared = {asked[0].rpartition("\n\n")[0] for asked in model.asked}
    assert len(shared) == 1  # every question has the same demonstrations
    other = FakeModel()
    evaluate_few_shot(other, [nq], [5], seed=1)
    assert other.asked[0][0].rpartition("\n\n")[0] not in shared
    assert "nq 5-shot |        20 |  50.0 ± 11.5  83.3 ±  3.8" in capsys.readouterr().out


def test_sixty_four_demonstrations(tmp_path):
    for part, number in (("train", 70), ("dev", 3)):
        rows = [json.dumps({"question": f"{part} {place}", "answer": [f"town {place}"]}) for place in range(number)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    task = few_shot_task("nq", str(tmp_path / "dev.jsonl"), str(tmp_path / "train.jsonl"))
    model = FakeModel()
    evaluate_few_shot(model, [task], [64])
    for place, (prompt, _, query) in enumerate(model.asked):
        shown = prompt.split("\n\n")
        assert len(shown) == len(set(shown)) == 65 and shown[-1] == f"Q: dev {place}\nA:" and query == f"dev {place}"
        assert all(
            one.split("\nA: town ")[1] == one.split("\nA: town ")[0].removeprefix("Q: train ") for one in shown[:-1]
        )


def test_without_documents(nq, mmlu, capsys):
    model = FakeModel()
    figures = evaluate_few_shot(model, [nq, mmlu], [0], retrieve=False, max_questions=3)
    assert {query for _, _, query in model.asked} == {None} and len(model.asked) == 3 + 3 * 4
    assert figures["retrieve"] is False and figures["rows"]["nq 0-shot"]["questions"] == 3
    assert "without documents" in capsys.readouterr().out


def test_how_unlikely_references_are(nq, mmlu, tmp_path, capsys):
    likes = lambda prompt, continuation, query: -float(continuation.split()[-1]) if " town" in continuation else -1.0  # noqa: E731
    model = FakeModel(likes=likes)
    row = evaluate_few_shot(model, [nq, mmlu], [0], run_dir=str(tmp_path), reference_nll=True)["rows"]
    assert row["nq 0-shot"]["reference_nll"] == {
        "mean": 9.5,
        "standard_error": pytest.approx(np.std(range(20), ddof=1) / math.sqrt(20)),
        "questions": 20,
    }
    assert "reference_nll" not in row["mmlu 0-shot"]  # of options
    assert model.asked[20] == ("Q: dev 0\nA:", " town 0", "dev 0")
    written = json.loads((tmp_path / "evaluation/model-few_shot.json").read_text())["predictions"]["nq 0-shot"]
    assert [record["reference_nll"] for record in written] == list(range(20))
    assert "nq 0-shot: −log p of the first reference 9.50 ± 1.32 nats" in capsys.readouterr().out


def test_references_without_room_are_counted(tmp_path, capsys):
    long = " ".join(["town"] * 60)
    rows = [{"question": f"dev {place}", "answer": [answer]} for place, answer in enumerate(("town", long))]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = few_shot_task("nq", str(tmp_path / "dev.jsonl"))
    row = evaluate_few_shot(FakeModel(max_length=60), [task], [0], reference_nll=True)["rows"]["nq 0-shot"]
    assert row["cut"] == {NOT_JUDGED: 1} and row["reference_nll"]["questions"] == 1
    assert f"1: {NOT_JUDGED}" in capsys.readouterr().out


def test_the_draw_of_questions(nq):
    asked = draw(nq.examples, 5, 0).examples
    assert len(asked) == 5 and [known for known in nq.examples.examples if known in asked] == list(asked)
    assert draw(nq.examples, 5, 1).examples != asked and draw(nq.examples, 20, 0) is nq.examples


def test_what_does_not_fit_is_counted(nq, capsys):
    # "Q : dev 7 A :" are 6 tokens, a demonstration one or two more for its answer; with the beginning and the answer 6 + 1 + 32
    model = FakeModel(max_length=6 + 1 + 32 + 3 * 8, writes=lambda prompt, query: " town 3")
    cut = evaluate_few_shot(model, [nq], [5])["rows"]["nq 5-shot"]["cut"]
    assert cut == {FEWER: 20, LEFT_OUT: 40}
    assert {prompt.count("Q: train") for prompt, _, _ in model.asked} == {3}
    assert f"nq 5-shot: 20: {FEWER}; 40: {LEFT_OUT}" in capsys.readouterr().out
    model = FakeModel(max_length=38)
    row = evaluate_few_shot(model, [nq], [0])["rows"]["nq 0-shot"]
    assert row["cut"] == {NOT_ASKED: 20} and model.asked == [] and row["mean"]["f1"]["mean"] == 0.0


def test_what_the_model_cuts_is_counted_row_by_row(tmp_path):
    rows = [{"claim": claim, "label": "SUPPORTS"} for claim in ("long", "short", "also short")]
    (tmp_path / "claims.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = few_shot_task("fever", str(tmp_path / "claims.jsonl"), str(tmp_path / "claims.jsonl"))
    model = FakeModel()
    model.counts["backgrounds cut"] = 7  # of what it was asked before
    rows = evaluate_few_shot(model, [task], [0, 1])["rows"]
    assert [row["cut"] for row in rows.values()] == [{"backgrounds cut": 2}] * 2  # once an option


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": [0, 0]}, "different numbers of shots"),
        ({"shots": []}, "expected tasks of different names"),
        ({"shots": [-1]}, "expected tasks of different names"),
        ({"max_questions": 0}, "max_questions of at least 1"),
        ({"shots": [31]}, "at least 31 examples to demonstrate nq with, got 30"),
    ],
)
def test_what_is_refused(nq, changes, message):
    model = FakeModel()
    with pytest.raises(ValueError, match=message):
        evaluate_few_shot(model, [nq], **changes)
    with pytest.raises(ValueError, match="give each task once"):
        evaluate_few_shot(model, [nq, nq], [0])
    assert model.asked == []


def test_a_likelihood_that_is_no_number(mmlu):
    with pytest.raises(ValueError, match="expected 20 log-likelihoods of mmlu, got 20, of which 15 are numbers"):
        evaluate_few_shot(
            FakeModel(likes=lambda prompt, word, query: float("nan") if word == " C" else -1.0), [mmlu], [0]
        )
