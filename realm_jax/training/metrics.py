"""What a run says about itself in files, metrics.jsonl and TensorBoard events, and how it is read again."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from realm_jax.run_dir import RunDir
from realm_jax.storage import Place, RemotePath, put, scratch_of
from realm_jax.training.mirror import Mirror

logger = logging.getLogger(__name__)

# JSON has no such numbers. As strings they survive the way there and back: float("NaN"), float("-Infinity").
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricWriter:
    """Appends the metrics of a run to RUN/metrics: metrics.jsonl, and TensorBoard events beside it.

    Only process 0 writes; on the others every method does nothing. Each line reaches the file before `write` returns,
    so it outlives the process, though not a loss of power; what is on an object store is as new as the last `flush`, or half
    a minute old. Metrics are not worth a run: when the disk refuses them, the
    first refusal is logged and training goes on; a line half written is cut off before the next one.

    tensorboardX's SummaryWriter hands events to a thread that dies when the disk is full, after which its caller waits
    for ever; its event file is therefore written here, in the calling thread.
    """

    def __init__(self, run: RunDir | str | os.PathLike[str], process_index: int = 0) -> None:
        self._run = RunDir.of(run)
        self._folder = scratch_of(self._run.metrics)  # the place itself where that is local
        self._mirror: Mirror | None = None
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
        if self._mirror is not None:
            self._mirror.changed()

    def flush(self) -> None:
        """Waits until what was written is on the object store, if the run is on one; a file has it already."""
        if self._mirror is not None:
            self._mirror.flush()

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
        if self._mirror is not None:
            self._mirror.close()
        self._lines = self._events = self._mirror = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append_line(self, entry: Mapping[str, int | float]) -> None:
        if self._lines is None:
            self._begin()
            path = self._folder / self._run.metrics_jsonl.name
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

    def _begin(self) -> None:
        """Makes the folder; of a run on an object store it holds what is there of the lines, and no earlier events."""
        if isinstance(self._run.metrics, RemotePath):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._mirror = Mirror(self._run.metrics)
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = self._run.metrics_jsonl
        if isinstance(lines, RemotePath) and lines.exists():
            (self._folder / lines.name).write_bytes(lines.read_bytes())

    def _append_event(self, step: int, now: float, numbers: Mapping[str, int | float]) -> None:
        if self._events is None:
            self._events = EventsWriter(str(self._folder / "events"))
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
      ValueError: for a line in the middle that is damaged, not JSON or has no "step", naming file and line.
    """
    path = RunDir.of(run).metrics_jsonl
    return [entry for _, entry in _parsed_lines(path)] if path.exists() else []


def series(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, in order, entries without it left out: float64 arrays."""
    points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _parsed_lines(path: Place) -> list[tuple[bytes, dict[str, Any]]]:
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) or not line.strip():
            continue  # the last piece has no line end: empty, or torn
        try:
            if b"\0" in line:
                raise ValueError("it holds NUL bytes, as a loss of power leaves them")
            entry = json.loads(line.decode())
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError('expected an object with an integer "step"')
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise ValueError(f"{path}, line {number}: {reason}; remove the line to go on") from error
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


def _replace_bytes(path: Place, content: bytes) -> None:
    if isinstance(path, RemotePath):
        put(path, content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
