"""The optimizers that are judged, and what they are judged against: one plain table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from ... import _core, lowbit
from ...optimizers._adam import adam, adamw
from ...optimizers._lion import lion
from ...optimizers._rms import rmsprop

FLOAT32, EIGHT, FOUR, SIXTEEN, CHANCE = (
    "float32",
    "8-bit state",
    "4-bit state",
    "16-bit parameters",
    "chance",
)
TRAINING = ("char", "digits")
QUADRATICS = ("quadratic",)
EVERYWHERE = (*QUADRATICS, *TRAINING)
BF16 = (*EVERYWHERE, "stall")

LIMITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        EIGHT: {"char": 0.005, "digits": 0.005, "quadratic": 0.02},
        FOUR: {"char": 0.015, "digits": 0.015, "quadratic": 0.10},
        SIXTEEN: {"char": 0.005, "digits": 0.005, "stall": 0.005},
    }
)
"""How far the loss may lie from the baseline's, relative to it."""


@dataclass(frozen=True)
class Candidate:
    """An optimizer of the page.

    Attributes:
        name: Unique.
        make: `learning_rate -> transformation`; AttributeError where adaptax does not have it.
        group: Of `LIMITS`, or "float32" or "chance".
        baseline: The name of the candidate that it is compared with; its own, if it is one.
        param_dtype: Of the parameters.
        nudge: A relative change of the initial parameters.
        problems: The names of the problems that it is run on.
    """

    name: str
    make: Callable[[Any], Any]
    group: str
    baseline: str
    param_dtype: Any = jnp.float32
    nudge: float = 0.0
    problems: tuple[str, ...] = EVERYWHERE


def _rmsprop(learning_rate: Any) -> Any:
    return rmsprop(learning_rate, decay=0.99)


def _adamw(learning_rate: Any) -> Any:
    return adamw(learning_rate, weight_decay=0.1)


def _low(name: str, **kwargs: Any) -> Callable[[Any], Any]:
    """An optimizer of `adaptax.lowbit`, found when it is made."""
    return lambda learning_rate: getattr(lowbit, name)(learning_rate, **kwargs)


def _rounded(name: str, inner: Callable[[Any], Any] = adam) -> Callable[[Any], Any]:
    """Adam, with a rounding of `adaptax.lowbit` at the end."""
    return lambda learning_rate: _core.chain(inner(learning_rate), getattr(lowbit, name)())


def _master(learning_rate: Any) -> Any:
    # Not by attribute: what is not there yet is found out when it is made.
    wrapper = getattr(lowbit, "master_weights")  # noqa: B009
    return wrapper(adam(learning_rate))


def _sixteen(name: str, make: Callable[[Any], Any]) -> Candidate:
    return Candidate(name, make, SIXTEEN, "adam", jnp.bfloat16, problems=BF16)


def _nudged(size: float) -> Candidate:
    name = f"adam, nudged by {size:g}"
    return Candidate(name, adam, CHANCE, "adam", nudge=size, problems=TRAINING)


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("adam", adam, FLOAT32, "adam", problems=BF16),
    Candidate("rmsprop", _rmsprop, FLOAT32, "rmsprop"),
    Candidate("lion", lion, FLOAT32, "lion"),
    Candidate("adamw", _adamw, FLOAT32, "adamw", problems=("digits",)),
    _nudged(1e-7),
    _nudged(1e-3),
    Candidate("adam8bit", _low("adam8bit"), EIGHT, "adam"),
    Candidate("rmsprop8bit", _low("rmsprop8bit", decay=0.99), EIGHT, "rmsprop"),
    Candidate("lion8bit", _low("lion8bit"), EIGHT, "lion"),
    Candidate(
        "adamw8bit", _low("adamw8bit", weight_decay=0.1), EIGHT, "adamw", problems=("digits",)
    ),
    Candidate("adam4bit", _low("adam4bit"), FOUR, "adam"),
    _sixteen("adam, plain", adam),
    _sixteen("adam, stochastic rounding", _rounded("stochastic_rounding")),
    _sixteen("adam, kahan", _rounded("kahan")),
    _sixteen("adam, ulp correction", _rounded("ulp_correction")),
    _sixteen("adam, master weights", _master),
    _sixteen("adam8bit, stochastic rounding", _rounded("stochastic_rounding", _low("adam8bit"))),
)
