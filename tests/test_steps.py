"""Steps with state in few bits are as long as in float32, from the first one on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax
from adaptax import lowbit

WINDOWS = ((0, 20), (20, 100), (100, 400), (1000, 1400))

GRADIENTS: dict[str, Any] = {
    "constant": lambda t, noise: 1.0,
    "growing": lambda t, noise: jnp.exp(np.float32(np.log(1.003)) * t),
    "decaying": lambda t, noise: jnp.exp(np.float32(np.log(0.997)) * t),
    "noisy": lambda t, noise: 0.3 + noise,
}
# Each with its twin, and how far the mean step may be from that of the twin.
PAIRS: dict[str, tuple[Any, Any, float]] = {
    "adam8bit": (lowbit.adam8bit(1.0), adaptax.adam(1.0), 0.01),
    "rmsprop8bit, 0.9": (lowbit.rmsprop8bit(1.0, 0.9), adaptax.rmsprop(1.0, 0.9), 0.01),
    "rmsprop8bit, 0.99": (lowbit.rmsprop8bit(1.0, 0.99), adaptax.rmsprop(1.0, 0.99), 0.01),
    "rmsprop8bit, 0.999": (lowbit.rmsprop8bit(1.0, 0.999), adaptax.rmsprop(1.0, 0.999), 0.01),
    "adam4bit": (lowbit.adam4bit(1.0), adaptax.adam(1.0), 0.05),
    "lion8bit": (lowbit.lion8bit(1.0), adaptax.lion(1.0), 0.01),
}


def steps(txs: Any, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """For each step, transformation and scale the mean of the update and of its magnitude."""
    params = {"w": jnp.zeros(shape)}
    scales = np.logspace(-6, 1, shape[0]).astype(np.float32)[:, None]

    def step(states: Any, t: Any) -> Any:
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), params["w"].shape)
        g = scales * GRADIENTS[kind](t.astype(jnp.float32), noise) * jnp.ones_like(params["w"])
        new, means = [], []
        for tx, state in zip(txs, states, strict=True):
            u, state = tx.update({"w": g}, state, params)
            new.append(state)
            means.append(jnp.stack([jnp.mean(-u["w"], 1), jnp.mean(jnp.abs(u["w"]), 1)]))
        return new, jnp.stack(means)

    states = [tx.init(params) for tx in txs]
    run = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(WINDOWS[-1][1]))[1])
    return np.asarray(run(states), np.float64)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_mean_steps(kind):
    """In each window, the mean over scales of seven decades."""
    far: dict[Any, float] = {}
    by_row = ["adam4bit", "lion8bit"]  # whose rows have 128 entries, of one scale
    for shape, names in (((256, 64), [n for n in PAIRS if n not in by_row]), ((48, 128), by_row)):
        out = steps([tx for n in names for tx in PAIRS[n][:2]], kind, shape)
        for i, name in enumerate(names):
            # A step of Lion is a sign: of that, the mean.
            which = 0 if name == "lion8bit" else 1
            for start, end in WINDOWS:
                small, wide = (out[start:end, 2 * i + j, which].mean(0) for j in (0, 1))
                off = np.mean(small / wide) - 1
                if abs(off) > PAIRS[name][2]:
                    far[name, start] = off
    assert not far
