"""Which of a run's machines this is, and whether it has accelerators. jax is not asked: it would take them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

NUMBERS = (("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
TPU_FILES, GPU_FILES = ("accel0", "vfio/0"), ("nvidia0",)
"""Of a TPU by its two drivers, and of an NVIDIA GPU, in /dev."""

CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""How so many chips of one machine lie together, as libtpu wants to know it of a process that has not all of them."""


class Host(NamedTuple):
    """One of the machines that a run spans."""

    number: int = 0
    total: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it does what is done once: corpus, evaluation, report."""
        return self.number == 0

    @property
    def is_alone(self) -> bool:
        return self.total == 1


def host_in(environment: Mapping[str, str]) -> Host:
    """Which machine of how many this is, as jax's own variables, Slurm or a TPU slice on Kubernetes say; else the only one.

    >>> host_in({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"})
    Host(number=2, total=4)
    >>> host_in({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"})
    Host(number=1, total=2)
    >>> host_in({})
    Host(number=0, total=1)

    Raises:
      ValueError: numbers that do not fit each other.
    """
    for number, count in NUMBERS:
        if number in environment and count in environment:
            return _checked(environment[number], environment[count], f"{number} and {count}")
    workers = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > 1:
        return _checked(
            environment.get("TPU_WORKER_ID", ""), str(len(workers)), "TPU_WORKER_ID and TPU_WORKER_HOSTNAMES"
        )
    return Host()


def _checked(number: str, count: str, names: str) -> Host:
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(
            f"{names}: expected a host's number below the number of hosts, got {number or 'nothing'} of {count}; "
            "set them, or give --host and --num_hosts"
        )
    return Host(int(number), int(count))


def has_tpu(devices: Path = Path("/dev")) -> bool:
    return any((devices / name).exists() for name in TPU_FILES)


def has_gpu(devices: Path = Path("/dev")) -> bool:
    return any((devices / name).exists() for name in GPU_FILES)


def has_accelerator(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Whether jobs here will use a TPU or GPU, which two processes cannot share without being told how."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        return not platforms.startswith("cpu")
    return has_tpu(devices) or has_gpu(devices)


def visible_devices(devices: str, tpu_port: int) -> dict[str, str]:
    """Says to a process which accelerators of this machine are its own.

    >>> visible_devices("4,5,6,7", 8477)["TPU_CHIPS_PER_PROCESS_BOUNDS"]
    '2,2,1'

    Args:
      devices: such as 0,1,2; empty for all of them.
      tpu_port: a port of its own, on which libtpu listens.
    """
    if not devices:
        return {}
    said = {"CUDA_VISIBLE_DEVICES": devices, "TPU_VISIBLE_CHIPS": devices}
    bounds = CHIP_BOUNDS.get(len(devices.split(",")))
    if bounds is not None:  # without these libtpu takes the whole machine for its process, and locks others out
        said |= {
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
            "TPU_PROCESS_ADDRESSES": f"localhost:{tpu_port}",
            "TPU_PROCESS_PORT": str(tpu_port),
            "CLOUD_TPU_TASK_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    return said


def check_devices(devices: str, name: str, host: Host, tpu: bool) -> None:
    """Refuses what libtpu cannot do.

    Raises:
      ValueError: a number of chips that do not lie together, or some of the chips of a slice of several machines.
    """
    if not devices or not tpu:
        return
    if not host.is_alone:
        raise ValueError(
            f"{name}={devices}: the chips of a slice of {host.total} machines work only all together; embed on the CPU, in the "
            "trainer, or on machines of its own (--embed_only)"
        )
    chips = devices.split(",")
    first = int(chips[0]) if chips[0].isdecimal() else 0
    if len(chips) not in CHIP_BOUNDS or chips != [str(first + place) for place in range(len(chips))]:
        raise ValueError(
            f"{name}={devices}: expected 1, 2, 4 or 8 chips of a TPU machine, one after the other, such as 4,5,6,7"
        )
