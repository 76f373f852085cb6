"""A language model that judges continuations in bulk, on all devices of this process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from realm_jax.generation.likelihood import continuation_likelihood
from realm_jax.models import LanguageModel, LanguageModelConfig
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from realm_jax.training.snapshots import check_shapes

_STEP = 32
"""Lengths are rounded up to multiples of this: few programs, little padding."""


class Continuation(NamedTuple):
    """Token ids of a context, with what the model needs in front, and of what is judged after it."""

    context: Int32[np.ndarray, "_"]
    continuation: Int32[np.ndarray, "_"]


class Judged(NamedTuple):
    """Of each continuation."""

    log_probs: Float32[np.ndarray, "continuations"]  # in nats
    is_greedy: Bool[np.ndarray, "continuations"]


class LikelihoodJudge:
    """A language model's parameters over the devices; rows of like length are judged together."""

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
        mesh: over the devices of this process; rows are cut over data and fsdp, parameters by the rules of training.sharding.
        tokens_at_once: of one program's rows, padding included.

        Raises:
          ValueError: parameters of other shapes.
        """
        ids = jax.ShapeDtypeStruct((1, 8), np.int32)
        abstract = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids)["params"]
        remedy = "give the job the LanguageModelConfig that the run was trained with"
        check_shapes(abstract, params, "language model", remedy)
        self.config, self._tokens_at_once = config, tokens_at_once
        self._mesh = mesh.build(jax.local_devices())
        self.params = jax.device_put(params, state_shardings(self._mesh, abstract))
        self._rows = self._mesh.shape["data"] * self._mesh.shape["fsdp"]

    def judge(
        self, continuations: Sequence[Continuation], on_judged: Callable[[int], Any] = lambda count: None
    ) -> Judged:
        """log p of each continuation after its context.

        Args:
          continuations: each of at most the model's max_length tokens together, its context of at least one.
          on_judged: told of so many more.

        Raises:
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
        log_probs, is_greedy = np.zeros(len(totals), np.float32), np.zeros(len(totals), bool)
        order = np.argsort(-totals, kind="stable")
        done = 0
        while done < len(order):
            length = min(-(-int(totals[order[done]]) // _STEP) * _STEP, self.config.max_length)
            at_once = max(self._rows, self._tokens_at_once // length // self._rows * self._rows)
            now = order[done : done + at_once]
            width = -(-max(1, int(sizes[now, 1].max())) // 8) * 8
            # the last rows of all: no more than they need, in steps of a few shapes
            rows = at_once if len(now) == at_once else min(at_once, -(-_power_of_two(len(now)) // self._rows) * self._rows)  # fmt: skip
            ids = np.zeros((rows, length), np.int32)
            starts, counts = np.ones(rows, np.int32), np.zeros(rows, np.int32)
            for row, number in enumerate(now.tolist()):
                context, continuation = continuations[number]
                ids[row, : totals[number]] = np.concatenate([context, continuation])
                starts[row], counts[row] = len(context), len(continuation)
            arrays = put_batch(self._mesh, (ids, starts, counts))
            found = continuation_likelihood(self.params, *arrays, config=self.config, width=width)
            log_probs[now] = np.asarray(found.log_probs)[: len(now)]
            is_greedy[now] = np.asarray(found.is_greedy)[: len(now)]
            done += len(now)
            on_judged(len(now))
        return Judged(log_probs, is_greedy)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
