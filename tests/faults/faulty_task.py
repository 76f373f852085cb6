"""A task that takes its time, and whose gradient is not finite at the steps that it is told."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.losses import WeightedSum
from realm_jax.tasks.task import Task, TaskConfig


class _Marked(NamedTuple):
    """A batch, and whether its gradient shall be spoiled: [batch], all alike."""

    spoiled: Any
    batch: Any


@dataclasses.dataclass(frozen=True)
class Faulty:
    """Another task, whose examples take `secs` a step to make and whose gradient is NaN, its loss finite, at `nan_steps`."""

    task: TaskConfig
    secs: float = 0.0
    nan_steps: tuple[int, ...] = ()

    def build(self, seed: int) -> Task:
        task = self.task.build(seed)
        retrieval = task.retrieval
        assert retrieval is not None and retrieval.join_embedded is None

        def examples(step: int, batch_size: int, rows: slice) -> Any:
            time.sleep(self.secs)
            made = task.examples(step, batch_size, rows)
            return _Marked(np.full(rows.stop - rows.start, step in self.nan_steps), made)

        def join(marked: _Marked, ids: Any) -> _Marked:
            return _Marked(marked.spoiled, retrieval.join(marked.batch, ids))

        def loss(params: Any, marked: _Marked, rng: Any) -> tuple[WeightedSum, Any]:
            whole, metrics = task.loss(params, marked.batch, rng)
            parameter = jax.tree.leaves(params)[0].sum()
            # the root's slope at 0 is infinite, and infinity times 0 is NaN
            root = jnp.sqrt(jnp.where(jnp.any(marked.spoiled), 0.0 * parameter, 1.0))
            return whole._replace(total=whole.total + root - jax.lax.stop_gradient(root)), metrics

        return task._replace(
            examples=examples,
            loss=loss,
            retrieval=retrieval._replace(
                join=join,
                queries=lambda marked: retrieval.queries(marked.batch),
                select=lambda marked, found: retrieval.select(marked.batch, found),
                evaluate=None,
                in_step=None,
            ),
        )
