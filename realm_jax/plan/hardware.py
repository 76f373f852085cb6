"""What a TPU slice has, or nodes of NVIDIA GPUs, by generation: memory, arithmetic, and the two bandwidths.

TPUs: Google Cloud's page of each generation (docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e, tpu7x): HBM and its
bandwidth of a chip, chips of a host, topologies. Interconnect is what leaves a chip over all its links at once: half of the
"bidirectional" figure where the page has one (v5e and later), else the all-reduce bandwidth of a pod over its chips (v3: 340
TB/s over 1024; v4: 1.1 PB/s over 4096). Of a device's HBM the runtime keeps some: what is left to programs is the compiler's
word (libtpu 0.0.42, when it refuses a program).

GPUs: NVIDIA's data sheets of A100 SXM of 80 GB, H100 SXM and H200 SXM, and of the nodes of eight, DGX A100 (eight network adapters of 200
Gb/s), DGX H100 and H200 (eight of 400 Gb/s). Interconnect is one direction of NVLink, half of the figure in the data sheet. Between nodes a
ring over all GPUs enters and leaves a node through all its adapters together, so that a GPU sends no faster than these: 200 and 400 GB/s.
Of a GPU's memory the driver keeps some; what is left is what CUDA reports as total, of which jax takes three quarters unless
XLA_PYTHON_CLIENT_MEM_FRACTION says more.

FLOP/s are those that the trainer's mfu is measured by (`training.throughput`).
"""

import math
from typing import NamedTuple

from realm_jax.training.throughput import data_sheet_flops

GIB = 1 << 30

ONE_CHIP = "1x1"

_GPUS = tuple(str(1 << power) for power in range(10))
_FLAT = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


class Generation(NamedTuple):
    """A generation of TPU chips or of GPUs; figures are of a chip. A jax device is a chip, or one of its cores where it has two of them."""

    name: str
    device_kind: str  # as jax names the device
    devices_per_chip: int
    chips_per_host: int
    hbm_bytes: int
    hbm_bytes_per_sec: float
    interconnect_bytes_per_sec: float
    usable_gib: float  # of the HBM of a device
    shapes: tuple[str, ...]
    host_shape: str  # of a slice of one host
    chip_config: str = "default"  # for the compiler: "megacore" is a chip of two cores that work as one device
    host_link_bytes_per_sec: float | None = (
        None  # what leaves a node of GPUs; none: chips of all hosts are linked as those of one
    )

    @property
    def chip(self) -> str:
        """What a chip is called."""
        return "GPU" if self.is_gpu else "chip"

    @property
    def device(self) -> str:
        """What a jax device is."""
        return self.chip if self.devices_per_chip == 1 else "core"

    @property
    def is_gpu(self) -> bool:
        return self.device_kind.startswith("NVIDIA")


def _gpus(name: str, gib: int, hbm: float, nvlink: float, usable_gib: float, host_link: float) -> Generation:
    """GPUs in nodes of eight; the shape of several is their number."""
    kind = f"NVIDIA {name.upper()}"
    return Generation(
        name, kind, 1, 8, gib * GIB, hbm, nvlink, usable_gib, _GPUS, "8", host_link_bytes_per_sec=host_link
    )


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v3", "TPU v3", 2, 4, 32 * GIB, 900e9, 332e9, 15.48, (*_FLAT, "16x32", "32x32"), "2x2"),
        Generation("v4", "TPU v4", 1, 4, 32 * GIB, 1200e9, 269e9, 30.75, _CUBES, "2x2x1", "megacore"),
        Generation("v5e", "TPU v5e", 1, 4, 16 * GIB, 819e9, 200e9, 15.75, (ONE_CHIP, "2x4", *_FLAT), "2x2"),
        Generation("v5p", "TPU v5p", 1, 4, 95 * GIB, 2765e9, 600e9, 95.74, _CUBES, "2x2x1", "megacore"),
        Generation("v6e", "TPU v6e", 1, 4, 32 * GIB, 1638e9, 400e9, 31.25, (ONE_CHIP, "2x4", *_FLAT), "2x2"),
        Generation("tpu7x", "TPU7x", 2, 4, 192 * GIB, 7380e9, 600e9, 94.75, _CUBES, "2x2x1"),
        _gpus("a100", 80, 2039e9, 300e9, 79.1, host_link=200e9),
        _gpus("h100", 80, 3350e9, 450e9, 79.1, host_link=400e9),
        _gpus("h200", 141, 4800e9, 450e9, 139.7, host_link=400e9),
    )
}


class Slice(NamedTuple):
    """A slice of TPU chips, such as v4:4x4x4, or so many GPUs, such as h100:64. Figures with `device_` are of one jax device."""

    generation: Generation
    shape: str

    @property
    def name(self) -> str:
        return f"{self.generation.name}:{self.shape}"

    @property
    def num_chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.generation.devices_per_chip

    @property
    def num_hosts(self) -> int:
        return -(-self.num_chips // self.generation.chips_per_host)

    @property
    def one_host(self) -> str:
        """The shape of a slice of one of its hosts."""
        return ONE_CHIP if self.shape == ONE_CHIP else self.generation.host_shape

    @property
    def device_hbm_bytes(self) -> int:
        return self.generation.hbm_bytes // self.generation.devices_per_chip

    @property
    def device_usable_bytes(self) -> int:
        """What programs may use of it."""
        return min(self.device_hbm_bytes, round(self.generation.usable_gib * GIB))

    @property
    def device_flops_per_sec(self) -> float:
        """Peak in bfloat16."""
        flops = data_sheet_flops(self.generation.device_kind)
        assert flops is not None
        return flops

    @property
    def device_hbm_bytes_per_sec(self) -> float:
        return self.generation.hbm_bytes_per_sec / self.generation.devices_per_chip

    @property
    def device_interconnect_bytes_per_sec(self) -> float:
        generation = self.generation
        sent = generation.interconnect_bytes_per_sec
        if self.num_hosts > 1 and generation.host_link_bytes_per_sec is not None:
            sent = min(sent, generation.host_link_bytes_per_sec)
        return sent / generation.devices_per_chip


def find_slice(topology: str) -> Slice:
    """The slice of a name such as `v4:4x4x4`, or GPUs, such as `h100:64`.

    >>> find_slice("v3:8x8").num_devices, find_slice("v5e:16x16").num_hosts, find_slice("h200:64").num_hosts
    (128, 64, 8)

    Raises:
      ValueError: for an unknown generation or shape, listing the valid ones.
    """
    name, _, shape = topology.partition(":")
    remedy = "topologies are named GENERATION:SHAPE, such as v4:4x4x4 or h100:64"
    if name not in GENERATIONS:
        valid = ", ".join(GENERATIONS)
        raise ValueError(
            f"plan.topology: there is no generation {name!r} in {topology!r}; {remedy}; generations: {valid}"
        )
    generation = GENERATIONS[name]
    if generation.is_gpu and shape not in generation.shapes:
        raise ValueError(
            f"plan.topology: expected a number of {name} GPUs, one of {', '.join(generation.shapes)}, got {shape!r} in {topology!r}; {remedy}"
        )
    if shape not in generation.shapes:
        ascending = "x".join(sorted(shape.split("x"), key=lambda side: (len(side), side)))
        raise ValueError(
            f"plan.topology: there is no slice {shape!r} of {name} in {topology!r}; "
            f"{f'did you mean {name}:{ascending}? ' if ascending in generation.shapes else ''}{remedy}; "
            f"slices of {name}: {', '.join(generation.shapes)}"
        )
    return Slice(generation, shape)
