"""A byte under the last place: 16-bit parameters with 24 bits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._core import ArrayTree, Pair, _checks, safe_increment, transformation
from ._dither import dither
from ._narrow import (
    bits_of,
    cut,
    each_narrow,
    float_of,
    is_narrow,
    lift_of,
    nearest,
)
from ._rounding import Seed, leaf_seed


class UlpCorrectionState(NamedTuple):
    """The state of `ulp_correction`.

    Attributes:
        count: Steps done, int32 ().
        correction: The parameters' next eight bits, int8, like them; None where they are wider
            than 16 bits.
    """

    count: Int[Array, ""]
    correction: ArrayTree


# Floats of one sign lie in the order of their bits, and so do floats with eight bits more. The byte
# counts those from the parameter, away from zero; from zero itself, by its sign.


def joined(p: Any, r: Any) -> Any:
    """The float32 number that a 16-bit one and its byte are."""
    info = jnp.finfo(p.dtype)
    tiny = np.float32(info.tiny)
    wide, r = p.astype(jnp.float32), r.astype(jnp.int32)
    size, zero = jnp.abs(wide), wide == 0
    negative = jnp.where(zero, r < 0, wide < 0)
    r = jnp.where(zero, jnp.abs(r), r)
    lift = lift_of(size, (size < tiny) | ((size == tiny) & (r < 0)), p.dtype)
    steps = (r << (15 - info.nmant)).astype(jnp.uint32)
    size = float_of(bits_of(size + lift) + steps) - lift
    return jnp.where(jnp.isfinite(wide), jnp.where(negative, -size, size), wide)


def byte_of(x: Any, dtype: Any) -> Any:
    """What of a float32 number its nearest 16-bit one leaves."""
    info = jnp.finfo(dtype)
    q = nearest(x, dtype)
    raised = x + lift_of(x, jnp.abs(x) < np.float32(info.tiny), dtype)
    # The power of two that is 1 / raised or less; zero for the largest, which have no byte then.
    scale = float_of(np.uint32(254 << 23) - (bits_of(raised) & np.uint32(255 << 23)))
    r = jnp.round((x - q) * scale * np.float32(2 ** (info.nmant + 8)))
    r = jnp.clip(jnp.where((x < 0) & (q != 0), -r, r), np.float32(-128), np.float32(127))
    return jnp.where(jnp.isfinite(q), r, 0).astype(jnp.int8)


@jax.jit
def _corrected(count: Any, seed: Any, u: Any, p: Any, r: Any) -> tuple[Any, Any]:
    old = p.astype(jnp.float32)
    x = joined(p, r) + u.astype(jnp.float32)
    random = dither(count, p.shape, seed)
    # Nowhere in the middle between two 16-bit numbers, also after a sum's rounding.
    x = jnp.where(jnp.isfinite(x), cut(x, p.dtype, random, more=8, mark=True) - old, x)
    # From the very sum that `apply_updates` rounds: the byte fits to it, and XLA computes it once.
    return x, byte_of(old + x, p.dtype)


@transformation
def ulp_correction(seed: Seed = 0) -> Pair:
    r"""Keep the next eight bits of 16-bit parameters: 24-bit numbers in 16 bits and a byte.

    .. math::

        x_t = p_t + \frac{r_t}{256}\,\mathrm{ulp}(p_t), \qquad
        x_{t+1} = \mathrm{SR}(x_t + u_t), \qquad p_{t+1} = \mathrm{rn}(x_{t+1})

    with r in [-128, 127], and r = 0 at first; below a power of two, where numbers are twice as
    dense, the last place counts half. p is x rounded to nearest in its dtype, ties away from
    zero. x has 16 significant bits (float16: 19), and is rounded to them stochastically, with
    expectation :math:`x_t + u_t`: rounding to nearest would lose updates below 2⁻¹⁷ of a
    parameter, such as there are at the end of a schedule. The sum is float32, so that those below
    2⁻²⁵ are lost, as they are to float32 parameters. The noise of a step is 2⁻⁸ of that of
    `stochastic_rounding`.

    The last link of a chain. What it returns for a 16-bit parameter is what is between it and the
    next x, in float32, with which any `apply_updates` lands on the next parameter, optax's
    included. Nothing may change the updates afterwards. Wider parameters, and complex ones, take
    their updates as they are. There is no key to carry; see `stochastic_rounding`.

    Parameters that were changed from outside between two steps go on from where they are, with the
    byte that they have: at most half of their last place. NaN and infinities stay, and their byte
    is zero. So is that of bfloat16 parameters above 2¹²⁷ and below 2⁻¹¹¹, which is no more than a
    rounding to nearest.

    Args:
        seed: Another seed rounds otherwise, >= 0.

    State: `UlpCorrectionState`, one byte a parameter.

    Raises:
        ValueError: At `update`, if it is called without params.

    References:
        The idea of a byte beside the parameter is that of "FlashOptim", 2026, arXiv:2602.23349.
        Here it is the low byte of a longer float instead of a scaled difference, so that nothing
        is lost but in the one rounding.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> tx = adaptax.chain(adaptax.sgd(1e-3), lowbit.ulp_correction())
    >>> w = jnp.array(1.0, jnp.bfloat16)
    >>> state = tx.init(w)
    >>> for _ in range(100):  # 1 - 1e-3 alone rounds to 1
    ...     updates, state = tx.update(jnp.array(1.0), state, w)
    ...     w = adaptax.apply_updates(w, updates)
    >>> w
    Array(0.898438, dtype=bfloat16)
    """

    def init(params: Any) -> UlpCorrectionState:
        correction = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.int8) if is_narrow(p) else None, params
        )
        return UlpCorrectionState(jnp.zeros((), jnp.int32), correction)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if not isinstance(state, UlpCorrectionState):
            raise _checks.wrong_state("ulp_correction", "UlpCorrectionState", state)
        count = safe_increment(state.count)

        def leaf(i: Any, u: Any, p: Any, r: Any) -> tuple[Any, Any]:
            return _corrected(count, leaf_seed(seed, i), u, p, r)

        slots = {"correction": state.correction}
        updates, correction = each_narrow("ulp_correction", leaf, updates, params, slots)
        return updates, UlpCorrectionState(count, correction)

    return Pair(init, update, lands=True)
