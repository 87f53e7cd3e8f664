"""What a compiled program moves, counted from XLA's text of it: bytes from and to memory, and bytes
between chips.

As with `flops`, what is in a loop counts as often as the loop runs. What the compiler keeps in fast
memory (memory spaces above 0) costs nothing. A fusion that only cuts a slice out of an operand, as
that of a layer from its stack, reads the slice.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rdbcl_jax.planning.flops import Counter

_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[[\d,]*?(\d+)\]<=)")
# as JAX 0.10.2 has it: `mesh['a'=2,'b'=4] {'a'}`, of an axis a part as `'b':(1)2`
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "opt-barrier",
}
_CUT = ("dynamic-slice", "slice", "gather")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# XLA for TPUs repeats a collective that goes on beside other work in each fusion of that, and where
# it ends
_GOES_ON, _ENDS = "async_collective_fusion", '"AsyncCollectiveDone"'


class Traffic(NamedTuple):
    """Of one chip, in bytes: through its memory, and received from others."""

    memory: int = 0
    links: int = 0

    def times(self, count: int) -> Traffic:
        return Traffic(self.memory * count, self.links * count)

    def plus(self, other: Traffic) -> Traffic:
        return Traffic(self.memory + other.memory, self.links + other.links)


class Buffer(NamedTuple):
    """An array that a program makes."""

    bytes: int
    shape: str
    source: str  # the operation that it comes from, as JAX names it


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    type: str
    code: str
    operands: tuple[str, ...]
    rest: str  # attributes
    literal: str  # what stands in the parentheses

    @property
    def bytes(self) -> int:
        return _bytes(self.type)


_Computation = Mapping[str, _Operation]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as XLA's text says it: computations by name, and the first that runs."""

    computations: Mapping[str, _Computation]
    entry: str

    @classmethod
    def of(cls, text: str) -> Compiled:
        found: dict[str, dict[str, _Operation]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = found.setdefault(head[1], {})
                entry = head[1] if line.startswith("ENTRY") else entry
            elif current is not None and (read := _operation(line)):
                current[read.name] = read
        return cls(found, entry)

    def traffic(self, mean: bool = False) -> Traffic:
        """Of one run; `mean` as in `flops.flops`."""
        return self._traffic(self.entry, mean, Counter())

    def buffers(self, count: int) -> list[Buffer]:
        """The largest arrays that it makes, one of each shape and source."""
        found: dict[tuple[str, str], Buffer] = {}
        for computation in self._run(self.entry):
            for operation in computation.values():
                if operation.code in _FREE | {"while", "conditional"}:
                    continue
                for dtype, shape, layout in _ARRAY.findall(operation.type):
                    size = _bytes(f"{dtype}[{shape}]{layout}")
                    label = f"{dtype}[{shape}]"
                    source = _source(operation.rest)
                    found[label, source] = Buffer(size, label, source)
        return sorted(found.values(), reverse=True)[:count]

    def _run(self, name: str) -> Iterator[_Computation]:
        """The computations whose arrays lie in memory: those of loops and branches too."""
        yield self.computations[name]
        for operation in self.computations[name].values():
            if operation.code in ("while", "call"):
                yield from self._run(_called(operation, "body", "to_apply"))
            elif operation.code == "conditional":
                for inner in _branches(operation):
                    yield from self._run(inner)

    def _traffic(self, name: str, mean: bool, counter: Counter) -> Traffic:
        total = Traffic()
        computation = self.computations[name]
        for operation in computation.values():
            if operation.code == "while":
                limit, body = (
                    self._limit(_called(operation, "condition")),
                    _called(operation, "body"),
                )
                nested = limit in self._limits(body)
                turns = counter.turns(_start(computation, operation), limit, nested)
                total = total.plus(self._traffic(body, mean, counter).times(turns))
            elif operation.code == "conditional":
                found = [self._traffic(inner, mean, counter) for inner in _branches(operation)]
                total = total.plus(_mean(found) if mean else max(found))
            elif operation.code == "call":
                total = total.plus(self._traffic(_called(operation, "to_apply"), mean, counter))
            else:
                total = total.plus(self._moved(computation, operation))
        return total

    def _limits(self, name: str) -> Iterator[int]:
        """Those of the loops within a computation."""
        for computation in self._run(name):
            for operation in computation.values():
                if operation.code == "while":
                    yield self._limit(_called(operation, "condition"))

    def _moved(self, computation: _Computation, operation: _Operation) -> Traffic:
        """By one operation."""
        code = operation.code
        if code in _FREE or code.endswith("-done") or "AllocateBuffer" in operation.rest:
            return Traffic()
        operands = [computation[name] for name in operation.operands if name in computation]
        links = self._links(computation, operation)
        if code in ("fusion", "async-start"):
            inner = _called(operation, "calls")
            read = sum(self._read(inner, i, operand) for i, operand in enumerate(operands))
            return Traffic(read + self._written(inner, operation), links)
        if code in _CUT:
            return Traffic(2 * operation.bytes, links)
        if code == "dynamic-update-slice":
            return Traffic(2 * operands[1].bytes, links)
        if code.removesuffix("-start") in _CUT:  # ((whole), slice, …)
            slice_ = _ARRAY.findall(operation.type)[1]
            text = f"{slice_[0]}[{slice_[1]}]{slice_[2]}"
            return Traffic(_bytes(text, fast=True) + _bytes(text), links)
        if code.endswith("-start"):  # its result holds the operands beside what is made
            return Traffic(operation.bytes, links)
        return Traffic(operation.bytes + sum(operand.bytes for operand in operands), links)

    def _links(self, computation: _Computation, operation: _Operation) -> int:
        """Received from other chips."""
        code = operation.code.removesuffix("-start")
        if code in ("fusion", "async"):
            name = _called(operation, "calls")
            inner = self.computations[name]
            if name.startswith(_GOES_ON) or any(_ENDS in each.rest for each in inner.values()):
                return 0
            return sum(self._links(inner, each) for each in inner.values())
        if code not in _COLLECTIVES:
            return 0
        given = sum(_bytes(computation[o].type, fast=True) for o in operation.operands)
        others = _group(operation.rest) - 1
        if code == "collective-permute":
            return given
        if code == "all-gather":
            return given * others
        return (2 if code == "all-reduce" else 1) * given * others // (others + 1)

    def _read(self, name: str, index: int, operand: _Operation) -> int:
        """Of operand `index` by a fused computation."""
        if not operand.bytes:
            return 0
        computation = self.computations[name]
        wanted = [
            o for o in computation.values() if o.code == "parameter" and o.literal == str(index)
        ]
        names, total = {o.name for o in wanted}, 0
        for user in computation.values():  # in order: what is made comes before what uses it
            used = [i for i, o in enumerate(user.operands) if o in names]
            if not used:
                continue
            if user.code in ("bitcast", "reshape"):
                names.add(user.name)
            elif user.code in _CUT and used == [0]:
                total += _bytes(user.type, fast=True)
            elif user.code == "fusion":
                inner = _called(user, "calls")
                total += sum(self._read(inner, i, operand) for i in used)
                if any(self._is_passed_on(inner, i) for i in used):
                    names.add(user.name)
            elif not (user.code == "dynamic-update-slice" and used == [0]):
                return operand.bytes
        return min(total, operand.bytes)

    def _is_passed_on(self, name: str, index: int) -> bool:
        """Whether a fused computation is its operand `index`, in another shape."""
        computation = self.computations[name]
        source = _unshaped(computation, [*computation.values()][-1])
        return source.code == "parameter" and source.literal == str(index)

    def _written(self, name: str, operation: _Operation) -> int:
        """By a fusion: of what is updated in place, the update alone."""
        computation = self.computations[name]
        root = [*computation.values()][-1]
        parts = [computation[o] for o in root.operands] if root.code == "tuple" else [root]
        total = operation.bytes
        for part in parts:
            part = _unshaped(computation, part)
            if part.code == "dynamic-update-slice" and operation.bytes:
                whole, update = part.bytes, computation[part.operands[1]]
                total -= max(whole - _bytes(update.type, fast=True), 0)
        return max(total, 0)

    def _limit(self, name: str) -> int:
        """N of a loop's condition that holds `counter < N`."""
        computation = self.computations[name]
        for operation in computation.values():
            if operation.code == "compare" and "direction=LT" in operation.rest:
                found = [_number(computation, o) for o in operation.operands]
                if isinstance(found[-1], int):
                    return found[-1]
            if operation.code == "fusion":  # the numbers are its operands
                inner = self.computations[_called(operation, "calls")]
                for each in inner.values():
                    if each.code == "compare" and "direction=LT" in each.rest:
                        limit = inner[each.operands[-1]]
                        if limit.code == "parameter":
                            number = _number(computation, operation.operands[int(limit.literal)])
                        else:
                            number = _number(inner, limit.name)
                        if number is not None:
                            return number
        return 1


def _mean(found: list[Traffic]) -> Traffic:
    memory, links = (sum(column) // len(found) for column in zip(*found, strict=True))
    return Traffic(memory, links)


def _unshaped(computation: _Computation, operation: _Operation) -> _Operation:
    """What it gives another shape."""
    while operation.code in ("bitcast", "reshape") and operation.operands:
        operation = computation[operation.operands[0]]
    return operation


def _number(computation: _Computation, name: str) -> int | None:
    """The integer that an operation is; None: no constant."""
    operation = computation[name]
    while operation.code in ("copy", "bitcast", "convert") and operation.operands:
        operation = computation[operation.operands[0]]
    if operation.code != "constant" or not re.fullmatch(r"-?\d+", operation.literal):
        return None
    return int(operation.literal)


def _start(computation: _Computation, loop: _Operation) -> int | None:
    """Where a loop's counter starts; None: it is carried on from the loop before."""
    carried = computation[loop.operands[0]]
    if carried.code != "tuple":
        return 0
    for name in carried.operands:
        operand = computation[name]
        if re.match(r"s32\[\]", operand.type):
            return _number(computation, name)
    return 0


def _operation(line: str) -> _Operation | None:
    """Of a line `%name = type code(operands), attributes`."""
    line = line.strip().removeprefix("ROOT ")
    name, equals, right = line.partition(" = ")
    if not equals or not name.startswith("%"):
        return None
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    code, _, rest = right[end:].strip().partition("(")
    stop = _closing("(" + rest) - 1
    inside = rest[:stop]
    operands = tuple(_NAME.findall(inside)) if code != "constant" else ()
    return _Operation(name[1:], right[:end], code, operands, rest[stop:], inside)


def _closing(text: str) -> int:
    """Where the parenthesis that the text starts with is closed."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return place.start()
    return len(text) - 1


def _bytes(type_: str, fast: bool = False) -> int:
    """Of a type, tuples too; `fast`: what lies in fast memory counts as well."""
    total = 0
    for dtype, shape, layout in _ARRAY.findall(type_):
        if not fast and re.search(r"S\([1-9]", layout):
            continue
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
        total += bits * math.prod(map(int, filter(None, shape.split(","))))
    return total // 8


def _called(operation: _Operation, *kinds: str) -> str:
    found = dict(_CALLED.findall(operation.rest))
    return next(found[kind] for kind in kinds if kind in found)


def _branches(operation: _Operation) -> list[str]:
    if found := _BRANCHES.search(operation.rest):
        return _NAME.findall(found[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", operation.rest)


def _group(rest: str) -> int:
    """How many chips take part in a collective."""
    if axes := _AXES.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        taken = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in taken)
    found = _GROUPS.search(rest)
    if not found:
        return 1
    return int(found[2]) if found[2] else max(len(found[1].split(",")), 1)


def _source(rest: str) -> str:
    found = re.search(r'op_name="([^"]*)"', rest)
    parts = found[1].split("/") if found else []
    return "/".join(part for part in parts if not part.startswith(("jit(", "closed_call")))[-60:]
