"""The training job: one loop, whole and in order, for every task.

    snapshot → swap → take the batch prepared during the last step → start preparing the next → step → record → checkpoint

The loop knows a task only through `tasks.task.Task`, and the index only through `retrieval.hot_swap.HotSwap`.
"""

import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.retrieval import agreement, versions
from realm_jax.retrieval.embedder import embed_snapshot
from realm_jax.retrieval.hot_swap import HotSwap, Swap, VersionSource
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.run_dir import RunDir
from realm_jax.tasks.task import Params, Retrieval, Task, TaskConfig
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, SnapshotWriter, load_params
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.recorder import Recorder
from realm_jax.training.refresh import RefreshConfig
from realm_jax.training.sharding import MeshConfig, put_batch, state_shardings
from realm_jax.training.state import TrainState, init_state, train_step
from realm_jax.training.status import TrainerStatus

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

    Returns:
      The last step's metrics.

    Raises:
      ValueError: settings that do not fit each other, the corpus or the checkpoint.
      TimeoutError: an index version or another host that did not come in time.
      NonFiniteUpdate: a loss or gradient that is not finite (a ValueError).
    """
    run = RunDir.of(run_dir)
    the_task = task.build(seed)
    the_mesh = mesh.build()
    _check_batch(the_task, batch_size, accumulation_steps)
    rng = jax.random.key(seed)

    # State: from the newest checkpoint, or fresh, its learners warm-started where other runs have them.
    learners = tuple(jax.eval_shape(the_task.init, rng))
    the_optimizer = optimizer.build(num_steps, learners)
    init = functools.partial(init_state, task=the_task, optimizer=the_optimizer)
    shardings = state_shardings(the_mesh, jax.eval_shape(init, rng))
    checkpoints = Checkpoints(run, keep_checkpoints)
    unit = _restore(checkpoints, init, rng, shardings, the_mesh, the_task, batch_size)
    if unit is None:
        state = jax.jit(init, out_shardings=shardings)(rng)
        state = state._replace(params=_warm_start(state.params, warm_start))
    else:
        state = unit.state
    first_step = int(state.step)
    if first_step >= num_steps:
        logger.info("%s has done its %d steps; nothing to train", run.path, num_steps)

    step_fn = jax.jit(
        functools.partial(
            train_step,
            task=the_task,
            optimizer=the_optimizer,
            schedules={name: optimizer.schedule(num_steps, name) for name in learners},
            accumulation_steps=accumulation_steps,
            dropout=dropout,
        ),
        out_shardings=(shardings, NamedSharding(the_mesh, P())),
        donate_argnums=0,
    )

    # The index: what the first step searches.
    retrieval = the_task.retrieval
    status = TrainerStatus(run, process=jax.process_index(), num_steps=num_steps, step=first_step)
    hot_swap: HotSwap | None = None
    snapshots = SnapshotWriter(run, the_mesh)
    replay = refresh.read_replay()
    look_ahead = LookAhead(the_task, the_mesh, batch_size)
    recorder = Recorder(
        run,
        the_task,
        batch_size=batch_size,
        first_step=first_step,
        num_steps=num_steps,
        log_every_steps=log_every_steps,
        non_finite=non_finite,
        max_skipped_updates=max_skipped_updates,
    )
    compiled: Callable[..., Any] | None = None
    done = False
    stop_requested, restore_signals = _stop_on_sigterm()
    try:
        if retrieval is not None:
            hot_swap = _make_hot_swap(run, retrieval, refresh, status)
            version = None if unit is None else unit.index_version
            if version is None:
                _snapshot(0, state.params, snapshots, retrieval, refresh, run, wait=True, in_use=set())
                version = 0 if refresh.mode != "asynchronous" else None
            recorder.swapped(hot_swap.serve(version), first_step)
            status.update(index_version=hot_swap.version)
            if refresh.mode == "asynchronous":
                hot_swap.watch()
        if unit is not None and unit.candidate_ids is not None:
            look_ahead.resume(first_step, unit.candidate_ids)
        elif first_step < num_steps:
            look_ahead.start(first_step, state.params, hot_swap.index if hot_swap else None)
        del unit

        for step in range(first_step, num_steps):
            if retrieval is not None and hot_swap is not None:
                if step > 0:
                    _refresh(
                        step, state.params, snapshots, hot_swap, retrieval, refresh, replay, run, recorder,
                        checkpoints.kept_versions() if refresh.embedder == "in_trainer" else [],
                    )  # fmt: skip
                status.update(index_version=hot_swap.version, step=step)
            prepared = look_ahead.take(step)
            if step + 1 < num_steps:
                look_ahead.start(step + 1, state.params, hot_swap.index if hot_swap else None)
            if compiled is None:
                compiled = _compile(step_fn, state, prepared.batch, rng)
            state, figures = compiled(state, prepared.batch, rng)
            recorder.dispatched(step, figures, prepared, hot_swap)
            recorder.drain(keep=1)  # waits for the step before this one, so that one is always in flight

            if (
                evaluate_every_steps
                and retrieval is not None
                and retrieval.evaluate is not None
                and hot_swap is not None
            ):
                if (step + 1) % evaluate_every_steps == 0 or step + 1 == num_steps:
                    recorder.drain(keep=0)
                    recorder.evaluated(step, retrieval.evaluate(state.params, hot_swap.index))
            last = step + 1 == num_steps or stop_requested()
            if last or (step + 1) % checkpoint_every_steps == 0:
                recorder.drain(keep=0)  # a step that is not finite must not be saved
                _save(step + 1, state, checkpoints, look_ahead, hot_swap, the_mesh, num_steps)
                status.update(kept_versions=checkpoints.kept_versions(), step=step + 1)
            if stop_requested():
                logger.warning("SIGTERM: checkpoint of step %d written; start the same command to go on", step + 1)
                break
        recorder.drain(keep=0)
        done = int(state.step) >= num_steps
        if done and retrieval is not None and first_step < num_steps:
            snapshots.write(num_steps, retrieval.retriever_params(state.params), wait=True)
        checkpoints.wait()
        return recorder.last_figures
    finally:
        restore_signals()
        status.finish("finished" if done else "failed")
        if hot_swap is not None:
            hot_swap.close()
        for closable in (look_ahead, snapshots, recorder, checkpoints):
            closable.close()


def _check_batch(task: Task, batch_size: int, accumulation_steps: int) -> None:
    if accumulation_steps < 1 or batch_size % accumulation_steps:
        raise ValueError(f"batch_size={batch_size} does not divide into accumulation_steps={accumulation_steps} parts")
    if accumulation_steps > 1 and not task.can_accumulate:
        raise ValueError(
            f"task {task.name} takes its negatives from the whole batch, so it cannot accumulate; set accumulation_steps=1"
        )


def _restore(
    checkpoints: Checkpoints,
    init: Callable[[jax.Array], TrainState],
    rng: jax.Array,
    shardings: TrainState,
    mesh: Mesh,
    task: Task,
    batch_size: int,
) -> ResumeUnit | None:
    """The resume unit of the newest checkpoint, or None in a fresh run directory."""
    if checkpoints.latest_step() is None:
        return None
    wanted = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init, rng),
        shardings,
    )
    unit = checkpoints.restore(wanted, mesh, batch_size if task.retrieval is not None else None)
    logger.info("resuming at step %d", int(unit.state.step))
    return unit


def _warm_start(params: Params, run_dirs: tuple[str, ...]) -> Params:
    """Replaces learners by those of other runs' newest checkpoints.

    Raises:
      ValueError: a run without a learner of this task, or with other shapes.
    """
    for run_dir in run_dirs:
        step, found = load_params(RunDir.of(run_dir))
        shared = [name for name in params if name in found]
        if not shared:
            raise ValueError(f"warm start {run_dir} holds {', '.join(found)}, this task needs {', '.join(params)}")
        for name in shared:
            theirs = jax.tree.map(np.shape, found[name])
            ours = jax.tree.map(np.shape, params[name])
            if theirs != ours:
                raise ValueError(
                    f"warm start {run_dir}: the {name} has other shapes than this run's; use the model settings it was trained with"
                )
            placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), found[name], params[name])
            params = {**params, name: placed}
            logger.info("%s warm-started from %s, step %d", name, run_dir, step)
    return params


def _make_hot_swap(run: RunDir, retrieval: Retrieval, refresh: RefreshConfig, status: TrainerStatus) -> HotSwap:
    expected: dict[str, Any] = {
        "corpus_fingerprint": retrieval.corpus.fingerprint,
        "embed_dim": retrieval.config.projection_size,
        "num_documents": retrieval.corpus.num_documents,
    }

    def load(version: int) -> tuple[Any, float]:
        directory = run.index_version(version)
        manifest = versions.verify(directory, **expected)
        return versions.load_version(directory, manifest=manifest), manifest.built_at

    return HotSwap(
        VersionSource(functools.partial(versions.list_versions, run.index), load),
        agreement.for_this_run(refresh.timeout_secs),
        swap_every_steps=refresh.swap_every_steps,
        timeout_secs=refresh.timeout_secs,
        poll_secs=refresh.poll_secs,
        is_leader=jax.process_index() == 0,
        on_pending=lambda version: status.update(pending_version=version),
    )


def _snapshot(
    step: int,
    params: Params,
    snapshots: SnapshotWriter,
    retrieval: Retrieval,
    refresh: RefreshConfig,
    run: RunDir,
    wait: bool,
    in_use: set[int],
) -> None:
    """Hands the retriever to the embed job, or embeds here and now."""
    here = refresh.embedder == "in_trainer"
    snapshots.write(step, retrieval.retriever_params(params), wait=wait or here)
    if here and jax.process_index() == 0:
        batches = dataclasses.replace(refresh.batches, document_len=retrieval.document_len)
        embed_snapshot(run, step, retrieval.config, retrieval.corpus, settings=refresh.index, batches=batches)
        versions.retire(run.index, in_use)


def _refresh(
    step: int,
    params: Params,
    snapshots: SnapshotWriter,
    hot_swap: HotSwap,
    retrieval: Retrieval,
    refresh: RefreshConfig,
    replay: dict[int, int],
    run: RunDir,
    recorder: Recorder,
    kept_versions: list[int],
) -> None:
    """What happens to the index between two steps: a snapshot goes out, a version comes in."""
    must_serve = refresh.must_serve(step, replay)
    if refresh.snapshot_due(step):
        in_use = {hot_swap.version, *kept_versions}
        _snapshot(step, params, snapshots, retrieval, refresh, run, must_serve is not None, in_use)
    swap: Swap | None = hot_swap.begin_step(step, wait_for=must_serve)
    too_old = refresh.max_index_age_steps is not None and step - hot_swap.version > refresh.max_index_age_steps
    if swap is None and too_old and refresh.mode == "asynchronous":
        if refresh.when_too_old == "stop":
            raise TimeoutError(
                f"step {step}: index {hot_swap.version:08d} is older than max_index_age_steps={refresh.max_index_age_steps}; "
                "look at the embed job, or set when_too_old='wait'"
            )
        swap = hot_swap.wait_for_newer(step)
    if swap is not None:
        recorder.swapped(swap, step)


def _save(
    step: int,
    state: TrainState,
    checkpoints: Checkpoints,
    look_ahead: LookAhead,
    hot_swap: HotSwap | None,
    mesh: Mesh,
    num_steps: int,
) -> None:
    """Writes the resume unit before `step`, with the candidates that the look-ahead has already selected for it."""
    candidate_ids = None
    if hot_swap is not None:
        rows = look_ahead.take(step).candidate_ids if step < num_steps else look_ahead.take(step - 1).candidate_ids
        assert rows is not None
        candidate_ids = put_batch(mesh, rows.astype(np.int32))
    checkpoints.save(step, ResumeUnit(state, hot_swap.version if hot_swap else NO_VERSION, candidate_ids))


def _compile(step_fn: Any, state: TrainState, batch: Any, rng: jax.Array) -> Callable[..., Any]:
    """Compiles the step ahead of its first run, so that its time is known and not taken for a step's."""
    start = time.monotonic()
    compiled = step_fn.lower(state, batch, rng).compile()
    logger.info("train step compiled in %.1f s", time.monotonic() - start)
    return compiled


def _stop_on_sigterm() -> tuple[Callable[[], bool], Callable[[], None]]:
    """Makes SIGTERM end the run after the step in progress, with a checkpoint.

    Returns:
      (whether it was asked to stop, what puts the earlier handler back).
    """
    asked: list[int] = []
    try:
        earlier = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    except ValueError:  # not the main thread: whoever called train() handles signals
        return lambda: False, lambda: None
    return lambda: bool(asked), lambda: (signal.signal(signal.SIGTERM, earlier), None)[1]
