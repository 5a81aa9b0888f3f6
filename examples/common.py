"""Shared by the examples: the handwritten digits, a small network, and a sweep as one program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import adaptax

LOSS, ACCURACY = 0.05, 0.97  # what a method is timed to: on the training and on the test set


class Claim(NamedTuple):
    """A sentence of the lecture, what was measured, and whether it held."""

    text: str
    measured: str
    held: bool


class Digits(NamedTuple):
    """Images as rows of 64 pixels from 0 to 1, and their labels."""

    images: jax.Array
    labels: jax.Array


class Split(NamedTuple):
    """The 1797 digits in three parts: 70 %, 15 % and 15 %."""

    train: Digits
    val: Digits
    test: Digits


def load_split() -> Split:
    """The digits, always split in the same way, with each label's share the same in all parts."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = partial(train_test_split, random_state=0)
    x, x_rest, y, y_rest = split(images, labels, test_size=0.3, stratify=labels)
    x_val, x_test, y_val, y_test = split(x_rest, y_rest, test_size=0.5, stratify=y_rest)
    parts = (x, y), (x_val, y_val), (x_test, y_test)
    return Split(*(Digits(jnp.asarray(images), jnp.asarray(labels)) for images, labels in parts))


def batches(key: jax.Array, count: int, size: int = 64) -> jax.Array:
    """The rows of each mini-batch of an epoch, shuffled; what doesn't fill a batch is left out."""
    return jax.random.permutation(key, count)[: count // size * size].reshape(-1, size)


def init(key: jax.Array) -> dict[str, jax.Array]:
    """A network with one hidden layer of 64 units, 4810 parameters in all."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, 64)) / 8,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(second, (64, 10)) / 8,
        "b2": jnp.zeros(10),
    }


def logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """What the network makes of some images, (n, 10)."""
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of -log p(label)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of images whose largest logit is the right one."""
    return (logits.argmax(-1) == labels).mean()


def stack(txs: Sequence[adaptax.GradientTransformation]) -> Any:
    """Transformations that differ in their numbers only, as one with arrays of numbers."""
    return jax.tree.map(lambda *numbers: jnp.stack(numbers), *txs)


class History(NamedTuple):
    """What a sweep records after each epoch: arrays (settings, epochs), the mean over seeds."""

    loss: np.ndarray
    val: np.ndarray
    test: np.ndarray


def best(history: History) -> int:
    """The setting with the highest validation accuracy, averaged over the epochs.

    The average rewards getting there early, and is less noisy than the accuracy at the end.
    """
    return int(history.val.mean(1).argmax())


TRACES = {"sweep": 0}  # counted while JAX traces, so once for each compiled program


@partial(jax.jit, donate_argnames=("params", "state"))
def _epoch(txs: Any, params: Any, state: Any, key: jax.Array, data: Split) -> Any:
    """One epoch of every setting and every seed."""
    TRACES["sweep"] += 1
    seeds = len(params["b1"][0])
    order = jax.vmap(partial(batches, count=len(data.train.labels)))(jax.random.split(key, seeds))

    def loss_fn(params: Any, batch: Digits) -> jax.Array:
        return cross_entropy(logits(params, batch.images), batch.labels)

    def score(params: Any, part: Digits) -> jax.Array:
        return accuracy(logits(params, part.images), part.labels)

    def run(
        tx: adaptax.GradientTransformation, params: Any, state: Any, order: jax.Array
    ) -> tuple[Any, Any, Any]:
        def step(carry: Any, rows: jax.Array) -> Any:
            params, state = carry
            batch = Digits(data.train.images[rows], data.train.labels[rows])
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (adaptax.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), order)
        return params, state, (losses.mean(), score(params, data.val), score(params, data.test))

    over_seeds = jax.vmap(run, (None, 0, 0, 0))
    params, state, scores = jax.vmap(over_seeds, (0, 0, 0, None))(txs, params, state, order)
    return params, state, [s.mean(1) for s in scores]


@partial(jax.jit, static_argnames="seeds")
def _start(txs: Any, key: jax.Array, seeds: int) -> Any:
    """The parameters and the state of every setting and every seed."""
    params = jax.vmap(init)(jax.random.split(key, seeds))
    state = jax.vmap(lambda tx: jax.vmap(tx.init)(params))(txs)
    settings = len(jax.tree.leaves(txs)[0])
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (settings, *x.shape)), params), state


def sweep(
    txs: Sequence[adaptax.GradientTransformation],
    data: Split,
    *,
    epochs: int,
    seeds: int,
    done: Callable[[], None],
) -> History:
    """Train once for each transformation and seed, all in one program; `done` after each epoch.

    A seed is a start of the network and an order of the data; all transformations have the same.
    """
    stacked = stack(txs)
    params, state = _start(stacked, jax.random.key(0), seeds)
    records = []
    for epoch in range(epochs):
        key = jax.random.key(1 + epoch)
        params, state, scores = _epoch(stacked, params, state, key, data)
        records.append(jax.device_get(scores))
        done()
    return History(*(np.stack(column, 1) for column in zip(*records, strict=True)))
