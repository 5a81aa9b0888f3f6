"""What a compiled program does to memory, read from its text."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._hlo import Computation, Instruction, Module, Shape, flat, parse

# These launch nothing.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}
_CONTROL = {"async-start", "call", "conditional", "while"}
_COPIES = {"copy-start", "dynamic-slice-start", "slice-start"}
# Inside a kernel these compute an element when it is asked for.
_ELEMENT_BY_ELEMENT = {"bitcast", "convert", "copy", "reshape", "transpose"}
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHAIN = re.compile(r'chain_id="(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Program:
    """What one run of a program does.

    Bytes are those that kernels and copies read from main memory and write to it, once each: what
    a kernel reads again, and what its caches save, is not in the text. A kernel that only slices an
    operand reads the slices; one that updates an operand in place reads and writes the update. The
    body of a loop counts as often as the loop turns, once where the text does not say how often.
    Of a conditional the branch that moves fewest bytes counts: what nearly every step does.

    Attributes:
        read: Bytes read.
        written: Bytes written.
        padded: Bytes read and written in whole tiles of the memory layout.
        occasional: Bytes that the dearest branch of each conditional moves.
        between: Bytes of the arrays in main memory that are neither arguments nor results, all
            together: what memory one could take over from another is not in the text.
        cycles: The sum of the compiler's estimates; None where it makes none.
        unestimated: Kernels on arrays for which it makes none.
        fusions: Fused kernels with an array of two or more elements among operands and results.
        kernels: All kernels with such an array: fusions, single operations, custom calls.
        scalars: Kernels without one.
        copies: Asynchronous copies, of whole arrays and of slices.
        collectives: The collective operations by kind.
        loops: How often each loop turns; None where the text does not say.
        conditionals: The number of conditionals.
        exchanged: By kind, the bytes of the arrays that collective operations gather, sum or
            exchange, whole; what goes over the links follows from the algorithm.
    """

    read: int
    written: int
    padded: int
    occasional: int
    between: int
    cycles: int | None
    unestimated: int
    fusions: int
    kernels: int
    scalars: int
    copies: int
    collectives: Mapping[str, int]
    loops: tuple[int | None, ...]
    conditionals: int
    exchanged: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def read(text: str, main: Collection[int] = (0,)) -> Program:
    """Read `compiled.as_text()`: XLA's optimized and scheduled program, for any back end.

    Args:
        text: The program.
        main: The memory spaces that are the device's main memory.

    Raises:
        ValueError: The text has no entry computation.
    """
    module = parse(text)
    cost = _Costs(module, main, lambda shape: shape.bytes).of(module.entry)
    padded = _Costs(module, main, lambda shape: shape.padded).of(module.entry)
    executed = list(_executed(module, module.entry))
    kernels = [i for _, i in executed if _is_kernel(i)]
    on_arrays = [i for c, i in executed if _is_kernel(i) and _has_array(c, i)]
    unestimated = sum(_CYCLES.search(i.attributes) is None for i in on_arrays)
    estimated = any(_CYCLES.search(i.attributes) for i in kernels)
    collectives = _collectives(module)
    return Program(
        read=cost.read,
        written=cost.written,
        padded=padded.read + padded.written,
        occasional=cost.occasional,
        between=_between(module, main),
        cycles=cost.cycles if estimated else None,
        unestimated=unestimated if estimated else 0,
        fusions=sum(i.op == "fusion" for i in on_arrays),
        kernels=len(on_arrays),
        scalars=len(kernels) - len(on_arrays),
        copies=sum(i.op in _COPIES for _, i in executed),
        collectives={kind: len(each) for kind, each in collectives.items()},
        loops=tuple(trips(module, c, i) for c, i in executed if i.op == "while"),
        conditionals=sum(i.op == "conditional" for _, i in executed),
        exchanged={kind: sum(each) for kind, each in collectives.items()},
    )


def _called(instruction: Instruction) -> tuple[str, ...]:
    """The computations that an instruction runs as such, not inside a kernel."""
    match instruction.op:
        case "conditional":
            return instruction.branches
        case "while":
            names = instruction.attribute("condition"), instruction.attribute("body")
        case "call" | "async-start":
            names = (instruction.attribute("to_apply") or instruction.attribute("calls"),)
        case _:
            names = ()
    return tuple(name for name in names if name)


def _executed(
    module: Module, computation: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """Every instruction that runs, with its computation; loop bodies once, all branches."""
    for instruction in computation:
        yield computation, instruction
        for name in _called(instruction):
            yield from _executed(module, module.computations[name])


def _is_kernel(i: Instruction) -> bool:
    free = i.op in _FREE | _CONTROL | _COPIES or i.op.endswith(("-done", "-update"))
    return not (free or (i.op == "custom-call" and _target(i) in _FREE_CALLS))


def _target(i: Instruction) -> str | None:
    return i.attribute("custom_call_target")


def _has_array(computation: Computation, i: Instruction) -> bool:
    operands = (s for name in i.operands for s in computation[name].shapes)
    return any(s.size > 1 for s in (*i.shapes, *operands))


def _between(module: Module, main: Collection[int]) -> int:
    """Bytes of the arrays that one instruction leaves in main memory for another."""
    kept: dict[str, set[tuple[str, int | None]]] = {}
    total = 0
    for computation, i in _executed(module, module.entry):
        if i.op in _FREE or i.op in ("call", "async-start") or i.op.endswith(("-done", "-update")):
            continue  # what these hold is somebody else's
        if computation.name not in kept:
            kept[computation.name] = set(_returned(computation))
        for index, shape in enumerate(_unwrapped(i)[1]):
            out = {(i.name, None), (i.name, index)} & kept[computation.name]
            if shape.space in main and shape.size > 1 and not out:
                total += shape.bytes
    return total


def _returned(computation: Computation) -> Iterator[tuple[str, int | None]]:
    """The instructions that a computation returns the result of, or this element of it."""
    todo: list[tuple[str, int | None]] = [(computation.root.name, None)]
    while todo:
        name, index = todo.pop()
        i = computation[name]
        if i.op == "tuple":
            todo += [(n, None) for n in i.operands]
        elif i.op == "get-tuple-element":
            todo.append((i.operands[0], int(i.attribute("index") or 0)))
        elif i.op == "bitcast" or i.op.endswith("-done"):
            todo.append((i.operands[0], index))
        else:
            yield name, index


def _collectives(module: Module) -> dict[str, list[int]]:
    """By kind the bytes of each collective."""
    executed = {computation.name for computation, _ in _executed(module, module.entry)}
    found: dict[str, dict[str, int]] = {}
    for computation in module.computations.values():
        for i in computation:
            kind = i.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            own = f"{computation.name}/{i.name}"
            # A TPU writes a reduce-scatter as an all-reduce inside such a fusion.
            if computation.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            elif computation.name not in executed:
                # Inside of kernels it writes it once for each of the kernels that it runs beside.
                chain = _CHAIN.search(i.attributes)
                own = f"{i.attribute('channel_id') or own} {chain and chain[1]}"
            parts = [s for name in i.operands for s in computation[name].shapes]
            whole = max(sum(s.bytes for s in side) for side in (parts, _unwrapped(i)[1]))
            found.setdefault(kind, {}).setdefault(own, whole)
    return {kind: list(found[kind].values()) for kind in sorted(found)}


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop turns: from its annotation, or from a counter that steps to a bound."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    test, body = (module.computations[name] for name in _called(loop))
    init = computation[loop.operands[0]]
    if init.op != "tuple" or test.root.op != "compare" or body.root.op != "tuple":
        return None
    if test.root.attribute("direction") != "LT":
        return None

    def before(index: int) -> int | None:
        return _constant(computation, init.operands[index], lambda _: None)

    counter, bound = test.root.operands
    index = _element(test, counter)
    last = _constant(test, bound, before)
    if index is None or last is None:
        return None
    first = before(index)
    step = body[body.root.operands[index]]
    if first is None or step.op != "add" or index not in (_element(body, n) for n in step.operands):
        return None
    strides = [_constant(body, n, before) for n in step.operands if _element(body, n) != index]
    if len(strides) != 1 or not strides[0] or strides[0] < 0:
        return None
    return max(0, math.ceil((last - first) / strides[0]))


def _element(computation: Computation, name: str) -> int | None:
    """Which element of the computation's one argument a value is."""
    i = computation[name]
    while i.op in ("copy", "bitcast"):
        i = computation[i.operands[0]]
    if i.op != "get-tuple-element" or computation[i.operands[0]].op != "parameter":
        return None
    return int(i.attribute("index") or 0)


def _constant(
    computation: Computation, name: str, outside: Callable[[int], int | None]
) -> int | None:
    """The integer that a value is; `outside(n)` says what the n-th element of the argument is."""
    i = computation[name]
    while i.op in ("copy", "bitcast"):
        i = computation[i.operands[0]]
    if i.op == "constant" and re.fullmatch(r"-?\d+", i.arguments):
        return int(i.arguments)
    element = _element(computation, name)
    return None if element is None else outside(element)


@dataclass(frozen=True)
class _Cost:
    """Bytes and cycles of one run; `worst` is the bytes with the dearest branch everywhere."""

    read: int = 0
    written: int = 0
    worst: int = 0
    occasional: int = 0
    cycles: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    def times(self, n: int) -> "_Cost":
        return _Cost(*(n * a for a in self._values))

    @property
    def _values(self) -> tuple[int, ...]:
        return self.read, self.written, self.worst, self.occasional, self.cycles


class _Costs:
    """The cost of each computation, with one way to tell the size of a shape."""

    def __init__(self, module: Module, main: Collection[int], size: Callable[[Shape], int]):
        self._module = module
        self._main = main
        self._size = size
        self._known: dict[str, _Cost] = {}

    def of(self, computation: Computation) -> _Cost:
        """What one run of a computation costs."""
        if computation.name not in self._known:
            costs = (self._instruction(computation, i) for i in computation)
            self._known[computation.name] = sum(costs, _Cost())
        return self._known[computation.name]

    def _instruction(self, computation: Computation, i: Instruction) -> _Cost:
        inner = [self.of(self._module.computations[name]) for name in _called(i)]
        match i.op:
            case "conditional":
                usual = min(inner, key=lambda cost: cost.read + cost.written)
                worst = max(cost.worst for cost in inner)
                return replace(usual, worst=worst, occasional=worst)
            case "while":
                turns = trips(self._module, computation, i)
                return sum(inner, _Cost()).times(1 if turns is None else turns)
            case "call" | "async-start":
                return sum(inner, _Cost())
        if not (_is_kernel(i) or i.op in _COPIES):
            return _Cost()
        got, put = self._moved(computation, i)
        cycles = _CYCLES.search(i.attributes)
        return _Cost(got, put, got + put, 0, int(cycles[1]) if cycles else 0)

    def _moved(self, computation: Computation, i: Instruction) -> tuple[int, int]:
        """Bytes of main memory that a kernel or a copy reads and writes."""
        op, results = _unwrapped(i)
        operands = [computation[name] for name in dict.fromkeys(i.operands)]
        put = sum(map(self._in_main, results))
        match op:
            case "slice" | "dynamic-slice":
                return self._part(operands[0], results), put
            case "gather":
                return self._part(operands[0], results) + self._all(operands[1:]), put
            case "copy" if i.op == "copy-start":
                return self._part(operands[0], results), put
            case "dynamic-update-slice":
                _, update, *_ = (computation[name] for name in i.operands)
                return self._all([update]), min(put, self._sum(update.shapes))
            case "scatter":
                updates = [computation[name] for name in i.operands[1 + len(results) :]]
                n = self._sum(s for u in updates for s in u.shapes)
                return self._all(operands[len(results) :]) + min(put, n), min(put, n)
            case "fusion":
                return self._fusion(computation, i)
        return self._all(operands), put

    def _fusion(self, computation: Computation, i: Instruction) -> tuple[int, int]:
        body = self._module.computations[i.attribute("calls") or ""]
        whole: dict[str, int] = {}
        parts: dict[str, int] = {}
        for k, name in enumerate(i.operands):
            whole[name] = self._all([computation[name]])
            parameter = body.parameter(k)
            part = None if parameter is None else self._used(body, parameter.name)
            parts[name] = parts.get(name, 0) + (whole[name] if part is None else part)
        got = sum(min(parts[name], whole[name]) for name in whole)
        put = 0
        updates = self._updates(body)
        if len(updates) != len(i.shapes):  # tuples in the result
            updates = [None] * len(i.shapes)
        for shape, part in zip(i.shapes, updates, strict=True):
            n = self._in_main(shape)
            put += n if part is None else min(part, n)
        return got, put

    def _used(self, body: Computation, name: str) -> int | None:
        """Bytes of a value that the rest of a kernel looks at; None for all."""
        if body[name].root:
            return None
        total = 0
        for user in body.users[name]:
            part = None
            at = [k for k, operand in enumerate(user.operands) if operand == name]
            if user.op in _ELEMENT_BY_ELEMENT:
                part = self._used(body, user.name)
            elif user.op in ("slice", "dynamic-slice", "gather") and at == [0]:
                part = self._sum(user.shapes)
            elif user.op == "dynamic-update-slice" and at == [0]:
                part = 0  # in place
            elif user.op == "fusion":
                part = self._used_inside(user, at)
            if part is None:
                return None
            total += part
        return total

    def _used_inside(self, fusion: Instruction, at: list[int]) -> int | None:
        """The same for a value that is these operands of a kernel's inner function."""
        body = self._module.computations[fusion.attribute("calls") or ""]
        total = 0
        for k in at:
            parameter = body.parameter(k)
            part = None if parameter is None else self._used(body, parameter.name)
            if part is None:
                return None
            total += part
        return total

    def _updates(self, body: Computation) -> list[int | None]:
        """For each result of a kernel the bytes that it changes in place; None if it is new."""
        if body.root.op == "tuple":
            return [self._update(body, name) for name in body.root.operands]
        if len(body.root.shapes) > 1:
            return [None] * len(body.root.shapes)
        return [self._update(body, body.root.name)]

    def _update(self, body: Computation, name: str) -> int | None:
        i = body[name]
        while i.op in ("bitcast", "copy"):
            i = body[i.operands[0]]
        if i.op == "dynamic-update-slice":
            target = body[i.operands[0]]
            while target.op in ("bitcast", "copy"):
                target = body[target.operands[0]]
            if target.op == "parameter":
                return self._sum(body[i.operands[1]].shapes)
        if i.op == "fusion" and len(i.shapes) == 1:
            return self._updates(self._module.computations[i.attribute("calls") or ""])[0]
        return None

    def _in_main(self, shape: Shape) -> int:
        return self._size(shape) if shape.space in self._main else 0

    def _all(self, operands: Collection[Instruction]) -> int:
        return sum(self._in_main(s) for i in operands for s in i.shapes)

    def _sum(self, shapes: Any) -> int:
        return sum(map(self._size, shapes))

    def _part(self, operand: Instruction, taken: tuple[Shape, ...]) -> int:
        """Bytes of an operand that are read if the result holds all that is taken of it."""
        return min(self._all([operand]), self._sum(taken))


def _unwrapped(i: Instruction) -> tuple[str, tuple[Shape, ...]]:
    """The operation and its results, without what an asynchronous start adds to them."""
    op = i.op.removesuffix("-start")
    if op == i.op or op == "all-reduce" or isinstance(i.type, Shape):
        return op, i.shapes
    # (result, source, context) of a copy; (operands, results, contexts) of all others.
    return op, flat(i.type[0 if op == "copy" else 1])
