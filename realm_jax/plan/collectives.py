"""The collectives of a compiled program, read in its HLO text: how often each runs in a step, and how many bytes it moves.

A collective in the body of a loop runs as often as the loop goes round.
"""

import math
import re
from typing import NamedTuple

from realm_jax.plan.hlo_text import Computation, Instruction, Module, read_module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip

_ARRAY = re.compile(r"\b(?P<type>[a-z]\w*)\[(?P<sides>[\d,<=]*)\]")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")  # {{0,1},{2,3}}
_GROUPS_BY_SHAPE = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")  # [2,4]<=[8]: two groups of four
_GROUPS_BY_MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\][^{]*\{(?P<named>[^}]*)\}"
)  # mesh['a'=2,'b'=4] {'b'}
_CHAIN = re.compile(r'\bchannel_id=(\d+),.*\bchain_id="(\d+)"')
_AXIS = re.compile(r"'(?P<name>[^']+)'(?::\(\d+\)(?P<part>\d+))?")


class Traffic(NamedTuple):
    """One kind of collective in one step of one device."""

    kind: str
    times: int  # that it runs
    payload_bytes: int  # of the arrays: summed, gathered, scattered, sent
    sent_bytes: float  # that a ring sends from the device for it


class Collectives(NamedTuple):
    """What a program exchanges in one run of one device."""

    traffic: tuple[Traffic, ...]  # by kind, the kinds that occur
    uncounted_loops: int  # loops with collectives of which the text does not say how often they go round: taken as once

    @property
    def sent_bytes(self) -> float:
        return float(sum(one.sent_bytes for one in self.traffic))


def read_collectives(text: str, num_devices: int) -> Collectives:
    """Counts the collectives of an HLO module, from its entry computation on.

    A ring of n devices sends (n − 1) / n of an array to gather or scatter it, and twice that to sum it. Of a conditional
    every branch is counted.

    Args:
      text: of the compiled program, `compiled.as_text()`: shapes are those of one device.
      num_devices: that take part where a collective names no groups.
    """
    module = read_module(text)
    found = _Count(module, num_devices)
    found.visit(module.entry, 1)
    traffic = tuple(found.traffic[kind] for kind in KINDS if kind in found.traffic)
    return Collectives(traffic, found.uncounted_loops)


class _Count:
    def __init__(self, module: Module, num_devices: int):
        self.module, self.num_devices = module, num_devices
        self.traffic: dict[str, Traffic] = {}
        self.uncounted_loops = 0
        self.chains: set[tuple[str, str]] = set()

    def visit(self, name: str, times: int) -> bool:
        """Whether it, or what it calls, exchanges anything."""
        computation = self.module.computations.get(name)
        if computation is None:
            return False
        exchanges = False
        for instruction in computation.instructions.values():
            kind, exchange = self._exchange(instruction)
            if kind is not None:
                exchanges = True
                if self._is_new(exchange):
                    self._add(kind, exchange, times)
            elif self._visit_called(instruction, computation, times):
                exchanges = True
        return exchanges

    def _visit_called(self, instruction: Instruction, around: Computation, times: int) -> bool:
        trips: int | None = 1
        if instruction.operation == "while":
            trips = self.module.trip_count(instruction, around)
        exchanges = [self.visit(name, times * (1 if trips is None else trips)) for name in instruction.called]
        self.uncounted_loops += trips is None and any(exchanges)
        return any(exchanges)

    def _exchange(self, instruction: Instruction) -> tuple[str | None, Instruction]:
        """The kind of collective that an instruction is or begins, if it is one, and the instruction that says of what."""
        operation = instruction.operation.removesuffix("-start")
        if operation in KINDS:
            return operation, instruction
        if instruction.operation == "fusion":
            for name in instruction.called:
                if name.startswith("all-reduce-scatter"):  # the TPU compiler's sum of which each device keeps its part
                    inner = self.module.computations[name].instructions.values()
                    summed = [one for one in inner if one.operation == "all-reduce"]
                    return ("reduce-scatter", summed[0]) if summed else (None, instruction)
        return None, instruction

    def _is_new(self, exchange: Instruction) -> bool:
        """False for one that is under way: the TPU compiler writes it again in each fusion that it runs beside."""
        chain = _CHAIN.search(exchange.text)
        if chain is None:
            return True
        is_new = (chain[1], chain[2]) not in self.chains
        self.chains.add((chain[1], chain[2]))
        return is_new

    def _add(self, kind: str, exchange: Instruction, times: int) -> None:
        payload, sent = _bytes_of(kind, exchange, self.num_devices)
        before = self.traffic.get(kind, Traffic(kind, 0, 0, 0.0))
        self.traffic[kind] = Traffic(
            kind, before.times + times, before.payload_bytes + times * payload, before.sent_bytes + times * sent
        )


def _bytes_of(kind: str, exchange: Instruction, num_devices: int) -> tuple[int, float]:
    """Bytes of the arrays, and those that a ring sends of them from one device."""
    arrays = [_array_bytes(match) for match in _ARRAY.finditer(exchange.shape)]
    size = _group_size(exchange.text, num_devices)
    if kind == "collective-permute":
        payload = arrays[0]  # what begins one has operand, result and two counters in its shape
        return payload, float(payload)
    if kind == "all-gather" and exchange.operation.endswith("-start"):
        arrays = arrays[len(arrays) // 2 :]  # operands, then results
    payload = sum(arrays)
    if exchange.operation == "reduce-scatter":  # its shape is that of the parts
        payload *= size
    return payload, payload * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def _array_bytes(match: re.Match[str]) -> int:
    sides = [int(side.removeprefix("<=")) for side in match["sides"].split(",") if side]
    return math.prod(sides) * BYTES.get(match["type"], 4)


def _group_size(text: str, num_devices: int) -> int:
    """Devices that exchange with each other, in any of the forms in which HLO names them; all where it names none."""
    by_mesh = _GROUPS_BY_MESH.search(text)
    if by_mesh:
        sides = {name: int(side) for name, side in re.findall(r"'([^']+)'=(\d+)", by_mesh["axes"])}
        named = _AXIS.finditer(by_mesh["named"])  # 'b', or of 'b' a part of two: 'b':(1)2
        return math.prod(int(axis["part"] or sides[axis["name"]]) for axis in named)
    by_shape = _GROUPS_BY_SHAPE.search(text)
    if by_shape:
        return int(by_shape[2])
    groups = _GROUPS.search(text)
    return len(groups[1].split(",")) if groups and groups[1] else num_devices
