"""Flax linen: the transformation in a `TrainState`, and what it takes to compile again.

A TrainState keeps `tx` in a static field: JAX compares it with the one that a step was compiled
for. Two adaptax transformations from equal calls are equal, so a TrainState made anew, with a
transformation made anew, runs the program that is there. Another α is another program; to change
numbers without a compilation, pass the transformation itself to the jitted function.

    python examples/train_state.py [--epochs 5]
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from common import Digits, accuracy, batches, cross_entropy, load_split
from flax import linen as nn
from flax.training.train_state import TrainState

import adaptax


class Perceptron(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(128)(images)))


MODEL = Perceptron()
TRACES = {"train_step": 0}


# The old state is donated: the new one takes over its memory.
@partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, batch: Digits) -> tuple[TrainState, jax.Array]:
    TRACES["train_step"] += 1  # this line runs while JAX traces, not when the program runs

    def loss_fn(params: dict[str, jax.Array]) -> jax.Array:
        return cross_entropy(state.apply_fn({"params": params}, batch.images), batch.labels)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def new_state(seed: int, alpha: float) -> TrainState:
    """Parameters, and a transformation, made anew."""
    params = MODEL.init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]
    return TrainState.create(apply_fn=MODEL.apply, params=params, tx=adaptax.adamw(alpha))


def train(state: TrainState, digits: Digits, epochs: int) -> TrainState:
    for epoch in range(epochs):
        for rows in batches(jax.random.key(epoch), len(digits.labels)):
            state, _ = train_step(state, Digits(digits.images[rows], digits.labels[rows]))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    epochs: int = parser.parse_args().epochs

    data = load_split()
    for seed, alpha in (0, 3e-3), (1, 3e-3), (2, 3e-3), (3, 1e-2):
        state = train(new_state(seed, alpha), data.train, epochs)
        logits = state.apply_fn({"params": state.params}, data.test.images)
        correct = accuracy(logits, data.test.labels)
        traces = TRACES["train_step"]
        print(f"start {seed}, {state.tx}: test accuracy {correct:.1%}; traces so far: {traces}")


if __name__ == "__main__":
    main()
