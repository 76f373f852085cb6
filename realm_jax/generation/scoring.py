"""Reads finished hypotheses with every document: what RAG-Sequence's thorough decoding needs beside its searches."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from realm_jax.generation.marginal import log_sum
from realm_jax.generation.settings import TokenIds
from realm_jax.generation.stepping import Caches, Step


def for_documents(rows: Int32[Array, "batch *others"], num_documents: int) -> Int32[Array, "sources *others"]:
    """The same for all documents of a question, whose sources lie one after the other."""
    repeated = jnp.broadcast_to(rows[:, None], (len(rows), num_documents, *rows.shape[1:]))
    return repeated.reshape(-1, *rows.shape[1:])


def read_with_documents(
    step: Step,
    empty: Caches,
    target_ids: Int32[Array, "batch hypotheses target_len"],
    lengths: Int32[Array, "batch hypotheses"],
    num_read: Int32[Array, ""],
    tokens: TokenIds,
) -> Float[Array, "batch hypotheses num_documents"]:
    """log p(y|x, z) of hypotheses with every document of their question, by teacher forcing.

    In passes over as many hypotheses as the caches have beams: they are the beams of each source, and share its keys and values.
    A pass ends with its longest hypothesis. As in transformers' RagSequenceForGeneration, the first token does not count where
    all hypotheses of a question begin with bos, nor does padding inside a hypothesis.

    Args:
      step: the decoder over batch · num_documents sources.
      empty: its caches before the first step.
      target_ids: tokens of the hypotheses, those to be read first; as many as a multiple of the beams.
      lengths: their lengths; 0 of what is not to be read.
      num_read: how many are read at most of any question; the others get 0.
      tokens: ids with a meaning.
    """
    batch, hypotheses, target_len = target_ids.shape
    _, sources, at_once = empty[0].keys.shape[:3]
    num_documents = sources // batch
    begins = (target_ids[..., 0] == tokens.bos) | (lengths == 0)
    counted_from = jnp.where(begins.all(axis=1), 1, 0)[:, None, None]
    positions = jnp.arange(target_len, dtype=jnp.int32)[None, None]
    counts = (target_ids != tokens.pad) & (positions < lengths[..., None]) & (positions >= counted_from)
    starts = jnp.full((batch, hypotheses, 1), tokens.decoder_start, jnp.int32)
    inputs = jnp.concatenate([starts, target_ids[..., :-1]], axis=-1)

    def read(number: jax.Array, table: jax.Array) -> jax.Array:
        begin = number * at_once
        some = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=at_once, axis=1)
        own_inputs, own_targets, own_counts = some(inputs), some(target_ids), some(counts)
        longest = some(lengths).max()

        def one(carry: tuple[jax.Array, jax.Array, Caches]) -> tuple[jax.Array, jax.Array, Caches]:
            position, sums, caches = carry
            at = functools.partial(jax.lax.dynamic_index_in_dim, index=position, axis=2, keepdims=False)
            logits, caches = step(for_documents(at(own_inputs), num_documents), position, caches)
            target = for_documents(at(own_targets), num_documents)[..., None]
            gold = jnp.take_along_axis(logits, target, axis=-1)[..., 0] - log_sum(logits, axis=-1)
            counted = for_documents(at(own_counts).astype(jnp.int32), num_documents)
            return position + 1, sums + jnp.where(counted > 0, gold, 0.0), caches

        sums = jnp.zeros((sources, at_once), jnp.float32)
        _, sums, _ = jax.lax.while_loop(lambda carry: carry[0] < longest, one, (jnp.int32(0), sums, empty))
        # [batch, at_once, num_documents]
        sums = sums.reshape(batch, num_documents, at_once).transpose(0, 2, 1)
        return jax.lax.dynamic_update_slice_in_dim(table, sums, begin, axis=1)

    table = jnp.zeros((batch, hypotheses, num_documents), jnp.float32)
    return jax.lax.fori_loop(0, -(-num_read // at_once), read, table)
