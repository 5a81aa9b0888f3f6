"""What the table shows: optimizers and trees of parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ... import adam, adamw, chain, clip_by_global_norm, lion, rmsprop, sgd
from .. import _problems

# Each new row of the table is one line here. The first is what estimated cycles are relative to.
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: adam(1e-3),
    "adamw": lambda: adamw(1e-3),
    "rmsprop": lambda: rmsprop(1e-3),
    "lion": lambda: lion(1e-4),
    "sgd-momentum": lambda: sgd(1e-2, momentum=0.9),
    "clip-adamw": lambda: chain(clip_by_global_norm(1.0), adamw(1e-3)),
}


def _one(*shape: int) -> Callable[[], Any]:
    return lambda: {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}


def _vectors() -> Any:
    return [jax.ShapeDtypeStruct((768,), jnp.float32) for _ in range(600)]


TREES: dict[str, Callable[[], Any]] = {
    "4096x4096": _one(4096, 4096),
    "768x50257": _one(768, 50257),
    "12x768x3072": _one(12, 768, 3072),
    "gpt2": _problems.gpt2,
    "600x768": _vectors,
}
