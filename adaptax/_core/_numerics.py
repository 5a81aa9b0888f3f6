"""Arithmetic that keeps its digits: decays near one, averages, norms, counts."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

INT32_MAX = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decay:
    """A decay b in [0, 1) as the two numbers that rules need: 1 - b and log b.

    Near one, b itself has few digits left in float32 (0.9999 is off by 2e-4 of 1 - b). A Python
    float gives both numbers from its double. A traced b has only its float32 value: 1 - b is
    then exact (for b >= 1/2), and log b follows from it.
    """

    complement: Any
    log: Any

    @classmethod
    def of(cls, b: Any) -> "Decay":
        """Split a number; a `Decay` passes through."""
        if isinstance(b, Decay):
            return b
        if isinstance(b, float | int):
            return cls(1.0 - b, math.log(b) if b > 0 else -math.inf)
        complement = 1 - b
        # Below b = 2^-24 the log is that of 2^-24: bᵗ is still nothing, and its slope is finite.
        return cls(complement, jnp.log1p(-jnp.minimum(complement, 1 - 2**-24)))

    def root(self) -> "Decay":
        """√b, with 1 - √b = (1 - b) / (1 + √b)."""
        is_float = isinstance(self.complement, float)
        root = math.sqrt(self.value) if is_float else jnp.sqrt(self.value)
        return Decay(self.complement / (1.0 + root), 0.5 * self.log)

    @property
    def value(self) -> Any:
        """b itself, rounded."""
        return 1 - self.complement


def average(x: Any, mean: Any, decay: Any) -> Any:
    """One step of an exponential average, b·mean + (1 - b)·x.

    Computed as mean + (1 - b)·(x - mean), whose error near b = 1 does not add up over the steps;
    for b below one half as x - b·(x - mean), which is x where b is 0.
    """
    complement = Decay.of(decay).complement
    slow = complement <= 0.5
    nearer = jnp.where(slow, mean, x)
    return nearer + jnp.where(slow, complement, complement - 1) * (x - mean)


def weight(decay: Any, t: Any) -> Any:
    """1 - bᵗ, the weight that an exponential average has seen in t steps."""
    return -jnp.expm1(t * Decay.of(decay).log)


def debias(mean: Any, decay: Any, t: Any) -> Any:
    """Divide an average that began at zero by the weight that it has seen."""
    return mean / weight(decay, t)


def abs_sq(x: Any) -> Any:
    """|x|², real also for complex x."""
    if jnp.iscomplexobj(x):
        return jnp.square(jnp.real(x)) + jnp.square(jnp.imag(x))
    return jnp.square(x)


def compute_dtype(*dtypes: Any) -> np.dtype:
    """The real dtype in which a kernel computes: float32, or wider if an operand is."""
    wide = np.dtype(np.float32)
    for dtype in dtypes:
        if jnp.finfo(dtype).dtype == np.float64:  # finfo of a complex dtype is its real part's
            wide = np.dtype(np.float64)
    return wide


def mixing(*arrays: Any) -> AbstractContextManager[Any]:
    """Let real scalars meet complex arrays, also where the user has set strict promotion."""
    if any(jnp.iscomplexobj(x) for x in arrays):
        return jax.numpy_dtype_promotion("standard")
    return nullcontext()


def widen(x: Any, real: Any) -> Any:
    """Cast to the compute dtype, or to its complex counterpart."""
    if jnp.iscomplexobj(x):
        real = np.result_type(real, np.complex64)
    return jax.lax.convert_element_type(x, real)


@jax.jit
def safe_increment(count: Int[Array, "..."]) -> Int[Array, "..."]:
    """count + 1, staying at the largest int32 instead of wrapping."""
    return jnp.where(count < INT32_MAX, count + 1, count)


@jax.jit
def _sum_of_squares(x: Any, unit: Any) -> Any:
    with mixing(x):
        return jnp.sum(abs_sq(widen(x, unit.dtype) / unit))


@jax.jit
def _peak(x: Any) -> Any:
    return jnp.max(jnp.abs(widen(x, compute_dtype(x.dtype))))


@jax.jit
def norm(arrays: Sequence[Any]) -> Float[Array, ""]:
    """The 2-norm of all entries of all arrays together, in float32 or wider.

    One pass over the data where the plain sum of squares neither overflows nor underflows; two
    more, scaled by the largest entry, where it does.
    """
    arrays = [a for a in arrays if a.size]
    real = compute_dtype(*(a.dtype for a in arrays))
    plain = sum((_sum_of_squares(a, jnp.ones((), real)) for a in arrays), jnp.zeros((), real))

    def rescaled() -> Any:
        peak = jnp.max(jnp.stack([_peak(a).astype(real) for a in arrays]))
        # 0, inf and nan are their own norms; the unit 1 keeps the division out of their way.
        unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, jnp.ones((), real))
        return unit * jnp.sqrt(sum(_sum_of_squares(a, unit) for a in arrays))

    if not arrays:
        return plain
    tiny = np.asarray(np.finfo(real).tiny / np.finfo(real).eps, real)
    return jax.lax.cond(jnp.isfinite(plain) & (plain > tiny), lambda: jnp.sqrt(plain), rescaled)


def root_mean_square(x: Any) -> Any:
    """√(mean |x|²); 0 for an array without entries."""
    return jnp.sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))
