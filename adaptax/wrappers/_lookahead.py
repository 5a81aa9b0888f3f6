"""Lookahead: fast weights explore, slow weights follow."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    Constant,
    Count,
    Node,
    Pair,
    Transform,
    _checks,
    _tree,
    apply_updates,
    compute_dtype,
    lands,
    node_of,
    transformation,
    widen,
)
from .._core._numerics import mixing
from ._shared import scalar, side_by_side, toward, widened


class LookaheadParams(NamedTuple):
    """Two sets of parameters: the loss is differentiated at the fast, evaluated at the slow.

    Attributes:
        fast: What the fast optimizer moves.
        slow: What follows it.
    """

    fast: ArrayTree
    slow: ArrayTree

    @classmethod
    def init_synced(cls, params: ArrayTree) -> "LookaheadParams":
        """Both from one set; slow is a copy, so that both can be donated."""
        return cls(params, jax.tree.map(lambda x: jnp.array(x) if _tree.is_array(x) else x, params))


class LookaheadState(NamedTuple):
    """The state of `lookahead`.

    Attributes:
        fast_state: The state of the fast optimizer.
        steps_since_sync: Steps since the two were last equal, int32 ().
    """

    fast_state: Any
    steps_since_sync: Int[Array, ""]


class LookaheadSlowState(NamedTuple):
    """The state of `lookahead` with `slow_in_state`.

    Attributes:
        fast_state: The state of the fast optimizer.
        steps_since_sync: Steps since the two were last equal, int32 ().
        slow: The slow weights, like the parameters, float32 or wider.
    """

    fast_state: Any
    steps_since_sync: Int[Array, ""]
    slow: ArrayTree


@jax.jit
def _step(sync: Any, step_size: Any, u: Any, f: Any, s: Any) -> tuple[Any, Any]:
    """What is added to the fast weights of one leaf, and where the slow ones get."""
    real = compute_dtype(u.dtype, f.dtype, s.dtype)
    wide, fast, slow = (widen(x, real) for x in (u, f, s))
    with mixing(wide, fast, slow):
        landed = widen((fast + wide).astype(f.dtype), real)
        met = toward(landed, slow, step_size.astype(real)).astype(s.dtype)
        back = (widen(met, real) - fast).astype(u.dtype)
    return jnp.where(sync, back, u), jnp.where(sync, met, s)


@jax.jit
def _gone(new: Any, old: Any) -> Any:
    return new - old


@jax.jit
def _either(sync: Any, new: list[Any], old: list[Any]) -> list[Any]:
    return [
        jnp.where(sync, n if n.dtype == o.dtype else n.astype(o.dtype), o)
        for n, o in zip(new, old, strict=True)
    ]


@transformation
def lookahead(
    fast_optimizer: Transform,
    sync_period: Count,
    slow_step_size: Annotated[Any, Constant("[0, inf)")],
    reset_state: bool = False,
    *,
    slow_in_state: bool = False,
) -> Node:
    r"""Let an optimizer run k steps ahead, then go a part of the way to where it got.

    .. math::

        f_{t+1} = f_t + u(f_t); \qquad \text{and after each k-th step} \quad
        s := s + \alpha (f - s), \quad f := s

    The parameters are a `LookaheadParams` (from `LookaheadParams.init_synced`), in `init`,
    `update` and `apply_updates`; the gradients are taken at ``params.fast``, like which they
    are shaped, and the updates are a `LookaheadParams`. `init` takes the fast weights alone,
    too. With ``slow_in_state`` the parameters are plain, and the slow weights are kept in the
    state, one array a parameter; any training loop will do. `eval_params` returns the slow
    weights in both cases.

    After a synchronization f and s are equal, to rounding. Nothing may change the updates
    between here and `apply_updates`. Parameters with None or float0 for a gradient, such as
    integers, stay as they are.

    Args:
        fast_optimizer: The optimizer.
        sync_period: k >= 1.
        slow_step_size: α >= 0; 0.5 and 0.8 are the authors'.
        reset_state: Begin anew with the fast optimizer's state after each synchronization, at
            the weights that it gave.
        slow_in_state: Take plain parameters and keep the slow weights in the state.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.
        TypeError: At `update`, params are not a `LookaheadParams`.

    References:
        Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019,
        arXiv:1907.08610, algorithm 1.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.lookahead(adaptax.sgd(1.0), sync_period=2, slow_step_size=0.5)
    >>> params = adaptax.LookaheadParams.init_synced(jnp.array(4.0))
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array(1.0), state, params)
    ...     params = adaptax.apply_updates(params, updates)
    >>> params.fast, params.slow
    (Array(3., dtype=float32), Array(3., dtype=float32))
    """
    node = node_of(fast_optimizer)
    cls = LookaheadSlowState if slow_in_state else LookaheadState

    def init(params: Any) -> LookaheadState | LookaheadSlowState:
        fast = params.fast if is_lookahead(params) and not slow_in_state else params
        since = jnp.zeros((), jnp.int32)
        if slow_in_state:
            return LookaheadSlowState(node.init(fast), since, jax.tree.map(widened, fast))
        return LookaheadState(node.init(fast), since)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not isinstance(state, cls):
            raise _checks.wrong_state("lookahead", cls.__name__, state)
        if params is None:
            raise _checks.needs_params("lookahead")
        if isinstance(state, LookaheadSlowState):
            fast, slow = params, state.slow
        elif is_lookahead(params):
            fast, slow = (_tree.trained(updates, tree) for tree in params)
        else:
            raise _not_lookahead(params)
        dtypes = _tree.dtypes(updates)
        updates, fast_state = node.update(updates, state.fast_state, fast, **extra_args)
        if not lands(node):
            updates = _tree.round_to(updates, dtypes)
        trees = {"updates": updates, "params": fast, "slow": slow}
        columns, structure = side_by_side("lookahead", trees)
        sync = state.steps_since_sync == sync_period - 1
        size = jnp.asarray(scalar("lookahead", "slow_step_size", slow_step_size))
        moves, ends, follows = [], [], []
        for u, f, s in zip(*columns, strict=True):
            move, end, follow = u, s, None
            if not any(x is None or _tree.is_float0(x) for x in (u, f, s)) and _tree.is_inexact(f):
                s = jnp.asarray(s)
                move, end = _step(sync, size, jnp.asarray(u), jnp.asarray(f), s)
                follow = None if slow_in_state else _gone(end, s)
            moves.append(move)
            ends.append(end)
            follows.append(follow)
        updates, slow = structure.unflatten(moves), structure.unflatten(ends)
        if reset_state:
            anew = node.init(apply_updates(fast, updates))
            old, layout = jax.tree.flatten(fast_state)
            fast_state = layout.unflatten(_either(sync, jax.tree.leaves(anew), old))
        since = (state.steps_since_sync + 1) % sync_period
        if slow_in_state:
            return updates, LookaheadSlowState(fast_state, since, slow)
        both = LookaheadParams(updates, structure.unflatten(follows))
        return both, LookaheadState(fast_state, since)

    def parts(state: Any) -> Any:
        return {"": (fast_optimizer, None if state is None else state.fast_state)}

    return Pair(init, update, parts)


def is_lookahead(params: Any) -> bool:
    """Whether params are a `LookaheadParams`, ours or optax's."""
    return _tree.is_marker(params, LookaheadParams)


def _not_lookahead(params: Any) -> TypeError:
    return TypeError(
        f"lookahead: params must be a LookaheadParams, got {type(params).__name__}. Make it with "
        "LookaheadParams.init_synced(params) and take the gradients at params.fast; or let "
        "lookahead(..., slow_in_state=True) keep the slow weights."
    )
