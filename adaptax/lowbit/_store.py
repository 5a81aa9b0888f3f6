"""Slots of a state kept encoded: decoded for the step, inside its kernel, and encoded again."""

import functools
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    GradientTransformation,
    Node,
    OptState,
    Pair,
    Transform,
    _checks,
    _tree,
    is_box,
    node_of,
    safe_increment,
    transformation,
    unboxed,
)
from .._core._kinds import StaticInt
from .._core._value import call_of
from ._codec import NEAREST, Codec, Encoded
from ._dither import dither, draws
from ._slots import Slots, formats_of


class StoreState(NamedTuple):
    """The state of `store`.

    Attributes:
        count: Steps done, int32 ().
        inner_state: The state of what is wrapped, with an `Encoded` in the place of each array that
            is kept encoded.
    """

    count: Int[Array, ""]
    inner_state: Any


@transformation
def store(
    inner: Transform,
    slots: Slots,
    *,
    min_size: Annotated[int, StaticInt(0)] = 4096,
    seed: Annotated[int, StaticInt(0)] = 0,
) -> Node:
    """Keep slots of a transformation's state encoded, in a few bits a parameter.

    A step decodes them to float32, runs the transformation, and encodes what comes out, rounding
    stochastically; under `jax.jit` all of that is one kernel for each parameter, and only codes
    are read and written. Works on any transformation whose state has the parameters' shapes in
    named fields, optax's too.

    What the codes of a slot say to be NaN makes the update NaN; nothing is hidden.

    Args:
        inner: The transformation.
        slots: The format of each slot, by the name of its field: `{"mu": int8(), "nu": uint8()}`.
            For some parameters only, `{"nu": {"*embed*": None, "*": uint8()}}`: patterns over
            their names, in order (see `by_path`); None leaves an array as it is.
        min_size: Arrays with fewer entries stay as they are: biases and gains are a thousandth
            of a model, and much hangs on them.
        seed: Of the rounding, >= 0.

    State: a `StoreState`. Its count and the entry's index make the random numbers (there is no
    key), so a run can be repeated, on any sharding. `decode_state` gives the inner state in
    float32, `encode_state` takes one.

    Raises:
        ValueError: The state has no such slot; or a format can't hold it.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> tx = lowbit.store(adaptax.adam(1e-3), {"mu": lowbit.int8(), "nu": lowbit.uint8()})
    >>> state = tx.init({"w": jnp.zeros((64, 64))})
    >>> state.inner_state[0].nu["w"].codes.dtype
    dtype('uint8')
    """
    node = node_of(inner)

    def init(params: Any) -> StoreState:
        state = node.init(params)
        codecs = formats_of(state, params, slots, min_size)
        return StoreState(jnp.zeros((), jnp.int32), _closed(codecs, state, seed))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, StoreState]:
        if not isinstance(state, StoreState):
            raise _checks.wrong_state("store", "StoreState", state)
        count = safe_increment(state.count)
        old, outer = jax.tree.flatten(state.inner_state, is_leaf=is_encoded)
        structure = jax.tree.structure(state.inner_state)
        partners = _partners(structure)
        plain = outer.unflatten(_opened(old, partners))
        updates, plain = node.update(updates, plain, params, **extra_args)
        new = _leaves_like(outer, plain)
        out, layout = jax.tree.flatten(updates, is_leaf=_tree.is_none)
        for owner, mine in _groups(structure, layout):
            u = None if owner is None else out[owner]
            u = _keep(mine, old, new, partners, count, u)
            if owner is not None:
                out[owner] = u
        return layout.unflatten(out), StoreState(count, outer.unflatten(new))

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else decode_state(state))}

    return Pair(init, update, parts)


def is_encoded(x: Any) -> bool:
    """Whether a node of a state is an encoded array."""
    return isinstance(x, Encoded)


@functools.lru_cache(maxsize=64)
def _groups(state: Any, updates: Any) -> list[tuple[int | None, list[int]]]:
    """The encoded leaves of a state's structure, by the update whose path ends their own."""
    paths = jax.tree_util.tree_leaves_with_path(updates.unflatten(range(updates.num_leaves)))
    index = dict(paths)
    groups: dict[int | None, list[int]] = {}
    for k, (path, leaf) in enumerate(_with_paths(state)):
        if is_encoded(leaf):
            ends = (path[cut:] for cut in range(1, len(path) + 1))
            groups.setdefault(next((index[end] for end in ends if end in index), None), []).append(
                k
            )
    return list(groups.items())


@functools.lru_cache(maxsize=64)
def _partners(state: Any) -> dict[int, int]:
    """For the leaves in a format with `root_of`, the leaf of that slot."""
    leaves = _with_paths(state)
    index = {path: k for k, (path, _) in enumerate(leaves)}
    found = {}
    for k, (path, leaf) in enumerate(leaves):
        other = leaf.codec.root_of if is_encoded(leaf) else None
        if other is None:
            continue
        others = (
            (*path[:i], jax.tree_util.GetAttrKey(other), *path[i + 1 :]) for i in range(len(path))
        )
        partner = next((index[p] for p in others if p in index), None)
        if partner is None:
            raise ValueError(
                f"store: {leaf.codec!r} measures {jax.tree_util.keystr(path)} by the slot "
                f"{other!r} beside it, and the state has none; give root_of the name of the slot "
                "of second moments, or take a format without it."
            )
        found[k] = partner
    return found


def _with_paths(state: Any) -> list[tuple[Any, Any]]:
    """The leaves of a structure with their paths, `Encoded` ones with their format."""
    tree = state.unflatten(range(state.num_leaves))
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_encoded)


def _leaves_like(structure: Any, state: Any) -> list[Any]:
    try:
        return structure.flatten_up_to(state)
    except ValueError as error:
        raise ValueError(
            f"store: the wrapped transformation changed the structure of its state: {error}"
        ) from None


def _opened(leaves: list[Any], partners: Mapping[int, int]) -> list[Any]:
    """The leaves of a state, what is encoded as the arrays that it stands for."""
    out = list(leaves)
    for k in sorted(range(len(out)), key=partners.__contains__):  # the partners first
        x = leaves[k]
        if is_encoded(x):
            other = out[partners[k]] if k in partners else None
            out[k] = _decode(x.codec, x.codes, x.scale, other).astype(x.kept)
    return out


def _closed(codecs: list[Codec | None], state: Any, seed: int) -> Any:
    """A state with arrays in their formats, rounded to the nearest.

    What is encoded leaves the box that it was in: `flax.nnx` can't update a node inside of one.
    """
    leaves, structure = jax.tree.flatten(state, is_leaf=is_box)
    numbers, known = itertools.count(1), list(map(unboxed, leaves))
    shell = [
        x if codec is None else Encoded(bare, None, _seed(seed, next(numbers)), codec, bare.dtype)
        for codec, x, bare in zip(codecs, leaves, known, strict=True)
    ]
    partners = _partners(jax.tree.structure(unboxed(structure.unflatten(shell))))
    for k in sorted(range(len(shell)), key=partners.__contains__):
        x, codec = shell[k], codecs[k]
        if codec is not None:
            other = known[partners[k]] if k in partners else None
            codes, scale, known[k] = _nearest(codec, x.codes, other)
            shell[k] = x._replace(codes=codes, scale=scale)
    return structure.unflatten(shell)


@functools.partial(jax.jit, static_argnums=0)
def _nearest(codec: Codec, x: Any, other: Any) -> tuple[Any, Any, Any]:
    """Codes, scale and numbers of an array, measured by itself or by another slot's numbers."""
    x, other = x.astype(jnp.float32), _wide(other)
    scale = _scale(codec, x, None, other)
    by = codec.reference(scale, other)
    codes = codec.encode(x, by, jnp.full(x.shape, NEAREST))
    return codes, scale, codec.decode(codes, by)


def _seed(seed: int, number: int) -> Any:
    return jnp.asarray((seed * 0x9E3779B1 + number) % 2**32, jnp.uint32)


@functools.partial(jax.jit, static_argnums=0)
def _decode(codec: Codec, codes: Any, scale: Any, other: Any) -> Any:
    return codec.decode(codes, codec.reference(scale, _wide(other)))


def _wide(other: Any) -> Any:
    """Another slot's numbers in float32, if there is one."""
    return None if other is None else other.astype(jnp.float32)


def _scale(codec: Codec, x: Any, old: Any, other: Any) -> Any:
    """The scale of numbers; `other` are those of the slot that they are measured by."""
    if codec.root_of is None:
        return codec.scale_for(x, old) if codec.measures else old
    return codec.scale_beside(x, old, other)


def _keep(
    mine: list[int],
    old: list[Any],
    new: list[Any],
    partners: Mapping[int, int],
    count: Any,
    u: Any,
) -> Any:
    """Encode the new arrays of one parameter, in place; return its update."""
    mine = sorted(mine, key=partners.__contains__)
    codecs = tuple(old[k].codec for k in mine)
    within = tuple(mine.index(partners[k]) if partners.get(k) in mine else -1 for k in mine)
    others = [
        new[partners[k]] if i < 0 and k in partners else None
        for k, i in zip(mine, within, strict=True)
    ]
    floats = u is not None and not _tree.is_float0(u) and _tree.is_inexact(u)
    given = u if floats else None
    arrays, scales = [new[k] for k in mine], [old[k].scale for k in mine]
    seeds = [old[k].seed for k in mine]
    pairs, poisoned = _encode(codecs, within, arrays, scales, others, seeds, count, given)
    for k, (codes, scale) in zip(mine, pairs, strict=True):
        new[k] = Encoded(codes, scale, old[k].seed, old[k].codec, old[k].kept)
    return poisoned if floats else u


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    codecs: tuple[Codec, ...],
    within: tuple[int, ...],
    arrays: Any,
    scales: Any,
    others: Any,
    seeds: Any,
    count: Any,
    u: Any,
) -> Any:
    """Codes and scales; and the update, NaN where a code is.

    That the update depends on the codes is also what makes the compilers for TPUs write all of
    them in one pass: they fuse what follows from one another, and siblings seldom.

    Args:
        codecs: The formats of one parameter's arrays.
        within: For each the number of the array that it is measured by, or -1.
        others: For each that array where it has no number.
    """
    arrays = [x.astype(jnp.float32) for x in arrays]
    pairs: list[tuple[Any, Any]] = []
    references: list[Any] = []
    nan = None
    random: Any = None
    slots = zip(codecs, within, arrays, scales, others, seeds, strict=True)
    for number, (codec, i, x, scale, other, seed) in enumerate(slots):
        # A scale is found by the other array as it is, so that one pass finds all; codes are
        # relative to what is stored of it.
        other = arrays[i] if i >= 0 else _wide(other)
        scale = _scale(codec, x, scale, other)
        if i >= 0:
            other = codecs[i].decode(pairs[i][0], references[i])
        by = codec.reference(scale, other)
        # One hash makes the numbers of two arrays.
        random = random << 16 if number % 2 else draws(count, x.shape, seed)
        codes = codec.encode(x, by, dither(count, x.shape, seed) if codec.even else random)
        pairs.append((codes, scale))
        references.append(by)
        here = codec.is_nan(codes, by)
        nan = here if nan is None else nan | here
    if u is not None and nan is not None and nan.shape == u.shape:
        u = jnp.where(nan, jnp.asarray(jnp.nan, u.dtype), u)
    return pairs, u


# --- Float32 and back


def decode_state(state: OptState) -> OptState:
    """The state of a `store` without it: the inner state, with all arrays as they were.

    So training goes on in float32 from where it is: give the result to the transformation that
    `store` wraps. Works on any state with a `StoreState` in it.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> small = lowbit.adam8bit(1e-3)
    >>> state = lowbit.decode_state(small.init({"w": jnp.zeros((64, 64))}))
    >>> state[0].nu["w"].dtype
    dtype('float32')
    """

    def opened(x: Any) -> Any:
        if not isinstance(x, StoreState):
            return x
        inner = decode_state(x.inner_state)
        leaves, outer = jax.tree.flatten(inner, is_leaf=is_encoded)
        return outer.unflatten(_opened(leaves, _partners(jax.tree.structure(inner))))

    return jax.tree.map(opened, unboxed(state), is_leaf=lambda x: isinstance(x, StoreState))


def encode_state(tx: GradientTransformation, state: OptState, params: Any) -> StoreState:
    """The state of `tx`, a `store`, from one of what it wraps: to go on in few bits.

    Rounds to the nearest. The count is that of the state, if it has one.

    Args:
        tx: A transformation made by `store`, or one of the aliases such as `adam8bit`.
        state: A state of the transformation that it wraps.
        params: The parameters, or their shapes.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> params = {"w": jnp.zeros((64, 64))}
    >>> wide = adaptax.adam(1e-3).init(params)
    >>> lowbit.encode_state(lowbit.adam8bit(1e-3), wide, params).inner_state[0].mu["w"].codes.dtype
    dtype('int8')
    """
    wanted = jax.eval_shape(tx.init, params)
    if not isinstance(wanted, StoreState):
        raise _checks.wrong_kind("encode_state", "tx", "a transformation made by store(...)", tx)
    shell, outer = jax.tree.flatten(wanted.inner_state, is_leaf=is_encoded)
    try:
        outer.flatten_up_to(state)
    except ValueError as error:
        raise ValueError(f"encode_state: the state is not one of what tx wraps: {error}") from None
    codecs = [x.codec if is_encoded(x) else None for x in shell]
    call = call_of(tx)
    seed = 0 if call is None else call.given.get("seed", 0)
    counts = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if _is_count(path)]
    count = jnp.array(counts[0], jnp.int32) if counts else jnp.zeros((), jnp.int32)
    return StoreState(count, _closed(codecs, state, seed))


def _is_count(path: Any) -> bool:
    return getattr(path[-1], "name", None) == "count" if path else False
