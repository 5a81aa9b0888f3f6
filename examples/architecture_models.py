"""The four architectures of architectures.py and their data: Flax NNX modules, real data."""

from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from sklearn.datasets import load_digits

Batch = tuple[Array, Array]  # inputs, and the class to predict: one an image, or one a character

# Printable ASCII; whatever else occurs (a few quotes and dashes) shares one last class.
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CLASSES = len(CHARACTERS) + 1


@dataclass(frozen=True)
class Problem:
    """A model to train, where its mini-batches come from, and how far to train it."""

    name: str
    model: nnx.Module
    batch: Callable[[Array], Batch]  # a random mini-batch, from a key
    target: float  # the training loss to reach

    def functional(self) -> tuple[nnx.State, Callable[[nnx.State, Batch], Array]]:
        """The model's parameters, and the mean cross-entropy as a function of them and a batch."""
        graph, params, rest = nnx.split(self.model, nnx.Param, ...)

        def loss(params: nnx.State, batch: Batch) -> Array:
            x, y = batch
            log_p = jax.nn.log_softmax(nnx.merge(graph, params, rest)(x))
            return -jnp.take_along_axis(log_p, y[..., None], -1).mean()

        return params, loss


class Perceptron(nnx.Module):
    """Two hidden layers on the pixels of an 8x8 image."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden1 = nnx.Linear(64, width, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: Float[Array, "n 8 8 1"]) -> Float[Array, "n 10"]:
        x = nnx.relu(self.hidden1(x.reshape(-1, 64)))
        return self.out(nnx.relu(self.hidden2(x)))


class Convolutional(nnx.Module):
    """Two 3x3 convolutions, the second with stride 2, and a linear layer."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(channels, 2 * channels, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(4 * 4 * 2 * channels, 10, rngs=rngs)

    def __call__(self, x: Float[Array, "n 8 8 1"]) -> Float[Array, "n 10"]:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.out(x.reshape(len(x), -1))


class Recurrent(nnx.Module):
    """A gated recurrent unit that reads characters and predicts the next one."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.width = width
        self.embed = nnx.Embed(CLASSES, width, rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(width, width, rngs=rngs), rngs=False)
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: Int[Array, "n t"]) -> Float[Array, "n t classes"]:
        start = jnp.zeros((len(x), self.width))
        states = self.rnn(self.embed(x), initial_carry=start)
        assert not isinstance(states, tuple)  # it is one with `return_carry` only
        return self.out(states)


class Block(nnx.Module):
    """Causal self-attention, then a feedforward layer, each added to what came in."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, width, decode=False, keep_rngs=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        causal = nnx.make_causal_mask(x[..., 0])
        x = x + self.attend(self.norm1(x), mask=causal)
        return x + self.narrow(nnx.gelu(self.widen(self.norm2(x))))


class Transformer(nnx.Module):
    """Blocks between an embedding of characters and positions and a linear layer."""

    def __init__(self, width: int, context: int, depth: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(CLASSES, width, rngs=rngs)
        self.position = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: Int[Array, "n t"]) -> Float[Array, "n t classes"]:
        x = self.embed(x) + self.position(jnp.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def digits(size: int) -> Callable[[Array], Batch]:
    """Mini-batches of scikit-learn's 1797 handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    x = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    y = jnp.asarray(labels, jnp.int32)

    def batch(key: Array) -> Batch:
        rows = jax.random.randint(key, (size,), 0, len(x))
        return x[rows], y[rows]

    return batch


def text(size: int, context: int) -> Callable[[Array], Batch]:
    """Mini-batches of windows of Python's own documentation, each with the next characters."""
    code = {c: i for i, c in enumerate(CHARACTERS)}
    # In order of the topics' names, so that the text is the same on every run.
    joined = "\n".join(topics[name] for name in sorted(topics))
    ids = jnp.asarray(np.array([code.get(c, CLASSES - 1) for c in joined], np.int32))

    def batch(key: Array) -> Batch:
        starts = jax.random.randint(key, (size, 1), 0, len(ids) - context)
        windows = ids[starts + jnp.arange(context + 1)]
        return windows[:, :-1], windows[:, 1:]

    return batch


def problems(quick: bool) -> list[Problem]:
    """The four problems. The targets are round numbers, the same for both models of a data set.

    Guessing costs ln 10 = 2.3 on the digits and ln 97 = 4.6 on the text.
    """
    width, context, depth = (16, 16, 1) if quick else (48, 32, 2)
    images, digit_target = digits(64), 0.5 if quick else 0.05
    characters, text_target = text(16, context), 3.1 if quick else 2.2

    @nnx.jit  # one compilation, where each initializer alone would have its own
    def models() -> tuple[nnx.Module, ...]:
        rngs = nnx.Rngs(0)
        return (
            Perceptron(width, rngs),
            Convolutional(width // 6, rngs),
            Recurrent(width, rngs),
            Transformer(width, context, depth, rngs),
        )

    mlp, cnn, gru, transformer = models()
    return [
        Problem("MLP", mlp, images, digit_target),
        Problem("CNN", cnn, images, digit_target),
        Problem("GRU", gru, characters, text_target),
        Problem("transformer", transformer, characters, text_target),
    ]
