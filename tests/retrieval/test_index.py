"""The protocol's own parts: merging and refusing."""

import numpy as np
import pytest

from realm_jax.retrieval import Index, SearchResult, merge_results
from realm_jax.retrieval.exact import ExactIndex, brute_force
from realm_jax.retrieval.index import best_of, check_embeddings, check_queries


def _result(ids: list, scores: list) -> SearchResult:
    return SearchResult(np.array(ids, np.int64), np.array(scores, np.float32))


def test_merge_orders_by_score_then_by_document():
    merged = merge_results(
        [
            _result([[9, 4], [1, -1]], [[2.0, 1.0], [5.0, -np.inf]]),
            _result([[3, 8], [7, 6]], [[2.0, 1.5], [5.0, 4.0]]),
        ],
        3,
    )
    assert merged.ids.tolist() == [[3, 9, 8], [1, 7, 6]]
    assert merged.scores.tolist() == [[2.0, 2.0, 1.5], [5.0, 5.0, 4.0]]
    assert merged.ids.dtype == np.int64 and merged.scores.dtype == np.float32


def test_merge_of_shards_equals_brute_force_of_the_whole_with_ties():
    rng = np.random.default_rng(0)
    # small integers: exact sums and many equal scores
    documents = rng.integers(-2, 3, size=(301, 5)).astype(np.float32)
    queries = rng.integers(-2, 3, size=(17, 5)).astype(np.float32)
    for num_results in (1, 7, 40, 301, 400):
        parts = [
            brute_force(queries, documents[a:b], num_results, first_document=a)
            for a, b in ((200, 301), (0, 1), (1, 90), (90, 200))
        ]
        merged = merge_results(parts, num_results)
        scores = queries @ documents.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_results]
        found = min(num_results, 301)
        assert np.array_equal(merged.ids[:, :found], order)
        assert np.array_equal(merged.scores[:, :found], np.take_along_axis(scores, order, 1))
        assert (merged.ids[:, found:] == -1).all() and np.isneginf(merged.scores[:, found:]).all()


def test_missing_hits_never_look_like_document_0():
    best = best_of(np.array([[0, 5, 2]]), np.array([[np.nan, 1.0, -np.inf]], np.float32), 4)
    assert best.ids.tolist() == [[5, -1, -1, -1]]
    assert best.scores.tolist() == [[1.0, -np.inf, -np.inf, -np.inf]]


def test_merge_of_different_batches_is_refused():
    with pytest.raises(ValueError, match=r"same queries, got batches of \[1, 2\]"):
        merge_results([_result([[1]], [[1.0]]), _result([[1], [2]], [[1.0], [2.0]])], 1)
    with pytest.raises(ValueError, match=r"same queries"):
        merge_results([], 1)


def test_bad_queries_are_refused():
    with pytest.raises(ValueError, match=r"must be \[batch, 4\] for this index, got \[2, 5\]"):
        check_queries(np.zeros((2, 5), np.float32), 4, 1)
    with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
        check_queries(np.zeros((2, 4), np.float32), 4, 0)
    queries = np.zeros((6, 4), np.float32)
    queries[2, 1], queries[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 6 queries are not finite, the first is query 2"):
        check_queries(queries, 4, 1)


def test_bad_embeddings_are_refused():
    rows = np.zeros((6, 4), np.float32)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 6 document embeddings are not finite, the first is document 103"):
        check_embeddings(rows, first_document=100)
    with pytest.raises(ValueError, match=r"must be float32"):
        check_embeddings(np.zeros((6, 4, 2), np.float32))


def test_exact_index_is_an_index():
    assert isinstance(ExactIndex(np.eye(3, dtype=np.float32)), Index)
