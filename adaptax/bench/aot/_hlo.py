"""The text of a compiled program as data: computations, instructions, shapes."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_NAME = r"[\w.\-]+"
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_START = re.compile(rf"\s*(ROOT )?%?({_NAME}) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_HEADER = re.compile(rf"(ENTRY )?%?({_NAME}) .*\{{$")


@dataclass(frozen=True)
class Shape:
    """An array in memory.

    Attributes:
        dtype: As XLA writes it: "f32", "bf16", "s4", "f8e4m3fn", "pred".
        dims: The sizes of the axes.
        order: The axes from the fastest to the slowest in memory.
        tiles: The tiles of the layout, the outermost first; a TPU stores whole tiles.
        space: The memory space; 0 is the device's main memory.
        bits: Bits an element, packed or not.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    tiles: tuple[tuple[int, ...], ...] = ()
    space: int = 0
    bits: int = 32

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The bytes of the elements."""
        return -(-self.size * self.bits // 8)

    @property
    def padded(self) -> int:
        """The bytes of the tiles that hold the elements."""
        slowest_first = tuple(self.dims[axis] for axis in reversed(self.order))
        return -(-_tiled(slowest_first or self.dims, self.tiles) * self.bits // 8)


def _tiled(dims: tuple[int, ...], tiles: tuple[tuple[int, ...], ...]) -> int:
    """How many elements an array takes in tiles; each tile splits the last axes further."""
    for tile in tiles:
        dims = (1,) * (len(tile) - len(dims)) + dims
        split = len(dims) - len(tile)
        blocks = (-(-d // t) for d, t in zip(dims[split:], tile, strict=True))
        dims = (*dims[:split], *blocks, *tile)
    return math.prod(dims)


def parse_shape(dtype: str, dims: str, layout: str) -> Shape:
    """A shape from its three parts, as in `bf16`, `768,3`, `1,0:T(8,128)(2,1)S(1)`."""
    order, _, rest = layout.partition(":")
    tiles = re.search(r"T((?:\([\d,]+\))+)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    packed = re.search(r"E\((\d+)\)", rest)
    return Shape(
        dtype,
        _integers(re.sub(r"[^\d,]", "", dims)),
        _integers(order),
        tuple(_integers(t) for t in re.findall(r"\(([\d,]+)\)", tiles[1])) if tiles else (),
        int(space[1]) if space else 0,
        int(packed[1]) if packed else _bits(dtype),
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",") if x)


def _bits(dtype: str) -> int:
    """Bits an element where the layout does not say: less than a byte takes a byte."""
    if dtype == "pred":
        return 8
    width = re.fullmatch(r"(?:b?f|[usc])(\d+)\w*", dtype)
    return max(8, int(width[1])) if width else 0  # tokens and opaque values hold nothing


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Its name, without the percent sign.
        op: The operation, as XLA writes it.
        type: A `Shape`, or a tuple of these and of tuples.
        arguments: The text between the parentheses.
        attributes: The text behind them.
        root: Whether it is the result of its computation.
        line: All of it.
    """

    name: str
    op: str
    type: Any
    arguments: str
    attributes: str
    root: bool
    line: str

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions whose results it takes."""
        return tuple(re.findall(rf"%({_NAME})", self.arguments))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of the result."""
        return flat(self.type)

    def attribute(self, name: str) -> str | None:
        """What follows `name=`: a word, without the percent sign, or None."""
        found = re.search(rf'\b{name}="?%?({_NAME})', self.attributes)
        return found[1] if found else None

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations that a conditional chooses from."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return tuple(re.findall(_NAME, listed[1]))
        pair = self.attribute("true_computation"), self.attribute("false_computation")
        return tuple(name for name in pair if name)


def flat(type_: Any) -> tuple[Shape, ...]:
    """The shapes in a type, in order."""
    return (type_,) if isinstance(type_, Shape) else tuple(s for part in type_ for s in flat(part))


@dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name, in the order in which they run."""

    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        marked = [i for i in self if i.root]
        return marked[0] if marked else list(self)[-1]

    @cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that take the result of each."""
        out: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                if name in out:
                    out[name].append(instruction)
        return {name: tuple(found) for name, found in out.items()}

    def parameter(self, index: int) -> Instruction | None:
        """The parameter of this number; None where the computation has none."""
        found = (i for i in self if i.op == "parameter" and i.arguments == str(index))
        return next(found, None)


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that it starts with."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Read `compiled.as_text()`.

    Raises:
        ValueError: The text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    body: dict[str, Instruction] | None = None
    entry = None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and (header := _HEADER.match(line)):
            body = {}
            computations[header[2]] = Computation(header[2], body)
            entry = computations[header[2]] if header[1] else entry
        elif line.startswith("}"):
            body = None
        elif body is not None and (instruction := _instruction(line)):
            body[instruction.name] = instruction
    if entry is None:
        raise ValueError("parse: the text has no ENTRY computation; give compiled.as_text().")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    start = _START.match(line)
    if start is None:
        return None
    type_, end = _type(line, start.end())
    op = _OPCODE.match(line, end)
    if op is None:
        return None
    close = _closing(line, op.end() - 1)
    arguments = _COMMENT.sub("", line[op.end() : close])
    attributes = line[close + 1 :]
    return Instruction(start[2], op[1], type_, arguments, attributes, bool(start[1]), line)


def _type(text: str, at: int) -> tuple[Any, int]:
    """The type that begins there, and where it ends."""
    if text[at] != "(":
        shape = _SHAPE.match(text, at)
        if shape is None:
            return (), at
        return parse_shape(shape[1], shape[2], shape[3] or ""), shape.end()
    parts = []
    at += 1
    while text[at] != ")":
        if text.startswith("/*", at):
            at = text.index("*/", at) + 2
        elif text[at] in ", ":
            at += 1
        else:
            part, end = _type(text, at)
            parts.append(part)
            at = max(end, at + 1)
    return tuple(parts), at + 1


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that opens there closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, at):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)
