"""Rows of an exact index on a device: float32, bfloat16 or int8, written chunk by chunk, handed on to the next version."""

import functools
import logging
import queue
import weakref
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Float32, Int32, Num

from realm_jax.retrieval.embedding_rows import EmbeddingRows

logger = logging.getLogger(__name__)

RowDtype = Literal["float32", "bfloat16", "int8"]

STORED: dict[RowDtype, jnp.dtype] = {
    "float32": jnp.dtype(jnp.float32),
    "bfloat16": jnp.dtype(jnp.uint16),
    "int8": jnp.dtype(jnp.int8),
}
"""The dtype of the buffers. Of bfloat16 numbers it is the bits: to take a chunk out of a loop's bfloat16 rows, XLA for CPUs
makes a float32 copy of all of them. Bits it leaves as they are, and to see numbers in them costs nothing anywhere."""

INT8_MAX = 127


class DeviceRows(NamedTuple):
    """Document embeddings in chunks, on one device or sharded over several by chunks.

    Attributes:
      chunks: float32 or int8 numbers, or the bits of bfloat16 ones as uint16.
      scales: what the numbers of an int8 row are multiplied with; None for the other dtypes.
    """

    chunks: Num[Array, "num_chunks chunk embed"]
    scales: Float32[Array, "num_chunks chunk"] | None = None


class Rounding(NamedTuple):
    """How far rows are from the embeddings they were made of: what a bound on a score's error needs.

    Attributes:
      worst_error: greatest distance between an embedding and its row.
      longest_row: greatest length of a row.
    """

    worst_error: float
    longest_row: float

    def score_error(self, queries: Float32[np.ndarray, "batch embed"]) -> np.ndarray:
        """How much the score that a device gives a document may be off, for each query: [batch], float64.

        With q̂ and d̂ for what query and document are rounded to, |q·d - q̂·d̂| ≤ |q - q̂| |d̂| + |q| |d - d̂|. To this comes
        the rounding of the sum, at most embed · 2⁻²⁴ |q̂| |d̂|, of which four times as much is allowed for.
        """
        exact = queries.astype(np.float64)
        lost = np.linalg.norm(exact - queries.astype(jnp.bfloat16).astype(np.float64), axis=1)
        length = np.linalg.norm(exact, axis=1)
        summing = queries.shape[1] * 2.0**-22
        # the two figures were themselves summed in float32
        return 1.001 * (lost * self.longest_row + length * (self.worst_error + summing * self.longest_row))


def quantise(rows: Float[Array, "rows embed"], stored: jnp.dtype) -> tuple[DeviceRows, Float32[Array, "rows embed"]]:
    """Rows as they are kept in buffers of dtype `stored`, and the float32 numbers that these stand for.

    An int8 row is scaled by its own greatest number: a long document costs the others no precision.
    """
    rows = rows.astype(jnp.float32)
    if stored == jnp.int8:
        scales = jnp.abs(rows).max(axis=1) / INT8_MAX
        codes = jnp.round(rows / jnp.where(scales > 0, scales, 1.0)[:, None])
        codes = jnp.clip(codes, -INT8_MAX, INT8_MAX)
        return DeviceRows(codes.astype(jnp.int8), scales), codes * scales[:, None]
    if stored == jnp.uint16:
        # not a conversion there and back: XLA may leave such a pair out, and the error would seem to be 0
        rows = jax.lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
        return DeviceRows(jax.lax.bitcast_convert_type(rows.astype(jnp.bfloat16), jnp.uint16)), rows
    return DeviceRows(rows.astype(stored)), rows


def chunk_scores(
    queries: Float[Array, "batch embed"], chunk: Num[Array, "chunk embed"], scales: Float32[Array, "chunk"] | None
) -> Float32[Array, "batch chunk"]:
    """Inner products, summed in float32. Queries meet rows of less than float32 as bfloat16, and int8 numbers are exact in it."""
    if chunk.dtype == jnp.float32:
        precise = jax.lax.Precision.HIGHEST
        return jnp.einsum("be,ce->bc", queries.astype(jnp.float32), chunk, precision=precise)
    if chunk.dtype == jnp.uint16:
        chunk = jax.lax.bitcast_convert_type(chunk, jnp.bfloat16)
    rounded = jax.lax.reduce_precision(queries.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)

    def on_accelerator(queries: Array, chunk: Array) -> Array:
        operands = queries.astype(jnp.bfloat16), chunk.astype(jnp.bfloat16)
        return jnp.einsum("be,ce->bc", *operands, preferred_element_type=jnp.float32)

    def on_cpu(queries: Array, chunk: Array) -> Array:  # which has no fast bfloat16 product; the numbers are the same
        return jnp.einsum("be,ce->bc", queries, chunk.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    scores = jax.lax.platform_dependent(rounded, chunk, cpu=on_cpu, default=on_accelerator)
    return scores if scales is None else scores * scales[None, :]


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _write_chunk(
    rows: DeviceRows, rounding: Float32[Array, "2"], content: Float[Array, "chunk embed"], number: Int32[Array, ""]
) -> tuple[DeviceRows, Float32[Array, "2"]]:
    """Replaces a chunk in place, and keeps the greatest (error, length) of all chunks written."""
    kept, numbers = quantise(content, rows.chunks.dtype)
    written = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, number, 0), rows, kept)
    error = jnp.linalg.norm(content.astype(jnp.float32) - numbers, axis=1).max()
    return written, jnp.maximum(rounding, jnp.stack([error, jnp.linalg.norm(numbers, axis=1).max()]))


class EmptyRows(NamedTuple):
    """Rows to be made on one device."""

    shape: tuple[int, ...]  # chunks, documents of a chunk, numbers of a document
    dtype: jnp.dtype
    place: SingleDeviceSharding

    @classmethod
    def like(cls, rows: DeviceRows) -> "EmptyRows | None":
        """What these rows are; None when a program has taken their buffers, by donation."""
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(rows)):
            return None
        (device,) = rows.chunks.devices()
        return cls(rows.chunks.shape, rows.chunks.dtype, SingleDeviceSharding(device))

    def make(self) -> DeviceRows:
        scales = jnp.zeros(self.shape[:2], jnp.float32, device=self.place) if self.dtype == jnp.int8 else None
        return DeviceRows(jnp.zeros(self.shape, self.dtype, device=self.place), scales)


class SpareRows:
    """The buffers of an index that nobody can reach any more, for the next version to be written into.

    Who owns a buffer: the index that was made with it, as long as anything refers to that index. A search is such a
    reference until its result is on the host. When the last one is gone the buffers come here, and the load of the next
    version takes them out before it writes: no search can see a buffer that is being written, and none can fail because
    its buffer was taken away.

    So a trainer that serves one version and loads another has two on its devices. A load that finds two still in use, such
    as the served one and the one before it, which a search has not left yet, waits for a while; then it makes new buffers.
    """

    def __init__(self, patience_secs: float = 10.0):
        self._patience_secs = patience_secs
        self._in_use: set[object] = set()
        # its put may be called while another call is under way in the same thread: a reference may end anywhere
        self._waiting: queue.SimpleQueue[list[DeviceRows]] = queue.SimpleQueue()

    def lend(self, index: object, parts: list[DeviceRows]) -> None:
        """Gives an index its buffers, until nothing refers to it any more."""
        loan = object()
        self._in_use.add(loan)
        weakref.finalize(index, self._take_back, loan, parts).atexit = False

    def take(self, wanted: list[EmptyRows]) -> list[DeviceRows] | None:
        """The buffers of an ended index, if they are what is wanted. Others are freed: there will be no use for them."""
        crowded = len(self._in_use) >= 2
        parts = self._take(self._patience_secs if crowded else 0.0)
        if parts is None and crowded:
            logger.warning(
                "%d indexes are still in use after %.0f s, and another is loaded beside them: something refers to an old one",
                len(self._in_use), self._patience_secs,
            )  # fmt: skip
        if parts is None or [EmptyRows.like(part) for part in parts] != wanted:
            return None
        return parts

    def _take_back(self, loan: object, parts: list[DeviceRows]) -> None:
        self._take(0.0)  # one index's are enough
        self._waiting.put(parts)
        self._in_use.discard(loan)

    def _take(self, timeout_secs: float) -> list[DeviceRows] | None:
        try:
            return self._waiting.get(block=timeout_secs > 0, timeout=timeout_secs or None)
        except queue.Empty:
            return None


def fill(
    rows: DeviceRows,
    place: SingleDeviceSharding,
    embeddings: EmbeddingRows,
    numbers: range,
    on_chunk: Callable[[int, int], None] | None = None,
) -> tuple[DeviceRows, Rounding]:
    """Writes chunks `numbers` of the embeddings over all chunks of `rows`, in place: the buffers are donated.

    Beside the rows there is never more than one chunk, on the device and on the host.

    Args:
      rows: on one device; whatever they hold is overwritten.
      place: that device.
      embeddings: what is written; beyond its end, zeros.
      numbers: which chunks, as many as `rows` has.
      on_chunk: called after each chunk with how many are written and how many there are.
    """
    _, chunk, embed = rows.chunks.shape
    rounding = jax.device_put(np.zeros(2, np.float32), place)
    for done, number in enumerate(numbers):
        content = embeddings.read(number * chunk, chunk)
        padded = np.zeros((chunk, embed), np.float32)
        padded[: len(content)] = content
        rows, rounding = _write_chunk(rows, rounding, jax.device_put(padded, place), np.int32(done))
        rounding.block_until_ready()
        if on_chunk is not None:
            on_chunk(done + 1, len(numbers))
    worst_error, longest_row = np.asarray(rounding).tolist()
    return rows, Rounding(worst_error, longest_row)
