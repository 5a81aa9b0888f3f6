"""The parameters to evaluate with, whatever averages them and wherever."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import (
    ArrayTree,
    OptState,
    Params,
    _checks,
    _tree,
    boxed_like,
    compute_dtype,
    unboxed,
    widen,
)
from .._core._numerics import mixing
from ._average import AverageState
from ._lookahead import LookaheadSlowState, is_lookahead
from ._schedule_free import ScheduleFreeState, averaged


class _Average(NamedTuple):
    """A tree that is found in a state, and what makes a parameter of one of its leaves."""

    name: str
    tree: ArrayTree
    numbers: tuple[Any, ...]
    read: Callable[..., Any]  # (*numbers, stored, param), in the wide dtype if inexact


def _kept(n: Any, stored: Any, param: Any) -> Any:
    return jnp.where(n == 0, param, stored)


def _slow(stored: Any, param: Any) -> Any:
    return stored


def _recovered(b1: Any, stored: Any, param: Any) -> Any:
    if not _tree.is_inexact(param):
        return param
    with mixing(param, stored):
        return averaged(jnp.asarray(b1, jnp.finfo(param.dtype).dtype), param, stored)


# By the names of the fields, so that states of optax's are read, too.
_READERS: dict[tuple[str, ...], Callable[[Any], _Average]] = {
    AverageState._fields: lambda s: _Average("AverageState", s.average, (s.n_averaged,), _kept),
    LookaheadSlowState._fields: lambda s: _Average("LookaheadSlowState", s.slow, (), _slow),
    ScheduleFreeState._fields: lambda s: _Average("ScheduleFreeState", s.z, (s.b1,), _recovered),
}


def _averages(state: Any) -> Iterator[_Average]:
    """All averages in a state, those inside others as well."""

    def reader(x: Any) -> Any:
        return _READERS.get(getattr(x, "_fields", ()))

    for part in jax.tree.leaves(state, is_leaf=lambda x: reader(x) is not None):
        read = reader(part)
        if read is not None:
            yield read(part)
            yield from _averages(tuple(part))


@functools.partial(jax.jit, static_argnums=0)
def _read(read: Callable[..., Any], numbers: Any, stored: list[Any], params: list[Any]) -> Any:
    out = []
    for s, p in zip(stored, params, strict=True):
        if _tree.is_inexact(p):
            real = compute_dtype(p.dtype, s.dtype)
            out.append(read(*numbers, widen(s, real), widen(p, real)).astype(p.dtype))
        else:
            out.append(read(*numbers, s, p))
    return out


def eval_params(state: OptState, params: Params) -> Params:
    """The parameters to evaluate, to test and to ship: the average, if anything averages.

    Finds what averages anywhere in a state, inside chains, masks, partitions and wrappers:

    - `ema_params` and `swa`: the average, or the parameters before it has begun;
    - `schedule_free` and its aliases, also optax's: x, recovered from y and z;
    - `lookahead`: the slow weights, of a `LookaheadParams` or from the state.

    Where an average covers a part of the parameters, the others are returned as they are; where
    there is none, all of them. So one line serves any optimizer.

    Args:
        state: The optimizer's state.
        params: The parameters of the training loop, as returned with that state.

    Returns:
        Parameters in the shapes and dtypes of ``params``; of a `LookaheadParams`, of one half.

    Raises:
        ValueError: Two averages cover the same parameter, or state and params are swapped.
        TreeMismatchError: An average has another structure or other shapes than the parameters.
    """
    given, params = params, unboxed(params)
    found = list(_averages(unboxed(state)))
    if not found and list(_averages(params)):
        raise ValueError("eval_params: the arguments are (state, params), got them swapped.")
    both = is_lookahead(params)
    leaves, structure = jax.tree.flatten(params, is_leaf=_tree.is_none)
    covered: dict[int, str] = {}
    for one in found:
        if both and not is_lookahead(one.tree):
            raise _twice("the fast weights", "LookaheadParams", one.name)
        stored = _pieces(one.tree, params, structure)
        here = [i for i, s in enumerate(stored) if s is not None and leaves[i] is not None]
        twice = next((i for i in here if i in covered), None)
        if twice is not None:
            path = _tree.paths(params)[twice] or "the root"
            raise _twice(path, covered[twice], one.name)
        covered |= dict.fromkeys(here, one.name)
        columns = ([jnp.asarray(column[i]) for i in here] for column in (stored, leaves))
        new = _read(one.read, one.numbers, *columns)
        for i, leaf in zip(here, new, strict=True):
            leaves[i] = leaf
    params = boxed_like(given, structure.unflatten(leaves))
    return params.slow if both else params


def schedule_free_eval_params(state: OptState, params: Params) -> Params:
    """`eval_params` for a state that has to hold one of `schedule_free`.

    Args:
        state: A `ScheduleFreeState`, or a state that holds one anywhere.
        params: y, the parameters of the training loop.

    Returns:
        x, in the shapes and dtypes of ``params``.

    Raises:
        TypeError: No part of the state is a `ScheduleFreeState`.
    """
    state = unboxed(state)
    if not any(one.name == "ScheduleFreeState" for one in _averages(state)):
        raise _checks.wrong_kind(
            "schedule_free_eval_params", "state", "or hold a ScheduleFreeState", state
        )
    return eval_params(state, params)


def _pieces(tree: Any, params: Any, structure: Any) -> list[Any]:
    """What the tree has for each parameter; None where it has a hole."""
    try:
        pieces = structure.flatten_up_to(tree)
    except ValueError:
        raise _checks.mismatch("eval_params", "params", params, "the average", tree) from None
    pieces = [piece if jax.tree.leaves(piece) else None for piece in pieces]
    for piece, param in zip(pieces, structure.flatten_up_to(params), strict=True):
        if piece is None or param is None:
            continue
        if not jax.tree_util.all_leaves([piece]) or jnp.shape(piece) != jnp.shape(param):
            whole = structure.unflatten(pieces)
            raise _checks.mismatch("eval_params", "params", params, "the average", whole)
    return pieces


def _twice(where: str, one: str, other: str) -> ValueError:
    return ValueError(
        f"eval_params: two averages cover {where}: {one} and {other}. Evaluate with one of them: "
        "hand over that part of the state, or read its field."
    )
