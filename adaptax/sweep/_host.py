"""Lanes on the host: numpy arrays that can be taken apart, put together, and written to a file."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Layout:
    """The structure of a tree of stacked arrays, and how its leaves look on the host.

    Keys are there as their data. In a file each leaf is its bytes, for numpy's format has no
    16-bit floats that JAX would know again.

    Args:
        make: A function that makes such a tree; it is traced only.
        *args: Its arguments, arrays or their shapes.
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        self._structure: Any = None
        self._implementations: list[Any] = []

        def look(*args: Any) -> Any:
            leaves, self._structure = jax.tree.flatten(make(*args))
            self._implementations = [jax.random.key_impl(x) if is_key(x) else None for x in leaves]
            return [jax.random.key_data(x) if is_key(x) else x for x in leaves]

        self._leaves = jax.eval_shape(look, *args)

    @property
    def bytes(self) -> int:
        """The size of the whole."""
        return sum(x.size * x.dtype.itemsize for x in self._leaves)

    def to_host(self, tree: Any) -> list[np.ndarray]:
        """The leaves as numpy arrays."""
        leaves = jax.tree.leaves(tree)
        data = [jax.random.key_data(x) if is_key(x) else x for x in leaves]
        return [np.asarray(x) for x in jax.device_get(data)]

    def from_host(self, leaves: Sequence[np.ndarray]) -> Any:
        """The tree of such leaves."""
        return self._structure.unflatten(
            x if impl is None else jax.random.wrap_key_data(jnp.asarray(x), impl=impl)
            for x, impl in zip(leaves, self._implementations, strict=True)
        )

    def packed(self, leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The leaves as bytes, by names for a file."""
        return {f"leaf{i}": np.frombuffer(x.tobytes(), np.uint8) for i, x in enumerate(leaves)}

    def unpacked(self, data: Any, count: int) -> list[np.ndarray]:
        """The leaves of so many lanes from what `packed` made."""
        return [
            np.frombuffer(data[f"leaf{i}"].tobytes(), x.dtype).reshape(count, *x.shape[1:])
            for i, x in enumerate(self._leaves)
        ]


def take(leaves: Sequence[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Some lanes of these."""
    return [x[rows] for x in leaves]


def join(pieces: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The lanes of all pieces, one after the other."""
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def finite(leaves: Sequence[Any], lanes: int) -> np.ndarray:
    """For each lane whether all entries of these leaves are finite."""
    every = [
        np.isfinite(x).all(tuple(range(1, x.ndim)))
        for x in leaves
        if not is_key(x) and jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return np.all([np.ones(lanes, bool), *every], axis=0)


def is_key(x: Any) -> bool:
    """Whether an array is one of keys (`jax.random.key`)."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
