"""Arguments as they are written in a call."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_default(value: Any, default: Any) -> bool:
    """Whether an argument need not be written."""
    if value is None or default is None:
        return value is default  # a dtype of float64 == None, says numpy
    arrays = any(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(value))
    return not arrays and bool(value == default)


def spelled(value: Any) -> str:
    """An argument as text that makes it, as far as there is such text."""
    if isinstance(value, np.dtype):
        return repr(value.name)
    concrete = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    if concrete and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"jnp.array({np.asarray(value).tolist()}, {value.dtype.name!r})"
    if inspect.isfunction(value):
        return value.__qualname__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {spelled(v)}" for k, v in value.items()) + "}"
    if type(value) is tuple:
        return "(" + ", ".join(map(spelled, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
