"""What the table shows: optimizers and trees of parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ... import adam, adamw, chain, clip_by_global_norm, lion, lowbit, rmsprop, sgd
from .. import _problems
from ._blocked import blocked_adam8bit

VECTORS = "600x768"
LARGE = ("4096x4096", "768x50257", "12x768x3072", "gpt2")


@dataclass(frozen=True)
class Subject:
    """An optimizer of the table.

    Attributes:
        make: Makes it.
        dtype: Of parameters and gradients; None for the table's.
        trees: The trees it is shown on.
        targets: The targets it is shown on; None for all.
    """

    make: Callable[[], Any]
    dtype: str | None = None
    trees: tuple[str, ...] = (*LARGE, VECTORS)
    targets: tuple[str, ...] | None = None


def _stored(make: Callable[[], Any], dtype: str | None = None) -> Subject:
    """With slots in few bits: those of small leaves stay float32, as its twin's."""
    return Subject(make, dtype, LARGE)


def _narrow(make: Callable[[], Any]) -> Subject:
    return Subject(make, "bfloat16")


def _published() -> Any:
    """8-bit Adam with the published code book: a place in it is found by sorting all entries."""
    slots = {"mu": lowbit.dynamic_int8(), "nu": lowbit.dynamic_uint8()}
    return lowbit.store(adam(1e-3), slots)


# Each new row of the table is one line here. Estimated cycles are relative to the first.
OPTIMIZERS: dict[str, Subject] = {
    "adam": Subject(lambda: adam(1e-3)),
    "adamw": Subject(lambda: adamw(1e-3)),
    "rmsprop": Subject(lambda: rmsprop(1e-3)),
    "lion": Subject(lambda: lion(1e-4)),
    "sgd-momentum": Subject(lambda: sgd(1e-2, momentum=0.9)),
    "clip-adamw": Subject(lambda: chain(clip_by_global_norm(1.0), adamw(1e-3))),
    "adam8bit": _stored(lambda: lowbit.adam8bit(1e-3)),
    "adamw8bit": _stored(lambda: lowbit.adamw8bit(1e-3)),
    "rmsprop8bit": _stored(lambda: lowbit.rmsprop8bit(1e-3)),
    "lion8bit": _stored(lambda: lowbit.lion8bit(1e-4)),
    "adam4bit": _stored(lambda: lowbit.adam4bit(1e-3)),
    "blocked-adam8bit": _stored(lambda: blocked_adam8bit(1e-3)),
    # Sorting takes the compilers for TPUs more than two minutes for 512 x 1024 entries already.
    "published-adam8bit": Subject(_published, trees=LARGE[:1], targets=("h100",)),
    "bf16-adam": _narrow(lambda: adam(1e-3)),
    "bf16-adam8bit": _stored(lambda: lowbit.adam8bit(1e-3), "bfloat16"),
    "bf16-adam-stochastic": _narrow(lambda: chain(adam(1e-3), lowbit.stochastic_rounding())),
    "bf16-adam-kahan": _narrow(lambda: chain(adam(1e-3), lowbit.kahan())),
    "bf16-adam-ulp": _narrow(lambda: chain(adam(1e-3), lowbit.ulp_correction())),
    "bf16-adam-master": _narrow(lambda: lowbit.master_weights(adam(1e-3))),
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
    VECTORS: _vectors,
}


def shown(optimizer: str, tree: str, target: str) -> bool:
    """Whether the table has such a row."""
    subject = OPTIMIZERS[optimizer]
    return tree in subject.trees and (subject.targets is None or target in subject.targets)
