"""Beam search over any next-token function, jitted with static shapes; greedy decoding is the search with one beam."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.generation.constraints import constrain
from realm_jax.generation.settings import GenerationConfig, TokenIds

UNSTARTED = -1e9  # score of the beams that are copies of the first while all have read the same


class Hypotheses(NamedTuple):
    """Generated token ids, best first. A place without a hypothesis has length 0, score −∞ and padding alone."""

    ids: Int32[Array, "batch num_hypotheses target_len"]  # the first generated token first; padding after the end
    scores: Float[Array, "batch num_hypotheses"]
    lengths: Int32[Array, "batch num_hypotheses"]  # tokens, the end of the sequence among them


Details = Callable[
    [Int32[Array, "batch choices"], Int32[Array, "batch choices"]], Float[Array, "batch choices details"]
]


class Prediction(NamedTuple):
    """What a next-token function says."""

    log_probs: Float[Array, "batch beams vocab"]
    state: Any
    details: Details | None = None  # of (beam, token): numbers to be kept beside a token that is chosen


NextToken = Callable[[Int32[Array, "batch beams"], Int32[Array, ""], Any], Prediction]
"""The model as decoding sees it: `next_token(tokens, position, state)` reads one token a beam and predicts the one at `position`.

`state` holds whatever it remembers of the beams; any pytree of arrays that keeps its shapes.
"""

Reorder = Callable[[Any, Int32[Array, "batch beams"]], Any]
"""Makes beam i of the state the beam that stands at i of the indices: `reorder(state, beam_indices) -> state`."""


class Found(NamedTuple):
    """What decoding gives: hypotheses, and the details of each of their tokens (0 after the end)."""

    hypotheses: Hypotheses
    details: Float[Array, "batch num_hypotheses target_len details"]


class _Written(NamedTuple):
    """The tokens of rows of beams or of finished hypotheses, and their details."""

    ids: jax.Array  # [batch, rows, target_len]
    details: jax.Array  # [batch, rows, target_len, details]

    def rows(self, indices: jax.Array) -> "_Written":
        return jax.tree.map(lambda array: take_rows(array, indices), self)

    def put(self, position: jax.Array, token: jax.Array, details: jax.Array) -> "_Written":
        write = jax.lax.dynamic_update_slice_in_dim
        return _Written(
            write(self.ids, token[..., None], position, axis=2),
            write(self.details, details[:, :, None], position, axis=2),
        )


class _Finished(NamedTuple):
    """The best hypotheses so far, best first; a score of −∞ marks an empty place."""

    written: _Written
    scores: jax.Array  # [batch, beams]
    lengths: jax.Array  # [batch, beams]

    def added(self, written: _Written, scores: jax.Array, length: jax.Array) -> "_Finished":
        """The best of these and of others of one length; of equal ones those that were found first."""
        every_score = jnp.concatenate([self.scores, scores], axis=1)
        scores, order = jax.lax.top_k(every_score, self.scores.shape[1])
        every_length = jnp.concatenate([self.lengths, jnp.broadcast_to(length, self.lengths.shape)], axis=1)
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), self.written, written)
        return _Finished(both.rows(order), scores, take_rows(every_length, order))


class _Search(NamedTuple):
    position: jax.Array
    tokens: jax.Array  # [batch, beams], read next
    scores: jax.Array  # [batch, beams], sums of log-probabilities
    written: _Written
    finished: _Finished
    done: jax.Array  # [batch]
    state: Any


def take_rows(array: Array, indices: Int32[Array, "batch rows"]) -> Array:
    """`array[b, indices[b, r]]` for an array [batch, some, …]."""
    return array[jnp.arange(len(array))[:, None], indices]


def best_candidates(
    scores: Float[Array, "batch beams vocab"], num_candidates: int
) -> tuple[Float[Array, "batch candidates"], Int32[Array, "batch candidates"], Int32[Array, "batch candidates"]]:
    """The best (beam, token) pairs as scores, beams and tokens, best first; of equal ones the lower beam, then the lower token.

    The best of every beam first, then the best of these: sharded batches need no exchange, and the vocabulary is read once.
    """
    per_beam, tokens = jax.lax.top_k(scores, min(num_candidates, scores.shape[-1]))
    width = per_beam.shape[-1]
    found, where = jax.lax.top_k(per_beam.reshape(len(scores), -1), num_candidates)
    tokens = jnp.take_along_axis(tokens.reshape(len(scores), -1), where, axis=1)
    return found, (where // width).astype(jnp.int32), tokens.astype(jnp.int32)


def beam_search(
    next_token: NextToken,
    reorder: Reorder,
    state: Any,
    active: Bool[Array, "batch"],
    *,
    config: GenerationConfig,
    tokens: TokenIds,
    num_details: int = 0,
) -> Found:
    """Searches for the hypotheses with the best log-probability / length^length_penalty.

    What transformers 4.39.3's `generate` finds for encoder-decoder models, to the token: 2 · num_beams candidates a step,
    of which those that end and are among the first num_beams become hypotheses and the best others go on; a question is
    done by the rule of `early_stopping`; at max_length what is still open becomes a hypothesis as it is. Exact ties alone
    are decided otherwise: by the lower index, and among finished hypotheses by who was first. The loop ends when every
    question is done.

    Args:
      next_token: the model.
      reorder: moves its state when beams change places.
      state: the model's first state, num_beams beams for each question.
      active: false for a question that is to generate nothing, such as a row that fills a batch.
      config: settings; `sample` and what belongs to it are not read.
      tokens: ids with a meaning.
      num_details: width of what the model's `details` gives.

    Returns:
      `config.num_beams` hypotheses a question, whatever `num_hypotheses` is; `first(found, n)` keeps the best n. Scores are
      sums of log-probabilities / length^length_penalty; forced tokens count 0.
    """
    batch, beams, target_len = active.shape[0], config.num_beams, config.target_len

    def blank() -> _Written:
        return _Written(
            jnp.full((batch, beams, target_len), tokens.pad, jnp.int32),
            jnp.zeros((batch, beams, target_len, num_details), jnp.float32),
        )

    nothing = jnp.full((batch, beams), -jnp.inf, jnp.float32)
    search = _Search(
        position=jnp.int32(0),
        tokens=jnp.full((batch, beams), tokens.decoder_start, jnp.int32),
        scores=jnp.zeros((batch, beams), jnp.float32).at[:, 1:].set(UNSTARTED),
        written=blank(),
        finished=_Finished(blank(), nothing, jnp.zeros((batch, beams), jnp.int32)),
        done=~active,
        state=state,
    )

    def step(search: _Search) -> _Search:
        prediction = next_token(search.tokens, search.position, search.state)
        log_probs = constrain(prediction.log_probs, search.written.ids, search.position, config, tokens)
        scores, parents, chosen = best_candidates(log_probs + search.scores[..., None], 2 * beams)
        details = jnp.zeros((batch, 2 * beams, 0), jnp.float32)
        if prediction.details is not None:
            details = prediction.details(parents, chosen)
        ends = chosen == tokens.eos
        length = search.position + 1

        first = slice(0, beams)
        ended = search.written.rows(parents[:, first]).put(search.position, chosen[:, first], details[:, first])
        ending = ends[:, first] & ~search.done[:, None]
        ended_scores = jnp.where(ending, _penalised(scores[:, first], length, config), -jnp.inf)
        finished = search.finished.added(ended, ended_scores, length)

        # the candidates that do not end, in their order; at least `beams` of them, since a beam ends in one way only
        going_on = jax.lax.top_k(jnp.where(ends, 0, 1), beams)[1]
        parents, going_tokens, going_scores, going_details = (
            take_rows(array, going_on) for array in (parents, chosen, scores, details)
        )
        return _Search(
            position=length,
            tokens=going_tokens,
            scores=going_scores,
            written=search.written.rows(parents).put(search.position, going_tokens, going_details),
            finished=finished,
            done=search.done | _is_done(finished.scores[:, -1], scores[:, 0], length, config),
            state=reorder(prediction.state, parents),
        )

    search = jax.lax.while_loop(lambda search: (search.position < target_len) & ~search.done.all(), step, search)
    # only at max_length is anything open
    open_scores = _penalised(search.scores, search.position, config)
    finished = search.finished.added(
        search.written, jnp.where(search.done[:, None], -jnp.inf, open_scores), search.position
    )
    return _found(finished, tokens)


def _penalised(scores: jax.Array, length: jax.Array, config: GenerationConfig) -> jax.Array:
    return scores / length.astype(jnp.float32) ** config.length_penalty


def _is_done(worst: jax.Array, best_open: jax.Array, length: jax.Array, config: GenerationConfig) -> jax.Array:
    """Whether the worst of num_beams hypotheses (−∞ if there are fewer) is out of reach for every open one."""
    full = worst > -jnp.inf
    if config.early_stopping is True or config.num_beams == 1:
        return full
    if config.early_stopping == "never" and config.length_penalty > 0:
        length = jnp.int32(config.target_len)
    return full & (worst >= _penalised(best_open, length, config))


def _found(finished: _Finished, tokens: TokenIds) -> Found:
    """Clears what stands in empty places and after the end."""
    missing = finished.scores == -jnp.inf
    lengths = jnp.where(missing, 0, finished.lengths)
    inside = jnp.arange(finished.written.ids.shape[-1], dtype=jnp.int32)[None, None] < lengths[..., None]
    ids = jnp.where(inside, finished.written.ids, tokens.pad)
    details = jnp.where(inside[..., None], finished.written.details, 0.0)
    return Found(Hypotheses(ids, finished.scores, lengths), details)


def first(found: Found, num_hypotheses: int) -> Found:
    """The best hypotheses of each question."""
    return jax.tree.map(lambda array: array[:, :num_hypotheses], found)
