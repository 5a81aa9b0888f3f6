"""Optax: hand it a transformation; move a state from one library to the other."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._core import GradientTransformation, _checks, boxed_like, unboxed


def as_optax(tx: GradientTransformation) -> Any:
    """The transformation as a pair of optax's own class, which is no pytree of numbers.

    Adaptax's transformations go into optax's chains and wrappers as they are. This is for programs
    that take a transformation apart and must not find arrays in it: `flax.nnx.Optimizer` refuses
    numbers that are stacked, traced or came out of a jitted function.

    Args:
        tx: A transformation.

    Raises:
        ModuleNotFoundError: Optax is not installed.
    """
    import optax

    return optax.GradientTransformationExtraArgs(cast(Any, tx.init), cast(Any, tx.update))


def convert_state(state: Any, like: Any) -> Any:
    """A state of optax as one of adaptax, or the other way.

    The two have the same leaves under the same field names; each keeps its own classes. The
    arrays are taken over, cast to the dtypes of `like` (optax keeps 16-bit moments for 16-bit
    parameters, adaptax float32). A weight decay that counts its steps in only one of the two, as
    that of `adafactor` with a schedule does, gets the count that the rest of the state has.

    Args:
        state: A state of the one library.
        like: A state of the other, for the same optimizer and parameters: `tx.init(params)`, or
            `jax.eval_shape(tx.init, params)`.

    Raises:
        TreeMismatchError: The two have different leaves or shapes; the message lists the paths.

    >>> import adaptax, optax, jax.numpy as jnp
    >>> params = {"w": jnp.ones(3)}
    >>> state = optax.adam(1e-3).init(params)
    >>> state = convert_state(state, adaptax.adam(1e-3).init(params))
    >>> type(state[0]).__module__.split(".")[0]
    'adaptax'
    """
    given, state, like = like, unboxed(state), unboxed(like)
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [path for path, _ in wanted]
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if not _same(leaves, names):
        counts = {int(x): x for path, x in leaves if _is_count(path, x)}
        count = next(iter(counts.values())) if len(counts) == 1 else None
        leaves = jax.tree_util.tree_leaves_with_path(_counting(state, like, count))
    pairs = list(zip(leaves, wanted, strict=False))
    if not _same(leaves, names) or any(x.shape != y.shape for (_, x), (_, y) in pairs):
        raise _checks.mismatch("convert_state", "state", state, "like", like)
    new = treedef.unflatten(x.astype(y.dtype) for (_, x), (_, y) in pairs)
    return boxed_like(given, new)


def _same(leaves: Any, names: Any) -> bool:
    keystr = jax.tree_util.keystr
    return [keystr(path) for path, _ in leaves] == [keystr(path) for path in names]


def _is_count(path: Any, x: Any) -> bool:
    named = bool(path) and getattr(path[-1], "name", "") == "count"
    return named and jnp.ndim(x) == 0 and not isinstance(x, Tracer)


def _counting(state: Any, like: Any, count: Any) -> Any:
    """The state, with the count of a weight decay where `like` has one, and without where not."""
    match type(state).__name__, type(like).__name__:
        case "EmptyState", "WeightDecaySchedule" if count is not None:
            return type(like)(jnp.array(count))  # a copy, so that the state can be donated
        case "WeightDecaySchedule", "EmptyState":
            return type(like)()
    if isinstance(state, tuple) and isinstance(like, tuple) and len(state) == len(like):
        parts = [_counting(s, k, count) for s, k in zip(state, like, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    if isinstance(state, Mapping) and isinstance(like, Mapping) and state.keys() == like.keys():
        parts = {name: _counting(state[name], like[name], count) for name in state}
        return cast(Any, type(state))(parts)
    return state
