"""Sampling: the distribution that is drawn from, what comes out of it, and seeds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.generation import GenerationConfig, sample
from realm_jax.generation.sampling import reshaped
from tests.generation import toy


@functools.partial(jax.jit, static_argnames=("config", "tokens"))
def draw(rows, active, seed, config, tokens=toy.TOKENS):
    state = toy.first_state(len(rows), config.num_hypotheses)
    return sample(toy.next_token(rows), state, active, jax.random.key(seed), config=config, tokens=tokens).hypotheses


def draws(rows, config, seed=0, tokens=toy.TOKENS):
    hypotheses = draw(jnp.asarray(rows), jnp.ones(len(rows), bool), seed, config, tokens)
    return [np.asarray(part) for part in hypotheses]


def settings(**changes):
    return GenerationConfig(**{"sample": True, "num_hypotheses": 4000, "max_length": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 2.0}, [0.5**0.5, 0.3**0.5, 0.15**0.5, 0.05**0.5]),
        ({"top_k": 2}, [0.5, 0.3, 0.0, 0.0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.5}, [1.0, 0.0, 0.0, 0.0]),
        ({"top_p": 0.51}, [0.5, 0.3, 0.0, 0.0]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.15, 0.0]),
        ({"top_p": 0.01}, [1.0, 0.0, 0.0, 0.0]),
        ({"top_k": 3, "top_p": 0.6}, [0.5, 0.3, 0.0, 0.0]),  # the first two of three have .8 / .95
        ({"temperature": 0.5, "top_p": 0.7}, [0.25, 0.09, 0.0, 0.0]),  # of the sharpened: .685, .247
    ],
)
def test_what_is_drawn_from(changes, expected):
    found = jax.nn.softmax(reshaped(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), settings(**changes)))
    np.testing.assert_allclose(found, np.array(expected) / sum(expected), atol=1e-6)


def test_sequences_come_as_often_as_they_are_likely():
    config = settings(min_length=0)
    rows = toy.table(4, 2, 4, config.target_len, sharpness=1.0)
    ids, scores, lengths = draws(rows, config)
    for question, table in enumerate(rows):
        everything = toy.everything(table, GenerationConfig(max_length=4, length_penalty=0.0, min_length=0))
        assert sum(np.exp(total) for total, _ in everything) == pytest.approx(1.0, rel=1e-5)
        drawn = [tuple(row[:length].tolist()) for row, length in zip(ids[question], lengths[question], strict=True)]
        totals = {hypothesis: total for total, hypothesis in everything}
        assert set(drawn) <= set(totals)
        for total, hypothesis in everything[:8]:
            often = drawn.count(hypothesis) / len(drawn)
            deviation = (np.exp(total) * (1 - np.exp(total)) / len(drawn)) ** 0.5
            assert abs(often - np.exp(total)) < 4 * deviation, hypothesis
        expected = [totals[hypothesis] / len(hypothesis) for hypothesis in drawn]
        np.testing.assert_allclose(scores[question], expected, rtol=1e-5)
    inside = np.arange(config.target_len) < lengths[..., None]
    assert (ids[~inside] == toy.TOKENS.pad).all()


def test_a_seed_draws_the_same_and_another_does_not():
    config = settings(num_hypotheses=50, max_length=6)
    rows = toy.table(9, 3, 4, config.target_len)
    first, again, other = (draws(rows, config, seed)[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()  # nor do two questions share their luck


def test_scores_are_those_before_temperature_and_rules_hold():
    config = settings(num_hypotheses=100, max_length=6, temperature=3.0, min_length=4, length_penalty=0.0)
    rows = toy.table(2, 1, 4, config.target_len)
    tokens = toy.TOKENS._replace(forced_eos=2, forced_bos=0)
    ids, scores, lengths = (part[0] for part in draws(rows, config, tokens=tokens))
    assert (ids[:, 0] == 0).all() and lengths.min() >= 4 and (lengths < 5).any()
    for row, score, length in zip(ids, scores, lengths, strict=True):
        assert row[length - 1] == tokens.eos
        free = range(1, min(length, config.target_len - 1))  # the first and the last possible are forced
        total = sum(rows[0, toy.place(row[:i], 4), row[i]] for i in free)
        assert score == pytest.approx(total, rel=1e-5)


def test_a_question_that_is_not_active_draws_nothing():
    config = settings(num_hypotheses=3)
    rows = jnp.asarray(toy.table(2, 2, 4, config.target_len))
    ids, scores, lengths = draw(rows, jnp.array([False, True]), 0, config)
    assert (ids[0] == toy.TOKENS.pad).all() and np.isneginf(scores[0]).all() and (lengths[0] == 0).all()
    assert (lengths[1] > 0).all()
