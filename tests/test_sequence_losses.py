"""RAG's losses against numbers worked by hand, by enumeration of a small vocabulary, and against the released formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.losses import (
    candidate_log_probs,
    rag_sequence_loss,
    rag_token_loss,
)

VOCAB, LENGTH, DOCUMENTS = 3, 4, 2
RAG = [rag_sequence_loss, rag_token_loss]


@pytest.fixture
def drawn():
    """Logits of a batch of two, log p(z|x), targets, and a mask that leaves the second target one place shorter."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, DOCUMENTS, LENGTH, VOCAB)), jnp.float32)
    log_p_z = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, DOCUMENTS)), jnp.float32))
    targets = jnp.asarray(rng.integers(0, VOCAB, size=(2, LENGTH)), jnp.int32)
    return logits, log_p_z, targets, jnp.asarray([[True] * 4, [True] * 3 + [False]])


def probs(logits, log_p_z, targets):
    """p(y_i|x,z,y_<i) and p(z|x) of one example, in float64."""
    exp = np.exp(np.asarray(logits, np.float64))
    gold = np.take_along_axis(exp / exp.sum(-1, keepdims=True), np.asarray(targets)[None, :, None], -1)[..., 0]
    return gold, np.exp(np.asarray(log_p_z, np.float64))


def test_they_are_the_papers(drawn):
    logits, log_p_z, targets, mask = drawn
    by_sequence, by_token = [], []
    for row, length in enumerate((4, 3)):
        gold, p_z = probs(logits[row, :, :length], log_p_z[row], targets[row, :length])
        by_sequence.append(np.log((p_z * gold.prod(axis=1)).sum()))
        by_token.append(np.log((p_z[:, None] * gold).sum(axis=0)).sum())
    for loss_of, expected in ((rag_sequence_loss, by_sequence), (rag_token_loss, by_token)):
        loss, log_probs = loss_of(logits, log_p_z, targets, mask)
        np.testing.assert_allclose(log_probs, expected, rtol=1e-6)
        assert float(loss.total) == pytest.approx(-sum(expected), rel=1e-6) and float(loss.weight) == 2.0


@pytest.mark.parametrize("loss_of", RAG)
def test_all_sequences_together_have_probability_one(drawn, loss_of):
    logits, log_p_z, _, _ = drawn
    every = jnp.asarray(list(itertools.product(range(VOCAB), repeat=LENGTH)), jnp.int32)
    # the generator is one that looks at no prefix, so that its logits are those of every sequence
    same = jnp.broadcast_to(logits[:1], (len(every), *logits.shape[1:]))
    _, log_probs = loss_of(same, jnp.broadcast_to(log_p_z[:1], (len(every), DOCUMENTS)), every, every >= 0)
    assert len(every) == 81 and float(jnp.exp(log_probs).sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(jnp.exp(log_probs).max()) < 0.2


def test_of_one_token_and_of_one_document_both_are_the_same(drawn):
    logits, log_p_z, targets, mask = drawn
    for change in ((logits[:, :, :1], log_p_z, targets[:, :1], mask[:, :1]), (logits[:, :1], log_p_z[:, :1] * 0, targets, mask)):  # fmt: skip
        one, other = (loss_of(*change)[1] for loss_of in RAG)
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("loss_of", RAG)
def test_padding_and_documents_that_are_not_there_change_nothing(drawn, loss_of):
    logits, _, targets, mask = drawn
    scores = jnp.asarray([[1.0, 2.0], [0.5, 0.1]])
    there = jnp.ones((2, DOCUMENTS), bool)
    before = loss_of(logits, candidate_log_probs(scores, there), targets, mask, label_smoothing=0.1)
    wider = jnp.pad(logits, ((0, 0), (0, 1), (0, 2), (0, 0)), constant_values=7.0)
    log_p_z = candidate_log_probs(
        jnp.pad(scores, ((0, 0), (0, 1)), constant_values=99.0), jnp.pad(there, ((0, 0), (0, 1)))
    )
    after = loss_of(
        wider, log_p_z, jnp.pad(targets, ((0, 0), (0, 2))), jnp.pad(mask, ((0, 0), (0, 2))), label_smoothing=0.1
    )
    np.testing.assert_allclose(after[1], before[1], rtol=1e-5)
    assert float(after[0].total) == pytest.approx(float(before[0].total), rel=1e-5)


@pytest.mark.parametrize("loss_of", RAG)
def test_a_row_without_target_counts_nothing(drawn, loss_of):
    logits, log_p_z, targets, mask = drawn
    only_first = mask & jnp.asarray([[True], [False]])
    one, _ = loss_of(logits[:1], log_p_z[:1], targets[:1], mask[:1], label_smoothing=0.1)
    both, _ = loss_of(logits, log_p_z, targets, only_first, label_smoothing=0.1)
    assert float(both.weight) == 1.0 and float(both.total) == pytest.approx(float(one.total), rel=1e-6)
    gradient = jax.grad(lambda some: loss_of(some, log_p_z, targets, only_first, label_smoothing=0.1)[0].total)(logits)
    assert np.isfinite(gradient).all() and float(jnp.abs(gradient[1]).max()) == 0.0 < float(jnp.abs(gradient[0]).max())


def test_label_smoothing_is_the_released_one(drawn):
    """By their code's arithmetic, in float64: documents' log-probabilities join the second token's, sums run over the vocabulary."""
    logits, log_p_z, targets, mask = drawn
    exp = np.exp(np.asarray(logits, np.float64))
    log_probs = np.log(exp / exp.sum(-1, keepdims=True))
    keep = np.asarray(mask)[:, None, :]
    log_p_z = np.asarray(log_p_z, np.float64)
    gold = np.take_along_axis(log_probs, np.asarray(targets)[:, None, :, None].repeat(DOCUMENTS, 1), -1)[..., 0]
    joined = log_probs.copy()
    joined[:, :, 1] += log_p_z[:, :, None]
    nll = -np.log(np.exp((gold * keep).sum(-1) + log_p_z).sum(1))
    smooth = -np.logaddexp.reduce((joined.sum(-1) * keep).sum(-1), axis=1)
    expected = (0.9 * nll + 0.1 / VOCAB * smooth).sum()
    loss, _ = rag_sequence_loss(*(drawn[0], drawn[1], targets, mask), label_smoothing=0.1)
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    marginal = np.log((np.exp(log_p_z)[:, :, None, None] * np.exp(log_probs)).sum(1))
    nll = -(np.take_along_axis(marginal, np.asarray(targets)[..., None], -1)[..., 0] * keep[:, 0]).sum(-1)
    expected = (0.9 * nll - 0.1 / VOCAB * (marginal.sum(-1) * keep[:, 0]).sum(-1)).sum()
    loss, _ = rag_token_loss(*(drawn[0], drawn[1], targets, mask), label_smoothing=0.1)
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)


def test_tokens_that_are_not_scored_are_left_out_of_the_likelihood_alone(drawn):
    logits, log_p_z, targets, mask = drawn
    first = jnp.arange(LENGTH)[None] < jnp.asarray([[1], [0]])  # of the first example
    _, kept = rag_sequence_loss(logits, log_p_z, targets, mask)
    _, got = rag_sequence_loss(logits, log_p_z, targets, mask, unscored=first)
    gold, p_z = probs(logits[0], log_p_z[0], targets[0])
    assert float(got[0]) == pytest.approx(np.log((p_z * gold[:, 1:].prod(axis=1)).sum()), rel=1e-6)
    assert float(got[1]) == float(kept[1])


@pytest.mark.parametrize("loss_of", RAG)
def test_a_document_that_explains_the_answer_better_gains_score(drawn, loss_of):
    _, _, targets, mask = drawn
    right = 5.0 * jax.nn.one_hot(targets, VOCAB)
    logits = jnp.stack([right, jnp.zeros_like(right)], axis=1)
    there = jnp.ones((2, DOCUMENTS), bool)
    gradient = jax.grad(lambda scores: loss_of(logits, candidate_log_probs(scores, there), targets, mask)[0].total)(
        jnp.zeros((2, DOCUMENTS))
    )
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] > 0).all()
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-6)
