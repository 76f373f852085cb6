"""One file a method. A task is a handful of pure functions; the loop never asks which one it runs."""

from realm_jax.tasks.task import Metrics, Retrieval, Task, TaskConfig

__all__ = ["Metrics", "Retrieval", "Task", "TaskConfig"]
