"""The trees of parameters that are measured, and the libraries that they are measured with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _core, catalog


@dataclass(frozen=True)
class Library:
    """A library of optimizers for JAX.

    Attributes:
        name: What it is imported as.
        make: `(optimizer, *args, **kwargs) -> transformation`.
        apply_updates: `(params, updates) -> params`.
    """

    name: str
    make: Callable[..., Any]
    apply_updates: Callable[[Any, Any], Any]

    def step(self, tx: Any) -> Any:
        """A new jitted function `(params, state, grads) -> (params, state)`; it donates both."""

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return self.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(0, 1))


@contextmanager
def needing_extra() -> Iterator[None]:
    """Name the extra to install where an import inside fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"adaptax.bench needs {error.name}: pip install 'adaptax[bench]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def libraries() -> list[Library]:
    """Adaptax, then optax.

    Raises:
        ModuleNotFoundError: Optax is not installed.
    """
    with needing_extra():
        import optax

    entries = {entry.name: entry.factory for entry in catalog.CATALOG}

    def ours(optimizer: str, *args: Any, **kwargs: Any) -> Any:
        return entries[optimizer](*args, **kwargs)

    def theirs(optimizer: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(optax, optimizer)(*args, **kwargs)

    return [
        Library("adaptax", ours, _core.apply_updates),
        Library("optax", theirs, optax.apply_updates),
    ]


def torch_or_none() -> Any:
    """The module `torch`, or None where it is not installed: its column stays empty."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    return torch


def floor_bytes(optimizer: str) -> float:
    """The least traffic of a float32 step, in bytes a parameter.

    Read p, g and the state, write p and the state.
    """
    entry = next(entry for entry in catalog.CATALOG if entry.name == optimizer)
    return 3 * 4.0 + 2 * entry.bytes_per_parameter


def _spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mixed(leaves: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Matrices and vectors in turn: nine shapes, as in a small transformer."""
    width = 32
    shapes = [
        (width, width),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (2 * width,),
        (2 * width, width),
    ]
    return {f"leaf_{i:04}": _spec(*s) for i, s in enumerate(islice(cycle(shapes), leaves))}


def small(leaves: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Many small leaves, (64, 64) and (64,) in turn."""
    return {f"leaf_{i:04}": _spec(*(64,) * (2 - i % 2)) for i in range(leaves)}


def single(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """One vector of this many entries."""
    return {"w": _spec(size)}


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Any:
    """GPT-2; by default the small one, 148 leaves and 124 M parameters."""

    def norm() -> dict[str, Any]:
        return {"w": _spec(width), "b": _spec(width)}

    def linear(rows: int, columns: int) -> dict[str, Any]:
        return {"w": _spec(rows, columns), "b": _spec(columns)}

    def block() -> dict[str, Any]:
        return {
            "ln_1": norm(),
            "attn": {"c_attn": linear(width, 3 * width), "c_proj": linear(width, width)},
            "ln_2": norm(),
            "mlp": {"c_fc": linear(width, 4 * width), "c_proj": linear(4 * width, width)},
        }

    return {
        "wte": _spec(vocabulary, width),
        "wpe": _spec(context, width),
        "h": [block() for _ in range(layers)],
        "ln_f": norm(),
    }


def count(tree: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def normal(tree: Any, seed: int, scale: float = 0.02) -> Any:
    """Float32 numpy arrays in the shapes of a tree, normally distributed."""
    rng = np.random.default_rng(seed)

    def fill(leaf: Any) -> np.ndarray:
        array = rng.standard_normal(leaf.shape, np.float32)
        array *= np.float32(scale)
        return array

    return jax.tree.map(fill, tree)
