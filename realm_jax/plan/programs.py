"""The programs of a run, jitted as the run jits them, with abstract values to lower them with."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.models import RetrieverConfig
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.retrieval.embedder import embed_inputs
from realm_jax.tasks.realm import embed_queries
from realm_jax.tasks.task import Program, Task, input_shapes
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import BATCH, state_shardings, traced_for
from realm_jax.training.state import TrainState, init_state, train_step


class Lowerable(NamedTuple):
    """A jitted function and the abstract values of one call of it."""

    jitted: Any
    values: tuple[Any, ...]
    static: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default

    def lower(self) -> Any:
        return self.jitted.lower(*self.values, **self.static)


def abstract_state(task: Task, optimizer: OptimizerConfig, num_steps: int) -> TrainState:
    """The state of a run, without its numbers."""
    transformation = optimizer.build(num_steps, _learners(task), task.frozen)
    return jax.eval_shape(functools.partial(init_state, task=task, optimizer=transformation), _abstract_key())


def train_program(
    task: Task,
    batch: Any,
    mesh: Mesh,
    optimizer: OptimizerConfig,
    num_steps: int,
    accumulation_steps: int = 1,
    dropout: bool = True,
) -> Lowerable:
    """The train step, as `training.loop` jits it: the state is donated and keeps its shardings."""
    learners = _learners(task)
    state = abstract_state(task, optimizer, num_steps)
    shardings = state_shardings(mesh, state)
    step = functools.partial(
        train_step,
        task=task,
        optimizer=optimizer.build(num_steps, learners, task.frozen),
        schedules={name: optimizer.schedule(num_steps, name) for name in learners},
        accumulation_steps=accumulation_steps,
        dropout=dropout,
    )
    everywhere = NamedSharding(mesh, P())
    jitted = jax.jit(traced_for(mesh, step), out_shardings=(shardings, everywhere), donate_argnums=0)
    return Lowerable(
        jitted, (jax.tree.map(_placed, state, shardings), _rows(mesh, batch), _placed(_abstract_key(), everywhere))
    )


def query_program(task: Task, config: RetrieverConfig, query_len: int, batch_size: int, mesh: Mesh) -> Lowerable:
    """The embedding of the next step's queries, as `retrieval.look_ahead` jits it."""
    params = jax.eval_shape(task.init, _abstract_key())
    jitted = jax.jit(functools.partial(embed_queries, config=config), out_shardings=NamedSharding(mesh, BATCH))
    placed = jax.tree.map(_placed, params, state_shardings(mesh, params))
    return Lowerable(jitted, (placed, _rows(mesh, input_shapes(batch_size, query_len))))


def embed_program(task: Task, config: RetrieverConfig, document_len: int, batch_size: int, devices: Any) -> Lowerable:
    """The embed job's program for its longest documents, on the devices of one host."""
    mesh = Mesh(np.asarray(devices).reshape(-1), ("data",))
    params = jax.eval_shape(task.init, _abstract_key())["retriever"]
    rounded = -(-batch_size // mesh.size) * mesh.size
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    inputs = input_shapes(rounded, document_len)
    return Lowerable(
        embed_inputs,
        (jax.tree.map(lambda leaf: _placed(leaf, everywhere), params), *(_placed(part, rows) for part in inputs)),
        {"config": config, "method": "embed_documents"},
    )


def mesh_over(devices: Any, sizes: MeshSizes) -> Mesh:
    """As `MeshConfig.build`, for devices that are not there: `jax.make_mesh` refuses a chip's two cores by themselves."""
    return Mesh(np.asarray(devices).reshape(tuple(sizes)), MeshSizes._fields)


def program_names(program: Program) -> tuple[str, ...]:
    """What a run of it compiles: with retrieval also the embedding of queries, and in the embed job of documents."""
    return ("train step",) if program.retriever is None else ("train step", "query embedding", "embed job")


def programs_of(
    run: PlannedRun, program: Program, devices: Any, sizes: MeshSizes, host_devices: Any
) -> dict[str, Lowerable]:
    """What the run compiles, by name, in the order of `program_names`.

    Args:
      run: the settings.
      program: of its task.
      devices: of the whole slice.
      sizes: of the mesh over them.
      host_devices: of one host, for the embed job.
    """
    task, mesh, config = without_data(program), mesh_over(devices, sizes), program.retriever
    batch = program.batch_shapes(run.batch_size)
    found = [train_program(task, batch, mesh, run.optimizer, run.num_steps, run.accumulation_steps, run.dropout)]
    if config is not None:
        batches = run.batches
        found.append(query_program(task, config, program.query_len, run.batch_size, mesh))
        found.append(embed_program(task, config, batches.document_len, batches.batch_size, host_devices))
    return dict(zip(program_names(program), found, strict=True))


def without_data(program: Program) -> Task:
    """The task of a program, which has no examples."""
    return program.task(_no_data, _no_data)


def _no_data(*_: Any) -> Any:
    raise AssertionError("a planned task has no examples")


def _learners(task: Task) -> tuple[str, ...]:
    return tuple(jax.eval_shape(task.init, _abstract_key()))


def _abstract_key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _rows(mesh: Mesh, batch: Any) -> Any:
    return jax.tree.map(lambda leaf: _placed(leaf, NamedSharding(mesh, BATCH)), batch)
