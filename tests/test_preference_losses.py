"""A retriever's losses against what a language model prefers, by hand in float64, and by what makes each worth having."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import losses

SCORES = np.array([[2.0, 1.0, 0.5], [0.0, 0.3, 9.0]])
MASK = np.array([[True, True, True], [True, True, False]])
LOG_LIKELIHOODS = np.array([[-8.0, -1.0, -6.0], [-3.0, -2.0, 0.0]])
NUM_TOKENS = np.array([4, 2], np.int32)
TAU = 0.2


def f32(values):
    return jnp.asarray(values, jnp.float32)


def softmax(values):
    exps = np.exp(values - values.max())
    return exps / exps.sum()


RETRIEVED = np.array([softmax(SCORES[0]), [*softmax(SCORES[1, :2]), 0.0]])
PREFERRED = np.array(
    [softmax(np.exp(LOG_LIKELIHOODS[0] / 4) / TAU), [*softmax(np.exp(LOG_LIKELIHOODS[1, :2] / 2) / TAU), 0.0]]
)


def retrieved(scores=SCORES):
    return losses.candidate_log_probs(f32(scores), jnp.asarray(MASK))


def preferred(log_likelihoods=LOG_LIKELIHOODS, temperature=TAU):
    return losses.language_model_preference(
        f32(log_likelihoods), jnp.asarray(NUM_TOKENS), jnp.asarray(MASK), temperature
    )


def test_preference_is_a_softmax_of_length_normalised_probabilities():
    np.testing.assert_allclose(np.exp(preferred()), PREFERRED, rtol=1e-5)
    # of log-probabilities it would be another: the trap
    of_logs = softmax(LOG_LIKELIHOODS[0] / 4 / TAU)
    assert abs(np.exp(preferred())[0] - of_logs).max() > 0.05


def test_a_long_answer_is_not_less_preferred_than_a_short_one():
    twice = losses.language_model_preference(
        f32(2 * LOG_LIKELIHOODS), jnp.asarray(2 * NUM_TOKENS), jnp.asarray(MASK), TAU
    )
    np.testing.assert_allclose(twice, preferred(), rtol=1e-5)


def test_kl_both_ways_by_hand():
    forward = losses.kl_divergence(retrieved(), preferred(), jnp.asarray(MASK))
    backward = losses.kl_divergence(preferred(), retrieved(), jnp.asarray(MASK))
    for row in range(2):
        there = MASK[row]
        p, q = RETRIEVED[row][there], PREFERRED[row][there]
        np.testing.assert_allclose(forward[row], (p * np.log(p / q)).sum(), rtol=1e-4)
        np.testing.assert_allclose(backward[row], (q * np.log(q / p)).sum(), rtol=1e-4)
    assert abs(forward - backward).max() > 0.01
    np.testing.assert_allclose(losses.kl_divergence(preferred(), preferred(), jnp.asarray(MASK)), 0.0, atol=1e-7)


def test_expected_likelihood_by_hand_and_with_emdr2_gradient():
    mask = jnp.asarray(MASK)
    loss = losses.expected_likelihood_loss(retrieved(), f32(LOG_LIKELIHOODS), mask)
    joint = RETRIEVED * np.exp(LOG_LIKELIHOODS)
    np.testing.assert_allclose(loss, -np.log(joint.sum(axis=1)), rtol=1e-5)
    gradient = jax.grad(
        lambda scores: losses.expected_likelihood_loss(
            losses.candidate_log_probs(scores, mask), f32(LOG_LIKELIHOODS), mask
        ).sum()
    )(f32(SCORES))
    posterior = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, RETRIEVED - posterior, atol=1e-5)  # p(z|x) − p(z|x,y)
    of_model = jax.grad(lambda ll: losses.expected_likelihood_loss(retrieved(), ll, mask).sum())(f32(LOG_LIKELIHOODS))
    np.testing.assert_array_equal(of_model, np.zeros_like(SCORES))


@pytest.mark.parametrize(
    "loss",
    [
        lambda scores, mask: losses.kl_divergence(losses.candidate_log_probs(scores, mask), preferred(), mask),
        lambda scores, mask: losses.kl_divergence(preferred(), losses.candidate_log_probs(scores, mask), mask),
        lambda scores, mask: losses.expected_likelihood_loss(
            losses.candidate_log_probs(scores, mask), f32(LOG_LIKELIHOODS), mask
        ),
    ],
)
def test_gradients_favour_the_preferred_document_and_are_none_without_documents(loss):
    mask = jnp.asarray(MASK)
    gradient = np.asarray(jax.grad(lambda scores: loss(scores, mask).sum())(f32(SCORES)))
    assert gradient[0].argmin() == 1  # its score is to rise
    assert np.isfinite(gradient).all()
    assert gradient[1, 2] == 0.0
    none = jnp.zeros_like(mask)
    np.testing.assert_array_equal(loss(f32(SCORES), none), np.zeros(2))
    np.testing.assert_array_equal(jax.grad(lambda scores: loss(scores, none).sum())(f32(SCORES)), np.zeros_like(SCORES))


def test_the_published_temperature_makes_small_differences_decide():
    probs = np.exp(preferred(np.log([[0.30, 0.33, 0.28], [0.5, 0.5, 0.5]]) * NUM_TOKENS[:, None], temperature=0.01))
    np.testing.assert_allclose(probs[0], softmax(np.array([30.0, 33.0, 28.0])), rtol=1e-3)
