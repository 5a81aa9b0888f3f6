"""Inside `jax.shard_map`: what differs from device to device, and what devices decide together.

A state that all devices share has to stay the same on all of them. So what goes into it is about
the whole: a flag or a number is combined over those mesh axes over which it varies and the state's
own counter does not. Where the counter varies too, each device trains by itself and decides by
itself.

With `check_vma=False` the types say nothing. Decisions are then combined over all axes of the
`shard_map`, since that is right wherever devices work on one model; `each_alone` is for where they
do not.
"""

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from . import _numerics

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def each_alone(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with each device deciding for itself in what is traced inside."""

    @functools.wraps(f)
    def alone(*args: Any) -> Any:
        token = _alone.set(True)
        try:
            return f(*args)
        finally:
            _alone.reset(token)

    return alone


def varying(x: Any) -> frozenset[Any]:
    """The mesh axes over which an array differs from device to device, as its type says."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)  # of jax 0.10; else the type itself
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()


def _manual_axes() -> tuple[Any, ...]:
    return jax.sharding.get_abstract_mesh().manual_axes


def _axes() -> tuple[Any, ...]:
    """The mesh axes whose devices run this code side by side."""
    if _alone.get():
        return ()
    axes = _manual_axes()
    # A pmap without axis_name: nothing can be combined by name there, so devices are on their own.
    return tuple(axis for axis in axes if not str(axis).startswith("_internal"))


def _typed(axes: Sequence[Any]) -> bool:
    """Whether types say what varies (`check_vma`)."""
    return bool(varying(jax.lax.axis_index(axes[0])))


def _apart(x: Any, like: Any) -> tuple[Any, ...]:
    """The axes over which x may vary and `like` does not; a number of Python's never does."""
    axes = _axes()
    if not axes or not _typed(axes):
        return axes
    return tuple(axis for axis in axes if axis in varying(x) - varying(like))


def everywhere(flag: Any, like: Any) -> Any:
    """Whether a flag holds on all devices that share the number `like`."""
    axes = _apart(flag, like)
    return jax.lax.pmin(jnp.asarray(flag).astype(jnp.int32), axes) == 1 if axes else flag


def anywhere(flag: Any, like: Any) -> Any:
    """Whether a flag holds on any device that shares the number `like`."""
    axes = _apart(flag, like)
    return jax.lax.pmax(jnp.asarray(flag).astype(jnp.int32), axes) == 1 if axes else flag


def parted(x: Any, like: Any) -> tuple[Any, ...]:
    """The axes over which x is in parts, or computed from parts; none where types don't say."""
    axes = _axes()
    return _apart(x, like) if axes and _typed(axes) else ()


def total(x: Any, like: Any) -> Any:
    """The sum over the parts of an array, of a number x that was computed from each.

    Where types do not say whether these are parts or copies, that of this device.
    """
    axes = parted(x, like)
    return jax.lax.psum(x, axes) if axes else x


def mean(x: Any, like: Any) -> Any:
    """The mean on all devices that share the number `like`."""
    axes = _apart(x, like)
    return jax.lax.pmean(x, axes) if axes else x


def largest(x: Any, like: Any) -> Any:
    """The largest on all devices that share the number `like`; NaN if one of them is."""
    axes = _apart(x, like)
    return maximum(x, axes) if axes else x


def maximum(x: Any, axes: tuple[Any, ...]) -> Any:
    """The largest over some axes; NaN if one is, which `jax.lax.pmax` may drop."""
    peak = jax.lax.pmax(x, axes)
    if not jnp.issubdtype(peak.dtype, jnp.floating):
        return peak
    lost = jax.lax.pmax(jnp.isnan(x).astype(jnp.int32), axes) == 1
    return jnp.where(lost, jnp.asarray(jnp.nan, peak.dtype), peak)


def norm(arrays: Sequence[Any], like: Any) -> Any:
    """The 2-norm of all entries of arrays that may be parts of larger ones.

    Where types do not say whether they are parts or copies, the largest of the devices' norms.
    """
    groups = _by_axes(arrays, like)
    norms = [norm_of_parts(_numerics.norm(group), axes) for axes, group in groups.items()]
    whole = norms[0] if len(norms) == 1 else _numerics.norm(norms)
    return largest(whole, like)


def scaled_norm(arrays: Sequence[Any], finite: bool = False) -> tuple[Any, Any]:
    """`_numerics.scaled_norm` of arrays that may be parts of larger ones.

    Where types do not say whether they are parts or copies, that of this device.
    """
    groups = _by_axes(arrays, 0)
    if not any(groups):
        return _numerics.scaled_norm(arrays, finite)
    pairs = {axes: _numerics.scaled_norm(group, finite) for axes, group in groups.items()}
    scales = [
        jax.lax.pmin(jax.lax.stop_gradient(scale), axes) if axes else scale
        for axes, (scale, _) in pairs.items()
    ]
    common = functools.reduce(jnp.minimum, scales)
    parts = (norm_of_parts(n * (common / scale), axes) for axes, (scale, n) in pairs.items())
    return common, _numerics.norm(list(parts))


def _by_axes(arrays: Sequence[Any], like: Any) -> dict[tuple[Any, ...], list[Any]]:
    """Arrays by the axes over which they are in parts."""
    if not _axes():
        return {(): list(arrays)}
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for x in arrays:
        groups.setdefault(parted(x, like), []).append(x)
    return groups or {(): []}


def norm_of_parts(norm: Any, axes: tuple[Any, ...]) -> Any:
    """√Σ n² of the norms n of the parts over some axes; it does not overflow."""
    if not axes:
        return norm
    peak = jax.lax.pmax(jax.lax.stop_gradient(norm), axes)
    one = jnp.ones_like(peak)
    unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, one)
    squares = jax.lax.psum(jnp.square(norm / unit), axes)
    nothing = squares == 0
    return unit * jnp.where(nothing, 0 * one, jnp.sqrt(jnp.where(nothing, one, squares)))


def cond(proceed: Any, go: Callable[[], Any], stay: Callable[[], Any]) -> Any:
    """`jax.lax.cond`, whose results vary wherever one of the branches' or the condition does."""
    axes = _manual_axes()
    if not axes or not _typed(axes):
        return jax.lax.cond(proceed, go, stay)
    here = varying(proceed)
    wanted = jax.tree.map(
        lambda a, b: here | varying(a) | varying(b), jax.eval_shape(go), jax.eval_shape(stay)
    )

    def alike(branch: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.tree.map(_made_to_vary, branch(), wanted)

    return jax.lax.cond(proceed, alike(go), alike(stay))


def _made_to_vary(x: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(axes - varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
