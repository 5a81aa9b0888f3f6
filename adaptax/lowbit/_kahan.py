"""Kahan compensation: what a 16-bit parameter could not take is kept for the next step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import ArrayTree, Pair, _checks, transformation
from ._narrow import each_narrow, is_narrow, nearest


class KahanState(NamedTuple):
    """The state of `kahan`.

    Attributes:
        compensation: What the parameters have too much, like them; None where they are wider
            than 16 bits.
    """

    compensation: ArrayTree


@jax.jit
def _compensated(u: Any, p: Any, c: Any) -> tuple[Any, Any]:
    y = u.astype(jnp.float32) - c.astype(jnp.float32)
    x = p.astype(jnp.float32) + y  # the very sum that `apply_updates` rounds
    over = nearest(nearest(x, p.dtype) - x, c.dtype)
    over = jnp.where(jnp.isfinite(over), over, 0)  # infinite parameters have nothing to give back
    return y, over.astype(c.dtype)


@transformation
def kahan() -> Pair:
    r"""Add updates to 16-bit parameters with Kahan's compensated summation.

    .. math::

        y_t = u_t - c_t, \qquad p_{t+1} = \mathrm{rn}(p_t + y_t), \qquad
        c_{t+1} = \mathrm{rn}\big(p_{t+1} - (p_t + y_t)\big), \quad c_0 = 0

    rn rounds to nearest in the parameter's dtype; the rest is float32. The compensation is at most
    half of the parameter's last place, and has 8 significant bits itself (float16: 11), so that
    updates below 2⁻¹⁷ of a parameter are lost again (float16: 2⁻²³, or 2⁻²⁵ itself where that is
    more); `ulp_correction` and `stochastic_rounding` lose none of those.

    The last link of a chain. What it returns for a 16-bit parameter is y, in float32, with which
    any `apply_updates` lands on the next one, optax's included. Nothing may change the updates
    afterwards. Wider parameters, and complex ones, take their updates as they are.

    Parameters that were changed from outside between two steps go on from where they are, less
    the old compensation: half of the last place of what they were.

    State: `KahanState`, two bytes a parameter. NaN and infinite parameters have no compensation.

    Raises:
        ValueError: At `update`, if it is called without params.

    References:
        Kahan, "Further remarks on reducing truncation errors", 1965.
        Zamirai et al., "Revisiting BFloat16 Training", 2020, arXiv:2010.06192, section 3.2. There
        every operation is rounded to 16 bits; and c is (p' - p) - y, which is this but for the
        rounding of p + y to float32.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> tx = adaptax.chain(adaptax.sgd(1e-3), lowbit.kahan())
    >>> w = jnp.array(1.0, jnp.bfloat16)
    >>> state = tx.init(w)
    >>> for _ in range(100):  # 1 - 1e-3 alone rounds to 1
    ...     updates, state = tx.update(jnp.array(1.0), state, w)
    ...     w = adaptax.apply_updates(w, updates)
    >>> w
    Array(0.898438, dtype=bfloat16)
    """

    def init(params: Any) -> KahanState:
        return KahanState(
            jax.tree.map(lambda p: jnp.zeros_like(p) if is_narrow(p) else None, params)
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if not isinstance(state, KahanState):
            raise _checks.wrong_state("kahan", "KahanState", state)

        def leaf(_: Any, u: Any, p: Any, c: Any) -> tuple[Any, Any]:
            return _compensated(u, p, c)

        slots = {"compensation": state.compensation}
        updates, compensation = each_narrow("kahan", leaf, updates, params, slots)
        return updates, KahanState(compensation)

    return Pair(init, update, lands=True)
