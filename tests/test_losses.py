"""Every equation against numbers worked by hand in float64, and against the property that makes it worth having."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import losses

# Two examples, three candidates (0 is the null document), two masks; the second example uses one mask and two candidates.
SCORES = np.array([[0.0, 1.0, -0.5], [0.3, -0.2, 9.0]])
CANDIDATE_MASK = np.array([[True, True, True], [True, True, False]])
GOLD = np.log(np.array([[[0.1, 0.2], [0.7, 0.4], [0.05, 0.3]], [[0.2, 0.9], [0.5, 0.01], [0.99, 0.99]]]))
WEIGHTS = np.array([[1.0, 1.0], [1.0, 0.0]])


def f32(values):
    return jnp.asarray(values, jnp.float32)


def softmax(values):
    exps = np.exp(values - values.max())
    return exps / exps.sum()


PROBS = np.array([softmax(SCORES[0]), [*softmax(SCORES[1, :2]), 0.0]])


def log_probs():
    return losses.candidate_log_probs(f32(SCORES), jnp.asarray(CANDIDATE_MASK))


def test_masked_candidates_get_no_probability():
    np.testing.assert_allclose(np.exp(log_probs()), PROBS, rtol=1e-6)


def test_a_row_without_candidates_stays_finite():
    scores = losses.candidate_log_probs(jnp.ones((1, 3)), jnp.zeros((1, 3), bool))
    assert np.isfinite(scores).all()


def test_per_token_marginal_by_hand():
    expected = np.log(np.einsum("bk,bkm->bm", PROBS, np.exp(GOLD)))
    marginal = losses.marginal_per_token(log_probs(), f32(GOLD))
    np.testing.assert_allclose(marginal, expected, rtol=1e-5)
    loss = losses.per_token_loss(marginal, f32(WEIGHTS))
    np.testing.assert_allclose(loss.total, -(expected[0].sum() + expected[1, 0]), rtol=1e-5)
    assert float(loss.weight) == 3.0


def test_per_span_marginal_by_hand():
    span_probs = np.exp((GOLD * WEIGHTS[:, None, :]).sum(-1))
    expected = np.log((PROBS * span_probs).sum(-1))
    marginal = losses.marginal_per_span(log_probs(), f32(GOLD), f32(WEIGHTS))
    np.testing.assert_allclose(marginal, expected, rtol=1e-5)
    loss = losses.per_span_loss(marginal, f32(WEIGHTS))
    np.testing.assert_allclose(loss.total, -expected.sum(), rtol=1e-5)
    assert float(loss.weight) == 3.0


def test_the_two_marginals_agree_for_one_mask_and_differ_for_two():
    one = WEIGHTS * np.array([[1.0, 0.0]])
    token = losses.marginal_per_token(log_probs(), f32(GOLD))
    span = losses.marginal_per_span(log_probs(), f32(GOLD), f32(one))
    np.testing.assert_allclose(span, token[:, 0], rtol=1e-6)
    both = losses.marginal_per_span(log_probs(), f32(GOLD), jnp.ones((2, 2)))
    assert abs(float(both[0] - token[0].sum())) > 0.01


def test_an_example_without_masks_costs_nothing():
    weights = jnp.zeros((2, 2))
    token = losses.per_token_loss(losses.marginal_per_token(log_probs(), f32(GOLD)), weights)
    span = losses.per_span_loss(losses.marginal_per_span(log_probs(), f32(GOLD), weights), weights)
    assert float(token.total) == float(span.total) == float(token.weight) == float(span.weight) == 0.0


def test_padding_may_hold_anything():
    poisoned = GOLD.copy()
    poisoned[1, :, 1] = -np.inf
    token = losses.per_token_loss(losses.marginal_per_token(log_probs(), f32(poisoned)), f32(WEIGHTS))
    span = losses.marginal_per_span(log_probs(), f32(poisoned), f32(WEIGHTS))
    clean = losses.per_token_loss(losses.marginal_per_token(log_probs(), f32(GOLD)), f32(WEIGHTS))
    np.testing.assert_allclose(token.total, clean.total, rtol=1e-6)
    assert np.isfinite(span).all()


@pytest.mark.parametrize("marginal", ["per_token", "per_span"])
def test_a_document_that_predicts_better_than_average_gains_score(marginal):
    """The gradient of −log p(y|x) by the score is −r(z), r(z) = (p(y|z,x) / p(y|x) − 1) p(z|x) (REALM, section 3.3)."""
    weights = jnp.ones((2, 2)) if marginal == "per_span" else f32([[1.0, 0.0], [1.0, 0.0]])

    def loss(scores):
        log_p = losses.candidate_log_probs(scores, jnp.asarray(CANDIDATE_MASK))
        if marginal == "per_span":
            return losses.per_span_loss(losses.marginal_per_span(log_p, f32(GOLD), weights), weights).total
        return losses.per_token_loss(losses.marginal_per_token(log_p, f32(GOLD)), weights).total

    likelihood = np.exp((GOLD * np.asarray(weights)[:, None, :]).sum(-1))
    average = (PROBS * likelihood).sum(-1, keepdims=True)
    expected = -(likelihood / average - 1) * PROBS
    gradient = jax.grad(loss)(f32(SCORES))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert gradient[0, 1] < 0 < gradient[0, 0]  # descending raises the score of the document that explains best


def test_utility_by_hand():
    marginal = losses.marginal_per_token(log_probs(), f32(GOLD))
    gain = losses.retrieval_utility(marginal, f32(GOLD), f32(WEIGHTS))
    expected = np.log(np.einsum("bk,bkm->bm", PROBS, np.exp(GOLD))) - GOLD[:, 0]
    np.testing.assert_allclose(gain.total / gain.weight, (expected[0].sum() + expected[1, 0]) / 3, rtol=1e-5)


def test_entropy_by_hand():
    entropy = losses.retrieval_entropy(log_probs())
    expected = -(PROBS * np.log(np.where(PROBS > 0, PROBS, 1))).sum(-1)
    np.testing.assert_allclose(entropy, expected, rtol=1e-5)


def test_gold_log_probs_pick_the_target():
    logits = np.arange(12.0).reshape(1, 2, 1, 6) ** 0.5
    found = losses.gold_log_probs(f32(logits), jnp.array([[[2], [5]]], jnp.int32))
    expected = [np.log(softmax(logits[0, 0, 0])[2]), np.log(softmax(logits[0, 1, 0])[5])]
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-6)


QUERIES = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]])
DOCUMENTS = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]])


def test_inverse_cloze_by_hand():
    scores = QUERIES @ DOCUMENTS.T
    expected = -np.log([softmax(scores[i])[i] for i in range(3)])
    loss, hits = losses.inverse_cloze(f32(QUERIES), f32(DOCUMENTS), jnp.arange(3))
    np.testing.assert_allclose(loss.total, expected.sum(), rtol=1e-6)
    assert float(loss.weight) == 3.0
    assert hits.tolist() == [0.0, 1.0, 0.0]


def test_a_block_drawn_twice_is_not_its_own_negative():
    loss, _ = losses.inverse_cloze(f32(QUERIES[:2]), f32(DOCUMENTS[[0, 0]]), jnp.array([7, 7]))
    np.testing.assert_allclose(loss.total, 0.0, atol=1e-6)


def test_swapping_queries_and_documents_changes_the_loss():
    forth, _ = losses.inverse_cloze(f32(QUERIES), f32(DOCUMENTS), jnp.arange(3))
    back, _ = losses.inverse_cloze(f32(DOCUMENTS), f32(QUERIES), jnp.arange(3))
    assert abs(float(forth.total - back.total)) > 0.1


LABEL_LOGITS = np.array(
    [[[1.0, 0.0, -1.0], [0.5, 0.5, 2.0], [9.0, 9.0, 9.0]], [[0.0, 3.0, 0.0], [7.0, 7.0, 7.0], [0.0] * 3]]
)
LABELS = np.array([[0, 2, -1], [2, -1, -1]])


def test_token_cross_entropy_by_hand():
    """Three tokens have a label; −log of e^1 / (e^1 + 1 + e^-1), e^2 / (2 e^0.5 + e^2) and 1 / (e^3 + 2)."""
    loss = losses.token_cross_entropy(f32(LABEL_LOGITS), jnp.asarray(LABELS, jnp.int32))
    expected = [0.40760596, 0.36898114, 3.09492296]
    np.testing.assert_allclose(loss.total, sum(expected), rtol=1e-6)
    assert float(loss.weight) == 3.0


def test_tokens_without_a_label_teach_nothing():
    poisoned = np.where(LABELS[..., None] < 0, np.inf, LABEL_LOGITS)

    def total(logits):
        return losses.token_cross_entropy(logits, jnp.asarray(LABELS, jnp.int32)).total

    gradient = jax.grad(total)(f32(LABEL_LOGITS))
    assert (np.asarray(gradient)[LABELS < 0] == 0).all() and (np.asarray(gradient)[LABELS >= 0] != 0).all()
    np.testing.assert_allclose(gradient[1, 0], softmax(LABEL_LOGITS[1, 0]) - np.eye(3)[2], rtol=1e-5)
    assert np.isfinite(total(f32(poisoned)))
    nothing = losses.token_cross_entropy(f32(LABEL_LOGITS), jnp.full((2, 3), -1, jnp.int32))
    assert float(nothing.total) == float(nothing.weight) == 0.0
