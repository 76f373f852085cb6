"""Figures of rankings, worked by hand."""

import numpy as np
import pytest

from realm_jax.evaluation.ranking import ndcg_at_k, recall_at_k, reciprocal_rank, relevance

RANKED = np.array([[5, 3, 8, 1], [2, 9, -1, -1], [7, 7, 6, 7], [0, 4, 2, 3]])
GOLD = [{8, 1, 44}, {9}, {7, 6}, {11}]


def test_relevance():
    np.testing.assert_array_equal(
        relevance(RANKED, GOLD),
        [[False, False, True, True], [False, True, False, False], [True, False, True, False], [False] * 4],
    )


def test_no_hit_is_never_relevant_even_when_the_gold_document_is_unknown():
    assert not relevance(np.array([[-1, -1]]), [{-1}]).any()


def test_recall():
    relevant = relevance(RANKED, GOLD)
    np.testing.assert_array_equal(recall_at_k(relevant, 1), [0, 0, 1, 0])
    np.testing.assert_array_equal(recall_at_k(relevant, 2), [0, 1, 1, 0])
    np.testing.assert_array_equal(recall_at_k(relevant, 3), [1, 1, 1, 0])
    np.testing.assert_array_equal(recall_at_k(relevant, 100), [1, 1, 1, 0])  # k beyond what was searched


def test_reciprocal_rank():
    np.testing.assert_allclose(reciprocal_rank(relevance(RANKED, GOLD)), [1 / 3, 1 / 2, 1, 0])
    np.testing.assert_array_equal(reciprocal_rank(np.zeros((2, 0), bool)), [0, 0])


def test_ndcg():
    relevant = relevance(RANKED, GOLD)
    num_gold = np.array([3, 1, 2, 1])
    # query 0: ranks 3 and 4 of three gold documents: (1/2 + 1/log2(5)) / (1 + 1/log2(3) + 1/2)
    expected = [
        (1 / 2 + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / 2),
        1 / np.log2(3),
        (1 + 1 / 2) / (1 + 1 / np.log2(3)),
        0.0,
    ]
    np.testing.assert_allclose(ndcg_at_k(relevant, num_gold, 4), expected)
    np.testing.assert_allclose(ndcg_at_k(relevant, num_gold, 10), expected)
    # at 2 the ideal ranking has room for two gold documents only
    np.testing.assert_allclose(ndcg_at_k(relevant, num_gold, 2)[2], 1 / (1 + 1 / np.log2(3)))
    np.testing.assert_array_equal(ndcg_at_k(relevant, np.zeros(4, np.int64), 2), [0, 0, 0, 0])


def test_a_document_named_twice_counts_once():
    relevant = relevance(np.array([[6, 6, 6]]), [{6}])
    np.testing.assert_array_equal(ndcg_at_k(relevant, np.array([1]), 3), [1.0])


def test_bad_arguments():
    with pytest.raises(ValueError, match="one gold set a query, got 3 for 4 queries"):
        relevance(RANKED, GOLD[:3])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at_k(np.zeros((1, 1), bool), 0)
