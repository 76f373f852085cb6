"""ScaNN search on the host's CPU. The only module that imports scann."""

import dataclasses
import errno
import functools
import math
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.index import SearchResult, best_of, check_embeddings, check_queries, merge_results
from realm_jax.typed import check_fields

BRUTE_FORCE_BELOW = 20_000
"""Shards smaller than this are searched by brute force: as fast as a tree, and exact."""

CODES_PER_BLOCK = 16
"""Codes of ScaNN's asymmetric hash, trained on at least as many documents."""

_importing = threading.Lock()


@functools.cache
def _scann() -> Any:
    # ScaNN loads TensorFlow where it finds one and fails with any version but the one it was built for. It needs none.
    with _importing:
        hidden = "tensorflow" not in sys.modules
        if hidden:
            sys.modules["tensorflow"] = None  # type: ignore[assignment]
        try:
            from scann.scann_ops.py import scann_ops_pybind
        except ImportError as error:
            raise ValueError(
                f"the index backend 'scann' cannot be loaded ({error}); ScaNN has wheels for Linux alone: "
                "elsewhere choose the backend 'exact'"
            ) from error
        except Exception as error:  # TensorFlow's own error, where the program had imported it before
            raise ValueError(
                f"the index backend 'scann' cannot be loaded beside the TensorFlow that this program has imported "
                f"({type(error).__name__}); import realm_jax.retrieval.scann_index first and search once, "
                "or choose the backend 'exact'"
            ) from error
        finally:
            if hidden:
                del sys.modules["tensorflow"]
    return scann_ops_pybind


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """How one shard is indexed.

    Attributes:
      num_leaves: leaves of the partitioning tree; 0 for brute force, which is exact.
      leaves_to_search: how many of them a query visits.
      dims_per_block: dimensions that share a code of the asymmetric hash.
      anisotropic_threshold: how much more error along a document's direction weighs (Guo et al., arXiv:1908.10396).
      reorder: how many candidates are scored again with their float32 embeddings.
    """

    num_leaves: int = 0
    leaves_to_search: int = 0
    dims_per_block: int = 2
    anisotropic_threshold: float = 0.2
    reorder: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_leaves < 0 or (self.num_leaves and not 1 <= self.leaves_to_search <= self.num_leaves):
            raise ValueError(
                "ScannSettings needs 1 <= leaves_to_search <= num_leaves, or num_leaves 0 for brute force; "
                f"got num_leaves {self.num_leaves}, leaves_to_search {self.leaves_to_search}"
            )
        if self.dims_per_block < 1 or self.reorder < 1:
            raise ValueError(
                "ScannSettings needs dims_per_block and reorder of at least 1, "
                f"got {self.dims_per_block} and {self.reorder}"
            )

    @classmethod
    def for_documents(cls, num_documents: int) -> "ScannSettings":
        """Settings for a shard of this many documents: brute force below 20 000, else √n leaves.

        Of them a tenth is searched at 20 000 documents, and a smaller share of more: their number grows as ⁴√n, so that what
        is scored of a shard grows as n to the ¾ (docs/results/index_backends.md says what recall that has).

        >>> ScannSettings.for_documents(20_000).leaves_to_search, ScannSettings.for_documents(2_000).num_leaves
        (14, 0)
        >>> ScannSettings.for_documents(1_000_000).num_leaves, ScannSettings.for_documents(1_000_000).leaves_to_search
        (1000, 37)
        """
        if num_documents < BRUTE_FORCE_BELOW:
            return cls()
        return cls(
            num_leaves=math.isqrt(num_documents),
            leaves_to_search=round(14 * (num_documents / BRUTE_FORCE_BELOW) ** 0.25),
        )


class ScannShard(NamedTuple):
    """A searcher over documents `first_document` … `first_document + num_documents - 1`."""

    searcher: Any
    first_document: int
    num_documents: int
    embed_dim: int
    settings: ScannSettings


def build_shard(
    embeddings: Float32[np.ndarray, "num_documents embed"],
    first_document: int = 0,
    settings: ScannSettings | None = None,
) -> ScannShard:
    """Indexes the embeddings of consecutive documents. The same embeddings give the same shard, in any process.

    Args:
      embeddings: one row a document.
      first_document: the document id of row 0.
      settings: None to choose them from the number of documents.

    Raises:
      ValueError: for embeddings that are not finite (ScaNN would end the process), none at all, or fewer than leaves.
    """
    check_embeddings(embeddings, first_document)
    settings = settings or ScannSettings.for_documents(len(embeddings))
    if len(embeddings) == 0:
        raise ValueError("an index shard needs at least one document, got none")
    if settings.num_leaves and len(embeddings) < max(settings.num_leaves, CODES_PER_BLOCK):
        raise ValueError(
            f"an index shard of {len(embeddings)} documents cannot have {settings.num_leaves} leaves and "
            f"{CODES_PER_BLOCK} hash codes; use fewer leaves, or 0 for brute force"
        )
    # a memory map or a view is copied once here; ScaNN wants contiguous rows and makes its own copy
    builder = _scann().builder(np.ascontiguousarray(embeddings), 10, "dot_product")
    if settings.num_leaves == 0:
        builder = builder.score_brute_force()
    else:
        builder = (
            # random_init=False: k-means++ instead of centres seeded by memory layout, so that builds repeat exactly
            builder.tree(
                num_leaves=settings.num_leaves,
                num_leaves_to_search=settings.leaves_to_search,
                random_init=False,
            )
            .score_ah(settings.dims_per_block, anisotropic_quantization_threshold=settings.anisotropic_threshold)
            .reorder(settings.reorder)
        )
    return ScannShard(builder.build(), first_document, len(embeddings), embeddings.shape[1], settings)


def save_shard(shard: ScannShard, directory: str | os.PathLike[str]) -> None:
    """Writes ScaNN's assets of a shard into a new directory. Holds the GIL while it writes.

    Raises:
      OSError: when they cannot be written; ScaNN does not say why.
    """
    Path(directory).mkdir(parents=True)
    # relative_path: otherwise the assets name their absolute place and a copied or renamed run cannot be loaded
    try:
        shard.searcher.serialize(str(directory), relative_path=True)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"ScaNN could not write to {directory}: {' '.join(str(error).split())}") from error


def load_shard(
    directory: str | os.PathLike[str],
    first_document: int,
    num_documents: int,
    embed_dim: int,
    settings: ScannSettings,
) -> ScannShard:
    """Reads what `save_shard` wrote. Holds the GIL while it reads, 0.18 s for 110 MB: hence shards of bounded size.

    Raises:
      ValueError: when the assets are not what ScaNN can read, naming the directory.
    """
    try:
        searcher = _scann().load_searcher(str(directory))
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise ValueError(f"{directory} does not hold a readable ScaNN shard: {error}") from error
    return ScannShard(searcher, first_document, num_documents, embed_dim, settings)


class ScannIndex:
    """Searches one or more ScaNN shards and merges their answers by score. May be used from several threads."""

    def __init__(self, shards: Sequence[ScannShard], num_threads: int | None = None, rows: EmbeddingRows | None = None):
        """
        Args:
          shards: of disjoint documents.
          num_threads: how many shards are searched at once, or parts of the queries where there are fewer shards; None for
            as many as this process may use cores. ScaNN releases the GIL while it searches.
          rows: the embeddings that the shards were built from, for `embeddings`; ScaNN's own copy cannot be read.
        """
        self._rows = rows
        if not shards or len({shard.embed_dim for shard in shards}) != 1:
            widths = sorted({shard.embed_dim for shard in shards})
            raise ValueError(f"a ScaNN index needs shards of one embed_dim, got {len(shards)} shards of {widths}")
        self._shards = sorted(shards, key=lambda shard: shard.first_document)
        for left, right in zip(self._shards, self._shards[1:], strict=False):
            if left.first_document + left.num_documents > right.first_document:
                raise ValueError(
                    f"shards overlap: one ends before document {left.first_document + left.num_documents}, "
                    f"the next begins with {right.first_document}"
                )
        self._threads = num_threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="scann") if self._threads > 1 else None

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self._shards)

    @property
    def embed_dim(self) -> int:
        return self._shards[0].embed_dim

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The documents of greatest inner product that the shards find; -1 and -inf where they find no more.

        Raises:
          ValueError: for queries of another width or not finite, or `num_results` below 1.
        """
        check_queries(queries, self.embed_dim, num_results)
        if len(queries) == 0:  # ScaNN raises for no query
            return SearchResult(np.zeros((0, num_results), np.int64), np.zeros((0, num_results), np.float32))
        queries = np.ascontiguousarray(queries)
        parts = np.array_split(queries, min(len(queries), -(-self._threads // len(self._shards))))
        pieces = [(shard, part) for shard in self._shards for part in parts]
        search = functools.partial(_search_shard, num_results=num_results)
        found = list(
            self._pool.map(search, *zip(*pieces, strict=True))
            if self._pool
            else map(search, *zip(*pieces, strict=True))
        )
        by_shard = [found[first : first + len(parts)] for first in range(0, len(found), len(parts))]
        return merge_results([_stacked(answers) for answers in by_shard], num_results)

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings that the shards were built from; zeros for id -1.

        Raises:
          ValueError: when the index was made without `rows`.
        """
        if self._rows is None:
            raise ValueError("this index was made without its embeddings; load it with versions.load_version")
        return self._rows.take(document_ids)


def _stacked(answers: Sequence[SearchResult]) -> SearchResult:
    """The answers of one shard to several parts of the queries as one."""
    return SearchResult(*(np.concatenate(parts) for parts in zip(*answers, strict=True)))


def _search_shard(shard: ScannShard, queries: np.ndarray, num_results: int) -> SearchResult:
    keep = min(num_results, shard.num_documents)
    settings = shard.settings
    if settings.num_leaves == 0:
        ids, scores = shard.searcher.search_batched(queries, final_num_neighbors=keep)
    else:
        # By itself ScaNN never returns more than `reorder` hits. Who wants many documents needs twice as many scored
        # again, and leaves that hold several times as many.
        leaves = math.ceil(4 * keep * settings.num_leaves / shard.num_documents)
        ids, scores = shard.searcher.search_batched(
            queries,
            final_num_neighbors=keep,
            pre_reorder_num_neighbors=max(settings.reorder, 2 * keep),
            leaves_to_search=min(max(settings.leaves_to_search, leaves), settings.num_leaves),
        )
    # ScaNN pads missing hits with id 0 and a NaN distance; its ids are uint32, which would wrap when offset
    ids = np.where(np.isfinite(scores), ids.astype(np.int64) + shard.first_document, -1)
    return best_of(ids, scores.astype(np.float32), keep)
