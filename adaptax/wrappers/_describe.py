"""Which leaf gets what: a transformation read beside the parameters."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import MaskedNode, Params, Transform, node_of, path_names, unboxed
from .._core._leafwise import SKIP, Leafwise
from .._core._tree import is_none
from .._core._value import TransformationKind, call_of


class LeafDescription(NamedTuple):
    """One leaf of the parameters.

    Attributes:
        name: Its name, "layers/0/kernel".
        shape: Its shape.
        dtype: The name of its dtype.
        gets: The transformations that it goes through, as text.
        slots: The fields of the state that hold arrays for it.
        state_bytes: The size of these arrays, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    gets: str
    slots: tuple[str, ...]
    state_bytes: int


class Description(NamedTuple):
    """What `describe` returns; prints as a table, grouped by what the leaves get.

    Attributes:
        leaves: The leaves in order.
        shared_bytes: The size of the state that belongs to no leaf, in bytes.
    """

    leaves: tuple[LeafDescription, ...]
    shared_bytes: int

    @property
    def state_bytes(self) -> int:
        """The size of the whole state, in bytes."""
        return self.shared_bytes + sum(leaf.state_bytes for leaf in self.leaves)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def describe(tx: Transform, params: Params) -> Description:
    """Say which leaf of the parameters gets which transformation, and what its state takes.

    Nothing is computed: the parameters may be `jax.ShapeDtypeStruct`.

    Args:
        tx: A transformation, adaptax's or optax's. Chains, masks, groups and wrappers are opened;
            an optimizer is one item, with a note of its parts that leave the leaf out.
        params: The parameters.

    Raises:
        ValueError: What `init` would raise, such as a leaf that no group covers.
        TypeError: The first argument is not a transformation.

    >>> import adaptax, jax.numpy as jnp
    >>> params = {"embed": jnp.ones((4, 2)), "out": jnp.ones((2, 3))}
    >>> print(describe(adaptax.partition({"embed": None, "*": adaptax.adam(1e-3)}), params))
    set_to_zero()
      embed  float32[4,2]  -          0 bytes
    adam(learning_rate=0.001)
      out    float32[2,3]  mu nu     48 bytes
    14 parameters in 2 leaves; state 52 bytes, 3.71 a parameter (4 of them for the whole)
    """
    tx = TransformationKind().canonical("describe", "tx", tx)
    params = unboxed(params)
    state = jax.eval_shape(tx.init, params)
    leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
    present = structure.unflatten(
        None if x is None else jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
        for x in leaves
    )
    slots, sizes, shared = _attribute(present, state)
    names = path_names(params)
    texts = _gets(tx, present)
    rows = [
        LeafDescription(
            name, x.shape, str(x.dtype), text or "passes unchanged", tuple(slots[i]), sizes[i]
        )
        for i, (name, x, text) in enumerate(
            zip(names, jax.tree.leaves(present, is_leaf=is_none), texts, strict=True)
        )
        if x is not None
    ]
    return Description(tuple(rows), shared)


def _attribute(params: Any, state: Any) -> tuple[list[list[str]], list[int], int]:
    """For each parameter the fields of the state that end in its key path, and their bytes."""
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_none)]
    index = {path: i for i, path in enumerate(paths)}
    slots: list[list[str]] = [[] for _ in paths]
    sizes, shared = [0] * len(paths), 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        nbytes = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        cuts = [i for i in range(len(path) + 1) if path[i:] in index]
        if not cuts or (cuts[0] == len(path) and leaf.ndim == 0):
            shared += nbytes
            continue
        i = index[path[cuts[0] :]]
        fields = [key.name for key in path[: cuts[0]] if hasattr(key, "name")]
        slots[i] += [fields[-1]] if fields and fields[-1] not in slots[i] else []
        sizes[i] += nbytes
    return slots, sizes, shared


def _gets(tx: Any, params: Any) -> list[str]:
    """What each leaf, None leaves included, goes through; empty where nothing changes it."""
    count = len(jax.tree.leaves(params, is_leaf=is_none))
    call, node = call_of(tx), node_of(tx)
    if call is None:
        made_by = getattr(tx.update, "__qualname__", repr(tx.update)).split(".")[0]
        return [f"{made_by} (a pair of functions)"] * count
    parts, chosen = getattr(node, "parts", None), getattr(node, "chosen", None)
    inside = {} if parts is None else {k: inner for k, (inner, _) in parts(None).items()}
    holds_others = any(isinstance(k, TransformationKind) for k in call.factory.kinds.values())
    if chosen is not None and holds_others:
        return _of_parts(inside, chosen(params), params)
    if chosen is not None and len(inside) > 1:  # an alias such as muon
        part = {i: k for k, bools in chosen(params).items() for i, b in enumerate(bools) if b}
        return [f"{call!r}, its {part[i]} part" if i in part else "" for i in range(count)]
    if not holds_others or not inside:
        return _terminal(call, node, params, count)
    texts = [_gets(inner, params) for inner in inside.values()]
    joined = [", ".join(filter(None, several)) for several in zip(*texts, strict=True)]
    if "" not in inside:
        return joined
    return [text and f"{call.name}: {text}" for text in joined]


def _of_parts(inside: dict[str, Any], chosen: Any, params: Any) -> list[str]:
    leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
    texts = [""] * len(leaves)
    for part, bools in chosen.items():
        here = structure.unflatten(
            x if b else MaskedNode() for x, b in zip(leaves, bools, strict=True)
        )
        own = iter(_gets(inside[part], here))
        texts = [next(own) if b else text for text, b in zip(texts, bools, strict=True)]
    return texts


def _terminal(call: Any, node: Any, params: Any, count: int) -> list[str]:
    """The call itself, with a note where a link of it skips the leaf."""
    left_out: list[list[str]] = [[] for _ in range(count)]
    for link in _links(node):
        if isinstance(link, Leafwise) and link.per_leaf is not None:
            for i, spec in enumerate(link.per_leaf(params)):
                left_out[i] += [link.name] if isinstance(spec, str) and spec == SKIP else []
    text = repr(call)
    return [f"{text} without {', '.join(names)}" if names else text for names in left_out]


def _links(node: Any) -> Iterator[Any]:
    for link in getattr(node, "links", [node]):
        yield from _links(link) if hasattr(link, "links") else [link]


def _lines(described: Description) -> Iterator[str]:
    groups: dict[str, list[LeafDescription]] = {}
    for leaf in described.leaves:
        groups.setdefault(leaf.gets, []).append(leaf)
    rows = {
        leaf.name: (
            leaf.name or "the root",
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
            " ".join(leaf.slots) or "-",
            f"{leaf.state_bytes:,}",
        )
        for leaf in described.leaves
    }
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for gets, leaves in groups.items():
        yield gets
        for leaf in leaves:
            name, kind, slots, size = rows[leaf.name]
            yield (
                f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {slots:<{widths[2]}}  "
                f"{size:>{widths[3] + 3}} bytes"
            )
    total = sum(int(np.prod(leaf.shape)) for leaf in described.leaves)
    each = described.state_bytes / total if total else 0.0
    yield (
        f"{total:,} parameters in {len(rows):,} leaves; state {described.state_bytes:,} bytes, "
        f"{each:.2f} a parameter ({described.shared_bytes:,} of them for the whole)"
    )
