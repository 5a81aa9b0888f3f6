"""What several test modules need: counting traces, reading jaxprs, comparing structures."""

# pyright: reportArgumentType=false

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from adaptax._core._kinds import StaticInt, kind_of

PARAMS = {
    "b": np.array([0.5, -1.0, 2.0], np.float32),
    "w": np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3),
}
GRADS = {
    "b": np.array([0.25, 0.0, -3.0], np.float32),
    "w": np.cos(np.arange(12, dtype=np.float32)).reshape(4, 3),
}


def params(dtype: Any = jnp.float32) -> Any:
    """A vector "b" and a matrix "w", fresh arrays."""
    return jax.tree.map(lambda x: jnp.array(x, dtype), PARAMS)


def grads(dtype: Any = jnp.float32) -> Any:
    """Gradients of `params()`, fresh arrays."""
    return jax.tree.map(lambda x: jnp.array(x, dtype), GRADS)


def trajectory(tx: Any, p: Any, gradients: Any, **extra_args: Any) -> tuple[list[Any], Any]:
    """The updates for each of some gradients (parameters held), and the last state."""
    state, out = tx.init(p), []
    for g in gradients:
        u, state = tx.update(g, state, p, **extra_args)
        out.append(u)
    return out, state


class Traced:
    """A function that counts how often jax traces it."""

    def __init__(self, f: Callable[..., Any]):
        self.times = 0
        self._f = f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times += 1
        return self._f(*args, **kwargs)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list to which each compilation adds an item."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextmanager
def optax_rules() -> Iterator[None]:
    """Optax mixes dtypes; let it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def inner_jits(
    f: Callable[..., Any], *args: Any, entered_by: tuple[int, ...] | None = None
) -> list[str]:
    """The names of the jitted functions that f calls, one for each call.

    Among them are jax's own, which depend on its version. With `entered_by`, only those functions
    count that take an array of this shape.
    """
    calls = [e for e in jax.make_jaxpr(f)(*args).jaxpr.eqns if e.primitive.name in ("pjit", "jit")]
    if entered_by is not None:
        calls = [e for e in calls if entered_by in [jnp.shape(x.aval) for x in e.invars]]
    return [e.params["name"] for e in calls]


def skeleton(tree: Any) -> Any:
    """A state without its values: class names, field names, keys, shapes."""
    if hasattr(tree, "_fields"):
        return type(tree).__name__, {n: skeleton(getattr(tree, n)) for n in tree._fields}
    if isinstance(tree, Mapping):
        return type(tree).__name__, {k: skeleton(tree[k]) for k in sorted(tree)}
    if isinstance(tree, list | tuple):
        return type(tree).__name__, [skeleton(x) for x in tree]
    return None if tree is None else jnp.shape(tree)


def changed(parameter: inspect.Parameter) -> Any:
    """Another value than the default for an argument of a factory, or `parameter.empty`."""
    default, annotation = parameter.default, parameter.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    if "dtype" in parameter.name:
        return jnp.bfloat16
    if "mask" in parameter.name:
        return {"b": False, "w": True}
    if isinstance(default, bool):
        return not default
    if get_origin(annotation) is Literal:
        return next(o for o in get_args(annotation) if o != default)
    if isinstance(kind_of(annotation), StaticInt):
        return default + 1
    if isinstance(default, tuple):
        return tuple(0.5 * x for x in default)
    if isinstance(default, int | float):
        return 0.5 * default + 0.25
    return parameter.empty


def assert_same_bits(one: Any, other: Any, what: str = "trees") -> None:
    """Equal structures, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other), what
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        x, y = np.asarray(x), np.asarray(y)
        same = x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        assert same, f"{what} differ at {jax.tree_util.keystr(path)}: {x} against {y}"


def assert_close(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """Equal structures, nearly equal values."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(x, np.float64),
            np.asarray(y, np.float64),
            rtol,
            atol,
            err_msg=f"at {jax.tree_util.keystr(path)}",
        )
