"""Stochastic rounding: small steps of 16-bit parameters count on average; the state is a count."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._core import Pair, _checks, safe_increment, transformation
from .._core._kinds import StaticInt
from ._dither import dither
from ._narrow import each_narrow, landing, stochastic

Seed = Annotated[int, StaticInt(0)]


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`.

    Attributes:
        count: Steps done, int32 ().
    """

    count: Int[Array, ""]


@jax.jit
def _rounded(count: Any, seed: Any, u: Any, p: Any) -> Any:
    x = p.astype(jnp.float32) + u.astype(jnp.float32)
    return landing(p, stochastic(x, p.dtype, dither(count, p.shape, seed)))


@transformation
def stochastic_rounding(seed: Seed = 0) -> Pair:
    r"""Round 16-bit parameters up or down by chance, so that small steps are not lost.

    .. math::

        p_{t+1} = \mathrm{SR}(p_t + u_t), \qquad
        \mathrm{SR}(x) = \lceil x \rceil \text{ with probability }
        \frac{x - \lfloor x \rfloor}{\lceil x \rceil - \lfloor x \rfloor},
        \text{ else } \lfloor x \rfloor

    between x's neighbors in the parameter's dtype, so that :math:`E\,\mathrm{SR}(x) = x`. The sum
    is float32: updates below 2⁻²⁵ of a parameter are lost, as they are to float32 parameters. A
    rounding to nearest loses those below 2⁻⁹ (2⁻¹² in float16).

    The last link of a chain. What it returns for a 16-bit parameter is the float32 difference to
    the rounded one, which any `apply_updates` lands on, optax's included. Nothing may change the
    updates afterwards. Wider parameters, and complex ones, take their updates as they are.

    Whether to round up is computed from the seed, the step, the leaf's number and the element's
    index: there is no key to carry, a run can be repeated, and sharding changes nothing. Mapped
    with `jax.vmap`, all copies round alike.

    NaN and infinities stay. A sum above the dtype's largest number rounds to nearest, so that only
    one half a unit above becomes infinite. Below the smallest normal number of bfloat16, which is
    float32's, it is zero on most hardware.

    Args:
        seed: Another seed rounds otherwise, >= 0.

    State: `StochasticRoundingState`.

    Raises:
        ValueError: At `update`, if it is called without params.

    References:
        Zamirai et al., "Revisiting BFloat16 Training", 2020, arXiv:2010.06192, section 3.2.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> tx = adaptax.chain(adaptax.sgd(1e-3), lowbit.stochastic_rounding())
    >>> w = jnp.ones(1000, jnp.bfloat16)  # its neighbor below is 1 - 2**-8
    >>> updates, _ = tx.update(jnp.ones(1000), tx.init(w), w)
    >>> below = (adaptax.apply_updates(w, updates) < 1).mean()
    >>> abs(float(below) - 0.256) < 0.05  # on average they are 1 - 1e-3
    True
    """

    def init(params: Any) -> StochasticRoundingState:
        return StochasticRoundingState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if not isinstance(state, StochasticRoundingState):
            raise _checks.wrong_state("stochastic_rounding", "StochasticRoundingState", state)
        count = safe_increment(state.count)

        def leaf(i: Any, u: Any, p: Any) -> tuple[Any]:
            return (_rounded(count, leaf_seed(seed, i), u, p),)

        (updates,) = each_narrow("stochastic_rounding", leaf, updates, params)
        return updates, StochasticRoundingState(count)

    return Pair(init, update, lands=True)


def leaf_seed(seed: int, i: Any) -> Any:
    """The seed of one leaf, uint32 (), such that other seeds have other leaves' nowhere near."""
    return np.uint32((seed * 0x27D4EB2F + int(i)) % 2**32)
