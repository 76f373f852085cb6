"""lm-evaluation-harness asks the model: a task of each kind from local files, what the retriever is asked, what is cut.

`make lm-eval` runs them; without lm_eval all but the first are skipped.
"""

import importlib
import json
import os
import sys

import pytest

from tests.evaluation.few_shot.fake_model import FakeModel

NAME = "realm_jax.evaluation.lm_eval_adapter"


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(
        ImportError, match=r"need lm_eval, which cannot be imported .*: pip install 'realm_jax\[lm-eval\]'"
    ):
        importlib.import_module(NAME)


@pytest.fixture(scope="module")
def adapter():
    if not os.environ.get("REALM_JAX_LM_EVAL"):  # make lm-eval sets it: there lm_eval was to be there
        pytest.importorskip("lm_eval")
    return importlib.import_module(NAME)


@pytest.fixture
def instances(adapter):
    from lm_eval.api.instance import Instance

    def of(*arguments, kind="loglikelihood"):
        return [Instance(kind, {}, argument, place) for place, argument in enumerate(arguments)]

    return of


CHOICES = """
task: towns
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/towns.jsonl", train: "{place}/train.jsonl"}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
WRITTEN = """
task: written_towns
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/towns.jsonl"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 7{more}}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: rolling_towns
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/towns.jsonl"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture
def tasks(tmp_path):
    rows = [
        {"question": f"Where is town {place}?", "choices": ["north", "south"], "answer": place % 2}
        for place in range(6)
    ]
    for name, part in (("towns", rows), ("train", [row | {"question": "Where?"} for row in rows[:1]] * 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, text in (("choices", CHOICES), ("written", WRITTEN), ("rolling", ROLLING)):
        (tmp_path / f"{name}.yaml").write_text(text.format(place=tmp_path, more=""))
    text = WRITTEN.replace("written_towns", "sampled_towns").format(place=tmp_path, more=", temperature: 0.7")
    (tmp_path / "sampled.yaml").write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_tasks_of_every_kind(adapter, tasks, tmp_path, capsys):
    model = FakeModel(
        likes=lambda prompt, continuation, query: -1.0 if continuation == " south" else -2.0,
        writes=lambda prompt, query: "north. And so on" if query.endswith("town 2?\nA:") else "south\nQ:",
    )
    figures = adapter.evaluate_lm_eval(
        model,
        ["towns", "written_towns", "rolling_towns"],
        run_dir=str(tmp_path / "run"),
        name="tiny",
        include_path=str(tasks),
    )
    results = figures["results"]
    assert results["towns"]["acc,none"] == 0.5
    assert results["written_towns"]["exact_match,none"] == pytest.approx(4 / 6)  # towns 1, 3 and 5, and town 2
    assert results["rolling_towns"]["word_perplexity,none"] == pytest.approx(2.718281828)  # the fake's −1 a word
    assert json.loads((tmp_path / "run" / "evaluation" / "tiny-lm_eval.json").read_text()) == figures
    assert figures["cut"] == {} and "written_towns" in capsys.readouterr().out
    asked = [(prompt, continuation) for prompt, continuation, _ in model.asked if isinstance(continuation, str)]
    assert len(asked) == 12 and asked[:2] == [
        ("Question: Where is town 0?\nAnswer:", f" {word}") for word in ("north", "south")
    ]
    assert {settings for _, settings, _ in model.asked if isinstance(settings, tuple)} == {(7, ("\n", "."))}
    queries = {query for _, continuation, query in model.asked if isinstance(continuation, str)}
    assert queries == {f"Question: Where is town {place}?\nAnswer:" for place in range(6)}
    assert {query for prompt, continuation, query in model.asked if continuation is None} == {None}


def test_demonstrations_are_no_query(adapter, tasks):
    model = FakeModel()
    adapter.evaluate_lm_eval(model, ["towns"], include_path=str(tasks), num_fewshot=2, limit=1)
    prompt, _, query = model.asked[0]
    assert prompt == "Question: Where?\nAnswer: north\n\n" * 2 + "Question: Where is town 0?\nAnswer:"
    assert query == "Question: Where is town 0?\nAnswer:"
    model = FakeModel()
    # one question has no standard error, and JSON no word for that
    figures = adapter.evaluate_lm_eval(
        model, ["towns"], include_path=str(tasks), limit=1, query=None, run_dir=str(tasks / "run")
    )
    assert [query for _, _, query in model.asked] == [None, None] and figures["retrieve"] is False


def test_what_is_refused(adapter, tasks):
    model = FakeModel()
    with pytest.raises(ValueError, match=r"names of tasks or groups that lm_eval has, got \['villages'\]"):
        adapter.evaluate_lm_eval(model, ["villages"], include_path=str(tasks))
    with pytest.raises(ValueError, match=r"decodes greedily, got .*0.7.*do_sample=False"):
        adapter.evaluate_lm_eval(model, ["sampled_towns"], include_path=str(tasks))
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        adapter.LmEvalAdapter(model, batch_size=0)
    assert model.asked == []
    adapter.evaluate_lm_eval(
        model, ["sampled_towns"], include_path=str(tasks), gen_kwargs={"do_sample": False}, limit=2
    )
    assert len(model.asked) == 2


def test_the_last_block(adapter):
    assert adapter.last_block("one\n\ntwo\nthree\n \n  \n") == "two\nthree"
    assert adapter.last_block("alone") == "alone" and adapter.last_block(" \n\n") == ""


def test_requests_without_a_query_are_asked_without_documents(adapter, instances):
    model = FakeModel(likes=lambda prompt, continuation, query: -float(len(prompt + continuation)))
    lm = adapter.LmEvalAdapter(model, query=lambda context: context[:3], batch_size=2)
    requests = instances(("", " ann"), ("bob ", "cem"), ("dan", " eva"), ("", " fay"), ("gus", " hal"))
    # in their order; the space of the second goes to the continuation
    assert lm.loglikelihood(requests) == [(-4.0, False), (-7.0, False), (-7.0, False), (-4.0, False), (-7.0, False)]
    assert ("bob", " cem", "bob") in model.asked and ("", " fay", "") in model.asked
    assert adapter.LmEvalAdapter(FakeModel()).loglikelihood(instances(("ann", " bob"))) == [(-1.0, False)]
    certain = FakeModel(likes=lambda *_: 0.0)
    assert adapter.LmEvalAdapter(certain).loglikelihood(instances(("ann", " bob"))) == [(0.0, True)]


def test_long_contexts_lose_their_beginning(adapter, instances):
    model = FakeModel(max_length=5)
    lm = adapter.LmEvalAdapter(model)
    lm.loglikelihood(
        instances(("ann bob cem dan", " eva"), ("ann bob", " cem dan"), ("ann bob cem", " dan eva fay gus"))
    )
    assert [(prompt.strip(), continuation) for prompt, continuation, _ in model.asked] == [
        ("bob cem dan", " eva"),
        ("ann bob", " cem dan"),
        ("", " dan eva fay gus"),
    ]
    assert model.asked[0][2] == "ann bob cem dan"  # the retriever is asked as if nothing were cut
    assert lm.counts == {adapter.CUT: 2}
    lm.generate_until(instances(("ann bob cem", {"until": ".", "max_gen_toks": 3}), kind="generate_until"))
    assert model.asked[-1][:2] == ("cem", (3, (".",))) and lm.counts == {adapter.CUT: 3}
    with pytest.raises(ValueError, match="fits into the model's 5 positions, got one with 1 tokens too many"):
        lm.loglikelihood(instances(("ann", " ann bob cem dan eva")))
    with pytest.raises(ValueError, match="got one with 252 tokens too many"):  # 256 where the task names none
        lm.generate_until(instances(("ann", {"until": ["."]}), kind="generate_until"))
