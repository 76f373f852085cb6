"""BM25 over the words of the documents: what a retriever has to beat (Robertson & Zaragoza 2009)."""

import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from realm_jax.retrieval.index import SearchResult, best_of, check_num_results


@functools.cache
def _bm25s() -> Any:
    """The library, imported when it is used: it computes with jax as it is imported, after which no process can join a run.

    It also sets its logger to DEBUG then, and logs every call.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


class Bm25Index:
    """Searches texts by BM25 in Lucene's form, k1 1.5, b 0.75, without stemming.

    >>> index = Bm25Index(["Marie Curie found radium.", "A tree is a graph without cycles."])
    >>> index.search(["who found radium"], num_results=2).ids.tolist()
    [[0, -1]]
    """

    def __init__(self, texts: Iterable[str], stopwords: str | None = "english") -> None:
        """Indexes the texts.

        Args:
          texts: of all documents in order, titles included.
          stopwords: "english", or None to keep every word.

        Raises:
          ValueError: when no text has a word left.
        """
        self._stopwords: str | list[str] = stopwords or []
        words = _bm25s().tokenize(list(texts), stopwords=self._stopwords, show_progress=False)
        self.num_documents = len(words.ids)
        if not words.vocab or not any(words.ids):
            raise ValueError(f"none of the {self.num_documents} documents has a word to search by")
        self._bm25 = _bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        self._bm25.index(words, show_progress=False)

    def search(self, queries: Sequence[str], num_results: int) -> SearchResult:
        """The best documents of each query; -1 for documents that share no word with it.

        Documents of equal score come in the order of their ids, so that a run can be repeated.
        """
        check_num_results(num_results)
        if not queries:
            return SearchResult(np.zeros((0, num_results), np.int64), np.zeros((0, num_results), np.float32))
        words = _bm25s().tokenize(list(queries), stopwords=self._stopwords, return_ids=False, show_progress=False)
        rows = [self._search_one(query, num_results) for query in words]
        return SearchResult(np.concatenate([row.ids for row in rows]), np.concatenate([row.scores for row in rows]))

    def _search_one(self, words: list[str], num_results: int) -> SearchResult:
        known = [word for word in words if word in self._bm25.vocab_dict]
        scores = self._bm25.get_scores(known) if known else np.zeros(self.num_documents, np.float32)
        keep = min(num_results, self.num_documents)
        border = np.partition(scores, len(scores) - keep)[len(scores) - keep]
        ids = np.flatnonzero((scores >= border) & (scores > 0))
        return best_of(ids[None].astype(np.int64), scores[ids][None].astype(np.float32), num_results)
