"""Hyperparameters of a running training, read and set by name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import (
    Number,
    OptState,
    Transform,
    _checks,
    _hyper,
    boxed_like,
    node_of,
    unboxed,
)
from .._core._called import number_now
from .._core._value import TransformationKind, call_of
from ._inject import stateful


class _Found(NamedTuple):
    """A hyperparameter of a transformation that runs with a state."""

    one: _hyper.Numeric
    value: Any  # now
    holder: Any = None  # the state that keeps it, if one does
    scheduled: bool = False


def _found(tx: Any, state: Any, prefix: str = "") -> Iterator[_Found]:
    call = call_of(tx)
    if isinstance(getattr(state, "hyperparams", None), Mapping):  # ours, or optax's
        rest = {one.name: one for one in _hyper.arguments(tx)}
        foreign = {} if call is None else call.given.get("arguments", {})
        for name, stored in state.hyperparams.items():
            first = foreign.get(name, stored)
            one = rest.pop(name, _hyper.Numeric(name, first, "inject_hyperparams", name, _ANY))
            scheduled = name in getattr(state, "hyperparams_states", ())
            now = stored
            if callable(one.value):
                schedule = stateful(one.value)
                now = number_now(
                    one.function, one.argument, schedule, state.hyperparams_states[name]
                )
            yield _Found(one._replace(name=prefix + name), now, state, scheduled)
        mine, inside = rest.values(), {}
    elif call is None:
        return
    elif any(isinstance(kind, TransformationKind) for kind in call.factory.kinds.values()):
        parts = getattr(node_of(tx), "parts", None)
        mine, inside = _hyper.own_arguments(tx), {} if parts is None else parts(state)
    else:
        mine, inside = _hyper.arguments(tx), {}
    for one in mine:
        value = one.value
        if callable(value):
            value = number_now(one.function, one.argument, value, _clock(one, state))
        yield _Found(one._replace(name=prefix + one.name), value, None, callable(one.value))
    for part, (inner, inner_state) in inside.items():
        yield from _found(inner, inner_state, f"{prefix}{part}/" if part else prefix)


def _clock(one: _hyper.Numeric, state: Any) -> Any:
    """The step count nearest to the root of a state."""
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if path and getattr(path[-1], "name", None) in ("count", "gradient_step", "step"):
            counts.setdefault(len(path), leaf)
    if not counts:
        raise _checks.no_count(one.function, one.argument, state)
    return counts[min(counts)]


def hyperparams(tx: Transform, state: OptState) -> dict[str, Any]:
    """All hyperparameters of a running transformation by name, as the next update will use them.

    A schedule's value is that at the count in the state.

    Args:
        tx: The transformation; also a chain, groups, wrappers, or one of optax with
            `inject_hyperparams`.
        state: Its state.

    Returns:
        Numbers and scalar arrays by name, such as ``"learning_rate"``; in a chain
        ``"1/learning_rate"``; in groups ``"*/bias/learning_rate"``.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.chain(adaptax.clip(1.0), adaptax.sgd(adaptax.linear_schedule(1.0, 0.0, 4)))
    >>> {name: float(value) for name, value in hyperparams(tx, tx.init(jnp.ones(2))).items()}
    {'0/max_delta': 1.0, '1/learning_rate': 1.0}
    """
    tx = TransformationKind().canonical("hyperparams", "tx", tx)
    return {found.one.name: found.value for found in _found(tx, unboxed(state))}


def learning_rate(tx: Transform, state: OptState) -> Any:
    """The learning rate of the next update.

    Args:
        tx: The transformation; also a chain, groups, wrappers.
        state: Its state.

    Raises:
        ValueError: There is none, or several (groups); `hyperparams` lists all.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.chain(adaptax.clip(1.0), adaptax.adam(1e-3))
    >>> learning_rate(tx, tx.init(jnp.ones(2)))
    0.001
    """
    tx = TransformationKind().canonical("learning_rate", "tx", tx)
    every = list(_found(tx, unboxed(state)))
    names = [found.one.name for found in every]
    (i,) = _hyper.find("learning_rate", "learning_rate", names)
    return every[i].value


def set_hyperparams(
    tx: Transform,
    state: OptState,
    values: Mapping[str, Any] | None = None,
    /,
    **named: Any,
) -> OptState:
    """The state with other hyperparameters, for a training that goes on.

    Args:
        tx: A transformation that keeps them in its state: `adjustable`, `inject_hyperparams` or
            optax's, or a chain, groups or wrappers that hold one.
        state: Its state; it is not changed. The `opt_state` of a `flax.nnx.Optimizer` comes back
            in its boxes: `optimizer.opt_state = set_hyperparams(tx, optimizer.opt_state, ...)`.
        values: New numbers by name: the whole name as `hyperparams` lists it, a trailing part of
            one, or a glob for all that match, such as ``"*learning_rate"``.
        **named: The same by keyword.

    Raises:
        ValueError: A name is unknown or ambiguous; a number is outside its range; or the number
            is not kept in the state, or follows a schedule.
        TypeError: A value is not a number.
    """
    tx = TransformationKind().canonical("set_hyperparams", "tx", tx)
    bare = unboxed(state)
    every = list(_found(tx, bare))
    names = [found.one.name for found in every]
    changes: dict[int, tuple[Any, dict[str, Any]]] = {}
    for name, value in {**(values or {}), **named}.items():
        for i in _hyper.find("set_hyperparams", name, names):
            one, _, holder, scheduled = every[i]
            if holder is None or scheduled:
                raise _fixed(one.name, scheduled)
            if callable(value):
                raise _checks.wrong_kind("set_hyperparams", name, "a number", value)
            value = _checked(one, value)
            key = next(k for k in holder.hyperparams if ("/" + one.name).endswith("/" + k))
            old = jnp.asarray(holder.hyperparams[key])
            if jnp.ndim(value) and jnp.shape(value) != old.shape:
                wanted = f"a number or an array of shape {old.shape}"
                raise _checks.wrong_kind("set_hyperparams", name, wanted, value)
            new = jnp.broadcast_to(jnp.array(value, old.dtype), old.shape)
            changes.setdefault(id(holder), (holder, {}))[1][key] = new
    new_state = jax.tree.map(
        lambda x: _with(x, changes[id(x)][1]) if id(x) in changes else x,
        bare,
        is_leaf=lambda x: id(x) in changes,
    )
    return boxed_like(state, new_state)


def _checked(one: _hyper.Numeric, value: Any) -> Any:
    """A new value of a hyperparameter, in its canonical form; for a key a key."""
    if not _is_key(one.value):
        return one.kind.canonical(one.function, one.argument, value)
    if not _is_key(value):
        raise _checks.wrong_kind("set_hyperparams", one.name, "a PRNG key", value)
    return value


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _with(holder: Any, values: dict[str, Any]) -> Any:
    return holder._replace(hyperparams={**holder.hyperparams, **values})


def _fixed(name: str, scheduled: bool) -> ValueError:
    if scheduled:
        return ValueError(
            f"set_hyperparams: {name} follows a schedule; to set it by hand, make it a number."
        )
    return ValueError(
        f"set_hyperparams: {name} is not in the state but fixed in the transformation; wrap that "
        "in adaptax.adjustable(...)."
    )


_ANY = Number("[-inf, inf]")
