"""A convolutional network, 86 thousand parameters, on scikit-learn's handwritten digits."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _problems
from ._train import Task

CLASSES = 10
SMOOTHING = 0.1
"""Of the training labels, so that the validation loss does not go to zero, nor to confidence."""

Images = Float[Array, "n 8 8 1"]


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 images, (n, 8, 8, 1) in [0, 1], and their classes, shuffled once."""
    with _problems.needing_extra():
        from sklearn.datasets import load_digits
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))
    images = (pixels / 16).reshape(-1, 8, 8, 1)
    return images[order].astype(np.float32), classes[order].astype(np.int32)


def init(key: Any, channels: int, hidden: int) -> dict[str, Any]:
    """Two convolutions, the second with stride 2, and two linear layers."""
    keys = iter(jax.random.split(key, 4))
    flat = 4 * 4 * 2 * channels

    def weight(*shape: int) -> Array:
        inputs = int(np.prod(shape[:-1]))
        return jax.random.normal(next(keys), shape) * np.float32(np.sqrt(2 / inputs))

    return {
        "conv1": {"w": weight(3, 3, 1, channels), "b": jnp.zeros(channels)},
        "conv2": {"w": weight(3, 3, channels, 2 * channels), "b": jnp.zeros(2 * channels)},
        "hidden": {"w": weight(flat, hidden), "b": jnp.zeros(hidden)},
        "out": {"w": weight(hidden, CLASSES), "b": jnp.zeros(CLASSES)},
    }


def _patches(x: Array, stride: int) -> Array:
    """The 3x3 surroundings of every pixel, or of every other, as (n, rows, columns, 9 channels).

    A convolution is then a matrix product, whose gradient is many times faster on a CPU.
    """
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(3) for j in range(3)]
    near = [x[:, i : i + rows : stride, j : j + columns : stride] for i, j in places]
    return jnp.concatenate(near, -1)


@jax.numpy_rank_promotion("allow")
def log_probabilities(params: Any, x: Images) -> Float[Array, "n classes"]:
    """Of the ten digits, in float32."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    for name, stride in (("conv1", 1), ("conv2", 2)):
        w = params[name]["w"]
        near = _patches(x, stride)
        x = jax.nn.silu(near @ w.reshape(-1, w.shape[-1]) + params[name]["b"])
    x = x.reshape(len(x), -1)
    x = jax.nn.silu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jax.nn.log_softmax(x @ params["out"]["w"] + params["out"]["b"])


def task(
    *,
    channels: int = 32,
    hidden: int = 64,
    size: int = 128,
    steps: int = 600,
    every: int = 30,
    trained: int = 897,
    noise: float = 0.3,
) -> Task:
    """The problem.

    Args:
        channels: Of the first convolution; the second has twice as many.
        hidden: Units between the convolutions and the classes.
        size: Images in a mini-batch.
        steps: Of training.
        every: Steps between two records.
        trained: So many images are for training, the rest for validation.
        noise: The standard deviation of what is added to the pixels in training.
    """
    images, classes = data()
    x, y = jnp.asarray(images[:trained]), jnp.asarray(classes[:trained])
    held_x, held_y = jnp.asarray(images[trained:]), jnp.asarray(classes[trained:])
    soft = jax.nn.one_hot(y, CLASSES) * (1 - SMOOTHING) + SMOOTHING / CLASSES

    def batch(key: Any) -> tuple[Array, Array]:
        rows, pixels = jax.random.split(key)
        chosen = jax.random.randint(rows, (size,), 0, trained)
        return x[chosen] + noise * jax.random.normal(pixels, (size, 8, 8, 1)), soft[chosen]

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        return -(batch[1] * log_probabilities(params, batch[0])).sum(-1).mean()

    def validate(params: Any) -> Array:
        return -jnp.take_along_axis(log_probabilities(params, held_x), held_y[:, None], 1).mean()

    def start(key: Any) -> dict[str, Any]:
        return init(key, channels, hidden)

    return Task("digits", start, loss, batch, validate, validate, steps, every)
