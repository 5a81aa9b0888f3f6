"""Many learning rates: one sweep, beside the same runs one after the other."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import sweep
from . import _problems
from ._problems import Library
from ._timing import Measurement, Row, Settings, interleave, stopwatch

BATCH, HIDDEN = 64, 64
BUILT, FEW = 2, 8
"""How many of the runs are built and compiled anew in a sample, and how many are loops."""


def digits() -> tuple[Any, Any]:
    """A network with one hidden layer, 4810 numbers, and scikit-learn's digits.

    The digits come as a function of the step that draws a mini-batch.
    """
    with _problems.needing_extra():
        from sklearn.datasets import load_digits
    pixels, classes = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(classes, jnp.int32)
    rng = np.random.default_rng(0)
    params = {
        "w1": jnp.asarray(rng.standard_normal((64, HIDDEN)) / 8, jnp.float32),
        "b1": jnp.zeros(HIDDEN),
        "w2": jnp.asarray(rng.standard_normal((HIDDEN, 10)) / 8, jnp.float32),
        "b2": jnp.zeros(10),
    }

    def batches(step: Any) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), step)
        rows = jax.random.randint(key, (BATCH,), 0, len(labels))
        return images[rows], labels[rows]

    return params, batches


def cross_entropy(params: Any, batch: Any) -> jax.Array:
    """The loss of the network."""
    images, labels = batch
    hidden = jnp.tanh(images @ params["w1"] + params["b1"][None])
    logits = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"][None])
    return -jnp.take_along_axis(logits, labels[:, None], 1).mean()


def step_of(library: Library, learning_rate: Any) -> tuple[Any, Any]:
    """The transformation, and a training step `((params, state), batch) -> (carry, loss)`."""
    tx = library.make("adam", learning_rate)

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, state = carry
        loss, grads = jax.value_and_grad(cross_entropy)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (library.apply_updates(params, updates), state), loss

    return tx, step


def scan(library: Library, batches: Any, steps: int) -> Any:
    """A new jitted function `(learning_rate, params) -> losses`: a whole run as a scan."""

    def train(learning_rate: Any, params: Any) -> Any:
        tx, step = step_of(library, learning_rate)
        carry = params, tx.init(params)
        return jax.lax.scan(lambda c, i: step(c, batches(i)), carry, jnp.arange(steps))[1]

    return jax.jit(train)


def loop(library: Library, batches: Any, steps: int) -> Any:
    """A function like `scan`'s that calls one jitted step again and again, as most scripts do."""

    def one(learning_rate: Any, carry: Any, i: Any) -> Any:
        return step_of(library, learning_rate)[1](carry, batches(i))

    jitted = jax.jit(one, donate_argnums=1)

    def train(learning_rate: Any, params: Any) -> Any:
        params = jax.tree.map(jnp.copy, params)
        carry, losses = (params, library.make("adam", 1e-3).init(params)), []
        for i in range(steps):
            carry, loss = jitted(learning_rate, carry, np.int32(i))
            losses.append(loss)
        return losses

    return train


def digits_sweep(settings: Settings) -> list[Row]:
    """64 learning rates of adam: one sweep, and 64 runs one after the other.

    A run is a scan, or a loop over a jitted step as most scripts have it. "Compiled": the sweep's
    program and the one of all runs are there already. "Built": each run traces and compiles its
    program, with its learning rate in it. "Anew": the sweep does so too. What is measured for a
    few of the runs is extrapolated to all.
    """
    count, steps = (4, 28) if settings.quick else (64, 560)
    params, batches = digits()
    rates = np.geomspace(1e-4, 1.0, count).astype(np.float32)
    ours, optax = _problems.libraries()
    tx = ours.make("adam", 1e-3)

    def swept() -> Any:
        results = sweep.run(
            *(tx, {"learning_rate": rates}, cross_entropy, params, batches),
            **{"steps": steps, "progress": False},
        )
        return results.losses

    def anew() -> float:
        jax.clear_caches()
        return stopwatch(swept)()

    def runs(make: Any, library: Library, some: int, new: bool = False) -> Measurement:
        train = make(library, batches, steps)

        def measure() -> float:
            start = time.perf_counter()
            for rate in rates[:some]:
                run = make(library, batches, steps) if new else train
                jax.block_until_ready(run(rate, params))
            return (time.perf_counter() - start) * count / some

        return measure

    few, built = min(FEW, count), min(BUILT, count)
    compiled = {
        "sweep": stopwatch(swept),
        "scans": runs(scan, optax, count),
        "own": runs(scan, ours, count),
        "loops": runs(loop, optax, few),
        "built": runs(scan, optax, built, new=True),
    }
    timed = interleave(compiled, settings.few, settings.tick)
    timed["anew"] = interleave({"anew": anew}, settings.few, settings.tick)["anew"]
    own = float(np.median(np.divide(timed["own"], timed["sweep"])))
    scans = f"{count} scans with adaptax take {own:.2f} times the sweep's time"
    few_built = f"those of optax extrapolated from {built} that were built and compiled"
    name = f"sweep adam, {count} learning rates, {steps} steps"

    def row(quantity: str, one: str, runs: str, note: str) -> Row:
        samples = {"adaptax": timed[one], "optax": timed[runs]}
        return Row(name, quantity, "ms", samples, note=note)

    return [
        row("sweep, compiled / scans, compiled", "sweep", "scans", scans),
        row("sweep, compiled / loops, compiled", "sweep", "loops", f"optax's from {few} runs"),
        row("sweep, compiled / scans, built", "sweep", "built", few_built),
        row("sweep, anew / scans, built", "anew", "built", few_built),
    ]
