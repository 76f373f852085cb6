"""The small run's jobs as processes: started, watched, killed, and what they left compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from realm_jax.run_dir import RunDir, read_json
from realm_jax.training.checkpoint import load_params
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = Path(__file__).with_name("small.gin")
CLOCK_FIGURES = ("_ms", "_secs", "per_sec", "time", "mfu", "wait")
PATIENCE_SECS = 240.0


class Job:
    """One job in a process of its own, its output in a file."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]):
        self.log, self.started_at = log, time.time()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> bool:
        """SIGKILL; whether the process still ran."""
        self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    def finish(self, secs: float = PATIENCE_SECS) -> int:
        """The exit status; a job that does not end in time is killed, which the status then says."""
        try:
            return self.process.wait(secs)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Workshop:
    """A folder with the corpus, the programs compiled so far and the runs; on leaving it no process of it is left."""

    def __init__(self, place: Path):
        self.place = place
        self._jobs: list[Job] = []
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "corpus").exists():
            tiny.corpus(place / "corpus")

    def __enter__(self) -> "Workshop":
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # `timeout` sends it; the jobs must not outlive us
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._jobs:
            job.kill()

    @property
    def environment(self) -> dict[str, str]:
        """Of a job: one CPU device as a user has it, whatever the tests simulate."""
        others = ("NPROC", "PYTHONDONTWRITEBYTECODE")
        ours = {name: value for name, value in os.environ.items() if not name.startswith("JAX_") and name not in others}
        return ours | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.place / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nothing here is measured by the step
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(self.place / "bytecode"),  # most of a job's start would be compiling Python
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, name: str) -> RunDir:
        """A run directory of this name; nothing is there yet."""
        return RunDir.of(self.place / "runs" / name)

    def start(
        self,
        job: str,
        run: RunDir,
        *bindings: str,
        program: tuple[str, ...] = ("-m", "realm_jax"),
        environment: Mapping[str, str] = {},
    ) -> Job:
        """Starts a job of the small run, with further bindings."""
        command = [
            sys.executable, *program, job, f"--run_dir={run.path}", f"--gin_file={RUN_FILE}",
            f"--gin.CORPUS={self.place / 'corpus'}", *(f"--gin.{binding}" for binding in bindings),
        ]  # fmt: skip
        return self.start_command(command, f"{run.path.name}-{job}", environment)

    def start_command(
        self,
        command: list[str],
        name: str,
        environment: Mapping[str, str] = {},
    ) -> Job:
        """Starts any other program as a job; its output goes to a log of this name."""
        log = self.place / "logs" / f"{len(self._jobs):03d}-{name}.log"
        started = Job(command, log, self.environment | environment)
        self._jobs.append(started)
        return started

    def whole(self, name: str, *bindings: str) -> RunDir:
        """A run that nothing happens to, made once: what the others must equal."""
        run = self.run(name)
        if not run.checkpoints.exists():
            self.finish(run, *bindings)
        return run

    def finish(self, run: RunDir, *bindings: str) -> Job:
        """Trains a run to its end with an embed job beside it; returns the trainer.

        Raises:
          RuntimeError: with the end of its log, if it fails.
        """
        embedder = self.start("embed", run)
        trainer = self.start("train", run, *bindings)
        status = trainer.finish()
        embedder.kill()
        if status:
            raise RuntimeError(f"the trainer of {run.path} ended with {status}: {trainer.said()[-2000:]}")
        return trainer


def wait_until(condition: Callable[[], Any], *jobs: Job, secs: float = PATIENCE_SECS, poll_secs: float = 0.01) -> Any:
    """What the condition says once it says anything; nothing where a job ends or the time is over before."""
    end = time.monotonic() + secs
    while not (found := condition()):
        if time.monotonic() > end or not all(job.running() for job in jobs):
            return condition()
        time.sleep(poll_secs)
    return found


def metrics(run: RunDir) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    if not run.metrics_jsonl.exists():
        return []
    *whole, _ = run.metrics_jsonl.read_text().split("\n")  # a killed trainer may have left half a line
    return [json.loads(line) for line in whole]


def status(run: RunDir) -> dict[str, Any]:
    """What the trainer last said of itself."""
    try:
        return dict(read_json(run.trainer_status(0)))
    except FileNotFoundError:
        return {}


def difference(one: RunDir, other: RunDir) -> str:
    """What tells two finished runs apart: the metrics of every step but the clock's, the last parameters; empty for nothing."""
    curves = [
        [
            {name: value for name, value in line.items() if not any(part in name for part in CLOCK_FIGURES)}
            for line in lines
        ]
        for lines in (metrics(one), metrics(other))
    ]
    if len(curves[0]) != len(curves[1]):
        return f"{len(curves[0])} lines of metrics, {len(curves[1])} in the other"
    for mine, theirs in zip(*curves, strict=True):
        if mine != theirs:
            return f"step {mine['step']}: {mine}, {theirs} in the other"
    (step, params), (other_step, other_params) = load_params(one), load_params(other)
    if step != other_step:
        return f"checkpoint of step {step}, {other_step} in the other"
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(other_params), strict=True):
        if not np.array_equal(mine, theirs):
            return f"parameter {jax.tree_util.keystr(path)}"
    return ""
