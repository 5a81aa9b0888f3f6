"""Master weights: float32 copies of 16-bit parameters in the state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import ArrayTree, OptState, Pair, Transform, _checks, _tree, node_of, transformation
from ._narrow import each_narrow, is_narrow, landing, nearest


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        master: The parameters in float32; None where they are wider than 16 bits.
        inner_state: The inner transformation's state.
    """

    master: ArrayTree
    inner_state: OptState


@jax.jit
def _current(p: Any, master: Any) -> Any:
    """The master where it rounds to p; p where it was changed from outside, or is infinite."""
    old = p.astype(jnp.float32)
    return jnp.where((nearest(master, p.dtype) == old) & jnp.isfinite(old), master, old)


@jax.jit
def _followed(u: Any, p: Any, master: Any) -> tuple[Any, Any]:
    new = master + u.astype(jnp.float32)
    return landing(p, nearest(new, p.dtype)), new


@transformation
def master_weights(inner: Transform) -> Pair:
    r"""Optimize float32 copies of 16-bit parameters, which follow them, rounded.

    .. math::

        w_{t+1} = w_t + u(w_t, g_t), \qquad p_{t+1} = \mathrm{rn}(w_{t+1}), \quad w_0 = p_0

    The inner transformation sees the float32 weights as parameters and the gradients in float32.
    What returns for a 16-bit parameter is the float32 difference to the next one, which any
    `apply_updates` lands on, optax's included. It goes around the whole optimizer: nothing may
    change the updates afterwards. Wider parameters, and complex ones, have no copy, and the
    inner transformation sees them as they are.

    Where a parameter is no longer its rounded copy at the next step, since it was changed from
    outside, the copy begins anew at it, element by element.

    Args:
        inner: The optimizer.

    State: `MasterWeightsState`, four bytes a parameter and the inner state.

    Raises:
        ValueError: At `update`, if it is called without params.

    References:
        Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740, section 3.1.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> tx = lowbit.master_weights(adaptax.sgd(1e-3))
    >>> w = jnp.array(1.0, jnp.bfloat16)
    >>> state = tx.init(w)
    >>> for _ in range(100):  # 1 - 1e-3 alone rounds to 1
    ...     updates, state = tx.update(jnp.array(1.0, jnp.bfloat16), state, w)
    ...     w = adaptax.apply_updates(w, updates)
    >>> w, state.master
    (Array(0.898438, dtype=bfloat16), Array(0.9000013, dtype=float32))
    """
    node = node_of(inner)

    def seen(params: Any, master: Any) -> Any:
        """The parameters with their copies in their places."""
        return jax.tree.map(
            lambda p, m: p if m is None else m, params, master, is_leaf=_tree.is_none
        )

    def init(params: Any) -> MasterWeightsState:
        master = jax.tree.map(lambda p: p.astype(jnp.float32) if is_narrow(p) else None, params)
        return MasterWeightsState(master, node.init(seen(params, master)))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if not isinstance(state, MasterWeightsState):
            raise _checks.wrong_state("master_weights", "MasterWeightsState", state)

        def prepare(_: Any, g: Any, p: Any, m: Any) -> tuple[Any, Any]:
            return g.astype(jnp.float32), _current(p, m)

        def leaf(_: Any, u: Any, p: Any, m: Any) -> tuple[Any, Any]:
            return _followed(u, p, m)

        slots = {"master": state.master}
        wide, master = each_narrow("master_weights", prepare, updates, params, slots)
        new, inner_state = node.update(wide, state.inner_state, seen(params, master), **extra_args)
        new, master = each_narrow("master_weights", leaf, new, params, {"master": master})
        return new, MasterWeightsState(master, inner_state)

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else state.inner_state)}

    return Pair(init, update, parts, lands=True)
