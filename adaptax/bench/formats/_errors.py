"""How far numbers lie from what becomes of them, rounded to nearest."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._subjects import Subject

DECADES = 7
BLOCK = 256
SHAPE = (128, 2048)
STEPS, B1, B2 = 200, 0.9, 0.99
UNIT = 1e-3  # of the gradients
Moments = tuple[np.ndarray, np.ndarray]


def by_decade(subject: Subject) -> list[float]:
    """The largest relative error in each decade below the reference, the nearest one first.

    In rows of 256 of which one entry is the reference itself.
    """
    found = []
    for decade in range(DECADES):
        exponents = -decade - (np.arange(32 * (BLOCK - 1)) + 0.5) / (32 * (BLOCK - 1))
        x = np.ones((32, BLOCK), np.float32)
        x[:, 1:] = (10.0**exponents).reshape(BLOCK - 1, 32).T  # each row covers the decade
        after = subject.round_trip(x * np.float32(subject.unit), np.ones_like(x)) / subject.unit
        found.append(float((np.abs(after - x) / x)[:, 1:].max()))
    return found


@cache
def moments(heavy: bool) -> Moments:
    """Averages of gradients and of their squares after 200 steps, float32 arrays of `SHAPE`.

    Args:
        heavy: Gradients of Student's t with 3 degrees of freedom, in units over three decades,
            shuffled; or normal, in one unit.
    """

    def draw(key: Any) -> Any:
        if not heavy:
            return jax.random.normal(key, SHAPE)
        top, *below = jax.random.normal(key, (4, *SHAPE))
        return top / jnp.sqrt(sum(jnp.square(z) for z in below) / 3)

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        mu, nu = carry
        g = units * draw(key)
        return (B1 * mu + (1 - B1) * g, B2 * nu + (1 - B2) * jnp.square(g)), None

    first, rest = jax.random.split(jax.random.key(0))
    spread = jax.random.uniform(first, SHAPE, minval=-3.0, maxval=0.0) if heavy else jnp.zeros(())
    units = jnp.float32(UNIT) * 10.0**spread
    zeros = jnp.zeros(SHAPE), jnp.zeros(SHAPE)
    run = jax.jit(lambda keys: jax.lax.scan(step, zeros, keys)[0])
    mu, nu = run(jax.random.split(rest, STEPS))
    return np.asarray(mu), np.asarray(nu)


def on_first_moments(subject: Subject, heavy: bool) -> dict[str, float]:
    """The error in the update: of m / √ν, relative to the root mean square of m / √ν.

    "worst" is the largest of all blocks of 256; "zeros" the part of nonzero entries that became 0.
    """
    mu, nu = moments(heavy)
    after = subject.round_trip(mu, nu)
    root = np.sqrt(nu.astype(np.float64))
    error, size = _blocks((after - mu) / root), _blocks(mu / root)
    rms = np.sqrt(np.mean(error**2) / np.mean(size**2))
    worst = np.sqrt((error**2).mean(1) / (size**2).mean(1)).max()
    zeros = ((after == 0) & (mu != 0)).mean()
    return {"rms": float(rms), "worst": float(worst), "zeros": float(zeros)}


def on_second_moments(subject: Subject, heavy: bool) -> dict[str, float]:
    """The root mean square of the relative error, and that of the worst block of 256.

    "zeros" is the part of positive entries that became 0, by whose root an update is divided.
    """
    _, nu = moments(heavy)
    after = subject.round_trip(nu, nu)
    squares = _blocks((after - nu) / nu.astype(np.float64)) ** 2
    zeros = ((after == 0) & (nu > 0)).mean()
    return {
        "rms": float(np.sqrt(squares.mean())),
        "worst": float(np.sqrt(squares.mean(1).max())),
        "zeros": float(zeros),
    }


def measure(subject: Subject) -> dict[str, Any]:
    """Everything that the page says of a format."""
    on = on_first_moments if subject.slot == "mu" else on_second_moments
    return {
        "name": subject.name,
        "slot": subject.slot,
        "source": subject.source,
        "reference": subject.reference,
        "bytes": subject.bytes,
        "octaves": subject.octaves,
        "an_octave": subject.an_octave,
        "decades": by_decade(subject),
        "gaussian": on(subject, False),
        "heavy": on(subject, True),
    }


def _blocks(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, BLOCK)
