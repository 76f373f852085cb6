"""A small REALM run with the embed job's work done by a thread: python realm_run.py RUN Z DEVICES [STEPS] [MODE]."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from realm_jax.corpus.store import Corpus
from realm_jax.run_dir import RunDir
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.refresh import RefreshConfig
from tests import tiny


class EmbedThread(threading.Thread):
    """Builds the version of every snapshot as it appears."""

    def __init__(self, run_dir: str, corpus_dir: str, backend: str = "exact"):
        super().__init__(daemon=True)
        self.run_dir, self.corpus, self.backend = RunDir.of(run_dir), Corpus.open(corpus_dir), backend
        self.stopping = threading.Event()
        self.built: list[int] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        while not self.stopping.is_set():
            for step in tiny.missing_versions(self.run_dir):
                try:
                    tiny.build_index(
                        self.run_dir, step, tiny.realm(self.corpus.directory).retriever, self.corpus, self.backend
                    )
                    self.built.append(step)
                except FileNotFoundError:
                    pass  # the trainer has retired the snapshot
                except BaseException as error:
                    self.failure = error
                    return
            self.stopping.wait(0.02)

    def __enter__(self) -> "EmbedThread":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self.join(60)
        assert self.failure is None, self.failure


def run_realm(
    run_dir: str, corpus_dir: str, num_steps: int = 6, mode: Any = "synchronous", **changes: Any
) -> dict[str, float]:
    settings: dict[str, Any] = {
        "run_dir": run_dir,
        "task": tiny.realm(Path(corpus_dir)),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        "num_steps": num_steps,
        "batch_size": 8,
        "checkpoint_every_steps": 2,
        "refresh": RefreshConfig(mode=mode, snapshot_every_steps=3, timeout_secs=120.0, poll_secs=0.02),
    } | changes
    return train(**settings)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    run_dir, corpus_dir, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", devices)
    with EmbedThread(run_dir, corpus_dir):
        started = time.monotonic()
        run_realm(run_dir, corpus_dir, *(int(n) for n in sys.argv[4:5]), *sys.argv[5:6])
        print(f"done in {time.monotonic() - started:.1f} s", flush=True)
