"""Follows the steps in flight: their metrics, their times, what they waited for, and when a swap happened."""

import collections
import concurrent.futures
import json
import logging
import time
from typing import Any, Literal, NamedTuple

import jax

from realm_jax.retrieval.hot_swap import Swap
from realm_jax.retrieval.look_ahead import Prepared
from realm_jax.run_dir import RunDir, write_text_atomically
from realm_jax.tasks.task import Task
from realm_jax.training.metric_sinks import Sinks
from realm_jax.training.metrics import MetricWriter
from realm_jax.training.progress import ProgressBar
from realm_jax.training.refresh import Refresher
from realm_jax.training.throughput import StepTimer, peak_flops_per_sec

logger = logging.getLogger(__name__)

LAST_OF_WINDOW = (
    "index_version",
    "index_age_steps",
    "index_age_secs",
    "index_mean_age_steps",
    "index_oldest_age_steps",
    "skipped_updates",
)
WORST_OF_WINDOW = ("swap_pause_ms",)


class NonFiniteUpdate(ValueError):  # noqa: N818 (it names what happened)
    """A loss or gradient that is not finite."""


class _InFlight(NamedTuple):
    step: int
    done: concurrent.futures.Future[tuple[dict[str, float], float]]  # figures, time.perf_counter() when computed
    ready_at: float
    host_figures: dict[str, float]
    is_timed: bool


class Recorder:
    """Turns dispatched steps into lines of metrics.

    A thread waits for each step's figures, so the time at which the device finished is known even while the training
    thread is busy. `retrieval_wait_ms` is the time between that and the moment when the next batch, with its candidates,
    was ready: how long the device had nothing to do for lack of candidates.
    """

    def __init__(
        self,
        run: RunDir,
        task: Task,
        *,
        batch_size: int,
        first_step: int,
        num_steps: int,
        log_every_steps: int,
        non_finite: Literal["stop", "skip"],
        max_skipped_updates: int,
        sinks: Sinks | None = None,
    ):
        self.last_figures: dict[str, float] = {}
        self._run, self._log_every_steps = run, log_every_steps
        self._non_finite, self._max_skipped_updates = non_finite, max_skipped_updates
        self._sinks = sinks or Sinks((), run, jax.process_index())
        self._writer = MetricWriter(run, jax.process_index())
        self._writer.resume_from(first_step + 1)
        self._swaps_path = run.metrics / "swaps.jsonl"
        self._swaps = self._swaps_before(first_step)
        self._bar = ProgressBar(num_steps, first_step, task.name) if jax.process_index() == 0 else None
        self._now = time.perf_counter()
        self._timer = StepTimer(
            batch_size,
            batch_size * task.tokens_per_example,
            batch_size * task.flops_per_example,
            peak_flops_per_sec(),
            clock=lambda: self._now,
        )
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._in_flight: collections.deque[_InFlight] = collections.deque()
        self._window: list[dict[str, float]] = []
        self._pause_ms = 0.0
        self._num_steps = num_steps

    def swapped(self, swap: Swap | None, step: int) -> None:
        """Notes a swap before `step`: in swaps.jsonl, from which it can be replayed, and in the step's metrics."""
        if swap is None:
            return
        self._pause_ms = max(self._pause_ms, swap.pause_ms)
        self._swaps.append(json.dumps({**swap._asdict(), "step": step, "time": time.time()}) + "\n")
        if jax.process_index() == 0:
            try:
                write_text_atomically(self._swaps_path, "".join(self._swaps))
            except OSError as error:  # a full disk: the next swap writes this one too
                logger.error("the swap at step %d cannot be recorded, training goes on: %s", step, error)

    def dispatched(
        self,
        step: int,
        figures: dict[str, jax.Array],
        prepared: Prepared,
        refresher: Refresher | None,
        is_timed: bool = True,
    ) -> None:
        """Notes a step that was handed to the device; one that was compiled first is not timed."""
        host_figures = {}
        if refresher is not None:
            host_figures = {
                "index_version": float(refresher.version),
                "index_age_steps": float(step - refresher.version),
                "index_age_secs": max(0.0, time.time() - refresher.built_at),
                "swap_pause_ms": self._pause_ms,
                "selection_age_steps": float(prepared.selection_age_steps),
                "search_ms": prepared.search_ms,
                **refresher.mixed_ages(step),
            }
            self._pause_ms = 0.0
        done = self._executor.submit(_wait, figures)
        self._in_flight.append(_InFlight(step, done, prepared.ready_at, host_figures, is_timed))

    def drain(self, keep: int) -> None:
        """Waits for all but the last `keep` steps and records them.

        Raises:
          NonFiniteUpdate: naming the step.
        """
        while len(self._in_flight) > keep:
            flight = self._in_flight.popleft()
            figures, done_at = flight.done.result()
            previous_done_at, self._now = self._now, done_at
            figures |= flight.host_figures
            if flight.is_timed:
                self._timer.step_done()
                if flight.host_figures:
                    figures["retrieval_wait_ms"] = max(0.0, flight.ready_at - previous_done_at) * 1e3
            else:
                self._timer.skip()
                if self._bar is not None:
                    self._bar.leave_out(done_at - previous_done_at)
            self._check_finite(flight.step, figures)
            self._window.append(figures)
            if (flight.step + 1) % self._log_every_steps == 0 or flight.step + 1 == self._num_steps:
                self._log(flight.step + 1)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures of an evaluation after `step`; its time is not counted as a step's."""
        self._writer.write(step + 1, figures)
        self._sinks.write(step + 1, figures)
        self._now = time.perf_counter()
        self._timer.skip()

    def flush(self) -> None:
        """Waits until the lines so far are where the run is: those before a checkpoint are not written again."""
        self._writer.flush()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._writer.close()
        if self._bar is not None:
            self._bar.close()

    def _log(self, step: int) -> None:
        merged: dict[str, float] = {}
        for name in {name for figures in self._window for name in figures}:
            values = [figures[name] for figures in self._window if name in figures]
            if name in LAST_OF_WINDOW:
                merged[name] = values[-1]
            else:
                merged[name] = max(values) if name in WORST_OF_WINDOW else sum(values) / len(values)
        merged |= self._timer.figures()
        self._window = []
        self.last_figures = merged
        self._writer.write(step, dict(sorted(merged.items())))
        self._sinks.write(step, merged)
        if self._bar is not None:
            self._bar.update(step, merged)

    def _check_finite(self, step: int, figures: dict[str, float]) -> None:
        if figures.pop("finite"):
            return
        what = f"step {step}: loss {figures['loss']}, gradient norm {figures['grad_norm']}"
        if self._non_finite == "stop":
            raise NonFiniteUpdate(
                f"{what}: the update was not applied and the run stops; look at the data of that step, lower the learning rate, "
                "or set non_finite='skip'"
            )
        logger.warning("%s: update skipped", what)
        if figures["skipped_updates"] > self._max_skipped_updates:
            raise NonFiniteUpdate(
                f"{what}: more than max_skipped_updates={self._max_skipped_updates} updates were skipped"
            )

    def _swaps_before(self, step: int) -> list[str]:
        """The lines of swaps.jsonl but those that a resumed run will write again."""
        lines = self._swaps_path.read_text().splitlines(keepends=True) if self._swaps_path.exists() else []
        return [line for line in lines if json.loads(line)["step"] < step]


def _wait(figures: dict[str, Any]) -> tuple[dict[str, float], float]:
    host = {name: float(value) for name, value in jax.device_get(figures).items()}
    return host, time.perf_counter()
