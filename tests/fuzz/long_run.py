"""One target in a process of its own: so many inputs, counted, and the distinct faults that they showed."""

import contextlib
import faulthandler
import json
import logging
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from tests.fuzz.changes import Change, changed, random_changes
from tests.fuzz.target import fault_of
from tests.fuzz.targets import TARGETS

_WATCHDOG_SECS = 120  # of the clock: for code of libraries that no signal interrupts


class _Run:
    """Inputs of one target, counted, and the distinct faults that they showed."""

    def __init__(self, name: str, options: dict[str, Any], folder: Path):
        self.name, self.target, self.folder, self.out = name, TARGETS[name], folder, options["out"]
        self.seeds = self.target.prepared(folder)
        self.begin, self.until = time.monotonic(), time.monotonic() + 60 * options["minutes"]
        self.inputs = self.faults = 0
        self.armed = 0.0
        self.findings: dict[str, str] = {}
        self.last = (self.out / f"{name}.last").open("w+b")
        for seed in self.seeds:  # imports and compiles, without limits, what is imported and compiled late
            with contextlib.suppress(*self.target.refuses):
                self.target.run(seed, folder)

    def put(self, chosen: int, changes: list[Change]) -> None:
        data = changed(self.seeds, chosen, changes, self.target.words)
        self.last.seek(0)
        self.last.truncate()
        self.last.write(data)
        self.last.flush()
        if time.monotonic() > self.armed + 10:
            self.armed = time.monotonic()
            faulthandler.dump_traceback_later(_WATCHDOG_SECS, exit=True)
        fault = fault_of(self.target, data, self.folder)
        self.inputs += 1
        if fault is not None:
            self.faults += 1
            key = f"{fault.what.split(':')[0][:60]} at {fault.where}"
            if key not in self.findings:
                self.findings[key] = fault.what
                (self.out / f"{self.name}.{len(self.findings)}").write_bytes(data)
                self.write()
        if self.inputs % 1000 == 0:
            self.write()

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until

    def write(self) -> None:
        record = {
            "inputs": self.inputs,
            "faults": self.faults,
            "secs": time.monotonic() - self.begin,
            "findings": self.findings,
        }
        (self.out / f"{self.name}.json").write_text(json.dumps(record))


def fuzz(name: str, options: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a file an input: no disk need see them
    with tempfile.TemporaryDirectory(prefix="realm_jax_fuzz_", dir=memory) as folder:
        run = _Run(name, options, Path(folder))
        rng = random.Random(f"{options['seed']} {name}")
        while run.inputs < options["inputs"] and not run.is_over:
            run.put(rng.getrandbits(16), random_changes(rng))
        run.write()
        faulthandler.cancel_dump_traceback_later()
