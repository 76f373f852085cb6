"""lm-evaluation-harness asks the model: a task of each kind from local files, what the retriever is asked, what is cut.

`make lm-eval` runs them. Without lm_eval those that need no more of it than the classes that the adapter is made of run on stand-ins for
these, and the others are skipped.
"""

import importlib
import importlib.util
import json
import os
import sys
import types

import numpy as np
import pytest

from realm_jax.answering.prompted import PROMPT_CUT
from tests import tiny
from tests.answering.made_ensemble import greedy, log_prob, made_model, made_parts
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
    return requests_of


class Instance:
    """A request, where lm_eval's own is not there."""

    def __init__(self, request_type, doc, arguments, idx):
        self.args = arguments


class LM:
    """What a model of lm_eval's begins with, where that is not there."""

    def __init__(self):
        self.cache_hook = types.SimpleNamespace(add_partial=lambda kind, arguments, value: None)


@pytest.fixture
def adapter_alone(monkeypatch):
    """The module of the adapter, with or without lm_eval."""
    if os.environ.get("REALM_JAX_LM_EVAL") or importlib.util.find_spec("lm_eval"):
        yield importlib.import_module(NAME)
        return
    for name, content in {
        "lm_eval": {"simple_evaluate": None},
        "lm_eval.api": {},
        "lm_eval.api.instance": {"Instance": Instance},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.tasks": {"TaskManager": None},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    del sys.modules[NAME]  # no other test finds one that is made of stand-ins


def requests_of(*arguments, kind="loglikelihood"):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, place) for place, argument in enumerate(arguments)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return made_parts(tmp_path_factory.mktemp("parts"))


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
        {"question": f"Where is town {place}?", "choices": ["oslo", "rome"], "answer": place % 2} for place in range(6)
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
        likes=lambda prompt, continuation, query: -1.0 if continuation == " rome" else -2.0,
        writes=lambda prompt, query: "oslo. And so on" if query.endswith("town 2?\nA:") else "rome\nQ:",
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
        ("Question: Where is town 0?\nAnswer:", f" {word}") for word in ("oslo", "rome")
    ]
    assert {settings for _, settings, _ in model.asked if isinstance(settings, tuple)} == {(7, ("\n", "."))}
    queries = {query for _, continuation, query in model.asked if isinstance(continuation, str)}
    assert queries == {f"Question: Where is town {place}?\nAnswer:" for place in range(6)}
    assert {query for prompt, continuation, query in model.asked if continuation is None} == {None}


def test_demonstrations_are_no_query(adapter, tasks):
    model = FakeModel()
    adapter.evaluate_lm_eval(model, ["towns"], include_path=str(tasks), num_fewshot=2, limit=1)
    prompt, _, query = model.asked[0]
    assert prompt == "Question: Where?\nAnswer: oslo\n\n" * 2 + "Question: Where is town 0?\nAnswer:"
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


def words(count, first=0):
    """A text of so many tokens."""
    return " ".join(tiny.NAMES[(first + place) % 7] for place in range(count))


def test_a_real_model_judges_up_to_its_last_position(adapter_alone, parts):
    model = made_model(parts)
    lm = adapter_alone.LmEvalAdapter(model)
    bos, (ids, others) = (
        parts.tokenizer.bos_id,
        (parts.tokenizer.encode(words(90, first)).ids.tolist() for first in (0, 3)),
    )
    whole, filling, cut, fitting = lm.loglikelihood(
        requests_of(
            ("bob lived in", f" {words(63)}"),  # nothing stands before it
            ("", f" {words(63)}"),
            (words(90, 3), f" {words(3)}"),  # sixty tokens are left of ninety
            (words(60, 3), f" {words(3)}"),  # and here none is lost
        )
    )
    expected = log_prob(parts, [bos], ids[:63])
    assert whole == filling == (pytest.approx(expected, abs=1e-3), False)
    assert cut[0] == pytest.approx(log_prob(parts, [bos, *others[30:]], ids[:3]), abs=1e-3)
    assert fitting[0] == pytest.approx(log_prob(parts, [bos, *others[:60]], ids[:3]), abs=1e-3)
    assert all(type(score) is float and type(is_greedy) is bool for score, is_greedy in (whole, cut, fitting))
    # the adapter cuts as much as is needed: it leaves nothing for the model to cut but documents
    assert lm.counts == {adapter_alone.CUT: 2} and model.counts[PROMPT_CUT] == 0
    with pytest.raises(ValueError, match="fits into the model's 64 positions, got one with 1 tokens too many"):
        lm.loglikelihood(requests_of(("bob", f" {words(64)}")))


def test_a_real_model_reads_whole_texts(adapter_alone, parts):
    lm = adapter_alone.LmEvalAdapter(made_model(parts))
    bos, ids = parts.tokenizer.bos_id, parts.tokenizer.encode(words(64)).ids.tolist()
    found = lm.loglikelihood_rolling(requests_of((words(63),), (words(64),), kind="loglikelihood_rolling"))
    filled = log_prob(parts, [bos], ids[:63])
    # the last token of the second is judged in a window of its own, after those before it
    assert found == pytest.approx([filled, filled + log_prob(parts, [bos, *ids[1:63]], ids[63:])], abs=1e-3)


def test_a_real_model_writes_up_to_its_last_position(adapter_alone, parts):
    model = made_model(parts, num_documents=1)
    lm = adapter_alone.LmEvalAdapter(model)
    expected = parts.tokenizer.decode(greedy(parts, [parts.tokenizer.bos_id], 63))
    asked = {"until": ["nowhere"], "max_gen_toks": 63}
    assert lm.generate_until(requests_of(("bob lived in", asked), kind="generate_until")) == [expected]
    assert lm.counts == {adapter_alone.CUT: 1} and model.counts[PROMPT_CUT] == 0
    with pytest.raises(ValueError, match="got one with 1 tokens too many; ask for fewer"):
        lm.generate_until(requests_of(("bob", asked | {"max_gen_toks": 64}), kind="generate_until"))


def test_a_real_model_on_tasks_of_every_kind(adapter, tasks, parts):
    model = made_model(parts)
    names = ["towns", "written_towns", "rolling_towns"]
    figures = adapter.evaluate_lm_eval(
        model, names, include_path=str(tasks), gen_kwargs={"max_gen_toks": 63, "until": ["nowhere"]}
    )
    assert {name: sizes["effective"] for name, sizes in figures["n-samples"].items()} == dict.fromkeys(names, 6)
    questions = [f"Where is town {place}?" for place in range(6)]
    nll = -sum(model.rolling_log_likelihoods(questions))
    perplexity = np.exp(nll / sum(len(question.split()) for question in questions))
    assert figures["results"]["rolling_towns"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-3)
    right = []
    for place, question in enumerate(questions):
        asked = [f"Question: {question}\nAnswer:"] * 2
        scored = model.log_likelihoods(asked, [" oslo", " rome"], asked)
        right.append(int(np.argmax([one.log_prob for one in scored])) == place % 2)
    assert figures["results"]["towns"]["acc,none"] == pytest.approx(np.mean(right))
    assert figures["cut"][adapter.CUT] == 6  # before 63 tokens that are written there is room for nothing
