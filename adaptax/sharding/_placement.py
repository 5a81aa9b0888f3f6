"""Where arrays lie, and what of them each device holds."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._core import _checks
from .._core._paths import path_names
from . import _errors

SHOWN = 40  # lines of a printed table


@dataclass(frozen=True)
class Placed:
    """One array.

    Attributes:
        name: Its path.
        shape: Its shape.
        dtype: Its dtype.
        sharding: Where it lies.
        bytes: What it takes in all.
        device_bytes: What it takes on the device that holds most of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    sharding: jax.sharding.Sharding
    bytes: int
    device_bytes: int

    @property
    def devices(self) -> int:
        """How many devices hold a part of it."""
        return len(self.sharding.device_set)

    @property
    def whole(self) -> bool:
        """Whether every device holds all of it."""
        return self.device_bytes == self.bytes

    @property
    def lies(self) -> str:
        """Where it lies, in a word: its spec; or "whole"."""
        spec = getattr(self.sharding, "spec", ())
        text = "whole"
        if any(entry is not None for entry in spec):
            text = ", ".join("-" if e is None else "+".join(_names(e)) for e in spec)
        host = self.sharding.memory_kind == "pinned_host"
        return f"{text} (host)" if host else text


@dataclass(frozen=True)
class Placement:
    """The arrays of a tree and where they lie; printed as a table, the largest first.

    Attributes:
        arrays: All arrays, in the tree's order.
    """

    arrays: tuple[Placed, ...]

    @property
    def bytes(self) -> int:
        """What all arrays take, each counted once."""
        return sum(x.bytes for x in self.arrays)

    @property
    def device_bytes(self) -> int:
        """What they take on one device."""
        return sum(x.device_bytes for x in self.arrays)

    @property
    def whole_bytes(self) -> int:
        """What those arrays take that every device holds all of."""
        return sum(x.bytes for x in self.arrays if x.whole)

    def __str__(self) -> str:
        head = ("array", "shape", "lies", "bytes", "a device")
        largest = sorted(self.arrays, key=lambda x: -x.device_bytes)[:SHOWN]
        body = [
            (
                x.name,
                f"{x.dtype}[{','.join(map(str, x.shape))}]",
                x.lies,
                f"{x.bytes:,}",
                f"{x.device_bytes:,}",
            )
            for x in largest
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [
            "  ".join(f"{c:<{w}}" if i < 3 else f"{c:>{w}}" for i, (c, w) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in (head, *body))
        ]
        if len(self.arrays) > SHOWN:
            lines.append(f"and {len(self.arrays) - SHOWN} smaller ones")
        share = self.device_bytes / max(self.bytes, 1)
        lines.append(
            f"{self.bytes:,} bytes in {len(self.arrays)} arrays; a device holds "
            f"{self.device_bytes:,} ({share:.1%}), {self.whole_bytes:,} of them whole"
        )
        return "\n".join(line.rstrip() for line in lines)


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def placement(tree: Any, shardings: Any = None) -> Placement:
    """Where the arrays of a tree lie: a table of bytes a device.

    Args:
        tree: Arrays, or their shapes.
        shardings: A tree like it of shardings, such as `state_sharding` returns; None takes those
            that the arrays have.

    Raises:
        ValueError: An array has no sharding; or `shardings` is not like the tree.

    >>> import adaptax, jax, jax.numpy as jnp
    >>> from jax.sharding import PartitionSpec as P
    >>> from adaptax import sharding
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    >>> tx = sharding.zero(adaptax.adam(1e-3), P(), mesh)
    >>> state = jax.eval_shape(tx.init, params)
    >>> table = sharding.placement(state, sharding.state_sharding(tx, params, P(), mesh))
    >>> table.device_bytes == 4 + 8 * 1024 * 1024 // jax.device_count()
    True
    """
    rows = []
    for name, leaf, sharding in _beside("placement", tree, shardings):
        if sharding is None:
            raise _errors.no_sharding("placement", name)
        itemsize = _itemsize(leaf.dtype)
        shape = jnp.shape(leaf)
        rows.append(
            Placed(
                name,
                shape,
                leaf.dtype,
                sharding,
                math.ceil(math.prod(shape) * itemsize),
                math.ceil(math.prod(sharding.shard_shape(shape)) * itemsize),
            )
        )
    return Placement(tuple(rows))


def check_placement(tree: Any, shardings: Any) -> None:
    """Raise if arrays do not lie where they should.

    A constraint that had no effect otherwise shows in nothing but memory. Cheap: nothing is moved
    or computed.

    Args:
        tree: Arrays.
        shardings: A tree like it of the shardings that they should have.

    Raises:
        ValueError: Some lie elsewhere (all are listed), or `shardings` is not like the tree.
    """
    rows = _beside("check_placement", tree, shardings)
    wrong = {}
    for name, leaf, wanted in rows:
        got = getattr(leaf, "sharding", None)
        same = (
            got is not None
            and got.is_equivalent_to(wanted, jnp.ndim(leaf))
            and got.memory_kind in (wanted.memory_kind, None)
        )
        if not same:
            wrong[name] = (_short(wanted), _short(got))
    if wrong:
        raise _errors.misplaced(wrong, len(rows))


def _short(sharding: Any) -> str:
    spec = getattr(sharding, "spec", None)
    if spec is None:
        return str(sharding)
    host = " on the host" if sharding.memory_kind == "pinned_host" else ""
    return f"{spec} on {dict(sharding.mesh.shape)}{host}"


def _beside(where: str, tree: Any, shardings: Any) -> list[tuple[str, Any, Any]]:
    leaves, structure = jax.tree.flatten(tree)
    if shardings is None:
        every = [getattr(leaf, "sharding", None) for leaf in leaves]
    else:
        every, other = jax.tree.flatten(shardings)
        if other != structure:
            raise _checks.mismatch(where, "shardings", shardings, "the tree", tree)
    names = path_names(tree, is_leaf=lambda x: False)
    return list(zip(names, leaves, every, strict=True))


def _itemsize(dtype: Any) -> float | int:
    return 0.5 if dtype in (jnp.int4, jnp.uint4) else jnp.dtype(dtype).itemsize
