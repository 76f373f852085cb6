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
    gains = np.array([[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    judged = [[2, 1, 0], [3], [], [1, 1]]
    ideal = 2 + 1 / np.log2(3)
    last = 1 / np.log2(5)
    np.testing.assert_allclose(ndcg_at_k(gains, judged, 4), [(1 + 2 / 2) / ideal, 1, 0, last / (1 + 1 / np.log2(3))])
    np.testing.assert_allclose(ndcg_at_k(gains, judged, 2), [1 / ideal, 1, 0, 0])
    np.testing.assert_allclose(ndcg_at_k(gains, judged, 1), [1 / 2, 1, 0, 0])
    np.testing.assert_allclose(ndcg_at_k(gains, judged, 100), ndcg_at_k(gains, judged, 4))  # beyond what was searched
    with pytest.raises(ValueError, match="judgements of each query, got 3 for 4 queries"):
        ndcg_at_k(gains, judged[:3], 2)


def test_figures_are_those_of_ir_measures():
    """On random rankings and random graded judgements, queries without a hit among them."""
    ir_measures = pytest.importorskip("ir_measures")
    rng = np.random.default_rng(0)
    num_queries, num_documents, depth = 300, 40, 25
    judged = [
        {int(d): int(rng.integers(0, 4)) for d in rng.choice(num_documents, rng.integers(1, 12), replace=False)}
        for _ in range(num_queries)
    ]
    ranked = rng.permuted(np.tile(np.arange(num_documents), (num_queries, 1)), axis=1)[:, :depth]
    ranked[np.arange(depth)[None, :] >= rng.integers(0, depth + 1, num_queries)[:, None]] = -1
    qrels = {f"q{q}": {f"d{d}": value for d, value in of.items()} for q, of in enumerate(judged)}
    run: dict[str, dict[str, float]] = {query: {} for query in qrels}
    for q, ids in enumerate(ranked):
        for rank, document in enumerate(ids):
            if document >= 0:
                run[f"q{q}"][f"d{document}"] = float(depth - rank)
    relevant = relevance(ranked, [{d for d, value in of.items() if value > 0} for of in judged])
    gains = np.array([[of.get(int(d), 0) for d in ids] for of, ids in zip(judged, ranked, strict=True)]) * relevant
    ours = {
        ir_measures.nDCG @ 10: ndcg_at_k(gains.astype(np.float64), [list(of.values()) for of in judged], 10),
        ir_measures.nDCG @ 3: ndcg_at_k(gains.astype(np.float64), [list(of.values()) for of in judged], 3),
        ir_measures.RR: reciprocal_rank(relevant),
        ir_measures.Success @ 1: recall_at_k(relevant, 1),
        ir_measures.Success @ 5: recall_at_k(relevant, 5),
    }
    theirs: dict[object, dict[str, float]] = {measure: dict.fromkeys(qrels, 0.0) for measure in ours}
    for found in ir_measures.iter_calc(list(ours), qrels, run):
        theirs[found.measure][found.query_id] = found.value
    for measure, values in ours.items():
        assert 0.05 < values.mean() < 0.95
        np.testing.assert_allclose(values, list(theirs[measure].values()), rtol=1e-6, err_msg=str(measure))


def test_a_document_named_twice_counts_once():
    relevant = relevance(np.array([[6, 6, 6]]), [{6}])
    np.testing.assert_array_equal(relevant, [[True, False, False]])


def test_bad_arguments():
    with pytest.raises(ValueError, match="one gold set a query, got 3 for 4 queries"):
        relevance(RANKED, GOLD[:3])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at_k(np.zeros((1, 1), bool), 0)
