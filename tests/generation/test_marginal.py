"""RAG's marginals against sums written out, and against everything a tiny vocabulary can say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.generation import marginal


def test_documents_that_are_not_there_have_no_mass():
    scores = jnp.array([[2.0, 1.0, 50.0], [0.0, 0.0, 0.0]])
    present = jnp.array([[True, True, False], [False, False, False]])
    found = marginal.document_log_probs(scores, present)
    odds = np.exp(1.0)
    np.testing.assert_allclose(jnp.exp(found), [[odds / (1 + odds), 1 / (1 + odds), 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(jnp.isneginf(found), ~present)


def test_next_token_by_hand():
    log_doc_probs = jnp.log(jnp.array([[0.25, 0.75]]))
    with_each = jnp.log(jnp.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]))[None, :, None, :]
    found = jnp.exp(marginal.marginal_next_token(log_doc_probs, with_each))
    np.testing.assert_allclose(found, [[[0.35, 0.175, 0.475]]], rtol=1e-6)
    far = marginal.marginal_next_token(log_doc_probs, with_each - 500.0)  # nothing underflows
    np.testing.assert_allclose(far + 500.0, jnp.log(found), atol=1e-4)


def test_next_token_with_a_document_that_is_not_there():
    """It may say anything, even what is impossible with all others."""
    log_doc_probs = marginal.document_log_probs(jnp.zeros((1, 3)), jnp.array([[True, True, False]]))
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (1, 3, 2, 5)) * 9)
    two = marginal.marginal_next_token(log_doc_probs[:, :2], log_probs[:, :2])
    np.testing.assert_allclose(marginal.marginal_next_token(log_doc_probs, log_probs), two, rtol=1e-6)
    nothing = marginal.marginal_next_token(jnp.full((1, 3), -jnp.inf), log_probs)
    assert jnp.isneginf(nothing).all()


def test_posteriors_by_hand():
    log_doc_probs = jnp.log(jnp.array([[0.25, 0.75]]))
    tokens = jnp.log(jnp.array([[[[0.8, 0.2], [0.5, 0.1]]]]))  # two tokens of one hypothesis, with two documents
    by_token = marginal.token_posteriors(log_doc_probs, tokens)
    np.testing.assert_allclose(by_token[0, 0], [[0.2 / 0.35, 0.15 / 0.35], [0.125 / 0.2, 0.075 / 0.2]], rtol=1e-6)
    whole = marginal.answer_posteriors(log_doc_probs, tokens.sum(axis=2))
    np.testing.assert_allclose(whole[0, 0], [0.1 / 0.115, 0.015 / 0.115], rtol=1e-6)
    unsaid = marginal.answer_posteriors(log_doc_probs, jnp.array([[[-jnp.inf, -2.0], [-jnp.inf, -jnp.inf]]]))
    np.testing.assert_array_equal(unsaid, [[[0.0, 1.0], [0.0, 0.0]]])


def test_the_marginals_of_everything_sum_to_one():
    """Both models, over all sequences of three tokens, with documents that disagree."""
    vocab, length, num_documents = 3, 3, 2
    rng = np.random.default_rng(0)
    nodes = 1 + vocab + vocab**2
    table = np.asarray(jax.nn.log_softmax(jnp.asarray(rng.normal(size=(num_documents, nodes, vocab)) * 2)))
    log_doc_probs = jnp.log(jnp.array([[0.3, 0.7]]))
    sequences = list(itertools.product(range(vocab), repeat=length))
    gold = np.zeros((1, len(sequences), length, num_documents), np.float32)
    for number, ids in enumerate(sequences):
        node = 0
        for position, token in enumerate(ids):
            gold[0, number, position] = table[:, node, token]
            node = node * vocab + token + 1
    by_sequence = marginal.marginal_sequence(log_doc_probs, jnp.asarray(gold.sum(axis=2)))
    np.testing.assert_allclose(jnp.exp(by_sequence).sum(), 1.0, rtol=1e-5)
    by_token = marginal.marginal_next_token(log_doc_probs, jnp.asarray(gold).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(jnp.exp(by_token.sum(axis=-1)).sum(), 1.0, rtol=1e-5)
    assert not np.allclose(by_sequence, by_token.sum(axis=-1), atol=0.05)  # they are two models


def test_distinct_hypotheses():
    ids = jnp.array([[[5, 2, 1], [7, 2, 1], [5, 2, 1], [5, 2, 2], [5, 2, 1]]])
    present = jnp.array([[True, True, True, True, False]])
    found = marginal.distinct(ids, present)
    assert found.num_kinds.tolist() == [3] and found.order[0, :3].tolist() == [0, 1, 3]
    assert sorted(found.order[0].tolist()) == [0, 1, 2, 3, 4]
    expected = np.zeros((5, 5), bool)
    expected[[0, 0, 2, 2, 1, 3], [0, 2, 0, 2, 1, 3]] = True  # what is not there equals nothing, not even itself
    np.testing.assert_array_equal(found.equals[0], expected)
    assert marginal.distinct(ids, jnp.zeros((1, 5), bool)).num_kinds.tolist() == [0]


def test_fast_decoding_by_hand():
    """Two documents, two hypotheses each; one hypothesis is in both beams, in other places."""
    ids = jnp.array([[[5, 2], [7, 2], [8, 2], [5, 2]]])
    probs = jnp.array([[[0.5, 0.2], [0.4, 0.1]]])
    equals = marginal.distinct(ids, jnp.ones((1, 4), bool)).equals
    table = marginal.fast_log_probs(jnp.log(probs), equals)
    np.testing.assert_allclose(jnp.exp(table[0]), [[0.5, 0.1], [0.2, 0.0], [0.0, 0.4], [0.5, 0.1]], rtol=1e-6)
    total = marginal.marginal_sequence(jnp.log(jnp.array([[0.25, 0.75]])), table)
    np.testing.assert_allclose(jnp.exp(total[0]), [0.2, 0.05, 0.3, 0.2], rtol=1e-6)
