"""Documents' pieces on the devices, so that a train step searches, gathers and reads without the host."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, Int32

from realm_jax.corpus.ragged import Ragged
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import NO_CANDIDATE, NULL_DOCUMENT, Inputs, SpecialIds


class Pieces(NamedTuple):
    """Rows of pieces, padded with zeros, and how many there are in each."""

    ids: Int[Array, "*rows width"]
    lengths: Int32[Array, "*rows"]


class ResidentDocuments(NamedTuple):
    """Titles and bodies of a corpus; on a mesh, sharded by documents over all its axes."""

    titles: Pieces
    bodies: Pieces


def place_documents(corpus: Corpus, mesh: Mesh, max_title_len: int) -> ResidentDocuments:
    """Copies a corpus's pieces to the devices, to each its own documents; a host reads those of its devices alone.

    Bodies are whole, for a sentence may be looked for anywhere in one. Two bytes a piece where the vocabulary allows it: 13 million
    documents of 288 pieces take 7.7 GB over all devices.

    Args:
      corpus: the knowledge corpus.
      mesh: over which the documents are sharded.
      max_title_len: pieces of a title that are kept.
    """
    devices = mesh.devices.size
    num_rows = -(-corpus.num_documents // devices) * devices
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    dtype = np.uint16 if corpus.tokenizer.vocab_size <= 1 << 16 else np.int32

    def placed(rows: Ragged, limit: int | None) -> Pieces:
        longest = int(rows.lengths().max(initial=0))
        width = max(1, longest if limit is None else min(longest, limit))

        def documents_at(place: Any) -> np.ndarray:
            ids = np.arange(num_rows)[place[0]]
            return np.where(ids < corpus.num_documents, ids, NULL_DOCUMENT)  # padding: empty documents

        def read_ids(place: Any) -> np.ndarray:
            return rows.gather(documents_at(place), width).astype(dtype)

        def read_lengths(place: Any) -> np.ndarray:
            return np.minimum(rows.lengths(documents_at(place)), width).astype(np.int32)

        return Pieces(
            jax.make_array_from_callback((num_rows, width), sharding, read_ids),
            jax.make_array_from_callback((num_rows,), sharding, read_lengths),
        )

    return ResidentDocuments(placed(corpus.titles, max_title_len), placed(corpus.bodies, None))


def gather_documents(documents: ResidentDocuments, ids: Int32[Array, "batch found"], mesh: Mesh) -> ResidentDocuments:
    """Documents by id, from whichever device holds them; empty ones for negative ids. Every device gets all of them.

    Each device gives the rows that it holds and zeros for the others, and the sum over devices is the answer: batch × found
    documents are exchanged, whatever the corpus's size.
    """
    axes = mesh.axis_names

    def own_rows(documents: ResidentDocuments, ids: Array) -> ResidentDocuments:
        own = documents.bodies.lengths.shape[0]
        local = ids - jax.lax.axis_index(axes) * own
        held = (ids >= 0) & (local >= 0) & (local < own)
        local = jnp.where(held, local, 0)

        def taken(rows: Array) -> Array:
            found = rows[local].astype(jnp.int32)
            found = jnp.where(held.reshape(held.shape + (1,) * (found.ndim - held.ndim)), found, 0)
            return jax.lax.psum(found, axes)

        return jax.tree.map(taken, documents)

    return jax.shard_map(own_rows, mesh=mesh, in_specs=(P(axes), P()), out_specs=P())(documents, ids)


def pair_rows(first: Pieces, second: Pieces, length: int, special: SpecialIds) -> Any:
    """`[CLS] first [SEP] second [SEP]` as `data.inputs.pair_inputs` lays it out, on the device: the second is cut to fit.

    Returns:
      Inputs of arrays on the device.
    """
    first_lens = jnp.minimum(first.lengths, length - 3)[..., None]
    second_lens = jnp.minimum(second.lengths[..., None], length - 3 - first_lens)
    positions = jnp.arange(length, dtype=jnp.int32)
    begin = 2 + first_lens  # of the second text
    end = begin + second_lens

    def at(pieces: Pieces, offsets: Array) -> Array:
        inside = jnp.clip(offsets, 0, pieces.ids.shape[-1] - 1)
        return jnp.take_along_axis(pieces.ids.astype(jnp.int32), inside, axis=-1)

    offsets = jax.lax.broadcast(positions, first.lengths.shape)
    ids: Any = jnp.where(offsets < begin - 1, at(first, offsets - 1), at(second, offsets - begin))
    ids = jnp.where((offsets == begin - 1) | (offsets == end), special.sep, ids)
    ids = jnp.where(offsets == 0, special.cls, jnp.where(offsets > end, 0, ids))
    segment_ids: Any = ((offsets >= begin) & (offsets <= end)).astype(jnp.int32)
    return Inputs(ids, segment_ids)


def occurs_in(sentences: Pieces, bodies: Pieces) -> Bool[Array, "batch found"]:
    """Whether the pieces of a sentence occur in a row in each of its bodies; `retrieval.candidates.contains` on the device.

    Args:
      sentences: [batch].
      bodies: [batch, found].
    """
    width = bodies.ids.shape[-1]
    padded = jnp.pad(bodies.ids, ((0, 0), (0, 0), (0, sentences.ids.shape[-1])))
    starts = jnp.arange(width, dtype=jnp.int32)[None, None, :]
    fits = starts + sentences.lengths[:, None, None] <= bodies.lengths[:, :, None]

    def compare(offset: Array, matches: Array) -> Array:
        here = jax.lax.dynamic_slice_in_dim(padded, offset, width, axis=2)
        piece = jax.lax.dynamic_index_in_dim(sentences.ids, offset, axis=1, keepdims=False)
        return matches & ((here == piece[:, None, None]) | (offset >= sentences.lengths[:, None, None]))

    matches = jax.lax.fori_loop(0, sentences.ids.shape[-1], compare, fits)
    return matches.any(axis=2) & (sentences.lengths > 0)[:, None]


def choose_candidates(
    found: Int32[Array, "batch found"],
    allowed: Bool[Array, "batch found"],
    num_documents: int,
) -> tuple[Int32[Array, "batch num_documents"], Int32[Array, "batch num_documents"]]:
    """The first `num_documents` results that are allowed, in their order, and which results they are.

    Returns:
      Ids, `NO_CANDIDATE` where there were too few, and columns of `found`.
    """
    columns = jnp.argsort(~allowed, axis=1, stable=True)[:, :num_documents]
    chosen = jnp.take_along_axis(allowed, columns, axis=1)
    return jnp.where(chosen, jnp.take_along_axis(found, columns, axis=1), NO_CANDIDATE), columns
