"""What is planned: the settings of a run that decide what is compiled."""

import dataclasses
from typing import NamedTuple

from realm_jax.data.inputs import SpecialIds
from realm_jax.plan.bound_jobs import arguments_of
from realm_jax.retrieval.build_version import DEFAULT_BATCHES, DEFAULT_INDEX, BatchSettings, IndexSettings
from realm_jax.tasks.task import Program, TaskConfig
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.typed import check_fields

SPECIAL = SpecialIds(cls=101, sep=102, mask=103)
"""BERT's. A program holds them as numbers; which ones makes no difference to what it takes."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """The arguments of the train job that decide what is compiled, and two of the embed job beside it."""

    task: TaskConfig
    optimizer: OptimizerConfig
    num_steps: int
    batch_size: int
    mesh: MeshConfig = MeshConfig()
    refresh: RefreshConfig = RefreshConfig()
    accumulation_steps: int = 1
    dropout: bool = True
    batches: BatchSettings = DEFAULT_BATCHES
    index: IndexSettings = DEFAULT_INDEX

    def __post_init__(self) -> None:
        check_fields(self)

    def program(self) -> Program:
        """What is compiled of the task.

        Raises:
          ValueError: for a task that does not say it, or a batch that does not divide as it must.
        """
        if not hasattr(self.task, "program"):
            raise ValueError(
                f"expected a task that knows its shapes without a corpus, got {type(self.task).__name__}; give it a method "
                "`program(special) -> tasks.task.Program`, as tasks.realm.Realm has"
            )
        program = self.task.program(SPECIAL)
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into accumulation_steps={self.accumulation_steps} parts"
            )
        if self.accumulation_steps > 1 and not program.can_accumulate:
            raise ValueError(
                f"task {program.name} takes its negatives from the whole batch, so it cannot accumulate; "
                "set accumulation_steps=1"
            )
        return program


def run_of_the_file() -> PlannedRun:
    """The run that the run file bound last would train.

    Raises:
      ValueError: when it configures no training, or leaves a number of it open.
    """
    train, embed = arguments_of("train"), arguments_of("embed")
    names = {field.name for field in dataclasses.fields(PlannedRun)}
    missing = [name for name in ("task", "optimizer", "num_steps", "batch_size") if name not in train]
    if missing:
        raise ValueError(
            f"plan needs a run file that configures the train job, got one without {', '.join(f'train.{n}' for n in missing)}; "
            "name one with --gin_file=FILE (gin/runs/ has some)"
        )
    refresh = train.get("refresh", RefreshConfig())
    beside = {"batches": refresh.batches, "index": refresh.index} if refresh.embedder == "in_trainer" else embed
    return PlannedRun(
        **{name: value for name, value in train.items() if name in names},
        **{name: beside[name] for name in ("batches", "index") if name in beside},
    )


class MeshSizes(NamedTuple):
    """Devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def rows(self) -> int:
        """How many parts a batch is cut into."""
        return self.data * self.fsdp

    @property
    def num_devices(self) -> int:
        return self.rows * self.tensor

    def __str__(self) -> str:
        return " × ".join(f"{axis} {size}" for axis, size in self._asdict().items())


def mesh_sizes(config: MeshConfig, num_devices: int, batch_size: int, where: str) -> MeshSizes:
    """Lays the mesh over so many devices, as `MeshConfig.build` does over those that are there.

    Raises:
      ValueError: when the axes do not cover the devices, or the batch does not divide over them.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    known = 1
    for size in sizes:
        known *= 1 if size == -1 else size
    if sizes.count(-1) == 1 and known > 0 and num_devices % known == 0:
        sizes[sizes.index(-1)] = num_devices // known
    found = MeshSizes(*sizes)
    if min(found) < 1 or found.num_devices != num_devices:
        raise ValueError(
            f"mesh data={config.data} × fsdp={config.fsdp} × tensor={config.tensor} does not cover the {num_devices} devices of "
            f"{where}; set one axis to -1 to take what is left"
        )
    if batch_size % found.rows:
        raise ValueError(
            f"batch_size={batch_size} does not divide over the {found.rows} devices (data × fsdp) of {where}; "
            f"use a multiple of {found.rows}, a smaller slice, or a tensor axis"
        )
    return found
