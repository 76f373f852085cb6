"""Which tokens may come next: rules over the distribution that the model gives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from realm_jax.generation.settings import GenerationConfig, TokenIds


def constrain(
    log_probs: Float[Array, "batch beams vocab"],
    ids: Int32[Array, "batch beams target_len"],
    position: Int32[Array, ""],
    config: GenerationConfig,
    tokens: TokenIds,
) -> Float[Array, "batch beams vocab"]:
    """Applies `no_repeat_ngram_size`, `bos_after_bos`, `min_length` and the forced first and last token, in the order of transformers' `generate`.

    A forced token has log-probability 0 and the rest −∞. Otherwise what is forbidden becomes −∞ and nothing is
    normalised again.

    Args:
      log_probs: of the token at `position`.
      ids: tokens generated so far, before `position`; what stands there and later means nothing.
      position: of the next token, 0 for the first generated.
      config, tokens: the rules.
    """
    if config.no_repeat_ngram_size:
        log_probs = _without_repeats(log_probs, ids, position, config.no_repeat_ngram_size, tokens.decoder_start)
    token_ids = jnp.arange(log_probs.shape[-1], dtype=jnp.int32)[None, None]
    if not config.bos_after_bos:
        before = jnp.where(position > 0, ids[:, :, jnp.maximum(position - 1, 0)], tokens.decoder_start)
        log_probs = jnp.where((before == tokens.bos)[..., None] & (token_ids == tokens.bos), -jnp.inf, log_probs)
    if config.min_length > 1:  # the decoder's start token counts
        too_early = position + 1 < config.min_length
        log_probs = jnp.where(too_early & (token_ids == tokens.eos), -jnp.inf, log_probs)
    for forced, at in ((tokens.forced_bos, 0), (tokens.forced_eos, config.target_len - 1)):
        if forced is not None:
            only = jnp.where(token_ids == forced, 0.0, -jnp.inf)
            log_probs = jnp.where(position == at, only, log_probs)
    return log_probs


def _without_repeats(log_probs: jax.Array, ids: jax.Array, position: jax.Array, size: int, start: int) -> jax.Array:
    """Forbids the tokens that would end an n-gram a second time; the decoder's start token is part of n-grams."""
    batch, beams, target_len = ids.shape
    # [batch, beams, 1 + target_len]: everything the decoder read
    read = jnp.concatenate([jnp.full((batch, beams, 1), start, ids.dtype), ids], axis=-1)
    length = position + 1
    # the last size - 1 tokens are compared with every window of that width that has a token after it
    firsts = jnp.arange(target_len + 1, dtype=jnp.int32)
    repeated = (firsts + size - 1 < length)[None, None]
    for offset in range(size - 1):
        last = jnp.take_along_axis(
            read, jnp.broadcast_to(jnp.maximum(length - size + 1 + offset, 0), (batch, beams, 1)), axis=-1
        )
        window = jnp.roll(read, -offset, axis=-1)
        repeated = repeated & (window == last)
    followers = jnp.roll(read, -(size - 1), axis=-1)
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(beams)[None, :, None]
    # a place that forbids nothing writes the lowest bound, +∞, which min leaves as it is
    bound = jnp.where(repeated, -jnp.inf, jnp.inf)
    return log_probs.at[rows, columns, followers].min(bound)
