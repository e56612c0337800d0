"""Reads HLO text: instructions, their shapes and users, and what a graph costs."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3": 1, "f8e4m3fn": 1, "f8e5m2": 1,
    "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\([^()]*\)|\S+) (?P<opcode>[\w\-]+)\("
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls)=%?([\w.\-]+)")
COLLECTIVES = frozenset(
    ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
)
# Bookkeeping without work of its own: it neither moves data nor takes memory when compiled. A
# loop works in place; what its rounds take is counted apart.
_PASSING = ("reshape", "bitcast", "tuple", "get-tuple-element", "while", "call")
_FREE = frozenset((*_PASSING, "parameter", "constant", "iota", "broadcast"))


@dataclass(frozen=True)
class Array:
    """The type of one array; `dynamic` when a dimension is bounded or unknown."""

    dtype: str
    shape: tuple[int, ...]
    dynamic: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes, 0 for tokens and other types without data."""
        return self.size * _BYTES.get(self.dtype, 0)


@dataclass
class Instruction:
    """One instruction; `operands` are names within the same computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool
    users: list[Instruction] = field(default_factory=list, repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def parameter(self) -> int:
        """Which argument of the computation a `parameter` is."""
        return int(self.arguments)

    def dimensions(self, attribute: str) -> tuple[int, ...]:
        """Reads a list of integers among the attributes, such as lhs_contracting_dims={1}."""
        found = re.search(rf"\b{attribute}={{([\d,]*)}}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()


class Module:
    """A parsed HLO module.

    Attributes:
        computations: instructions by computation and name, in program order.
        entry: the entry computation's.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry: dict[str, Instruction] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if instruction := _instruction(line):
                current[instruction.name] = instruction
            elif header := _COMPUTATION.match(line):
                current = self.computations[header["name"]] = {}
                if header["entry"]:
                    self.entry = current
        if not self.entry:
            raise ValueError("not the text of an HLO module: it has no ENTRY computation")
        for computation in self.computations.values():
            for instruction in computation.values():
                for operand in instruction.operands:
                    if operand in computation:
                        computation[operand].users.append(instruction)

    @property
    def instructions(self) -> list[Instruction]:
        """Those of all computations."""
        return [i for computation in self.computations.values() for i in computation.values()]

    @cached_property
    def runs(self) -> dict[str, int]:
        """How often a run of the graph runs each computation: a loop its body once a round."""
        counts = dict.fromkeys(self.computations, 0)

        def run(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name].values():
                rounds = self.rounds(instruction)
                for role, called in _CALLED.findall(instruction.attributes):
                    run(called, times * (rounds if role == "body" else 1))

        run(next(name for name, found in self.computations.items() if found is self.entry), 1)
        return counts

    def rounds(self, instruction: Instruction) -> int:
        """Counts the rounds of a loop that counts from 0 to a constant; 1 for anything else."""
        if instruction.opcode != "while":
            return 1
        condition = self.computations[dict(_CALLED.findall(instruction.attributes))["condition"]]
        compared = [condition[name] for i in condition.values() if i.root for name in i.operands]
        return next((int(i.arguments) for i in compared if i.opcode == "constant"), 1)

    @cached_property
    def parameters(self) -> list[Instruction]:
        """The entry's arguments, in order."""
        found = [i for i in self.entry.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda instruction: instruction.parameter)

    @property
    def root(self) -> Instruction:
        """The entry's result."""
        return next(i for i in self.entry.values() if i.root)

    def next_round(self, result: Instruction, index: int) -> list[Instruction] | None:
        """Finds where a loop's next round reads what `result`, its body's root, has at an index.

        None if `result` is not the root of a loop's body.
        """
        bodies = {
            dict(_CALLED.findall(i.attributes))["body"]
            for i in self.instructions
            if i.opcode == "while"
        }
        for body in map(self.computations.get, bodies):
            if body.get(result.name) is result:
                [state] = [i for i in body.values() if i.opcode == "parameter"]
                return [i for i in state.users if re.search(rf"\bindex={index}\b", i.attributes)]
        return None

    def called(self, instruction: Instruction) -> list[Instruction]:
        """Lists the instructions of what an instruction calls."""
        names = [name for _, name in _CALLED.findall(instruction.attributes)]
        return [i for name in names for i in self.computations[name].values()]

    def readers(self, instruction: Instruction) -> list[Instruction]:
        """Finds what reads a value's data, seen through reshapes."""
        found = []
        for user in instruction.users:
            found += self.readers(user) if user.opcode in ("reshape", "bitcast") else [user]
        return found

    def histogram(self) -> dict[str, int]:
        """Counts how often each opcode occurs, the most frequent first."""
        return dict(Counter(i.opcode for i in self.instructions).most_common())

    def flops(self) -> int:
        """Counts multiplications and additions of all matrix products (each counts as one)."""
        total = 0
        for name, computation in self.computations.items():
            for instruction in computation.values():
                if instruction.opcode == "dot":
                    left = computation[instruction.operands[0]].arrays[0]
                    inner = instruction.dimensions("lhs_contracting_dims")
                    depth = math.prod(left.shape[dim] for dim in inner)
                    total += 2 * depth * instruction.arrays[0].size * self.runs[name]
        return total

    def collectives(self) -> list[dict]:
        """Lists every collective: opcode, dtype, shape, bytes of its operand and replica groups."""
        found = []
        for computation in self.computations.values():
            for instruction in computation.values():
                if instruction.opcode in COLLECTIVES:
                    operand = computation[instruction.operands[0]].arrays[0]
                    groups = re.search(r"replica_groups=(\{\{.*?\}\})", instruction.attributes)
                    found.append(
                        {
                            "op": instruction.opcode,
                            "dtype": operand.dtype,
                            "shape": list(operand.shape),
                            "bytes": operand.bytes,
                            "groups": groups.group(1) if groups else "",
                        }
                    )
        return found

    def constant_bytes(self) -> int:
        """Counts the bytes of data embedded in the graph."""
        return sum(i.bytes for i in self.instructions if i.opcode == "constant")

    def custom_calls(self) -> dict[str, int]:
        """Counts custom calls by target."""
        pattern = re.compile(r'custom_call_target="([^"]*)"')
        calls = (i for i in self.instructions if i.opcode == "custom-call")
        return dict(Counter(pattern.search(i.attributes).group(1) for i in calls))

    def bytes_read(self, parameter: Instruction) -> int:
        """Counts the bytes of an argument that a run has to read: all, or the gathered rows, or
        nothing where rows of it are replaced and it then is a result."""
        readers = self.readers(parameter)
        if readers and all(_is_replaced(self, parameter, reader) for reader in readers):
            return 0
        if readers and all(_is_lookup(self, parameter, reader) for reader in readers):
            return sum(reader.bytes for reader in readers)
        return parameter.bytes if readers else 0

    def temporary_bytes(self) -> int:
        """Counts the most bytes that results other than arguments and outputs take at once.

        Program order, and no fusion: every result is kept from its instruction to its last use.
        A compiler that fuses needs less; it is an upper estimate.
        """
        return self._temporary_bytes(self.entry)

    def _temporary_bytes(self, computation: dict[str, Instruction]) -> int:
        order = list(computation.values())
        position = {instruction.name: index for index, instruction in enumerate(order)}
        outputs = set()
        if computation is self.entry:
            outputs = {self._origin(name) for name in self.root.operands}
        changes = [0] * (len(order) + 1)
        for index, instruction in enumerate(order):
            if instruction.opcode in ("while", "call"):
                called = [name for _, name in _CALLED.findall(instruction.attributes)]
                inside = max(self._temporary_bytes(self.computations[name]) for name in called)
                changes[index] += inside
                changes[index + 1] -= inside
            if instruction.opcode in _FREE or instruction.name in outputs or instruction.root:
                continue
            last = max(
                (self._last_use(user, position) for user in instruction.users), default=index
            )
            changes[index] += instruction.bytes
            changes[last + 1] -= instruction.bytes
        live = peak = 0
        for change in changes:
            live += change
            peak = max(peak, live)
        return peak

    def _last_use(self, user: Instruction, position: dict[str, int]) -> int:
        last = position[user.name]
        if user.opcode in _PASSING and not user.root:
            last = max([last, *(self._last_use(further, position) for further in user.users)])
        return last

    def _origin(self, name: str) -> str:
        """Finds the instruction whose data a reshape shows."""
        while self.entry[name].opcode in ("reshape", "bitcast"):
            name = self.entry[name].operands[0]
        return name


def _is_lookup(module: Module, parameter: Instruction, reader: Instruction) -> bool:
    """Whether `reader` gathers rows of the parameter (and does not take it as the indices)."""
    if reader.opcode != "gather":
        return False
    return module._origin(reader.operands[0]) == parameter.name


def _is_replaced(module: Module, parameter: Instruction, reader: Instruction) -> bool:
    """Whether `reader` puts rows into the parameter, and what comes of it is only a result."""
    if reader.opcode != "scatter" or module._origin(reader.operands[0]) != parameter.name:
        return False
    through = [user.users if user.opcode == "transpose" else [user] for user in reader.users]
    return all(user.opcode == "tuple" and user.root for users in through for user in users)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    rest = line[found.end() :]
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    arguments = rest[: end - 1]
    is_data = found["opcode"] in ("constant", "parameter", "iota")
    operands = () if is_data else tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(
        found["name"],
        found["opcode"],
        tuple(_array(*match) for match in _ARRAY.findall(found["type"])),
        operands,
        arguments,
        rest[end:],
        bool(found["root"]),
    )


def _array(dtype: str, dimensions: str) -> Array:
    dynamic = "<=" in dimensions or "?" in dimensions
    sizes = re.findall(r"\d+", dimensions)
    return Array(dtype, tuple(map(int, sizes)), dynamic)
