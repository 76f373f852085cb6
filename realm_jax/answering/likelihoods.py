"""A language model that judges continuations in bulk, on all devices of this process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from realm_jax.generation.likelihood import CONTEXT, continuation_likelihoods
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.training.sharding import MeshConfig, batch_devices, put_batch, rows_for, state_shardings
from realm_jax.training.snapshots import check_shapes

_STEP = 32
"""Lengths are rounded up to multiples of this, long ones to eighths of a power of two: few programs, little padding."""


class Continuation(NamedTuple):
    """Token ids of a context, with what the model needs in front, and of what is judged after it."""

    context: Int32[np.ndarray, "_"]
    continuation: Int32[np.ndarray, "_"]


class Judged(NamedTuple):
    """Of each continuation."""

    log_probs: Float32[np.ndarray, "continuations"]  # in nats
    is_greedy: Bool[np.ndarray, "continuations"]


class LikelihoodJudge:
    """A language model's parameters over the devices. A context is read once for its continuations; rows of like length are judged together."""

    def __init__(
        self,
        config: LanguageModelConfig,
        params: Mapping[str, Any],
        *,
        mesh: MeshConfig = MeshConfig(),
        tokens_at_once: int = 16384,
    ):
        """Args:
        config: shape of the model, without an adapter.
        params: of it.
        mesh: over the devices of this process; rows are cut over data and fsdp, parameters by the rules of training.sharding, if
          they do not lie there already.
        tokens_at_once: of one program's rows, padding included.

        Raises:
          ValueError: parameters of other shapes.
        """
        ids = jax.ShapeDtypeStruct((1, 8), np.int32)
        abstract = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)["params"]
        remedy = "give the job the LanguageModelConfig that the run was trained with"
        check_shapes(abstract, params, "language model", remedy)
        self.config, self.tokens_at_once = config, tokens_at_once
        self.mesh = mesh.build_here()
        self.params = jax.device_put(params, state_shardings(self.mesh, abstract))
        self._rows = batch_devices(self.mesh)

    def judge(
        self, continuations: Sequence[Continuation], on_judged: Callable[[int], Any] = lambda count: None
    ) -> Judged:
        """log p of each continuation after its context.

        Args:
          continuations: each of at most the model's max_length tokens together, its context of at least one.
          on_judged: told of so many more.

        Raises:
          FloatingPointError: what the model says is not a number.
          ValueError: a longer one, or one without context.
        """
        sizes = np.asarray([(len(one.context), len(one.continuation)) for one in continuations], np.int64)
        sizes = sizes.reshape(len(continuations), 2)
        totals = sizes.sum(axis=1)
        if len(totals) and (totals.max() > self.config.max_length or sizes[:, 0].min() < 1):
            raise ValueError(
                f"expected contexts of at least one token, with their continuations of at most max_length={self.config.max_length}, got "
                f"contexts from {sizes[:, 0].min()} and together up to {totals.max()} tokens; cut the contexts"
            )
        log_probs, is_greedy = np.zeros(len(totals), np.float32), np.ones(len(totals), bool)
        rows = sorted(_rows(continuations, self.config.max_length), key=lambda row: -row.length)
        done = 0
        while done < len(rows):
            length = _rounded_length(rows[done].length)
            at_once = max(self._rows, self.tokens_at_once // length // self._rows * self._rows)
            now = rows[done : done + at_once]
            width = max(8, _power_of_two(max(row.num_judged for row in now)))
            # the last rows of all: no more than they need, in steps of a few shapes
            count = at_once if len(now) == at_once else min(at_once, rows_for(self.mesh, _rounded_up(len(now))))
            arrays = put_batch(self.mesh, _arrays(continuations, now, count, length))
            found = continuation_likelihoods(self.params, *arrays, config=self.config, width=width)
            of_tokens, greedy = np.asarray(found.log_probs), np.asarray(found.is_greedy)
            for place, row in enumerate(now):
                first = 0
                for number in row.members:
                    own = slice(first, first + int(sizes[number, 1]))
                    log_probs[number] = of_tokens[place, own].sum()
                    is_greedy[number] = greedy[place, own].all()
                    first = own.stop
            done += len(now)
            on_judged(sum(len(row.members) for row in now))
        if not np.isfinite(log_probs).all():
            raise FloatingPointError(
                "a continuation's log-probability is not finite; the language model has diverged: take an earlier checkpoint"
            )
        return Judged(log_probs, is_greedy)


class _Row(NamedTuple):
    """Which continuations follow one context, and the tokens of all of them, and with it."""

    members: list[int]
    num_judged: int
    length: int


def _rows(continuations: Sequence[Continuation], longest: int) -> list[_Row]:
    """Continuations of equal contexts in one row, together no longer than the context: all of a row attend over its whole length, and
    with many of them behind few tokens that would cost more than to read the context again. Positions do not bound a row, but memory
    does, which attention takes by the square of its length: a quarter longer than the model reads, for contexts that fill it.
    """
    most = longest + longest // 4
    rows: list[_Row] = []
    open_row: dict[bytes, int] = {}  # by context, where the row is that has room
    for number, (context, continuation) in enumerate(continuations):
        key, size = context.tobytes(), len(continuation)
        place = open_row.get(key)
        if place is None or rows[place].length + size > min(2 * len(context), most):
            open_row[key] = len(rows)
            rows.append(_Row([number], size, len(context) + size))
        else:
            members, num_judged, length = rows[place]
            rows[place] = _Row([*members, number], num_judged + size, length + size)
    return rows


def _arrays(
    continuations: Sequence[Continuation], rows: Sequence[_Row], count: int, length: int
) -> tuple[Int32[np.ndarray, "rows length"], Int32[np.ndarray, "rows length"], Int32[np.ndarray, "rows length"]]:
    """Ids, segments and positions as `continuation_likelihoods` reads them, in so many rows."""
    ids, segments, positions = np.zeros((3, count, length), np.int32)
    segments[:, 0] = CONTEXT  # of the rows that fill the batch, too
    for place, row in enumerate(rows):
        parts = [continuations[row.members[0]].context, *(continuations[number].continuation for number in row.members)]
        end = 0
        for segment, part in enumerate(parts, start=CONTEXT):
            own = slice(end, end + len(part))
            ids[place, own], segments[place, own] = part, segment
            positions[place, own] = np.arange(len(part)) + (0 if segment == CONTEXT else len(parts[0]))
            end = own.stop
    return ids, segments, positions


def _rounded_length(length: int) -> int:
    step = max(_STEP, _power_of_two(length) // 8)
    return -(-length // step) * step


def _rounded_up(count: int) -> int:
    """To one of four sizes between a power of two and the next."""
    step = max(1, _power_of_two(count) // 8)
    return -(-count // step) * step


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
