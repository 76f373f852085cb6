"""What a run says about itself while it runs: metrics.jsonl, TensorBoard events, one line of progress, throughput."""

import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from realm_jax.run_dir import RunDir

logger = logging.getLogger(__name__)

# JSON has no such numbers. As strings they survive the way there and back: float("NaN"), float("-Infinity").
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# Dense bfloat16 FLOP/s of one jax device, from the makers' data sheets. A TPU v2 or v3 device is one core of a chip.
PEAK_FLOPS_PER_SEC = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "Tesla T4": 65e12,  # float16: it has no bfloat16
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


class MetricWriter:
    """Appends the metrics of a run to RUN/metrics: metrics.jsonl, and TensorBoard events beside it.

    Only process 0 writes; on the others every method does nothing. Each line reaches the file before `write` returns,
    so it outlives the process, though not a loss of power. Metrics are not worth a run: when the disk refuses them, the
    first refusal is logged and training goes on; a line half written is cut off before the next one.

    tensorboardX's SummaryWriter hands events to a thread that dies when the disk is full, after which its caller waits
    for ever; its event file is therefore written here, in the calling thread.
    """

    def __init__(self, run: RunDir | str | os.PathLike[str], process_index: int = 0) -> None:
        self._run = RunDir.of(run)
        self._active = process_index == 0
        self._lines: IO[bytes] | None = None
        self._events: EventsWriter | None = None
        self._whole_bytes = 0  # the file holds whole lines up to here
        self._refused = False
        self._purge_step: int | None = None

    def resume_from(self, step: int) -> None:
        """Forgets what was written at `step` and later, so that the resumed curve equals the uninterrupted one.

        Call before the first `write`. metrics.jsonl is replaced by one rename; TensorBoard is told to hide the events.
        """
        if not self._active:
            return
        if self._lines is not None:
            raise RuntimeError("resume_from must come before the first write")
        path = self._run.metrics_jsonl
        if path.exists():
            kept = [line for line, entry in _parsed_lines(path) if entry["step"] < step]
            _replace_bytes(path, b"".join(kept))
        self._purge_step = step

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends {"step", "time", **metrics}; the values may be numbers, or jax and numpy scalars.

        Args:
          step: the number of steps that were done.
          metrics: name to value. Non-finite values are written as the strings "NaN", "Infinity", "-Infinity".
        """
        if not self._active:
            return
        now = time.time()
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        try:
            self._append_line({"step": int(step), "time": round(now, 3), **numbers})
            self._append_event(step, now, numbers)
        except OSError as error:
            if not self._refused:
                logger.error("metrics of step %d and perhaps later ones are lost, training goes on: %s", step, error)
            self._refused = True

    def close(self) -> None:
        """Writes out what is still in memory."""
        try:
            if self._lines is not None:
                os.fsync(self._lines.fileno())
                self._lines.close()
            if self._events is not None:
                self._events.close()
        except OSError as error:
            logger.error("closing the metrics of %s: %s", self._run.path, error)
        self._lines = self._events = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append_line(self, entry: Mapping[str, int | float]) -> None:
        if self._lines is None:
            self._run.metrics.mkdir(parents=True, exist_ok=True)
            path = self._run.metrics_jsonl
            # Unbuffered: one write, one line. A line torn by a killed process is cut off.
            self._lines = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._whole_bytes = self._lines.read().rfind(b"\n") + 1
        legal = {name: _legal(value) for name, value in entry.items()}
        line = json.dumps(legal, allow_nan=False).encode() + b"\n"
        self._lines.truncate(self._whole_bytes)
        self._lines.seek(self._whole_bytes)
        written = self._lines.write(line)
        if written != len(line):
            raise OSError(f"{self._run.metrics_jsonl}: wrote {written} of {len(line)} bytes")
        self._whole_bytes += len(line)

    def _append_event(self, step: int, now: float, numbers: Mapping[str, int | float]) -> None:
        if self._events is None:
            self._events = EventsWriter(str(self._run.metrics / "events"))
            if self._purge_step is not None:
                session = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(step=self._purge_step, file_version="brain.Event:2"))
                self._events.write_event(Event(step=self._purge_step, wall_time=now, session_log=session))
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in numbers.items()]
        self._events.write_event(Event(step=int(step), wall_time=now, summary=Summary(value=values)))
        self._events.flush()


def read_metrics(run: RunDir | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries of RUN/metrics/metrics.jsonl in order, non-finite numbers as floats; [] when there is no file.

    A torn last line (the run was killed, or is writing now) is left out.

    Raises:
      ValueError: for a line in the middle that is not JSON or has no "step", naming file and line.
    """
    path = RunDir.of(run).metrics_jsonl
    return [entry for _, entry in _parsed_lines(path)] if path.exists() else []


def series(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, in order, entries without it left out: float64 arrays."""
    points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _parsed_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) or not line.strip():
            continue  # the last piece has no line end: empty, or torn
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError('expected an object with an integer "step"')
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; remove the line to go on") from error
        found.append((line + b"\n", {name: _from_legal(value) for name, value in entry.items()}))
    return found


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or (array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16"):
        raise ValueError(f"metric {name!r} must be one number, got {array.dtype} of shape {array.shape}")
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def _legal(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_legal(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _replace_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class ProgressBar:
    """One line of progress: steps, time left, and the figures that matter; plain log lines when nobody watches.

    On a terminal the line is redrawn in place; elsewhere (a file, a pipe) a line is logged every `log_every_secs`.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        description: str = "train",
        *,
        log_every_secs: int | float = 15.0,
        stream: Any = None,  # a text stream; standard error when None
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._initial, self._description = total_steps, initial_step, description
        self._log_every_secs, self._clock = log_every_secs, clock
        self._started = clock()
        self._left_out_secs, self._left_out_steps = 0.0, 0
        self._logged: float | None = None
        self._bar: Any = None
        stream = stream or sys.stderr
        if stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=initial_step,
                desc=description,
                file=stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} {elapsed}{postfix}",
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` steps are done. Call it when figures are at hand, not only every n steps."""
        now = self._clock()
        figures = f"{self._time_left(step, now)} left, {progress_figures(metrics)}"
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._logged is None or now - self._logged >= self._log_every_secs or step >= self._total:
            self._logged = now
            logger.info("%s %d/%d, %s", self._description, step, self._total, figures)

    def leave_out(self, secs: float) -> None:
        """Leaves a step that took `secs` out of the rate: it was compiled first, and the next ones will not be."""
        self._left_out_secs += secs
        self._left_out_steps += 1

    def _time_left(self, step: int, now: float) -> str:
        steps = step - self._initial - self._left_out_steps
        if step >= self._total:
            return _clock_time(0.0)
        if steps <= 0:
            return "?"
        return _clock_time((now - self._started - self._left_out_secs) / steps * (self._total - step))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def progress_figures(metrics: Mapping[str, Any]) -> str:
    """The figures that matter, short; those that the metrics lack are left out.

    >>> progress_figures({"loss": 2.5, "retrieval_utility": 0.31, "null_document_prob": 0.04, "index_version": 300,
    ...                   "index_age_steps": 12, "examples_per_sec": 15.61})
    'loss 2.500, utility +0.310, null 0.040, index 300 (12 steps old), 15.6 examples/s'
    """
    shown = []
    for name, form in (("loss", "loss {:.3f}"), ("retrieval_utility", "utility {:+.3f}"),
                       ("null_document_prob", "null {:.3f}")):  # fmt: skip
        if name in metrics:
            shown.append(form.format(float(metrics[name])))
    if "index_version" in metrics and metrics["index_version"] >= 0:
        age = f" ({int(metrics['index_age_steps'])} steps old)" if "index_age_steps" in metrics else ""
        shown.append(f"index {int(metrics['index_version'])}{age}")
    if "examples_per_sec" in metrics:
        shown.append(f"{float(metrics['examples_per_sec']):.3g} examples/s")
    return ", ".join(shown)


def _clock_time(secs: float) -> str:
    minutes, seconds = divmod(round(max(secs, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


class StepTimer:
    """Turns the times of steps into examples_per_sec, tokens_per_sec and mfu.

    Call `step_done` after every step and `figures` when metrics are written; figures are of the steps in between.
    """

    def __init__(
        self,
        examples_per_step: int,
        tokens_per_step: int | float,
        flops_per_step: int | float | None = None,
        peak_flops: int | float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts the clock.

        Args:
          examples_per_step: queries of the global batch.
          tokens_per_step: tokens that the models read, padding included, candidates included.
          flops_per_step: model FLOPs of one step, forward and backward, without rematerialisation.
          peak_flops: FLOP/s of all devices together, as from `peak_flops_per_sec`.
          clock: seconds, for tests.
        """
        self._examples, self._tokens = examples_per_step, tokens_per_step
        self._flops, self._peak = flops_per_step, peak_flops
        self._clock = clock
        self._last = clock()
        self._window: list[float] = []
        self.step_secs: list[float] = []  # of every step since the start

    def step_done(self) -> float:
        """Ends a step and begins the next; returns the seconds that it took."""
        now = self._clock()
        secs, self._last = now - self._last, now
        self._window.append(secs)
        self.step_secs.append(secs)
        return secs

    def skip(self) -> None:
        """Leaves the time since the last step out (an evaluation, a checkpoint)."""
        self._last = self._clock()

    def figures(self) -> dict[str, float]:
        """Throughput since the last call, and the median time of a step; {} when no step was done."""
        if not self._window:
            return {}
        secs, steps = sum(self._window), len(self._window)
        found = {
            "step_secs": float(np.median(self._window)),
            "examples_per_sec": self._examples * steps / secs,
            "tokens_per_sec": self._tokens * steps / secs,
        }
        if self._flops is not None and self._peak is not None:
            found["mfu"] = self._flops * steps / secs / self._peak
        self._window = []
        return found


def peak_flops_per_sec(devices: Sequence[jax.Device] | None = None) -> float:
    """FLOP/s that the devices could do: the denominator of mfu (model FLOP utilisation).

    Known accelerators count by their data sheet. On CPUs and unknown devices it is what a large float32 matrix product
    reaches here and now (half a second, once a process): mfu then says how near a step comes to the best that the same
    cores do. Simulated CPU devices share the cores, so their number does not count.
    """
    devices = list(devices or jax.devices())
    known = data_sheet_flops(devices[0].device_kind)
    if known is not None:
        return known * len(devices)
    share = 1 if devices[0].platform == "cpu" else len(devices)
    return _measured_peak(devices[0]) * share


def data_sheet_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device of this kind; None when the table does not know it.

    >>> data_sheet_flops("TPU v5 lite"), data_sheet_flops("TPU v5"), data_sheet_flops("cpu")
    (197000000000000.0, 459000000000000.0, None)
    """
    # The longest name that fits: "TPU v5" must not answer for "TPU v5 lite", nor miss "NVIDIA A100-SXM4-80GB".
    names = sorted((name for name in PEAK_FLOPS_PER_SEC if device_kind.startswith(name)), key=len)
    return PEAK_FLOPS_PER_SEC[names[-1]] if names else None


@functools.cache
def _measured_peak(device: jax.Device, size: int = 1024, seconds: float = 0.3) -> float:
    """The best of several size³ matrix products."""
    square = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best, until = math.inf, time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() >= until:
            return 2.0 * size**3 / best
