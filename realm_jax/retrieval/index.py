"""What an index is: inner-product search over document embeddings, and the merge of several answers into one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64


class SearchResult(NamedTuple):
    """The best documents of each query, best first.

    Attributes:
      ids: rows of the corpus; -1 where there is no further hit.
      scores: inner products, descending; -inf where there is no further hit.
    """

    ids: Int64[np.ndarray, "batch num_results"]
    scores: Float32[np.ndarray, "batch num_results"]


@runtime_checkable
class Index(Protocol):
    """Searches `num_documents` document embeddings of width `embed_dim` by inner product."""

    @property
    def num_documents(self) -> int: ...

    @property
    def embed_dim(self) -> int: ...

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult: ...

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The document embeddings that are searched, unquantised; zeros for id -1."""
        ...


def merge_results(results: Sequence[SearchResult], num_results: int) -> SearchResult:
    """Merges the answers of indexes over disjoint documents into the best `num_results` of all.

    Equal scores are ordered by document id, so that the answer does not depend on how the documents were sharded.

    >>> left = SearchResult(np.array([[3, 0]]), np.array([[2.0, 1.0]], np.float32))
    >>> right = SearchResult(np.array([[7, -1]]), np.array([[1.5, -np.inf]], np.float32))
    >>> merge_results([left, right], num_results=3).ids.tolist()
    [[3, 7, 0]]

    Args:
      results: one answer a shard, with document ids of the whole corpus; their widths may differ.
      num_results: width of the merged answer; filled with -1 and -inf where there are fewer hits.

    Raises:
      ValueError: when there is nothing to merge or the answers are for different numbers of queries.
    """
    check_num_results(num_results)
    batches = {len(result.ids) for result in results}
    if len(batches) != 1:
        raise ValueError(f"merge_results expected answers for the same queries, got batches of {sorted(batches)}")
    ids = np.concatenate([result.ids for result in results], axis=1)
    scores = np.concatenate([result.scores for result in results], axis=1)
    return best_of(ids, scores, num_results)


def best_of(
    ids: Int64[np.ndarray, "batch found"], scores: Float32[np.ndarray, "batch found"], num_results: int
) -> SearchResult:
    """The best `num_results` of scored documents in any order; what is not finite (or has id -1) counts as no hit."""
    missing = (ids < 0) | ~np.isfinite(scores)
    ids, scores = np.where(missing, -1, ids), np.where(missing, np.float32(-np.inf), scores)
    order = np.lexsort((ids, -scores), axis=-1)[:, :num_results]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    fill = ((0, 0), (0, num_results - ids.shape[1]))
    return SearchResult(
        np.pad(ids, fill, constant_values=-1).astype(np.int64),
        np.pad(scores, fill, constant_values=-np.inf).astype(np.float32),
    )


def check_num_results(num_results: int) -> None:
    if num_results < 1:
        raise ValueError(f"num_results must be at least 1, got {num_results}")


def check_queries(queries: Float32[np.ndarray, "..."], embed_dim: int, num_results: int) -> None:
    """Refuses what no backend may see: ScaNN answers a NaN query with document 0.

    Raises:
      ValueError: for a wrong width, queries that are not finite, or a `num_results` below 1.
    """
    check_num_results(num_results)
    if queries.ndim != 2 or queries.shape[1] != embed_dim:
        raise ValueError(
            f"queries must be [batch, {embed_dim}] for this index, got {list(queries.shape)}; "
            "embed them with the retriever that the index was built with"
        )
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(queries)} queries are not finite, the first is query {bad[0]}; "
            "the query encoder has diverged: look at the loss and gradient norm of the last steps"
        )


def check_embeddings(embeddings: Float32[np.ndarray, "..."], first_document: int = 0) -> None:
    """Refuses document embeddings that are not finite, before ScaNN sees them: a NaN row kills the whole process.

    Args:
      embeddings: rows of documents `first_document`, `first_document + 1`, ….
      first_document: the document id of row 0, for the message.

    Raises:
      ValueError: naming how many rows are not finite and the first document's id.
    """
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ValueError(
            f"document embeddings must be float32 [num_documents, embed], "
            f"got {embeddings.dtype} {list(embeddings.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(embeddings)} document embeddings are not finite, "
            f"the first is document {first_document + bad[0]}; the snapshot's parameters have diverged: "
            "go back to an earlier snapshot"
        )
