"""The training job: one loop, whole and in order, for every task.

    snapshot → swap → take the batch prepared during the last step → start preparing the next → step → record → checkpoint

The loop knows a task only through `tasks.task.Task`, and the index only through `training.refresh.Refresher`.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.retrieval.exact import ExactSettings
from realm_jax.retrieval.hot_swap import WaitStopped
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.run_dir import RunDir
from realm_jax.run_lock import InUse, exclusive
from realm_jax.tasks.task import Params, Task, TaskConfig
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, check_tokenizer, load_params
from realm_jax.training.metric_sinks import MetricSink, Sinks
from realm_jax.training.optimizer import OptimizerConfig, Schedule
from realm_jax.training.profiler import Profiler
from realm_jax.training.recorder import Recorder
from realm_jax.training.refresh import RefreshConfig, Refresher
from realm_jax.training.sharding import (
    MeshConfig,
    batch_devices,
    local_rows,
    on_this_host,
    put_batch,
    state_shardings,
    traced_for,
)
from realm_jax.training.state import TrainState, in_step_train_step, init_state, train_step
from realm_jax.training.status import TrainerStatus
from realm_jax.training.stop_requests import StopRequests

logger = logging.getLogger(__name__)


def train(
    *,
    run_dir: str,
    task: TaskConfig,
    optimizer: OptimizerConfig,
    num_steps: int,
    batch_size: int,
    seed: int = 0,
    mesh: MeshConfig = MeshConfig(),
    refresh: RefreshConfig = RefreshConfig(),
    warm_start: tuple[str, ...] = (),
    accumulation_steps: int = 1,
    dropout: bool = True,
    checkpoint_every_steps: int = 1000,
    keep_checkpoints: int = 2,
    log_every_steps: int = 1,
    evaluate_every_steps: int = 0,
    non_finite: Literal["stop", "skip"] = "stop",
    max_skipped_updates: int = 10,
    distributed: bool = False,
    profile_steps: tuple[int, int] | None = None,
    metric_sinks: tuple[MetricSink, ...] = (),
) -> dict[str, float]:
    """Trains a task; resumes by itself from the newest checkpoint in the run directory.

    Args:
      run_dir: the run; created, or resumed if it holds a checkpoint.
      task: the method and its data, such as `tasks.realm.Realm` or `tasks.ict.Ict`.
      optimizer: rates, decay and clipping.
      num_steps: updates of the whole run, counted from its beginning.
      batch_size: examples of the global batch, over all hosts and devices.
      seed: of parameters, data and dropout.
      mesh: how the devices are laid out.
      refresh: how the index follows the retriever; unused by tasks without retrieval.
      warm_start: run directories whose newest checkpoints give the initial parameters of the learners they hold.
      accumulation_steps: micro-batches that a batch is split into.
      dropout: false trains without dropout, whatever the models' rates.
      checkpoint_every_steps: steps between checkpoints; the last step always writes one.
      keep_checkpoints: how many are kept.
      log_every_steps: steps between two lines of metrics.
      evaluate_every_steps: steps between evaluations on held-out queries, where the task has them; 0: none.
      non_finite: "stop" ends the run at a loss or gradient that is not finite, naming the step; "skip" leaves the update
        out, up to `max_skipped_updates` times.
      max_skipped_updates: see `non_finite`.
      distributed: the run spans several processes, each started with this same command and run directory. TPU pods, Slurm
        and Kubernetes jobs are found by themselves; elsewhere set JAX_COORDINATOR_ADDRESS (host:port of the first
        process), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each.
      metric_sinks: where metrics go besides RUN/metrics, such as `training.metric_sinks.Wandb`.
      profile_steps: the first and the last step of a trace that is written to RUN/profile, such as (10, 12), counted from 0.

    Returns:
      The last step's metrics.

    Raises:
      ValueError: settings that do not fit each other, the corpus or the checkpoint.
      InUse: another trainer is at work in the run directory (a ValueError).
      Preempted: SIGTERM, once the step's checkpoint is written.
      KeyboardInterrupt: Ctrl-C, once the step's checkpoint is written; a second one at once.
      TimeoutError: an index version or another host that did not come in time.
      NonFiniteUpdate: a loss or gradient that is not finite (a ValueError).
    """
    if distributed:
        _join_processes()
    _check_counts(
        num_steps=num_steps,
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        checkpoint_every_steps=checkpoint_every_steps,
        keep_checkpoints=keep_checkpoints,
        log_every_steps=log_every_steps,
    )
    run = RunDir.of(run_dir)
    profiler = Profiler(run.profile, profile_steps)
    with _only_trainer(run):
        the_task, the_mesh = task.build(seed), mesh.build()
        _check_batch(the_task, batch_size, accumulation_steps)
        rng = jax.random.key(seed)
        layout = _lay_out(the_task, optimizer, the_mesh, num_steps, rng)
        identity: dict[str, str | int] = {
            "task": the_task.name,
            "seed": seed,
            "batch_size": batch_size,
            **the_task.data,
        }
        checkpoints = Checkpoints(run, keep_checkpoints, identity)
        unit = _first_unit(checkpoints, layout, the_mesh, the_task, batch_size, rng, warm_start)
        state, first_step = unit.state, int(unit.state.step)
        status = TrainerStatus(
            run,
            process=jax.process_index(),
            num_steps=num_steps,
            step=first_step,
            kept_versions=checkpoints.kept_versions(),
        )
        if first_step >= num_steps:
            logger.info("%s has done %d of %d steps; nothing to train", run.path, first_step, num_steps)
            checkpoints.close()
            status.finish("finished")
            return {}
        logger.info(
            "steps %d to %d, figures every %d; checkpoints in %s",
            first_step + 1, num_steps, log_every_steps, run.checkpoints,
        )  # fmt: skip
        _warn_of_frozen(optimizer, num_steps)
        _warn_of_stale(the_task, refresh)

        retrieval = the_task.retrieval
        evaluate = retrieval.evaluate if retrieval else None
        stop = StopRequests()
        refresher = (
            Refresher(refresh, run, retrieval, the_mesh, status, checkpoints.kept_versions, stop.while_waiting)
            if retrieval
            else None
        )
        in_step = refresher is not None and refresh.search == "in_step"
        look_ahead = LookAhead(the_task, the_mesh, batch_size, in_step)
        searching = refresh.index.exact if in_step else None
        run_step = _Programs(_jit_step(the_task, layout, the_mesh, accumulation_steps, dropout, searching))
        sinks = Sinks(metric_sinks, run, jax.process_index())
        recorder = Recorder(
            run,
            the_task,
            batch_size=batch_size,
            first_step=first_step,
            num_steps=num_steps,
            log_every_steps=log_every_steps,
            non_finite=non_finite,
            max_skipped_updates=max_skipped_updates,
            sinks=sinks,
        )

        def write_checkpoint(step: int) -> None:
            recorder.drain(keep=0)  # a step that is not finite must not be saved
            recorder.flush()
            # none after the last step: a run that is given more steps selects for itself
            candidate_ids = look_ahead.take(step).candidate_ids if step < num_steps else None
            version = refresher.version if refresher else NO_VERSION
            checkpoints.save(step, ResumeUnit(state, version, _global_ids(the_mesh, candidate_ids)))
            status.update(kept_versions=checkpoints.kept_versions(), step=step)

        stop.listen()
        status.keep_fresh()
        outcome: Literal["finished", "failed"] = "failed"
        try:
            if refresher is not None:
                recorder.swapped(refresher.serve_first(first_step, state.params, unit.index_version), first_step)
            if unit.candidate_ids is not None:  # selected before the run stopped, with parameters that are gone
                assert refresher is not None
                look_ahead.resume(first_step, local_rows(unit.candidate_ids), refresher.index)
            else:
                look_ahead.start(first_step, state.params, refresher.index if refresher else None)
            del unit  # its arrays are donated to the first step

            for step in range(first_step, num_steps):
                if refresher is not None:
                    recorder.swapped(refresher.begin_step(step, state.params), step)
                prepared = look_ahead.take(step)
                if step + 1 < num_steps:
                    look_ahead.start(step + 1, state.params, refresher.index if refresher else None)
                inputs = prepared.batch if refresher is None else refresher.step_inputs(prepared.batch)
                is_new = run_step.compile_for(state, inputs, rng)
                profiler.before(step)
                state, figures = run_step(state, inputs, rng)
                del inputs  # an index that is swapped out must end, so that the next can take its buffers
                profiler.after(step, figures)
                recorder.dispatched(step, figures, prepared, refresher, is_timed=not is_new)
                recorder.drain(keep=1)  # waits for the step before this one, so that one is always in flight

                if refresher is not None and evaluate is not None and _due(evaluate_every_steps, step + 1, num_steps):
                    recorder.drain(keep=0)
                    recorder.evaluated(step, evaluate(on_this_host(the_mesh, state.params), refresher.index))
                stopping = stop.after_step(step + 1)
                if stopping or _due(checkpoint_every_steps, step + 1, num_steps):
                    write_checkpoint(step + 1)
                if stopping:
                    logger.warning(
                        "%s: checkpoint of step %d written; start the same command to go on", stop.name, step + 1
                    )
                    break
            recorder.drain(keep=0)
            checkpoints.wait()
            if int(state.step) == num_steps:
                if refresher is not None:
                    refresher.last_snapshot(num_steps, state.params)
                outcome = "finished"
            stop.raise_reason(int(state.step), num_steps)
            return recorder.last_figures
        except WaitStopped as awaited:
            # state and candidates are as after the step before; the version may be newer already
            checkpoints.wait()
            done = int(state.step)
            if done > first_step and checkpoints.latest_step() != done:
                write_checkpoint(done)
                checkpoints.wait()
            logger.warning(
                "%s while waiting for %s; start the same command to go on from step %d", stop.name, awaited, done
            )
            stop.raise_reason(done, num_steps)
            return recorder.last_figures
        except TimeoutError as error:
            if jax.process_count() > 1:
                # said now: closing the checkpoints may wait for a host that is gone, until jax ends this process
                logger.error("%s", error)
            raise
        finally:
            stop.restore()
            status.finish(outcome)
            with contextlib.ExitStack() as last_to_first:  # each is closed whatever becomes of those before it
                # sinks last: the service may keep them waiting, and the time before SIGKILL is the checkpoint's
                for closable in (sinks, checkpoints, recorder, refresher, look_ahead, profiler):
                    if closable is not None:
                        last_to_first.callback(closable.close)


def _join_processes() -> None:
    """Joins the processes of the run, before anything asks jax for its devices.

    Raises:
      ValueError: when neither a cluster's manager nor the environment says which processes there are.
    """
    if jax.distributed.is_initialized():
        return
    said = {name: os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    number = {name: None if value is None else _whole_number(name, value) for name, value in list(said.items())[1:]}
    try:
        jax.distributed.initialize(  # what is None it looks for itself, as it does the address
            num_processes=number["JAX_NUM_PROCESSES"],
            process_id=number["JAX_PROCESS_ID"],
            cluster_detection_method=None
            if None in said.values()
            else "deactivate",  # nothing is left to ask a cluster
        )
    except ValueError as error:
        raise ValueError(
            f"distributed=True, but jax cannot tell which processes there are ({str(error).rstrip('.')}); where no TPU pod, "
            "Slurm or Kubernetes job says so, set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID, "
            f"got {', '.join(f'{name}={value}' for name, value in said.items())}"
        ) from error
    logger.info("process %d of %d, %d devices here", jax.process_index(), jax.process_count(), jax.local_device_count())


def _whole_number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


@contextlib.contextmanager
def _only_trainer(run: RunDir) -> Iterator[None]:
    """Refuses a second trainer in the run directory: each would cut and retire what the other has written.

    Process 0 of several takes the lock; all hear at once of its refusal, instead of waiting for one that is gone.

    Raises:
      InUse: naming the other trainer's process and host; process 0 alone knows it.
      OSError: when the lock cannot be written.
    """
    joined = jax.distributed.is_initialized()  # asked first: without, jax need not have begun with the devices
    refusal: Exception | None = None
    with contextlib.ExitStack() as held:
        if not joined or jax.process_index() == 0:
            try:
                held.enter_context(exclusive(run.trainer_lock, "another trainer is at work in this run"))
            except (InUse, OSError) as error:
                refusal = error
        if joined and jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            refusal = refusal or InUse(f"process 0 does not get the lock of {run.path}; its own message says why")
        if refusal is not None:
            raise refusal
        yield


def _warn_of_stale(task: Task, refresh: RefreshConfig) -> None:
    if task.retrieval is not None and refresh.mode == "frozen" and not task.frozen:
        logger.warning(
            "the document encoder learns, but the index stays that of step 0 (RefreshConfig.mode='frozen', an ablation); "
            "set mode='synchronous' or 'asynchronous' to refresh it"
        )


def _warn_of_frozen(optimizer: OptimizerConfig, num_steps: int) -> None:
    for learner, frozen_steps in optimizer.frozen_steps:
        if frozen_steps >= num_steps:
            logger.warning(
                "the %s will not learn: it is frozen for the first %d steps (OptimizerConfig.frozen_steps) and the run has %d; "
                "raise train.num_steps or lower frozen_steps", learner, frozen_steps, num_steps,
            )  # fmt: skip


def _due(every_steps: int, step: int, num_steps: int) -> bool:
    """Whether something done every so many steps (0: never) is due after `step` of them; the last step always is."""
    return every_steps > 0 and (step % every_steps == 0 or step == num_steps)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected train.{name} of at least 1, got {count}")


def _check_batch(task: Task, batch_size: int, accumulation_steps: int) -> None:
    if batch_size % accumulation_steps:
        raise ValueError(f"batch_size={batch_size} does not divide into accumulation_steps={accumulation_steps} parts")
    if accumulation_steps > 1 and not task.can_accumulate:
        raise ValueError(
            f"task {task.name} takes its negatives from the whole batch, so it cannot accumulate; set accumulation_steps=1"
        )


class _Layout(NamedTuple):
    """What the state is made of, before there is one."""

    init: Callable[[jax.Array], TrainState]  # from the run's key
    optimizer: optax.GradientTransformation
    schedules: dict[str, Schedule]  # of each learner
    shardings: TrainState  # of NamedSharding


def _lay_out(task: Task, optimizer: OptimizerConfig, mesh: Mesh, num_steps: int, rng: jax.Array) -> _Layout:
    learners = tuple(jax.eval_shape(task.init, rng))
    transformation = optimizer.build(num_steps, learners, task.frozen)
    init = functools.partial(init_state, task=task, optimizer=transformation)
    schedules = {name: optimizer.schedule(num_steps, name) for name in learners}
    return _Layout(init, transformation, schedules, state_shardings(mesh, jax.eval_shape(init, rng)))


def _first_unit(
    checkpoints: Checkpoints,
    layout: _Layout,
    mesh: Mesh,
    task: Task,
    batch_size: int,
    rng: jax.Array,
    warm_start: tuple[str, ...],
) -> ResumeUnit:
    """Where the run begins: at its newest checkpoint, or afresh, its learners warm-started where other runs have them."""
    if not checkpoints.is_begun():
        state = jax.jit(layout.init, out_shardings=layout.shardings)(rng)
        state = state._replace(params=_warm_start(state.params, warm_start, task, mesh))
        return ResumeUnit(state, NO_VERSION, None)
    wanted = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(layout.init, rng),
        layout.shardings,
    )
    unit = checkpoints.restore(wanted, mesh, batch_size if task.retrieval is not None else None)
    logger.info("resuming at step %d", int(unit.state.step))
    return unit


def _warm_start(params: Params, run_dirs: tuple[str, ...], task: Task, mesh: Mesh) -> Params:
    """Replaces learners, or the parts of them that are there, by those of other runs' newest checkpoints, of which each device reads its part.

    Raises:
      ValueError: a run without a learner of this task, with other shapes, or trained on the pieces of another tokenizer.
    """
    used: set[int] = set()

    def place(new: jax.Array, old: jax.Array) -> jax.Array:
        """Both sides of a retriever may start from one encoder: they must not be one array, which a step would donate twice."""
        again = id(new) in used
        used.add(id(new))
        return jax.device_put(new, old.sharding, may_alias=not again)

    for run_dir in run_dirs:
        for kind in ("tokenizer", "generator_tokenizer"):
            if kind in task.data:
                check_tokenizer(RunDir.of(run_dir), task.data[kind], kind=kind)
        step, loaded = load_params(RunDir.of(run_dir), mesh=mesh)
        found = task.adopt(loaded)
        shared = [name for name in params if name in found]
        if not shared:
            raise ValueError(f"warm start {run_dir} holds {', '.join(loaded)}, this task needs {', '.join(params)}")
        for name in shared:
            ours = {part: params[name][part] for part in found[name] if part in params[name]}
            if jax.tree.map(np.shape, found[name]) != jax.tree.map(np.shape, ours):
                raise ValueError(
                    f"warm start {run_dir}: the {name} has other shapes than this run's; use the model settings it was trained with"
                )
            placed = jax.tree.map(place, found[name], ours)
            params = {**params, name: {**params[name], **placed}}
            left = sorted(set(params[name]) - set(placed))
            logger.info(
                "%s warm-started from %s, step %d%s",
                name, run_dir, step, f"; {', '.join(left)} from random parameters" if left else "",
            )  # fmt: skip
    return params


def _global_ids(mesh: Mesh, candidate_ids: np.ndarray | None) -> jax.Array | None:
    """Candidate ids of all hosts as one array, which a checkpoint can restore to any number of hosts."""
    return None if candidate_ids is None else put_batch(mesh, candidate_ids.astype(np.int32))


def _jit_step(
    task: Task,
    layout: _Layout,
    mesh: Mesh,
    accumulation_steps: int,
    dropout: bool,
    searching: ExactSettings | None = None,
) -> Any:
    """The train step, jitted: the state is donated and keeps its shardings, the metrics are the same on every device."""
    whole = train_step
    if searching is not None:
        whole = functools.partial(in_step_train_step, mesh=mesh, recall_target=searching.recall_target)
    step = functools.partial(
        whole,
        task=task,
        optimizer=layout.optimizer,
        schedules=layout.schedules,
        accumulation_steps=accumulation_steps,
        dropout=dropout,
        num_parts=batch_devices(mesh),
    )
    out_shardings = (layout.shardings, NamedSharding(mesh, P()))
    return jax.jit(traced_for(mesh, step), out_shardings=out_shardings, donate_argnums=0)


class _Programs:
    """The jitted step, compiled for each shape of batch ahead of its first run: there are few."""

    def __init__(self, jitted: Any):
        self._jitted = jitted
        self._compiled: dict[tuple[tuple[int, ...], ...], Callable[..., Any]] = {}

    def compile_for(self, state: TrainState, batch: Any, rng: jax.Array) -> bool:
        """Compiles if the batch has a new shape, and says whether: that time must not be taken for a step's."""
        shapes = _shapes(batch)
        if shapes in self._compiled:
            return False
        start = time.monotonic()
        self._compiled[shapes] = self._jitted.lower(state, batch, rng).compile()
        logger.info("train step compiled in %.1f s", time.monotonic() - start)
        return True

    def __call__(self, state: TrainState, batch: Any, rng: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        new_state, figures = self._compiled[_shapes(batch)](state, batch, rng)
        return new_state, figures


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))
