"""Which documents of a ranking are right, and the figures of many rankings: recall@k, MRR and nDCG."""

import functools
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_patterns import nfd_contains_match
from realm_jax.evaluation.answers import normalise_answer, normalised_contains
from realm_jax.evaluation.queries import RetrievalQuery
from realm_jax.evaluation.ranking import first_occurrence, ndcg_at_k, recall_at_k, reciprocal_rank, relevance
from realm_jax.retrieval.index import SearchResult

RECALL_AT = (1, 5, 20, 100)
NDCG_AT = 10

SearchFunction = Callable[[Sequence[RetrievalQuery], int], SearchResult]
"""From queries and a number of results to the documents found."""


class Judge:
    """Says which ranked documents are right, by gold document and by contained answer."""

    def __init__(self, corpus: Corpus, cached_documents: int = 100_000):
        self._normal = functools.lru_cache(cached_documents)(
            lambda document: normalise_answer(document_text(corpus, document)[1])
        )
        self._nfd = functools.lru_cache(cached_documents)(
            lambda document: unicodedata.normalize("NFD", document_text(corpus, document)[1])
        )

    def contains(
        self, ranked_ids: Int64[np.ndarray, "batch num_results"], queries: Sequence[RetrievalQuery]
    ) -> Bool[np.ndarray, "batch num_results"]:
        """Which ranks hold a document whose text contains one of the query's answers.

        See `contains_answer`; of answers that are regular expressions, `contains_match`.
        """
        found = np.zeros(ranked_ids.shape, bool)
        for row, (ids, query) in enumerate(zip(ranked_ids, queries, strict=True)):
            normal = () if query.is_regex else [normalise_answer(answer) for answer in query.answers]
            for rank in np.flatnonzero((ids >= 0) & first_occurrence(ids)):
                document = int(ids[rank])
                found[row, rank] = (
                    nfd_contains_match(self._nfd(document), query.answers)
                    if query.is_regex
                    else normalised_contains(self._normal(document), normal)
                )
        return found


def evaluate_rankings(
    queries: Sequence[RetrievalQuery],
    search: SearchFunction,
    judge: Judge | None,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    batch_size: int = 256,
) -> dict[str, float | int]:
    """Searches every query and measures the rankings.

    Args:
      queries: with gold documents, answers, or both; a figure counts the queries for which it is defined.
      search: from queries and a number of results to a SearchResult.
      judge: looks answers up in documents; None leaves the figures by contained answer out (a search takes
        milliseconds, reading a hundred documents a query does not: in the training loop use None).
      recall_at: the k of recall@k; the greatest is how many results are searched.
      batch_size: queries searched at once.

    Returns:
      `queries_with_gold` and, if any, `recall_at_K`, `mrr` and `ndcg_at_10`; with a judge `queries_with_answers` and,
      if any, `answer_recall_at_K` and `answer_mrr`. MRR counts the ranks up to the greatest K.
    """
    by_gold = np.array([bool(query.gold) for query in queries], bool)
    by_answer = np.array([bool(query.answers) for query in queries], bool)
    gold_hits, answer_hits = [], []
    for first in range(0, len(queries), batch_size):
        part = queries[first : first + batch_size]
        ids = search(part, max(recall_at)).ids
        gold_hits.append(relevance(ids, [query.gold for query in part]))
        if judge is not None:
            answer_hits.append(judge.contains(ids, part))
    figures: dict[str, float | int] = {"queries_with_gold": int(by_gold.sum())}
    if by_gold.any():
        relevant = np.concatenate(gold_hits)[by_gold]
        judged = [np.ones(len(query.gold)) for query in queries if query.gold]
        figures |= _figures("", relevant, recall_at)
        figures[f"ndcg_at_{NDCG_AT}"] = float(ndcg_at_k(relevant.astype(np.float64), judged, NDCG_AT).mean())
    if judge is not None:
        figures["queries_with_answers"] = int(by_answer.sum())
        if by_answer.any():
            figures |= _figures("answer_", np.concatenate(answer_hits)[by_answer], recall_at)
    return figures


def _figures(prefix: str, relevant: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    found = {f"{prefix}recall_at_{k}": float(recall_at_k(relevant, k).mean()) for k in recall_at}
    return found | {f"{prefix}mrr": float(reciprocal_rank(relevant).mean())}
