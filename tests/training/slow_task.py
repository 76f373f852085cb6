"""A task that takes its time, for tests that must catch a run between two steps."""

import dataclasses
import time
from typing import Any

from realm_jax.tasks.task import Task, TaskConfig


@dataclasses.dataclass(frozen=True)
class Slow:
    """Another task, whose examples take `secs` a step to make."""

    task: TaskConfig
    secs: float = 0.0

    def build(self, seed: int) -> Task:
        task = self.task.build(seed)

        def examples(step: int, batch_size: int, rows: slice) -> Any:
            time.sleep(self.secs)
            return task.examples(step, batch_size, rows)

        return task._replace(examples=examples)
