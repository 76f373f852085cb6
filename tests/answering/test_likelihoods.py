"""Continuations that share their context are judged as each by itself, and the context is read once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.answering import likelihoods
from realm_jax.answering.likelihoods import Continuation, LikelihoodJudge
from realm_jax.models import LanguageModel
from realm_jax.training.sharding import MeshConfig
from tests import tiny

TOLERANCE = 2e-4  # of sums of log-probabilities about 20, added in other orders
RNG = np.random.default_rng(0)


def some(size: int) -> np.ndarray:
    return RNG.integers(3, 64, size).astype(np.int32)


@pytest.fixture(scope="module")
def made():
    config = tiny.language_model()
    ids = jnp.ones((1, 8), jnp.int32)
    return config, jax.jit(LanguageModel(config).init)(jax.random.key(0), ids, ids)["params"]


@pytest.fixture(scope="module")
def judge(made):
    return LikelihoodJudge(*made)


@functools.lru_cache
def reader(config):
    return jax.jit(LanguageModel(config).apply)


def by_itself(made, row):
    """log p of the continuation and whether it is greedy, by the whole model over context and continuation."""
    config, params = made
    whole, length = np.concatenate(row), sum(map(len, row))
    ids = np.pad(whole, (0, config.max_length - length))[None]
    there = (np.arange(config.max_length) < length).astype(np.int32)[None]
    logits = np.asarray(reader(config)({"params": params}, ids, there))[0].astype(np.float64)
    at = logits[len(row.context) - 1 : length - 1]
    log_probs = at - np.logaddexp.reduce(at, axis=-1, keepdims=True)
    own = log_probs[np.arange(len(row.continuation)), row.continuation]
    return own.sum(), bool((at.argmax(axis=-1) == row.continuation).all())


def greedy_after(made, context, size):
    config, params = made
    ids = context.tolist()
    for _ in range(size):
        padded = np.pad(np.asarray(ids, np.int32), (0, config.max_length - len(ids)))[None]
        there = (np.arange(config.max_length) < len(ids)).astype(np.int32)[None]
        ids.append(int(np.asarray(reader(config)({"params": params}, padded, there))[0, len(ids) - 1].argmax()))
    return np.asarray(ids[len(context) :], np.int32)


def shapes_read(monkeypatch):
    """Real rows and length of every pass from here on."""
    read, real = [], likelihoods.continuation_likelihoods

    def noted(params, ids, segments, positions, **settings):
        read.append((int((np.asarray(segments) == 2).any(axis=1).sum()), ids.shape[1]))
        return real(params, ids, segments, positions, **settings)

    monkeypatch.setattr(likelihoods, "continuation_likelihoods", noted)
    return read


def test_each_is_judged_as_if_it_stood_alone(made, judge):
    first, second, third = some(20), some(9), some(31)
    rows = [
        Continuation(first, some(3)), Continuation(second, some(1)), Continuation(first, some(1)),
        Continuation(first, greedy_after(made, first, 4)), Continuation(third, some(0)),
        Continuation(second, greedy_after(made, second, 1)), Continuation(first, some(5)), Continuation(third, some(2)),
    ]  # fmt: skip
    found = judge.judge(rows)
    expected = [by_itself(made, row) for row in rows]
    np.testing.assert_allclose(found.log_probs, [log_prob for log_prob, _ in expected], atol=TOLERANCE)
    assert found.is_greedy.tolist() == [is_greedy for _, is_greedy in expected]
    assert found.is_greedy.tolist() == [False, False, False, True, True, True, False, False]
    apart = np.concatenate([judge.judge([row]).log_probs for row in rows])
    np.testing.assert_allclose(found.log_probs, apart, atol=TOLERANCE)


def test_options_of_one_prompt_take_one_pass_over_it(judge, monkeypatch):
    read, told = shapes_read(monkeypatch), []
    contexts = [some(40), some(44)]
    rows = [Continuation(context, some(1)) for context in contexts for _ in range(4)]
    judge.judge(rows, told.append)
    assert read == [(2, 64)]  # not 8 rows
    assert told == [8]


def test_a_context_that_fills_the_model_is_shared(made, judge, monkeypatch):
    read, context = shapes_read(monkeypatch), some(made[0].max_length - 4)
    rows = [Continuation(context, some(4)) for _ in range(6)]
    found = judge.judge(rows)
    # a quarter more than 64 positions: five continuations of four tokens, and one in a row of its own
    assert read == [(2, 96)]
    np.testing.assert_allclose(found.log_probs, [by_itself(made, row)[0] for row in rows], atol=TOLERANCE)


def test_continuations_of_a_row_are_no_longer_than_its_context(made, judge, monkeypatch):
    read, context = shapes_read(monkeypatch), some(6)
    rows = [Continuation(context, some(3)) for _ in range(5)] + [Continuation(context, some(20))]
    found = judge.judge(rows)
    assert read == [(4, 32)]  # two, two, one of three tokens; one of twenty
    np.testing.assert_allclose(found.log_probs, [by_itself(made, row)[0] for row in rows], atol=TOLERANCE)


def test_shared_contexts_do_not_depend_on_batches_or_devices(made):
    contexts = [some(size) for size in (5, 17, 30, 11)]
    rows = [Continuation(contexts[number % 4], some(1 + number % 3)) for number in range(14)]
    spread = LikelihoodJudge(*made, mesh=MeshConfig(data=2, tensor=4), tokens_at_once=64).judge(rows)
    np.testing.assert_allclose(spread.log_probs, [by_itself(made, row)[0] for row in rows], atol=TOLERANCE)


def test_nothing_is_judged_of_nothing(judge):
    found = judge.judge([])
    assert found.log_probs.shape == found.is_greedy.shape == (0,)
