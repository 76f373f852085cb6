"""Reads the text of a compiled HLO module: its computations, what calls what, and how often its loops go round."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
# A shape holds spaces only if it is a tuple; a TPU's layouts hold brackets of their own: f32[8,128]{1,0:T(8,128)}.
_LINE = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<operation>[\w\-]+)\((?P<text>.*)$"
)
_COMMENT = re.compile(r"/\*.*?\*/")  # /*index=5*/
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """`name = shape operation(text`, where the text holds operands and attributes."""

    name: str
    shape: str
    operation: str
    text: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        found, depth, start = [], 0, 0
        for place, letter in enumerate(self.text):
            if letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
            if depth < 0 or (letter == "," and depth == 0):
                found.append(self.text[start:place])
                start = place + 1
            if depth < 0:
                break
        bare = (_COMMENT.sub("", part).split() for part in found)
        return [words[-1].removeprefix("%") for words in bare if words]

    @property
    def called(self) -> Iterator[str]:
        """Names of the computations that it calls."""
        yield from _CALLED.findall(self.text)
        branches = _BRANCHES.search(self.text)
        if branches:
            yield from (name.strip().removeprefix("%") for name in branches[1].split(","))

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, up to a comma or a bracket."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found[1] if found else None


class Computation(NamedTuple):
    """Instructions by name; the root is its result."""

    instructions: dict[str, Instruction]
    root: Instruction | None


class Module(NamedTuple):
    """Computations by name; running the program is running `entry`."""

    computations: dict[str, Computation]
    entry: str

    def trip_count(self, loop: Instruction, around: Computation) -> int | None:
        """How often a `while` goes round; None where the text does not say.

        The CPU's compiler writes it down. The TPU's does not: there it follows from a counter that begins at a constant,
        grows by a constant and is compared with one, as `jax.lax.scan` makes it.

        Args:
          loop: the instruction.
          around: the computation that it stands in.
        """
        known = _KNOWN_TRIPS.search(loop.text)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        body = self.computations.get(loop.attribute("body") or "")
        if condition is None or body is None or condition.root is None or body.root is None:
            return None
        compared = condition.root
        if compared.operation != "compare" or compared.attribute("direction") != "LT" or len(compared.operands) != 2:
            return None
        counter, bound = compared.operands
        index = _element(condition, counter)
        end = _constant(condition, bound)
        if index is None or end is None:
            return None
        begin = _constant(around, _operand(around, loop.operands[0], index))
        step = self._step(body, index)
        if begin is None or step is None or step < 1:
            return None
        return max(0, -(-(end - begin) // step))

    def _step(self, body: Computation, index: int) -> int | None:
        """What a turn adds to the counter at this index of the carry."""
        assert body.root is not None
        added = body.instructions.get(_operand(body, body.root.name, index) or "")
        if added is None or added.operation != "add":
            return None
        constants = [_constant(body, name) for name in added.operands]
        counters = [_element(body, name) for name in added.operands]
        if index in counters and any(constant is not None for constant in constants):
            return next(constant for constant in constants if constant is not None)
        return None


def read_module(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = head["name"]
            computations[current] = Computation({}, None)
            entry = current if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _LINE.match(line)):
            instruction = Instruction(found["name"], found["shape"], found["operation"], found["text"])
            computations[current].instructions[instruction.name] = instruction
            if found["root"]:
                computations[current] = computations[current]._replace(root=instruction)
    return Module(computations, entry)


def _operand(computation: Computation, name: str, index: int) -> str | None:
    """The name at an index of a tuple."""
    instruction = computation.instructions.get(name)
    if instruction is None or instruction.operation != "tuple" or index >= len(instruction.operands):
        return None
    return instruction.operands[index]


def _element(computation: Computation, name: str) -> int | None:
    """The index of the computation's own carry that a name stands for."""
    instruction = _behind_copies(computation, name)
    if instruction is None or instruction.operation != "get-tuple-element":
        return None
    index = instruction.attribute("index")
    return int(index) if index is not None else None


def _constant(computation: Computation, name: str | None) -> int | None:
    """The whole number that a name stands for."""
    instruction = _behind_copies(computation, name)
    if instruction is None or instruction.operation != "constant":
        return None
    value = instruction.text.partition(")")[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _behind_copies(computation: Computation, name: str | None) -> Instruction | None:
    instruction = computation.instructions.get(name or "")
    while instruction is not None and instruction.operation in ("copy", "bitcast", "convert"):
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction
