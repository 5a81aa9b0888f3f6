"""What telemetry costs: training steps with a probe, beside the same without."""

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from .. import telemetry
from . import _problems
from ._timing import Row, Settings, interleave, stopwatch

EVERY = 100


def network(width: int) -> Any:
    """The parameters of a perceptron with four hidden layers of one width."""
    keys = jax.random.split(jax.random.key(0), 5)
    return [
        {"kernel": jax.random.normal(key, (width, width)) / width**0.5, "bias": jnp.zeros(width)}
        for key in keys
    ]


def loss(params: Any, x: jax.Array) -> jax.Array:
    """How far from its input the network's output is."""
    *hidden, last = params
    y = x
    for layer in hidden:
        y = jnp.tanh(y @ layer["kernel"] + layer["bias"][None])
    return jnp.mean(jnp.square(y @ last["kernel"] + last["bias"][None] - x))


def probe(settings: Settings) -> list[Row]:
    """A hundred training steps of adamw on 1.3 M parameters, one of which a probe measures."""
    width, batch = (16, 8) if settings.quick else (512, 1024)
    ours, optax = _problems.libraries()
    x = jax.random.normal(jax.random.key(1), (batch, width))
    runs = {
        "adaptax": (ours, telemetry.probe(ours.make("adamw", 1e-3), EVERY)),
        "bare": (ours, ours.make("adamw", 1e-3)),
        "optax": (optax, optax.make("adamw", 1e-3)),
    }

    def run(library: Any, tx: Any) -> Any:
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params, x), state, params)
            return library.apply_updates(params, updates), state

        donating = jax.jit(step, donate_argnums=(0, 1))
        carry = network(width), tx.init(network(width))

        def hundred() -> Any:
            nonlocal carry
            for _ in range(EVERY):
                carry = donating(*carry)
            return carry

        return stopwatch(hundred)

    measurements = {name: run(*one) for name, one in runs.items()}
    samples = interleave(measurements, settings.few, settings.tick)
    pairs = zip(samples["adaptax"], samples.pop("bare"), strict=True)
    ratio = statistics.median(mine / bare for mine, bare in pairs)
    note = f"{ratio:.3f} of the time without the probe (median of the rounds)"
    name = f"probe every {EVERY}, adamw, {_problems.count(network(width)) / 1e6:.1f} M parameters"
    return [Row(name, f"{EVERY} steps", "ms", samples, note=note)]
