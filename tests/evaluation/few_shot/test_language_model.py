"""The evaluation of a real, tiny language model: its choices and answers are those of its own logits."""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.evaluation.few_shot import evaluate_few_shot, few_shot_task
from realm_jax.models import LanguageModel
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from tests import tiny


class Scored(NamedTuple):
    log_prob: float
    is_greedy: bool
    num_tokens: int


class WithoutDocuments:
    """A language model as the evaluation asks one, which retrieves nothing."""

    def __init__(self):
        self.tokenizer = as_generator_tokenizer(tiny.tokenizer())
        self.config = dataclasses.replace(tiny.language_model(), vocab_size=self.tokenizer.vocab_size)
        ids = jnp.zeros((1, 8), jnp.int32)
        self.params = jax.jit(LanguageModel(self.config).init)(jax.random.key(1), ids, jnp.ones_like(ids))["params"]
        self.apply = jax.jit(LanguageModel(self.config).apply)
        self.max_length, self.counts = self.config.max_length, {}

    def ids(self, text):
        return np.concatenate([[self.tokenizer.bos_id], self.tokenizer.encode(text).ids]).astype(np.int32)

    def logits(self, ids):
        """Of each position, at a fixed length so that it is compiled once."""
        padded = np.zeros((1, self.max_length), np.int32)
        padded[0, : len(ids)] = ids
        there = (np.arange(self.max_length)[None] < len(ids)).astype(np.int32)
        found = self.apply({"params": self.params}, jnp.asarray(padded), jnp.asarray(there))
        return np.asarray(found)[0, : len(ids)]

    def log_likelihoods(self, prompts, continuations, queries=None):
        rows = [Continuation(self.ids(p), self.ids(c)[1:]) for p, c in zip(prompts, continuations, strict=True)]
        judged = LikelihoodJudge(self.config, self.params).judge(rows)
        return [
            Scored(float(score), bool(greedy), len(row.continuation))
            for score, greedy, row in zip(judged.log_probs, judged.is_greedy, rows, strict=True)
        ]

    def generate(self, prompts, queries=None, *, max_tokens, stop=()):
        texts = []
        for prompt in prompts:
            ids = self.ids(prompt)
            for _ in range(max_tokens):
                ids = np.append(ids, self.logits(ids)[-1].argmax()).astype(np.int32)
            texts.append(self.tokenizer.decode(ids[-max_tokens:]))
        return texts

    def rolling_log_likelihoods(self, texts):
        raise AssertionError("no task of this evaluation asks for it")


@pytest.fixture(scope="module")
def model():
    return WithoutDocuments()


def test_choices_are_those_of_the_logits(model, tmp_path):
    names, towns = tiny.NAMES, tiny.TOWNS
    rows = [
        {"claim": f"{name} was born in {towns[place % len(towns)]} .", "label": ("SUPPORTS", "REFUTES")[place % 2]}
        for place, name in enumerate(names)
    ]
    (tmp_path / "claims.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.toml").write_text(
        '[claims]\nprompt = "{question}"\nquery = "{question}"\nanswers = "choice"\nmetrics = ["accuracy"]\n'
        'labels = { SUPPORTS = "often", REFUTES = "then so" }\n'
    )
    file = str(tmp_path / "claims.jsonl")
    task = few_shot_task("claims", file, file, templates=tmp_path / "own.toml")
    evaluate_few_shot(model, [task], [0, 2], run_dir=str(tmp_path), retrieve=False)
    written = json.loads((tmp_path / "evaluation" / "model-few_shot.json").read_text())
    right = []
    for row, record in zip(rows, written["predictions"]["claims 0-shot"], strict=True):
        scores = {}
        for word in ("often", "then so"):
            prompt, whole = model.ids(row["claim"]), model.ids(f"{row['claim']} {word}")
            logits = model.logits(whole).astype(np.float64)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            scores[word] = float(sum(log_probs[place - 1, whole[place]] for place in range(len(prompt), len(whole))))
        assert record["log_probs"] == pytest.approx(scores, abs=1e-4)
        assert record["prediction"] == max(scores, key=scores.__getitem__)
        right.append(record["prediction"] == {"SUPPORTS": "often", "REFUTES": "then so"}[row["label"]])
    assert written["rows"]["claims 0-shot"]["mean"]["accuracy"]["mean"] == pytest.approx(np.mean(right))
    shown = written["predictions"]["claims 2-shot"]
    assert [record["demonstrations"] for record in shown] == [2] * len(rows)
    assert all(
        one["log_probs"] != other["log_probs"]
        for one, other in zip(shown, written["predictions"]["claims 0-shot"], strict=True)
    )


def test_written_answers_are_the_likeliest_tokens(model, tmp_path):
    ids = model.ids("ann lived in")
    for _ in range(2):
        ids = np.append(ids, model.logits(ids)[-1].argmax()).astype(np.int32)
    answer = model.tokenizer.decode(ids[-2:])
    rows = [
        {"question": "ann lived in", "answer": [answer]},
        {"question": "bob lived in", "answer": ["nowhere at all"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.toml").write_text(
        '[lives]\nprompt = "{question}"\nquery = "{question}"\nanswers = "text"\nmetrics = ["exact_match"]\nmax_tokens = 2\n'
    )
    task = few_shot_task("lives", str(tmp_path / "questions.jsonl"), templates=tmp_path / "own.toml")
    row = evaluate_few_shot(model, [task], [0])["rows"]["lives 0-shot"]
    assert row["mean"]["exact_match"]["mean"] == 0.5
