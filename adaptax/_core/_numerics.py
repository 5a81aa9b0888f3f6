"""Arithmetic that keeps its digits: decays near one, averages, norms, counts."""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

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


def average(x: Any, mean: Any, decay: Any, infinite: Literal["", "+", "±"] = "±") -> Any:
    """One step of an exponential average, b·mean + (1 - b)·x.

    Computed as mean + (1 - b)·(x - mean), whose error near b = 1 does not add up over the steps;
    for b below one half as x - b·(x - mean), which is x where b is 0. In this form an infinite
    mean would become NaN, inf - inf, unless it is kept out of the difference.

    Args:
        x: What is averaged, real or complex.
        mean: The average before.
        decay: b, a number or a `Decay`.
        infinite: The infinities that the mean may reach and then stays at. Each sign costs an
            operation. Squares have "+"; where what is infinite has been lost anyway, "".
    """
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(mean):
        parts = (average(part(x), part(mean), decay, infinite) for part in (jnp.real, jnp.imag))
        return jax.lax.complex(*parts)
    complement = jnp.asarray(Decay.of(decay).complement)
    slow, dtype = complement <= 0.5, jnp.result_type(x, mean)
    x, mean = jnp.asarray(x, dtype), jnp.asarray(mean, dtype)
    # Not jnp.where, a function of its own that XLA would inline again for each leaf.
    nearer, other = jax.lax.select(slow, mean, x), jax.lax.select(slow, x, mean)
    largest = np.asarray(jnp.finfo(dtype).max, dtype)
    start = nearer if not infinite else jax.lax.min(nearer, largest)
    start = jax.lax.max(start, -largest) if infinite == "±" else start
    return nearer + jax.lax.select(slow, complement, 1 - complement) * (other - start)


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


@jax.custom_jvp
def root(x: Any) -> Any:
    """√x, whose derivative at 0 is taken to be 0.

    As a norm has it there. And where √ν divides an average of gradients, both are 0 for an entry
    that has seen no gradient yet, and the slope of the quotient is that of the average over ε.
    """
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    y = root(*primals)
    zero = y == 0
    return y, jnp.where(zero, 0, 0.5 / jnp.where(zero, 1, y)) * tangents[0]


@jax.custom_jvp
def quotient(x: Any, y: Any) -> Any:
    """x / y, whose derivatives do not overflow where 1 / y² does."""
    return x / y


@quotient.defjvp
def _quotient_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, y), (dx, dy) = primals, tangents
    z = quotient(x, y)
    return z, (dx - z * dy) / y


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


def bounded(x: Any, largest: float | None = None) -> Any:
    """x within ± a number, by default the largest finite one (complex x by parts). NaN stays."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(bounded(x.real, largest), bounded(x.imag, largest))
    most = np.asarray(jnp.finfo(x.dtype).max if largest is None else largest, x.dtype)
    return jax.lax.clamp(-most, x, most)


def saturated(x: Any, terms: int = 1) -> Any:
    """x, clipped where finite, so that the squares of `terms` entries add up without overflow.

    For one entry of float32 the bounds are ± 2⁶³ (9e18). Infinities stay, so that they are seen.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(*(saturated(part, terms) for part in (x.real, x.imag)))
    largest = 2.0 ** (jnp.finfo(x.dtype).maxexp // 2 - 1) / math.sqrt(max(terms, 1))
    return jax.lax.select(jax.lax.is_finite(x), bounded(x, largest), x)


def narrowed(x: Any, dtype: Any) -> Any:
    """Cast to a dtype of storage; what is too large for it becomes its largest number."""
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).max < jnp.finfo(x.dtype).max:
        x = bounded(x, float(jnp.finfo(dtype).max))
    return x.astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def fold(reduce: Callable[[Any], Any], scalars: Sequence[Any]) -> Any:
    """The sum (or all, or any) of a scalar of each leaf, one or more.

    64 at a time, behind barriers. Of a plain sum XLA makes a chain, and then one kernel with all
    that the scalars are computed from. For the norm of 400 leaves it took 6 s to compile, for
    that of 1600 leaves 76 s.
    """
    while len(scalars) > 1:
        stacks = [jnp.stack(scalars[i : i + 64]) for i in range(0, len(scalars), 64)]
        scalars = [reduce(jax.lax.optimization_barrier(stack)) for stack in stacks]
    return scalars[0]


@functools.partial(jax.jit, static_argnames="finite")
def _sum_of_squares(x: Any, scale: Any, finite: bool) -> Any:
    x = widen(x, compute_dtype(x.dtype))
    x = widen(bounded(x) if finite else x, scale.dtype)
    parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)
    return sum((jnp.sum(jnp.square(scale * part)) for part in parts), jnp.zeros_like(scale))


@functools.partial(jax.jit, static_argnames="finite")
def scaled_norm(
    arrays: Sequence[Any], finite: bool = False
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A power of two, and the 2-norm of all entries of all arrays when multiplied by it.

    Float32 or wider. One pass over the data where the plain sum of squares neither overflows nor
    underflows, with the factor 1; else another one with a factor that keeps it from doing so.

    Args:
        arrays: The arrays.
        finite: Count an infinite entry as the largest finite number, of float32 or wider.
    """
    arrays = [a for a in arrays if a.size]
    real = compute_dtype(*(a.dtype for a in arrays))
    one = jnp.ones((), real)
    if not arrays:
        return one, jnp.zeros((), real)

    def total(scale: Any, finite: bool) -> Any:
        return fold(jnp.sum, [_sum_of_squares(a, scale, finite) for a in arrays])

    plain = total(one, False)
    tiny = np.asarray(np.finfo(real).tiny / np.finfo(real).eps, real)
    fits = (jnp.isfinite(plain) & (plain > tiny)) | jnp.isnan(plain)
    power = 80.0 if real == np.float32 else 600.0  # squares in range for all of the dtype
    # It depends on the data, so that XLA does not square it at compile time, which underflows.
    scale = jnp.where(plain > 1, 2.0**-power, 2.0**power).astype(real)
    scale = jnp.where(fits, one, scale)
    squares = jax.lax.cond(fits, lambda: plain, lambda: total(scale, finite))
    return scale, root(squares)


@jax.jit
def norm(arrays: Sequence[Any]) -> Float[Array, ""]:
    """The 2-norm of all entries of all arrays together, in float32 or wider.

    It neither overflows nor underflows where the result does not.
    """
    scale, scaled = scaled_norm(arrays)
    return scaled / scale


def root_mean_square(x: Any) -> Any:
    """√(mean |x|²); 0 for an array without entries."""
    return root(jnp.sum(abs_sq(x)) / max(x.size, 1))
