"""Figures of rankings, worked by hand."""

import numpy as np
import pytest

from realm_jax.evaluation.ranking import recall_at_k, reciprocal_rank, relevance

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


def test_a_document_named_twice_counts_once():
    relevant = relevance(np.array([[6, 6, 6]]), [{6}])
    np.testing.assert_array_equal(relevant, [[True, False, False]])


def test_bad_arguments():
    with pytest.raises(ValueError, match="one gold set a query, got 3 for 4 queries"):
        relevance(RANKED, GOLD[:3])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at_k(np.zeros((1, 1), bool), 0)
