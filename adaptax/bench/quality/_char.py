"""A character transformer, 1.1 M parameters, on the documentation inside Python."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._train import Task

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CLASSES = len(CHARACTERS) + 1
"""Printable ASCII; whatever else occurs shares one last class."""
HEADS = 4
HELD_OUT = 6
"""Every sixth paragraph is for validation."""


@cache
def text() -> tuple[np.ndarray, np.ndarray]:
    """Training and validation text as classes: paragraphs of `pydoc_data.topics`, each once."""
    from pydoc_data.topics import topics

    code = {c: i for i, c in enumerate(CHARACTERS)}
    # A dict keeps one of equal paragraphs: what is held out does not occur in the training text.
    pieces = list(dict.fromkeys(p for name in sorted(topics) for p in topics[name].split("\n\n")))

    def classes(chosen: list[str]) -> np.ndarray:
        return np.array([code.get(c, CLASSES - 1) for c in "\n\n".join(chosen)], np.int32)

    held_out = pieces[::HELD_OUT]
    rest = [piece for i, piece in enumerate(pieces) if i % HELD_OUT]
    return classes(rest), classes(held_out)


def init(key: Any, width: int, depth: int, context: int) -> dict[str, Any]:
    """The parameters, matrices in (inputs, outputs) order."""
    keys = iter(jax.random.split(key, 3 + 4 * depth))

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Array:
        return jax.random.normal(next(keys), (rows, columns)) * (scale / np.sqrt(rows))

    def block() -> dict[str, Any]:
        out = 1 / np.sqrt(2 * depth)  # what a block adds to the stream starts small
        return {
            "norm1": jnp.ones(width),
            "attend": matrix(width, 3 * width),
            "project": matrix(width, width, out),
            "norm2": jnp.ones(width),
            "widen": matrix(width, 4 * width),
            "widen_bias": jnp.zeros(4 * width),
            "narrow": matrix(4 * width, width, out),
            "narrow_bias": jnp.zeros(width),
        }

    return {
        "embed": 0.02 * jax.random.normal(next(keys), (CLASSES, width)),
        "position": 0.02 * jax.random.normal(next(keys), (context, width)),
        "blocks": [block() for _ in range(depth)],
        "norm": jnp.ones(width),
        "out": matrix(width, CLASSES),
    }


def _norm(x: Array, scale: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale


def _attention(x: Array, block: dict[str, Any]) -> Array:
    n, t, width = x.shape
    qkv = (x @ block["attend"]).reshape(n, t, 3, HEADS, width // HEADS)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(width // HEADS))
    scores = jnp.where(np.tri(t, dtype=bool), scores, -1e30)
    mixed = (jax.nn.softmax(scores, -1) @ v).transpose(0, 2, 1, 3).reshape(n, t, width)
    return mixed @ block["project"]


@jax.numpy_rank_promotion("allow")
def logits(params: Any, x: Int[Array, "n t"]) -> Float[Array, "n t classes"]:
    """What comes next, in float32."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    x = params["embed"][x] + params["position"]
    for block in params["blocks"]:
        x = x + _attention(_norm(x, block["norm1"]), block)
        hidden = _norm(x, block["norm2"]) @ block["widen"] + block["widen_bias"]
        x = x + jax.nn.gelu(hidden) @ block["narrow"] + block["narrow_bias"]
    return _norm(x, params["norm"]) @ params["out"]


def loss(params: Any, windows: Int[Array, "n t_and_1"]) -> Float[Array, ""]:
    """The mean cross-entropy of the next character."""
    log_p = jax.nn.log_softmax(logits(params, windows[:, :-1]))
    return -jnp.take_along_axis(log_p, windows[:, 1:, None], -1).mean()


def task(
    *,
    width: int = 208,
    depth: int = 2,
    context: int = 64,
    size: int = 4,
    steps: int = 1500,
    every: int = 100,
    held_out: int = 60_000,
) -> Task:
    """The problem.

    Args:
        width: Of the residual stream.
        depth: Blocks.
        context: Characters in a window.
        size: Windows in a mini-batch.
        steps: Of training.
        every: Steps between two records.
        held_out: At most so many characters are for validation.
    """
    train, validation = text()
    train = jnp.asarray(train)
    rows = min(held_out, len(validation) - 1) // context
    within = np.arange(rows)[:, None] * context + np.arange(context + 1)
    per_batch = next(n for n in range(min(32, rows), 0, -1) if rows % n == 0)
    fixed = jnp.asarray(validation[within].reshape(-1, per_batch, context + 1))

    def batch(key: Any) -> Array:
        starts = jax.random.randint(key, (size, 1), 0, len(train) - context)
        return train[starts + jnp.arange(context + 1)[None]]

    def over(windows: Array) -> Callable[[Any], Array]:
        return lambda params: jax.lax.map(partial(loss, params), windows).mean()

    start = partial(init, width=width, depth=depth, context=context)
    few = fixed[:: max(len(fixed) // 4, 1)]
    return Task("char", start, loss, batch, over(fixed), over(few), steps, every)
