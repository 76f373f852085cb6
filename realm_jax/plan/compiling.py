"""Compiles for a TPU slice that is not there, with the real TPU compiler."""

import importlib.util
import re
import time
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from realm_jax.plan.collectives import Collectives, read_collectives
from realm_jax.plan.hardware import ONE_CHIP, Generation, Slice
from realm_jax.plan.programs import Lowerable

FIBER_STACKS = "--fibers_default_thread_stack_size"
"""libtpu 0.0.42 generates code on stacks of 64 KiB, which estimating the cost of BERT's fused products overflows (SIGSEGV)."""

DESCRIPTION = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"}
"""Of a TPU machine, which this is none; libtpu asks the network for it, or complains. Slices are named all the same."""

_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_EXCEEDS = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")


class MemoryOfProgram(NamedTuple):
    """Bytes of one device, as the compiler lays them out."""

    arguments: int
    temporaries: int
    results: int  # those that take no argument's place
    code: int


class Compiled(NamedTuple):
    """A program that the compiler has made, or the reason why it could not: too little memory.

    `needs_bytes` and `has_bytes` are the compiler's word where the program does not fit; nothing else is known of it then.
    """

    secs: float
    memory: MemoryOfProgram | None
    collectives: Collectives | None
    needs_bytes: int = 0
    has_bytes: int = 0


def check_compiler(generation: Generation) -> None:
    """Refuses GPUs, which are planned by the shapes alone, and TPUs where their compiler is missing.

    Raises:
      ValueError: with the remedy.
    """
    if generation.is_gpu:
        raise ValueError(
            f"programs are compiled for TPU slices; {generation.name} is planned by the shapes alone: add --analytical"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs its compiler, libtpu, which is not installed here; `make tpu-plan` installs it in an "
            "environment of its own, or: pip install 'jax[tpu]'. --analytical plans without compiling"
        )


def prepare_compiler(environment: MutableMapping[str, str]) -> None:
    """Sets what libtpu reads when it starts, once a process: it must look for no TPU machine, and needs larger stacks."""
    environment.update(DESCRIPTION)
    given = environment.get("LIBTPU_INIT_ARGS", "")
    if FIBER_STACKS not in given:
        environment["LIBTPU_INIT_ARGS"] = f"{given} {FIBER_STACKS}=2097152".strip()


def devices_of(generation: Generation, shape: str) -> list[Any]:
    """The devices of a slice that is not there.

    Raises:
      ValueError: with the compiler's word, when it knows no such slice.
    """
    name = f"{generation.name}:{shape}"
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chip_config_name=generation.chip_config,
            **({"chips_per_host_bounds": (1, 1, 1)} if shape == ONE_CHIP else {}),
        ).devices
    except Exception as error:  # libtpu's own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the TPU compiler cannot compile for {name} ({reason}); --analytical plans without compiling"
        ) from error
    expected = Slice(generation, shape).num_devices
    if len(found) != expected:
        raise ValueError(
            f"expected {expected} devices of {name}, the TPU compiler has {len(found)}; please report this"
        )
    return list(found)


def compile_program(program: Lowerable, num_devices: int) -> Compiled:
    """Lowers and compiles a program, and reads what the compiler says of it.

    Args:
      program: with abstract values on the slice's devices.
      num_devices: that a collective spans which names no groups.
    """
    start = time.monotonic()
    lowered = program.lower()
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        shortage = read_shortage(str(error))
        if shortage is None:
            raise
        return Compiled(time.monotonic() - start, None, None, *shortage)
    secs = time.monotonic() - start
    figures = made.memory_analysis()
    memory = MemoryOfProgram(
        arguments=figures.argument_size_in_bytes,
        temporaries=figures.temp_size_in_bytes,
        results=figures.output_size_in_bytes - figures.alias_size_in_bytes,
        code=figures.generated_code_size_in_bytes,
    )
    return Compiled(secs, memory, read_collectives(made.as_text(), num_devices))


def read_shortage(message: str) -> tuple[int, int] | None:
    """Bytes of a device's HBM that the compiler says a program needs at least, and may use; None if its message is another.

    >>> read_shortage("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G.")
    (22011707392, 16911433728)
    >>> read_shortage("RESOURCE_EXHAUSTED: ... required for HLO temporaries (8.01T) exceeds available HBM (15.75G).")
    (8807088138486, 16911433728)
    """
    found = _USED.search(message) or _EXCEEDS.search(message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    unit = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return round(float(found[1]) * unit[found[2]]), round(float(found[3]) * unit[found[4]])
