"""The losses of open-domain question answering against numbers worked by hand and against their meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.losses import early_update_loss, span_marginal_loss

LOGITS = np.log([[[1.0, 2.0, 4.0], [3.0, 9.0, 1.0]], [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]])
SCORES = np.log([[2.0, 1.0], [1.0, 3.0]])
MASK = np.array([[[True, True, False], [True, False, True]], [[True, True, True], [True, False, False]]])
ANSWER = np.array([[[False, True, True], [True, False, False]], [[False] * 3, [False, True, False]]])


def arrays(*values):
    return tuple(jnp.asarray(value, jnp.bool_ if value.dtype == bool else jnp.float32) for value in values)


def test_span_marginal_by_hand():
    loss, learns = span_marginal_loss(*arrays(LOGITS, SCORES, MASK, ANSWER))
    # question 0: answers 2·2 and 3·1; spans 2·1 + 2·2 + 3·1 + 1·1 (the masked 4 and 9 count nowhere).
    # question 1: its only answer lies outside of the document, so that it teaches nothing.
    assert float(loss.total) == pytest.approx(-np.log(7 / 10), rel=1e-6)
    assert float(loss.weight) == 2.0
    assert learns.tolist() == [1.0, 0.0]


def test_span_marginal_sums_to_one_over_a_partition_of_the_spans():
    first = MASK & (np.arange(3) < 1)
    parts = [
        span_marginal_loss(*arrays(LOGITS[:1], SCORES[:1], MASK[:1], part[:1]))[0] for part in (first, MASK & ~first)
    ]
    assert sum(float(jnp.exp(-part.total)) for part in parts) == pytest.approx(1.0, rel=1e-6)


def test_retrieval_score_moves_towards_the_document_with_the_answer():
    def of(scores):
        return span_marginal_loss(jnp.asarray(LOGITS[:1], jnp.float32), scores, jnp.asarray(MASK[:1]), jnp.asarray(
            np.array([[[False, True, False], [False] * 3]])))[0].total  # fmt: skip

    gradient = jax.grad(of)(jnp.asarray(SCORES[:1], jnp.float32))
    assert gradient[0, 0] < 0 < gradient[0, 1]
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_without_an_answer():
    gradient = jax.grad(lambda logits: span_marginal_loss(logits, *arrays(SCORES, MASK, ANSWER))[0].total)(
        jnp.asarray(LOGITS, jnp.float32)
    )
    assert np.isfinite(gradient).all()
    assert float(jnp.abs(gradient[1]).max()) == 0.0 < float(jnp.abs(gradient[0]).max())
    assert float(gradient[0, 0, 2]) == float(gradient[0, 1, 1]) == 0.0  # outside of the documents


def test_early_update_by_hand():
    scores = np.log([[1.0, 2.0, 5.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    valid = np.array([[True, True, True, False], [True, True, True, True]])
    has_answer = np.array([[True, False, True, True], [False] * 4])
    loss, learns = early_update_loss(*arrays(scores, valid, has_answer))
    assert float(loss.total) == pytest.approx(-np.log(6 / 8), rel=1e-6)
    assert float(loss.weight) == 2.0 and learns.tolist() == [1.0, 0.0]


def test_early_update_raises_documents_with_the_answer():
    scores = jnp.zeros((1, 3))
    gradient = jax.grad(
        lambda s: early_update_loss(s, jnp.ones((1, 3), bool), jnp.array([[False, True, False]]))[0].total
    )(scores)
    assert gradient[0, 1] < 0 < gradient[0, 0] == gradient[0, 2]
