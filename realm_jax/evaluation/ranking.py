"""Ranked documents against the documents that should have been found: recall, reciprocal rank, nDCG.

A rank that holds -1 (no hit) never counts. A document that a ranking names twice counts at its first rank alone, so
that no figure can exceed 1.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64


def relevance(
    ranked_ids: Int64[np.ndarray, "batch num_results"], gold: Sequence[Collection[int]]
) -> Bool[np.ndarray, "batch num_results"]:
    """Which ranks hold a gold document.

    >>> relevance(np.array([[4, 7, 4, -1]]), [{4, -1}]).tolist()
    [[True, False, False, False]]

    Args:
      ranked_ids: documents, best first; -1 where there is no further hit.
      gold: for each query the documents that answer it; -1 (unknown) among them is ignored.

    Raises:
      ValueError: when rankings and gold sets differ in number.
    """
    if len(ranked_ids) != len(gold):
        raise ValueError(f"expected one gold set a query, got {len(gold)} for {len(ranked_ids)} queries")
    found = np.zeros(ranked_ids.shape, bool)
    for row, wanted in enumerate(gold):
        ids = ranked_ids[row]
        hit = np.isin(ids, np.fromiter(wanted, np.int64, len(wanted))) & (ids >= 0)
        found[row] = hit & first_occurrence(ids)
    return found


def first_occurrence(ids: Int64[np.ndarray, "num_results"]) -> Bool[np.ndarray, "num_results"]:
    """False where a ranking names a document again."""
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    return first


def recall_at_k(relevant: Bool[np.ndarray, "batch num_results"], k: int) -> Float64[np.ndarray, "batch"]:
    """1 for a query with a relevant document among the first k, else 0.

    This is recall@k as open-domain question answering and REALM's Table 2 use the word (elsewhere: success@k, hits@k):
    one document suffices, however many are relevant. Where every query has one gold document the two are the same.

    >>> recall_at_k(np.array([[False, True, True], [False, False, True]]), 2).tolist()
    [1.0, 0.0]
    """
    _check_k(k)
    return np.asarray(relevant[:, :k].any(axis=1), np.float64)


def reciprocal_rank(relevant: Bool[np.ndarray, "batch num_results"]) -> Float64[np.ndarray, "batch"]:
    """1 / rank of the first relevant document, ranks from 1; 0 without one. Its mean over queries is MRR.

    >>> reciprocal_rank(np.array([[False, False, True, True], [False, False, False, False]])).round(3).tolist()
    [0.333, 0.0]
    """
    if relevant.shape[1] == 0:
        return np.zeros(len(relevant))
    first_ranks = relevant.argmax(axis=1) + 1.0
    return np.divide(1.0, first_ranks, out=np.zeros(len(relevant)), where=relevant.any(axis=1))


def ndcg_at_k(
    gains: Float64[np.ndarray, "batch num_results"], judged: Sequence[Collection[int | float]], k: int
) -> Float64[np.ndarray, "batch"]:
    """DCG / ideal DCG of the first k, DCG = Σ_i gain_i / log2(i + 1), ranks from 1 (Järvelin & Kekäläinen 2002).

    The gain is the judgement itself, as trec_eval and so BEIR (arXiv:2104.08663) have it, not 2^judgement - 1. A query
    with no judgement above 0 has 0.

    >>> ndcg_at_k(np.array([[1.0, 0.0, 2.0]]), [[2, 1]], k=10).round(4).tolist()
    [0.7602]

    Args:
      gains: of the ranked documents, best rank first; 0 for what is not relevant, for no hit, and for a document that
        the ranking has named already.
      judged: for each query the gains of all documents that should be found, found or not, in any order.
      k: ranks that count.

    Raises:
      ValueError: when gains and judgements differ in number.
    """
    _check_k(k)
    if len(gains) != len(judged):
        raise ValueError(f"expected the judgements of each query, got {len(judged)} for {len(gains)} queries")
    ideal = np.zeros((len(judged), k))
    for row, values in enumerate(judged):
        best = sorted((value for value in values if value > 0), reverse=True)[:k]
        ideal[row, : len(best)] = best
    discounts = 1 / np.log2(np.arange(2, k + 2))
    found, best_possible = gains[:, :k] @ discounts[: gains.shape[1]], ideal @ discounts
    return np.divide(found, best_possible, out=np.zeros(len(gains)), where=best_possible > 0)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
