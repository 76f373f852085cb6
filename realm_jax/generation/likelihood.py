"""How likely a language model finds given continuations."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.generation.stepping import Params
from realm_jax.models import LanguageModel, LanguageModelConfig


class ContinuationLikelihood(NamedTuple):
    """Of each row."""

    log_probs: Float[Array, "rows"]  # of the continuation, in nats
    is_greedy: Bool[Array, "rows"]  # whether each of its tokens is the likeliest


@functools.partial(jax.jit, static_argnames=("config", "width"))
def continuation_likelihood(
    params: Params,
    ids: Int32[Array, "rows length"],
    starts: Int32[Array, "rows"],
    counts: Int32[Array, "rows"],
    *,
    config: LanguageModelConfig,
    width: int,
) -> ContinuationLikelihood:
    """log p(continuation | what stands before it), logits being made where the continuation stands alone.

    Args:
      params: of `LanguageModel(config)`, an adapter merged.
      ids: rows of context and continuation; what follows does not matter.
      starts: where each continuation begins, at least 1.
      counts: its tokens; 0 gives log 1.
      config: shape of the model.
      width: at least the largest of `counts`.
    """
    model, variables = LanguageModel(config), {"params": params}
    length = ids.shape[1]
    there = jnp.arange(length, dtype=jnp.int32)[None] < (starts + counts)[:, None]
    hidden: Any = model.apply(variables, ids, there.astype(jnp.int32), method="hidden_states")
    offsets = jnp.arange(width, dtype=jnp.int32)[None]
    places = jnp.minimum(starts[:, None] + offsets, length - 1)  # of the tokens
    before = jnp.take_along_axis(hidden, jnp.maximum(places - 1, 0)[..., None], axis=1)
    logits: Any = model.apply(variables, before, method="logits")
    tokens = jnp.take_along_axis(ids, places, axis=1)
    gold = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    counted = offsets < counts[:, None]
    greedy = (logits.argmax(axis=-1) == tokens) | ~counted
    return ContinuationLikelihood(jnp.where(counted, gold, 0.0).sum(axis=1), greedy.all(axis=1))
