"""The narrow valley: which α each method can take, and how far it travels across for it.

The loss is ½(x² + 50 y²), a valley along x that is fifty times steeper across, in y. Each
mini-batch has its minimum a little beside the true one, so its gradient is H(w - ξ) with ξ random:
the noise is largest in the steep direction, as it is in a real network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, stack

import adaptax

CURVATURE = np.array([1.0, 50.0], np.float32)
START = np.array([-10.0, 1.0], np.float32)
NOISE = 0.1
STEPS = 300
ARRIVED = 1.0  # |x| below this: nine tenths of the way along the valley

METHODS: dict[str, Callable[[float], adaptax.GradientTransformation]] = {
    "gradient descent": lambda a: adaptax.sgd(a),
    "momentum": lambda a: adaptax.sgd(a, momentum=0.9),
    "RMSprop": lambda a: adaptax.rmsprop(a),
    "Adam": lambda a: adaptax.adam(a),
}


def loss(w: Any) -> Any:
    """The height above the floor of the valley."""
    return 0.5 * (CURVATURE * w**2).sum(-1)


@jax.jit
def descend(txs: Any, keys: jax.Array) -> jax.Array:
    """The paths of all settings on all seeds, (settings, seeds, steps + 1, 2)."""

    def path(tx: Any, key: jax.Array) -> jax.Array:
        def step(carry: Any, key: jax.Array) -> Any:
            w, state = carry
            grad = CURVATURE * (w - NOISE * jax.random.normal(key, (2,)))
            updates, state = tx.update(grad, state, w)
            w = adaptax.apply_updates(w, updates)
            return (w, state), w

        w = jnp.asarray(START)
        _, ws = jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, STEPS))
        return jnp.concatenate([w[None], ws])

    return jax.vmap(jax.vmap(path, (None, 0)), (0, None))(txs, keys)


class Ride(NamedTuple):
    """One method at one α; numbers are means over the seeds, until the arrival."""

    alpha: float
    path: np.ndarray  # of one seed
    steps: float
    across: float  # Σ|Δy|
    along: float  # Σ|Δx|
    turns: float  # the fraction of steps that reverse the one before, in y


class Rides(NamedTuple):
    """One method at its largest safe α, and at the α that arrives when gradient descent does."""

    largest: Ride
    paced: Ride


def _ride(alpha: float, paths: np.ndarray, arrivals: np.ndarray) -> Ride:
    moves = [np.diff(p[: n + 1], axis=0) for p, n in zip(paths, arrivals, strict=True)]
    along, across = np.mean([np.abs(m).sum(0) for m in moves], 0)
    turns = np.mean([(m[1:, 1] * m[:-1, 1] < 0).mean() if len(m) > 1 else 0.0 for m in moves])
    path = paths[0, : arrivals[0] + 1]
    return Ride(alpha, path, float(arrivals.mean()), float(across), float(along), float(turns))


def explore(*, settings: int, seeds: int, done: Callable[[], None]) -> dict[str, Rides]:
    """Try a fine logarithmic range of α with each method, and keep the two of `Rides`.

    RMSprop and Adam don't diverge on a quadratic: they end up swinging with an amplitude of
    about α. So "safe" is the same for all methods, and asks for more than a bounded path: on
    every seed the loss never exceeds the one at the start, and it ends (the mean of the last
    tenth of the steps, over all seeds) below 1 % of it. The α's of gradient descent and RMSprop
    have different units, so the steps to arrive are compared as well.
    """
    alphas = np.geomspace(1e-3, 10, settings)
    keys = jax.random.split(jax.random.key(0), seeds)
    found: dict[str, Rides] = {}
    pace = None
    for name, method in METHODS.items():
        paths = np.asarray(descend(stack([method(a) for a in alphas]), keys))
        with np.errstate(over="ignore", invalid="ignore"):  # the unsafe ones overflow
            heights = loss(paths)
            safe = (heights <= heights[..., :1]).all((1, 2))
            safe &= heights[..., -STEPS // 10 :].mean((1, 2)) < 0.01 * loss(START)
            there = np.abs(paths[..., 0]) < ARRIVED
        arrivals = np.where(there.any(-1), there.argmax(-1), STEPS)
        steps = np.where(safe, arrivals.mean(1), np.inf)
        largest = int(np.flatnonzero(safe).max())
        pace = steps[largest] if pace is None else pace
        paced = int(np.abs(steps - pace).argmin())
        rides = [_ride(alphas[i], paths[i], arrivals[i]) for i in (largest, paced)]
        found[name] = Rides(*rides)
        done()
    return found


def claims(rides: dict[str, Rides]) -> list[Claim]:
    """What the lecture says of the valley."""
    gd, momentum, rms, adam = (rides[name] for name in METHODS)
    return [
        Claim(
            "On mini-batches, gradient descent zigzags across a narrow valley",
            f"{gd.largest.turns:.0%} of its steps reverse the one before, in y; it travels "
            f"{gd.largest.across:.1f} across for {gd.largest.along:.1f} along",
            gd.largest.turns > 0.5 and gd.largest.across > gd.largest.along,
        ),
        Claim(
            "RMSprop damps the steep direction",
            f"arriving in as many steps ({rms.paced.steps:.0f}), it travels "
            f"{rms.paced.across:.1f} across; gradient descent {gd.paced.across:.1f}",
            rms.paced.across < gd.paced.across / 2,
        ),
        Claim(
            "so that a larger α is safe",
            f"up to {rms.largest.alpha:.2g} against {gd.largest.alpha:.2g}; there it arrives in "
            f"{rms.largest.steps:.0f} steps against {gd.largest.steps:.0f}",
            rms.largest.alpha > gd.largest.alpha and rms.largest.steps < gd.largest.steps,
        ),
        Claim(
            "Adam adds momentum, which averages the zigzag out",
            f"arriving in as many steps ({adam.paced.steps:.0f}), it travels "
            f"{adam.paced.across:.1f} across; RMSprop {rms.paced.across:.1f}, momentum alone "
            f"{momentum.paced.across:.1f}",
            adam.paced.across < rms.paced.across,
        ),
    ]
