"""How likely a language model finds given continuations, of which several may follow one context."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.generation.stepping import Params
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.models.language_model import LanguageModelLayer
from realm_jax.models.rotary import angles_of
from realm_jax.models.rows import rows_apart

CONTEXT = 1
"""What `segments` says of a context."""


class TokenLikelihoods(NamedTuple):
    """Of the first tokens behind each row's context; of what is no token of a continuation it means nothing."""

    log_probs: Float[Array, "rows width"]  # in nats
    is_greedy: Bool[Array, "rows width"]  # whether the token is the likeliest


@functools.partial(jax.jit, static_argnames=("config", "width"))
def continuation_likelihoods(
    params: Params,
    ids: Int32[Array, "rows length"],
    segments: Int32[Array, "rows length"],
    positions: Int32[Array, "rows length"],
    *,
    config: LanguageModelConfig,
    width: int,
) -> TokenLikelihoods:
    """log p(token | context, what stands before it in its continuation), logits being made where continuations stand alone.

    A row holds a context and behind it its continuations, one after the other. Each sees the context and itself, so the context is read
    once for all of them, and what is found is as if each stood behind it alone.

    Args:
      params: of `LanguageModel(config)`, an adapter merged.
      ids: rows of a context and its continuations; what follows does not matter.
      segments: `CONTEXT` on the context, which has at least one token; another number above 1 on each continuation; 0 behind them.
      positions: of a context's tokens from 0 on, of each continuation's from the context's length on.
      config: shape of the model.
      width: at least as many as the continuations of any row have tokens together.
    """
    model, variables = LanguageModel(config), {"params": params}
    length = ids.shape[1]
    of_key = segments[:, None, :]
    seen = ((segments[:, :, None] == of_key) & (of_key > 0)) | (of_key == CONTEXT)
    seen &= jnp.tri(length, dtype=bool)[None]
    angles = angles_of(positions, config.rotary, config.head_size)

    def layer(hidden: jax.Array, own: Params) -> tuple[jax.Array, None]:
        made: Any = LanguageModelLayer(config).apply({"params": own}, hidden, angles, seen)
        return rows_apart(made[0]), None

    embedded: Any = model.apply(variables, ids, method="embed")
    unroll = min(config.unroll_layers, config.num_layers)
    hidden, _ = jax.lax.scan(layer, embedded, params["layers"], unroll=unroll)
    starts = (segments == CONTEXT).sum(axis=1, dtype=jnp.int32)[:, None]
    places = jnp.minimum(starts + jnp.arange(width, dtype=jnp.int32)[None], length - 1)  # of the tokens
    at = functools.partial(jnp.take_along_axis, indices=places, axis=1)
    before = jnp.where(at(positions) == starts, starts, places) - 1  # the first token of each follows the context
    logits: Any = model.apply(
        variables, jnp.take_along_axis(hidden, jnp.maximum(before, 0)[..., None], axis=1), method="next_token"
    )
    gold = jnp.take_along_axis(logits, at(ids)[..., None], axis=-1)[..., 0]
    return TokenLikelihoods(gold - jax.nn.logsumexp(logits, axis=-1), logits.argmax(axis=-1) == at(ids))
