"""What of a state is kept in which format, and the bytes that it takes."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._core import unboxed
from ._codec import Encoded
from ._store import is_encoded


@dataclass(frozen=True)
class StoredAs:
    """The arrays of one field of a state in one format.

    Attributes:
        slot: The field.
        format: The storage format as it is called, or the name of a dtype.
        arrays: How many arrays.
        entries: How many entries they have.
        largest: How many the largest of them has.
        bytes: What they take, scales and seeds included; two entries of 4 bits share a byte.
    """

    slot: str
    format: str
    arrays: int
    entries: int
    largest: int
    bytes: float


@dataclass(frozen=True)
class StateReport:
    """The formats of a state; printed as a table.

    Attributes:
        rows: For each field and format its arrays, in the state's order.
        entries: The number of entries of the parameters.
    """

    rows: tuple[StoredAs, ...]
    entries: int

    @property
    def bytes(self) -> float:
        """The bytes of the whole state."""
        return sum(row.bytes for row in self.rows)

    @property
    def bytes_per_parameter(self) -> float:
        """Those bytes over the number of entries of the parameters."""
        return self.bytes / max(self.entries, 1)

    def __str__(self) -> str:
        head = ("slot", "stored as", "arrays", "entries", "largest", "bytes")
        body = [
            (
                r.slot,
                r.format,
                f"{r.arrays:,}",
                f"{r.entries:,}",
                f"{r.largest:,}",
                f"{r.bytes:,.0f}",
            )
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = []
        for row in (head, *body):
            cells = zip(row, widths, strict=True)
            lines.append(
                "  ".join(f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(cells))
            )
        total = f"{self.bytes:,.0f} bytes, {self.bytes_per_parameter:.3f} a parameter"
        return "\n".join((*lines, total))


def report(tx: Any, params: Any) -> StateReport:
    """What `tx` keeps of these parameters: each slot's formats, and the bytes of its state.

    Nothing is computed. Arrays that `store` leaves as they are, since they are small or no format
    is given for them, show with their dtype beside those that it encodes.

    Args:
        tx: A transformation, of any kind.
        params: The parameters, or their shapes.

    >>> import jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> params = {"kernel": jnp.zeros((512, 512)), "bias": jnp.zeros(512)}
    >>> print(lowbit.report(lowbit.rmsprop8bit(1e-3), params))
    slot   stored as          arrays  entries  largest    bytes
    count  int32                   1        1        1        4
    nu     float32                 1      512      512    2,048
    nu     uint8(middle=-18)       1  262,144  262,144  262,148
    264,200 bytes, 1.006 a parameter
    """
    params = unboxed(params)
    state = jax.eval_shape(tx.init, params)
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded):
        slot = next((k.name for k in reversed(path) if hasattr(k, "name")), "")
        if isinstance(leaf, Encoded):
            what, size = repr(leaf.codec), leaf.codes.size
            taken = sum(map(_bytes, jax.tree.leaves(leaf)))
        else:
            what, size, taken = leaf.dtype.name, leaf.size, _bytes(leaf)
        found[slot, what].append((size, taken))
    rows = [
        StoredAs(
            slot, what, len(of), sum(n for n, _ in of), max(n for n, _ in of), sum(b for _, b in of)
        )
        for (slot, what), of in found.items()
    ]
    entries = sum(math.prod(jnp.shape(p)) for p in jax.tree.leaves(params))
    return StateReport(tuple(rows), entries)


def _bytes(x: Any) -> float:
    return x.size * (0.5 if x.dtype in (jnp.int4, jnp.uint4) else float(x.dtype.itemsize))
