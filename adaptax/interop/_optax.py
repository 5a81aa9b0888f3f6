"""Optax: hand it a transformation; move a state from one library to the other."""

from typing import Any, cast

import jax

from .._core import GradientTransformation, _checks


def as_optax(tx: GradientTransformation) -> Any:
    """The transformation as an `optax.GradientTransformationExtraArgs`.

    Adaptax's transformations go into `optax.chain` as they are, but optax drops extra arguments
    (such as `value=`) for classes that are not its own. This hands it one of its own.

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
    parameters, adaptax float32).

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
    old, _ = jax.tree_util.tree_flatten_with_path(state)
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
    same = [jax.tree_util.keystr(p) for p, _ in old] == [jax.tree_util.keystr(p) for p, _ in wanted]
    pairs = list(zip(old, wanted, strict=False))
    if not same or any(x.shape != y.shape for (_, x), (_, y) in pairs):
        raise _checks.mismatch("convert_state", "state", state, "like", like)
    return treedef.unflatten(x.astype(y.dtype) for (_, x), (_, y) in pairs)
