"""The training state and the one step that changes it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int32

from realm_jax.losses import WeightedSum
from realm_jax.retrieval.device_rows import DeviceRows
from realm_jax.retrieval.exact import search_sharded_chunks
from realm_jax.retrieval.resident import ResidentDocuments, gather_documents
from realm_jax.tasks.task import Batch, Metrics, Params, Task
from realm_jax.training.optimizer import Schedule
from realm_jax.training.sharding import BATCH


class TrainState(NamedTuple):
    """All that a step reads and writes."""

    step: Int32[Array, ""]  # updates tried so far
    params: Params
    opt_state: Any
    skipped_updates: Int32[Array, ""]  # updates left out because loss or gradient was not finite


def init_state(rng: jax.Array, task: Task, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step, from random parameters."""
    params = task.init(rng)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.zeros((), jnp.int32))


def micro_batches(batch: Batch, count: int) -> Batch:
    """[batch, …] to [count, batch / count, …], each micro-batch taking every count-th row so that rows stay on their device."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


def train_step(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedules: Mapping[str, Schedule],
    accumulation_steps: int,
    dropout: bool,
    num_parts: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update: pure, to be jitted once with donation of `state`.

    Loss and metrics are ratios of sums, so accumulated micro-batches give the gradient of the whole batch. An update whose
    loss or gradient is not finite leaves parameters and optimizer as they were and is counted.

    Args:
      state: before the step.
      batch: the global batch.
      rng: the run's key; the step's own is folded in here.
      task: the method.
      optimizer: its transformation.
      schedules: learning rate of each learner, for the metrics.
      accumulation_steps: micro-batches; divides the batch.
      dropout: whether the models get a key for dropout.
      num_parts: devices among which the rows of a batch are divided: those of the batch axes of the mesh.

    Returns:
      The state after the step, and the metrics as scalars.
    """
    step_rng = jax.random.fold_in(rng, state.step)

    def gradient(
        loss_of: Callable[..., tuple[WeightedSum, Metrics]], micro_batch: Batch, key: jax.Array
    ) -> tuple[Any, tuple[WeightedSum, Any]]:
        def total_loss(params: Params) -> tuple[Array, tuple[WeightedSum, Any]]:
            loss, metrics = loss_of(params, micro_batch, key if dropout else None)
            return loss.total, (loss, metrics)

        (_, aux), grads = jax.value_and_grad(total_loss, has_aux=True)(state.params)
        return grads, aux

    def sums(micro_batch: Batch, key: jax.Array) -> tuple[Any, tuple[WeightedSum, Any]]:
        if task.grouped is None:
            return gradient(task.loss, micro_batch, key)
        # the choice lies outside the gradient: inside it, either way's activations would be kept for both
        in_groups = functools.partial(task.grouped.loss, num_parts=num_parts)
        fitting = task.grouped.fits(micro_batch, num_parts)
        grads, (loss, metrics) = jax.lax.cond(
            fitting,
            functools.partial(gradient, in_groups),
            functools.partial(gradient, task.loss),
            micro_batch,
            key,
        )
        return grads, (
            loss,
            {**metrics, "fits_length_groups": WeightedSum(fitting.astype(jnp.float32), jnp.float32(1))},
        )

    if accumulation_steps == 1:
        grads, (loss, metrics) = sums(batch, step_rng)
    else:

        def accumulate(carry: Any, scanned: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, sums(*scanned)), None

        scanned = (micro_batches(batch, accumulation_steps), jax.random.split(step_rng, accumulation_steps))
        first = jax.tree.map(lambda x: x[0], scanned)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, *first))
        (grads, (loss, metrics)), _ = jax.lax.scan(accumulate, zeros, scanned)

    weight = jnp.maximum(loss.weight, 1e-6)
    grads = jax.tree.map(lambda g: g / weight, grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss.total) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    new_state = TrainState(
        state.step + 1,
        if_finite(params, state.params),
        if_finite(opt_state, state.opt_state),
        state.skipped_updates + (1 - finite.astype(jnp.int32)),
    )
    figures = {name: value.total / jnp.maximum(value.weight, 1e-6) for name, value in metrics.items()}
    figures |= {
        "loss": loss.total / weight,
        "grad_norm": grad_norm,
        "finite": finite.astype(jnp.float32),
        "skipped_updates": new_state.skipped_updates.astype(jnp.float32),
    }
    rates = {name: schedule(state.step) for name, schedule in schedules.items()}
    figures["learning_rate"] = functools.reduce(jnp.maximum, rates.values())
    if len(rates) > 1:
        figures |= {f"learning_rate_{name}": rate for name, rate in rates.items()}
    return new_state, figures


class InStepBatch(NamedTuple):
    """What a step that searches for itself reads: its examples, all documents' pieces, all documents' embeddings."""

    examples: Any
    documents: ResidentDocuments
    rows: DeviceRows


def in_step_train_step(
    state: TrainState,
    batch: InStepBatch,
    rng: jax.Array,
    *,
    task: Task,
    mesh: Mesh,
    recall_target: float = 1.0,
    **settings: Any,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """`train_step` with the retrieval inside: embed the queries, search, gather, join, update, in one program.

    Candidates are selected with the parameters that the step updates, not with those before (as look-ahead has it).

    Args:
      state: before the step.
      batch: of the global batch; documents and rows sharded over all axes of the mesh.
      rng: the run's key.
      task: a method whose `Retrieval` has `in_step`.
      mesh: of documents and rows.
      recall_target: below 1, approximate search on TPU, see `search_chunks`.
      settings: of `train_step`.
    """
    retrieval = task.retrieval
    assert retrieval is not None and retrieval.in_step is not None
    embeds = retrieval.embed_queries(state.params, retrieval.queries(batch.examples))
    found = search_sharded_chunks(
        embeds,
        batch.rows.chunks,
        retrieval.corpus.num_documents,
        retrieval.num_results,
        mesh,
        recall_target,
        batch.rows.scales,
    )
    gathered = gather_documents(batch.documents, found.ids, mesh)
    joined, _ = retrieval.in_step.join(batch.examples, found, gathered)
    by_rows = NamedSharding(mesh, BATCH)
    joined = jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, by_rows), joined)
    return train_step(state, joined, rng, task=task, **settings)
