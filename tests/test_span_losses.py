"""The losses of open-domain question answering against numbers worked by hand and against their meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.losses import contrastive_loss, early_update_loss, span_marginal_loss

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


def contrasted(ids, mask=None, scores=None):
    """Queries are unit vectors of a space whose axes are the documents' columns, so that scores are what we say."""
    ids = np.asarray(ids)
    scores = np.log(np.asarray(scores, np.float64)).reshape(len(ids), -1)  # [questions, columns]
    documents = np.eye(scores.shape[1]).reshape(*ids.shape, -1)
    there = np.asarray(mask if mask is not None else ids >= 0)
    positive = (np.arange(ids.shape[1]) == 0) & there
    floats = [jnp.asarray(value, jnp.float32) for value in (scores, documents)]
    return contrastive_loss(*floats, jnp.asarray(ids, jnp.int32), jnp.asarray(there), jnp.asarray(positive))


def test_contrastive_by_hand():
    # documents 1, 2 of question 0 and 3, 4 of question 1; every question is scored against all four
    loss, hits = contrasted([[1, 2], [3, 4]], scores=[[4.0, 1.0, 2.0, 1.0], [6.0, 1.0, 2.0, 1.0]])
    assert float(loss.total) == pytest.approx(-np.log(4 / 8) - np.log(2 / 10), rel=1e-5)
    assert float(loss.weight) == 2.0
    assert hits.tolist() == [1.0, 0.0]


def test_a_positive_is_not_its_own_negative():
    # document 1 stands twice, as the positive of question 0 and a negative of question 1
    loss, hits = contrasted([[1, 2], [3, 1]], scores=[[2.0, 1.0, 1.0, 9.0], [1.0, 1.0, 5.0, 3.0]])
    assert float(loss.total) == pytest.approx(-np.log(2 / 4) - np.log(5 / 10), rel=1e-5)
    assert hits.tolist() == [1.0, 1.0]


def test_a_question_without_a_positive_teaches_nothing_but_lends_its_negatives():
    loss, hits = contrasted([[-1, 2], [3, -1]], scores=[[9.0, 1.0, 1.0, 1.0], [8.0, 3.0, 1.0, 8.0]])
    assert float(loss.total) == pytest.approx(
        -np.log(1 / 4), rel=1e-5
    )  # against document 2; what is not there counts 0
    assert hits.tolist() == [0.0, 0.0]


def test_the_positive_rises_and_negatives_fall():
    ids = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
    documents = jax.random.normal(jax.random.key(0), (2, 3, 5))
    queries = jax.random.normal(jax.random.key(1), (2, 5))
    there = jnp.ones((2, 3), bool)
    positive = jnp.array([[True, False, False]] * 2)
    grads = jax.grad(lambda d: contrastive_loss(queries, d, ids, there, positive)[0].total)(documents)
    moved = jnp.einsum("qe,bke->qbk", queries, -grads)  # how each score changes downhill
    own = moved[jnp.arange(2), jnp.arange(2)]
    assert (own[:, 0] > 0).all() and (own[:, 1:] < 0).all()
