"""The noisy quadratic: 131,072 coordinates over three decades of curvature, in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ... import _core

SHAPES = {"matrix": (256, 512), "vector": (131_072,)}
LOW, DECADES = 1e-2, 3
LEARNING_RATE = 1e-2
"""Of Adam and RMSprop; the start is scaled to what it leaves of the noise."""
STEPS, EVERY = 2000, 10
POOL = 2**22

Layout = Literal["sorted", "shuffled"]
Noise = Literal["curvature", "root"]
Shape = Literal["matrix", "vector"]


@dataclass(frozen=True)
class Stationary:
    """What the loss of a noisy quadratic does, for each seed.

    Attributes:
        decades: The loss of the coordinates in each decade of curvature, the flattest first: after
            every `EVERY` steps. Their sum is the loss.
    """

    decades: Float[np.ndarray, "seeds records decades"]

    @property
    def curve(self) -> Float[np.ndarray, "seeds records"]:
        """The loss after every `EVERY` steps."""
        return self.decades.sum(-1)

    @cached_property
    def loss(self) -> Float[np.ndarray, " seeds"]:
        """The stationary loss: a mean over the last third."""
        return self.stationary_decades.sum(-1)

    @cached_property
    def stationary_decades(self) -> Float[np.ndarray, "seeds decades"]:
        """The stationary loss of each decade of curvature."""
        return self.decades[:, -(self.decades.shape[1] // 3) :].mean(1)

    @cached_property
    def area(self) -> Float[np.ndarray, " seeds"]:
        """The mean loss over the first tenth, while it falls: less is faster."""
        return self.curve[:, : max(self.curve.shape[1] // 10, 1)].mean(1)


def compare(one: Any, baseline: Any) -> tuple[float, float]:
    """The mean ratio of results paired by seed, and its standard error."""
    ratios = np.asarray(one) / np.asarray(baseline)
    error = ratios.std(ddof=1) / np.sqrt(ratios.size) if ratios.size > 1 else np.nan
    return float(ratios.mean()), float(error)


def curvatures(layout: Layout, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """h, evenly spread in its logarithm over 1e-2 to 10; along the array, or shuffled."""
    n = int(np.prod(shape))
    h = LOW * 10.0 ** (DECADES * (np.arange(n) + 0.5) / n)
    if layout == "shuffled":
        h = np.random.default_rng(0).permutation(h)
    return h.reshape(shape).astype(np.float32)


def stationary(
    tx: Any,
    *,
    layout: Layout = "shuffled",
    noise: Noise = "curvature",
    shape: Shape = "matrix",
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    param_dtype: Any = jnp.float32,
    optimum: float = 0.0,
) -> Stationary:
    r"""Minimize a noisy quadratic from three times the spread that Adam leaves.

    .. math::

        L(w) = \frac{1}{2n} \sum_i h_i (w_i - w^*_i)^2, \qquad
        g = h (w - w^*) + s \xi, \quad \xi \sim N(0, 1), \quad s = h \text{ or } \sqrt h

    With s = h the second moments span six decades, and Adam takes 1 / learning rate steps to
    forget where it started, at every curvature. With s = √h they span three decades, as if the
    curvature were the gradients' covariance, and flat coordinates take up to ten times as long.
    Adam's second moment settles at s², so that w ends with the variance α s / (2 h), and the
    loss at the mean of α s / 4.

    The noise of a seed is the same for every transformation. Each step takes a window of a pool
    of 2²² normal numbers, at a random place and with a random sign. The gradient has the
    parameters' dtype; the loss is of the parameters as they are stored.

    Args:
        tx: A transformation.
        layout: Whether curvatures lie in order along the array, or shuffled.
        noise: "curvature" for s = h, "root" for s = √h.
        shape: "matrix" is one leaf (256, 512), "vector" one leaf (131072,).
        seeds: One run for each.
        steps: A multiple of `EVERY`.
        param_dtype: Of the parameters.
        optimum: `w*` is uniform in ±[optimum, 2 optimum]; 16-bit numbers are coarse there.
    """
    dims = SHAPES[shape]
    h = curvatures(layout, dims)
    s = h if noise == "curvature" else np.sqrt(h)
    spread = np.sqrt(LEARNING_RATE * s / (2 * h))
    decade = np.clip(np.floor(np.log10(h / LOW)), 0, DECADES - 1)
    # Row k picks the coordinates of decade k.
    rows = (decade.ravel() == np.arange(DECADES)[:, None]).astype(np.float32) * h.ravel()
    rows /= 2 * h.size

    def run(seed: Any, h: Any, s: Any, spread: Any, rows: Any) -> Any:
        draws, starts, signs = jax.random.split(jax.random.key(seed), 3)
        pool = jax.random.normal(draws, (POOL + h.size,))
        start = jax.random.normal(starts, h.shape)
        away = jax.random.uniform(signs, h.shape, minval=optimum, maxval=2 * optimum)
        best = jnp.where(start > 0, away, -away)
        params = {"w": (best + 3.0 * spread * start).astype(param_dtype)}

        def step(carry: Any, t: Any) -> tuple[Any, None]:
            params, state = carry
            key = jax.random.fold_in(draws, t)
            place = jax.random.randint(key, (), 0, 2 * POOL)
            xi = jax.lax.dynamic_slice(pool, (place // 2,), (h.size,)).reshape(h.shape)
            xi = jnp.where(place % 2 == 0, xi, -xi)
            w = params["w"].astype(jnp.float32)
            grads = {"w": (h * (w - best) + s * xi).astype(param_dtype)}
            updates, state = tx.update(grads, state, params)
            return (_core.apply_updates(params, updates), state), None

        def record(carry: Any, first: Any) -> tuple[Any, Any]:
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(EVERY))
            error = carry[0]["w"].astype(jnp.float32) - best
            return carry, rows @ jnp.square(error).ravel()

        carry = params, tx.init(params)
        return jax.lax.scan(record, carry, EVERY * jnp.arange(steps // EVERY))[1]

    def every(seeds: Any, *arrays: Any) -> Any:
        return jax.lax.map(lambda seed: run(seed, *arrays), seeds)

    decades = jax.jit(every)(jnp.asarray(seeds, jnp.uint32), h, s, spread, rows)
    return Stationary(np.asarray(decades))
