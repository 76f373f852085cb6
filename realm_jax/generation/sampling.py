"""Ancestral sampling from any next-token function, with temperature, top-k and top-p."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from realm_jax.generation.beam_search import Found, Hypotheses, NextToken
from realm_jax.generation.constraints import constrain
from realm_jax.generation.settings import GenerationConfig, TokenIds


class _Drawing(NamedTuple):
    position: jax.Array
    tokens: jax.Array  # [batch, samples], read next
    scores: jax.Array  # [batch, samples], sums of log-probabilities
    ids: jax.Array  # [batch, samples, target_len]
    details: jax.Array  # [batch, samples, target_len, details]
    lengths: jax.Array  # [batch, samples]
    done: jax.Array  # [batch, samples]
    state: Any


def sample(
    next_token: NextToken,
    state: Any,
    active: Bool[Array, "batch"],
    rng: Key[Array, ""],
    *,
    config: GenerationConfig,
    tokens: TokenIds,
    num_details: int = 0,
) -> Found:
    """Draws `config.num_hypotheses` hypotheses a question, each token from `reshaped(log_probs)`.

    Args:
      next_token: the model.
      state: its first state, num_hypotheses rows for each question; rows never change places.
      active: false for a question that is to generate nothing.
      rng: the same key draws the same hypotheses, on any number of devices.
      config: settings; num_beams and early_stopping are not read.
      tokens: ids with a meaning.
      num_details: width of what the model's `details` gives.

    Returns:
      The hypotheses as they were drawn, not in the order of their scores: sums of the log-probabilities before temperature, top-k
      and top-p / length^length_penalty.
    """
    batch, samples, target_len = active.shape[0], config.num_hypotheses, config.target_len
    rows = (batch, samples)
    drawing = _Drawing(
        position=jnp.int32(0),
        tokens=jnp.full(rows, tokens.decoder_start, jnp.int32),
        scores=jnp.zeros(rows, jnp.float32),
        ids=jnp.full((*rows, target_len), tokens.pad, jnp.int32),
        details=jnp.zeros((*rows, target_len, num_details), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.broadcast_to(~active[:, None], rows),
        state=state,
    )
    own_rows = jnp.broadcast_to(jnp.arange(samples, dtype=jnp.int32), rows)

    def step(drawing: _Drawing) -> _Drawing:
        prediction = next_token(drawing.tokens, drawing.position, drawing.state)
        log_probs = constrain(prediction.log_probs, drawing.ids, drawing.position, config, tokens)
        drawn = jax.random.categorical(jax.random.fold_in(rng, drawing.position), reshaped(log_probs, config))
        going = ~drawing.done
        token = jnp.where(going, drawn.astype(jnp.int32), tokens.pad)
        gained = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
        details = jnp.zeros((*rows, 0), jnp.float32)
        if prediction.details is not None:
            details = jnp.where(going[..., None], prediction.details(own_rows, token), 0.0)
        write = jax.lax.dynamic_update_slice_in_dim
        return _Drawing(
            position=drawing.position + 1,
            tokens=token,
            scores=drawing.scores + jnp.where(going, gained, 0.0),
            ids=write(drawing.ids, token[..., None], drawing.position, axis=2),
            details=write(drawing.details, details[:, :, None], drawing.position, axis=2),
            lengths=drawing.lengths + going,
            done=drawing.done | (token == tokens.eos),
            state=prediction.state,
        )

    drawing = jax.lax.while_loop(lambda drawing: (drawing.position < target_len) & ~drawing.done.all(), step, drawing)
    penalties = jnp.maximum(drawing.lengths, 1).astype(jnp.float32) ** config.length_penalty
    scores = jnp.where(drawing.lengths > 0, drawing.scores / penalties, -jnp.inf)
    return Found(Hypotheses(drawing.ids, scores, drawing.lengths), drawing.details)


def reshaped(log_probs: Float[Array, "*rows vocab"], config: GenerationConfig) -> Float[Array, "*rows vocab"]:
    """What tokens are drawn from: temperature, then top-k, then top-p (Holtzman et al. 2019, arXiv:1904.09751), as logits.

    Tokens with the same probability as the last one kept are kept too.

    >>> import jax, jax.numpy as jnp
    >>> logits = reshaped(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), GenerationConfig(sample=True, top_p=0.7))
    >>> jax.nn.softmax(logits)
    Array([0.625, 0.375, 0.   , 0.   ], dtype=float32)
    """
    logits = log_probs / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if config.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # a token is kept if those before it do not have top_p yet
        least = jnp.where(before < config.top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
