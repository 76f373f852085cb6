"""The TPU compiler in a process of its own, and word of how long it has been at it.

libtpu reads its settings when it starts, and whatever asks jax for a device starts it, a library's import for one; and where
it crashes it takes its process along. A TPU that is here stays free for who trains on it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import jax

from realm_jax.plan.compiling import Compiled, compile_program, devices_of, prepare_compiler
from realm_jax.plan.hardware import Slice
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.plan.programs import program_names, programs_of

logger = logging.getLogger(__name__)

TELL_EVERY_SECS = 30.0


def compile_programs(run: PlannedRun, tpu: Slice, sizes: MeshSizes) -> Iterator[tuple[str, Compiled]]:
    """Compiles the run's programs here, one after the other, by name."""
    devices, host_devices = devices_of(tpu.generation, tpu.shape), devices_of(tpu.generation, tpu.one_host)
    for name, program in programs_of(run, run.program(), devices, sizes, host_devices).items():
        yield name, compile_program(program, tpu.num_devices)


def compile_apart(
    run: PlannedRun, tpu: Slice, sizes: MeshSizes, work: Callable[..., None] | None = None
) -> dict[str, Compiled]:
    """`compile_programs` in a process of its own; tells what it is at, and for how long.

    Args:
      run: the settings.
      tpu: the slice.
      sizes: of the mesh over it.
      work: what the process does, for tests.

    Raises:
      ValueError: what is wrong with slice or settings, or a compiler that crashed, naming the program.
    """
    names = list(program_names(run.program()))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work or _work, args=(theirs, run, tpu, sizes), daemon=True)
    with _environment():
        process.start()
    theirs.close()  # so that its end is heard of
    found: dict[str, Compiled] = {}
    try:
        while len(found) < len(names):
            name = f"{names[len(found)]} ({len(found) + 1} of {len(names)})"
            found[names[len(found)]] = _awaited(name, ours, process)
    finally:
        ours.close()
        process.kill()
        process.join()
    return found


def _awaited(name: str, connection: Connection, process: Any) -> Compiled:
    logger.info("compiling the %s%s", name, "; BERT-base's takes 4 to 7 minutes on one core" if "train" in name else "")
    start = time.monotonic()
    while not connection.poll(TELL_EVERY_SECS):
        logger.info("still compiling the %s: %.0f s so far", name, time.monotonic() - start)
    try:
        said = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        how = f"with signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise ValueError(
            f"the TPU compiler's process ended {how} while it compiled the {name}; what it printed stands above. Try another "
            "jax[tpu], or --analytical to plan without compiling"
        ) from None
    if isinstance(said, Exception):
        raise said
    logger.info("%s compiled in %.0f s", name, said.secs)
    return said


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What libtpu reads, for the process that is started inside; ours goes on with its own."""
    before = dict(os.environ)
    prepare_compiler(os.environ)
    try:
        yield
    finally:
        for name in [name for name in os.environ if before.get(name) != os.environ[name]]:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _work(connection: Connection, run: PlannedRun, tpu: Slice, sizes: MeshSizes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the job, which ends us
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        for _, compiled in compile_programs(run, tpu, sizes):
            connection.send(compiled)
    except ValueError as error:
        connection.send(error)
