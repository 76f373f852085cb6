"""Exact inner-product search on the device: every document is scored, chunk by chunk, on every device its own rows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64, Num

from realm_jax.retrieval.device_rows import (
    STORED,
    DeviceRows,
    EmptyRows,
    Rounding,
    RowDtype,
    SpareRows,
    chunk_scores,
    fill,
)
from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.index import SearchResult, best_of, check_num_results, check_queries
from realm_jax.typed import check_fields

NUMBERS_AT_ONCE = 1 << 22
"""How many float64 numbers of candidates are in memory while they are scored again."""


@dataclasses.dataclass(frozen=True)
class ExactSettings:
    """How an exact index keeps and searches its rows.

    Attributes:
      dtype: of the rows on the devices. In float32 their scores are the answer. In "bfloat16" (half the memory) and
        "int8" (a quarter, with a scale a row) they choose candidates, which are scored again with the float32
        embeddings of the version's files.
      oversample: how many candidates are scored again for each result, when the rows are not float32.
      recall_target: below 1, each chunk's best are found with `jax.lax.approx_max_k` (TPU-KNN), which is faster on TPU
        and exact elsewhere.
      chunk: most documents that are scored at once, on each device.
    """

    dtype: RowDtype = "float32"
    oversample: int = 4
    recall_target: float = 1.0
    chunk: int = 16384

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("oversample", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"ExactSettings.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.recall_target <= 1:
            raise ValueError(
                f"ExactSettings.recall_target must be above 0 and at most 1, got {self.recall_target}; 1 searches exactly"
            )


class DeviceResult(NamedTuple):
    """A search result still on the device: ids are -1 and scores -inf where there is no further hit."""

    ids: Int32[Array, "batch num_results"]
    scores: Float32[Array, "batch num_results"]


def search_chunks(
    queries: Float[Array, "batch embed"],
    chunks: Num[Array, "num_chunks chunk embed"],
    num_documents: int | Int32[Array, ""],
    num_results: int,
    recall_target: float = 1.0,
    scales: Float32[Array, "num_chunks chunk"] | None = None,
) -> DeviceResult:
    """The best documents of each query, scoring one chunk of documents at a time; may be called inside a jitted step.

    Only one chunk's scores exist at any time, so memory is batch × chunk, not batch × num_documents. Equal scores are
    ordered by document id.

    Args:
      queries: query embeddings.
      chunks: document embeddings in order, as `DeviceRows` has them; rows from `num_documents` on are padding and never
        returned.
      num_documents: how many rows are documents.
      num_results: may exceed the number of documents.
      recall_target: below 1, each chunk's best are found with `jax.lax.approx_max_k` (TPU-KNN), which is faster on
        TPU and exact elsewhere.
      scales: what the numbers of each int8 row are multiplied with.
    """
    num_chunks, chunk, _ = chunks.shape
    # a chunk cannot hold more hits than rows
    keep = min(num_results, chunk)

    def visit(best: DeviceResult, position: tuple[Array, Array, Array | None]) -> tuple[DeviceResult, None]:
        number, rows, scales_of_rows = position
        scores = chunk_scores(queries, rows, scales_of_rows)
        ids = number * chunk + jnp.arange(chunk, dtype=jnp.int32)
        scores = jnp.where((ids < num_documents)[None, :], scores, -jnp.inf)  # [batch, chunk]
        if recall_target < 1.0:
            top, where = jax.lax.approx_max_k(scores, keep, recall_target=recall_target)
        else:
            top, where = jax.lax.top_k(scores, keep)
        found = DeviceResult(jnp.take(ids, where), top)
        # top_k prefers the earlier of two equal scores: the ones found before have the smaller ids
        return _merge(best, found, num_results), None

    batch = queries.shape[0]
    nothing = DeviceResult(
        jnp.full((batch, num_results), -1, jnp.int32), jnp.full((batch, num_results), -jnp.inf, jnp.float32)
    )
    # inside shard_map the carry must vary over the mesh as the chunks do
    varying = tuple(getattr(jax.typeof(chunks), "vma", ()))
    if varying:
        nothing = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, varying, to="varying"), nothing)
    best, _ = jax.lax.scan(visit, nothing, (jnp.arange(num_chunks, dtype=jnp.int32), chunks, scales))
    return DeviceResult(jnp.where(jnp.isfinite(best.scores), best.ids, -1), best.scores)


def _merge(first: DeviceResult, second: DeviceResult, num_results: int) -> DeviceResult:
    scores = jnp.concatenate([first.scores, second.scores], axis=1)
    ids = jnp.concatenate([first.ids, second.ids], axis=1)
    top, where = jax.lax.top_k(scores, num_results)
    return DeviceResult(jnp.take_along_axis(ids, where, axis=1), top)


def search_sharded_chunks(
    queries: Float[Array, "batch embed"],
    chunks: Num[Array, "num_chunks chunk embed"],
    num_documents: int | Int32[Array, ""],
    num_results: int,
    mesh: Mesh,
    recall_target: float = 1.0,
    scales: Float32[Array, "num_chunks chunk"] | None = None,
) -> DeviceResult:
    """`search_chunks` over documents sharded over all axes of a mesh: shard-local top-k first, then a merge.

    A plain `top_k` over the sharded axis is wrong (jax issue 19271) or gathers all scores; here batch × num_results
    scores a device are exchanged. Queries and result are replicated.
    """
    axes = mesh.axis_names

    def search_own_rows(queries: Array, rows: DeviceRows, num_documents: Array) -> DeviceResult:
        own = rows.chunks.shape[0] * rows.chunks.shape[1]
        first = jax.lax.axis_index(axes) * own
        found = search_chunks(queries, rows.chunks, num_documents - first, num_results, recall_target, rows.scales)
        found = DeviceResult(jnp.where(found.ids >= 0, found.ids + first, -1), found.scores)
        # devices hold ascending ranges of documents, so concatenating in their order keeps ties ordered by id
        everyone = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axes, axis=1, tiled=True), found)
        top, where = jax.lax.top_k(everyone.scores, num_results)
        return DeviceResult(jnp.take_along_axis(everyone.ids, where, axis=1), top)

    return jax.shard_map(
        search_own_rows,
        mesh=mesh,
        in_specs=(P(), P(axes), P()),
        out_specs=P(),
        check_vma=False,  # the result is replicated by all_gather, which the check cannot see
    )(queries, DeviceRows(chunks, scales), jnp.asarray(num_documents, jnp.int32))


@functools.partial(jax.jit, static_argnames=("num_results", "mesh", "recall_target"))
def _search(
    queries: Array,
    rows: DeviceRows,
    num_documents: Array,
    num_results: int,
    mesh: Mesh | None,
    recall_target: float,
) -> DeviceResult:
    if mesh is None:
        return search_chunks(queries, rows.chunks, num_documents, num_results, recall_target, rows.scales)
    return search_sharded_chunks(queries, rows.chunks, num_documents, num_results, mesh, recall_target, rows.scales)


class ProvedResult(NamedTuple):
    """A search result, and for which queries it is known to be that of a search of all documents.

    Attributes:
      ids: as in SearchResult.
      scores: as in SearchResult.
      proved: no document that is missing can score as high as the last one found.
    """

    ids: Int64[np.ndarray, "batch num_results"]
    scores: Float32[np.ndarray, "batch num_results"]
    proved: Bool[np.ndarray, "batch"]


class ExactIndex:
    """Exact search over embeddings that lie on one device or, sharded by rows, on all devices of a mesh.

    The oracle of the tests, and on big accelerators the faster index: 13 million documents of 128 bfloat16 numbers
    take 3.4 GB over all devices.

    What is exact. Rows in float32 are all scored, and the scores are the answer. Rows in bfloat16 or int8 are all scored
    with an error, and the best `oversample` × num_results of them are scored again, with the embeddings as they were
    given. So scores always are inner products of the unquantised embeddings, rounded once, to float32; equal ones are
    ordered by document id. A document of the true answer can be missing only if the rounding puts it behind all these
    candidates; `search_proved` says for which queries that is impossible.
    """

    def __init__(
        self,
        embeddings: Any,
        *,
        chunk: int = ExactSettings.chunk,
        mesh: Mesh | None = None,
        dtype: RowDtype = ExactSettings.dtype,
        oversample: int = ExactSettings.oversample,
        recall_target: float = ExactSettings.recall_target,
        first_document: int = 0,
        spare: SpareRows | None = None,
        on_block: Callable[[int, int], None] | None = None,
    ):
        """Copies the embeddings to the devices, a chunk at a time.

        Args:
          embeddings: an array [num_documents, embed]; or a list of such arrays of consecutive documents, which may be
            memory-mapped: no more than one chunk is in memory beside what lies on the devices. Candidates are scored
            again from here, so the arrays must not be changed.
          chunk: most documents that are scored at once; the last chunk of every device may hold padding.
          mesh: devices to shard the rows over (all its axes); None for the default device.
          dtype: of the rows on the devices, see `ExactSettings`.
          oversample: candidates that are scored again, for each result, if the rows are not float32.
          recall_target: below 1, approximate search on TPU, see `search_chunks`.
          first_document: the corpus row of the first embedding, when this index holds a share of the corpus.
          spare: where buffers of an ended index are taken from, if they fit, and where these will go.
          on_block: called after each chunk of a device with how many are done and how many there are.

        Raises:
          ValueError: without documents, for blocks of different widths, or a setting that `ExactSettings` refuses.
        """
        self._settings = ExactSettings(dtype, oversample, recall_target, chunk)
        blocks: list[Any] = list(embeddings) if isinstance(embeddings, (list, tuple)) else [embeddings]
        widths = {block.shape[1:] for block in blocks}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise ValueError(f"an exact index needs blocks [documents, embed] of one width, got {sorted(widths)}")
        self._num_documents = sum(len(block) for block in blocks)
        self._embed_dim = int(next(iter(widths))[0])
        self._first_document, self._mesh = first_document, mesh
        if self._num_documents == 0:
            raise ValueError("an exact index needs at least 1 document, got 0 documents")
        self._embeddings = EmbeddingRows(blocks, first_document)
        self._device_rows, self._rounding = self._place(spare, on_block)

    def _place(
        self, spare: SpareRows | None, on_block: Callable[[int, int], None] | None
    ) -> tuple[DeviceRows, Rounding]:
        devices = 1 if self._mesh is None else self._mesh.devices.size
        rows_of_device = -(-self._num_documents // devices)
        chunks_of_device = -(-rows_of_device // self._settings.chunk)
        chunk = -(-rows_of_device // chunks_of_device)  # all full but the last: padding is scored too
        shape = (devices * chunks_of_device, chunk, self._embed_dim)
        sharding: NamedSharding | SingleDeviceSharding
        if self._mesh is None:
            sharding = SingleDeviceSharding(jax.local_devices()[0])  # a host searches by itself
        else:
            sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        mine = {
            SingleDeviceSharding(device): range(*(place or (slice(None),))[0].indices(shape[0]))
            for device, place in sharding.addressable_devices_indices_map(shape).items()
        }
        wanted = [
            EmptyRows((len(numbers), *shape[1:]), STORED[self._settings.dtype], place)
            for place, numbers in mine.items()
        ]
        parts = spare.take(wanted) if spare is not None else None
        if parts is None:
            parts = [empty.make() for empty in wanted]
        # from here to the end a part is either whole in this list or consumed by `fill`: nobody else refers to it
        rounding = Rounding(0.0, 0.0)
        for number, (place, numbers) in enumerate(mine.items()):
            parts[number], own = fill(parts[number], place, self._embeddings, numbers, on_block)
            rounding = Rounding(*map(max, rounding, own))
        if spare is not None:
            spare.lend(self, parts)
        if self._mesh is None:
            return parts[0], rounding
        whole = jax.tree.map(
            lambda *leaves: jax.make_array_from_single_device_arrays(
                (shape[0], *leaves[0].shape[1:]), sharding, list(leaves)
            ),
            *parts,
        )
        return whole, rounding

    @property
    def num_documents(self) -> int:
        return self._num_documents

    @property
    def embed_dim(self) -> int:
        return self._embed_dim

    @property
    def settings(self) -> ExactSettings:
        return self._settings

    @property
    def device_rows(self) -> DeviceRows:
        """What lies on the devices, for a program that searches within itself (`search_chunks`); hold the index as long."""
        return self._device_rows

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The `num_results` documents of greatest inner product for each query; -1 and -inf beyond the last document.

        Raises:
          ValueError: for queries of another width or not finite, or `num_results` below 1.
        """
        found = self.search_proved(queries, num_results)
        return SearchResult(found.ids, found.scores)

    def search_proved(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> ProvedResult:
        """`search`, and for each query whether its answer is proved to be that of a search in float32.

        A document that is no candidate has a device score of at most that of the last candidate, t, and its inner product
        is at most t + ε, with ε a bound on the error of a device score (`Rounding.score_error`). So the answer is proved
        when its last score is above t + ε, or when all documents are candidates. Rows in float32 need no proof: nothing
        but the rounding of sums can order their scores otherwise. With a `recall_target` below 1 nothing is proved.

        Raises:
          ValueError: as `search`.
        """
        check_queries(queries, self._embed_dim, num_results)
        settings, batch = self._settings, len(queries)
        scored_again = settings.dtype != "float32"
        found = min(num_results * (settings.oversample if scored_again else 1), self._num_documents)
        # batches are padded to powers of two: few programs are compiled whatever the callers ask
        padded = np.pad(queries, ((0, (1 << max(batch - 1, 0).bit_length()) - batch), (0, 0)))
        result = _search(
            padded, self._device_rows, np.int32(self._num_documents), found, self._mesh, settings.recall_target
        )
        scores = np.asarray(result.scores)[:batch]
        ids = np.asarray(result.ids)[:batch].astype(np.int64)
        ids = np.where(ids >= 0, ids + self._first_document, -1)
        is_exact = np.full(batch, settings.recall_target == 1.0)
        if not scored_again:
            return ProvedResult(*best_of(ids, scores, num_results), is_exact)
        best = best_of(ids, self._score(queries, ids), num_results)
        if found == self._num_documents:
            return ProvedResult(*best, is_exact)
        reached = scores[:, -1] + self._rounding.score_error(queries)
        return ProvedResult(*best, is_exact & (best.scores[:, -1] > reached))

    def _score(
        self, queries: Float32[np.ndarray, "batch embed"], ids: Int64[np.ndarray, "batch candidates"]
    ) -> Float32[np.ndarray, "batch candidates"]:
        """Inner products with the embeddings as they were given, summed in float64: equal embeddings score equally."""
        scores = np.full(ids.shape, -np.inf, np.float32)
        step = max(1, NUMBERS_AT_ONCE // (ids.shape[1] * self._embed_dim))
        for start in range(0, len(ids), step):
            some = slice(start, start + step)
            rows = self._embeddings.take(ids[some]).astype(np.float64)
            scores[some] = (rows @ queries[some].astype(np.float64)[:, :, None])[:, :, 0]
        return np.where(ids >= 0, scores, np.float32(-np.inf))

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings as they were given, whatever dtype the devices hold; zeros for id -1."""
        return self._embeddings.take(document_ids)


def brute_force(
    queries: Float32[np.ndarray, "batch embed"],
    embeddings: Float32[np.ndarray, "num_documents embed"],
    num_results: int,
    first_document: int = 0,
) -> SearchResult:
    """Exact search in plain numpy, without compiling: for samples and for tests.

    >>> brute_force(np.eye(2, dtype=np.float32), np.array([[1, 0], [3, 0], [0, 2]], np.float32), 2).ids.tolist()
    [[1, 0], [2, 0]]
    """
    check_num_results(num_results)
    scores = queries @ embeddings.T  # [batch, num_documents]
    keep = min(num_results, len(embeddings))
    border = -np.partition(-scores, keep - 1, axis=1)[:, keep - 1 : keep]
    chosen = scores >= border
    if (chosen.sum(axis=1) == keep).all():
        found = np.nonzero(chosen)[1].reshape(len(scores), keep)
    else:  # several equal scores at the border: those of smaller id are kept
        found = np.argsort(np.where(chosen, -scores, np.inf), axis=1, kind="stable")[:, :keep]
    picked = np.take_along_axis(scores, found, axis=1)
    return best_of(found.astype(np.int64) + first_document, picked.astype(np.float32), num_results)
