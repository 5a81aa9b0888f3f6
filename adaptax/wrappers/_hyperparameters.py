"""Hyperparameters of a running training: kept in the state, read and set by name."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._core import (
    Decay,
    DTypeLike,
    GradientTransformation,
    Number,
    OptState,
    Pair,
    Transform,
    _checks,
    _hyper,
    _tree,
    compute_dtype,
    node_of,
    safe_increment,
    transformation,
)
from .._core._value import TransformationKind, call_of


@runtime_checkable
class StatefulSchedule(Protocol):
    """A schedule with a state of its own, which may look at the extra arguments of `update`."""

    def init(self) -> Any:
        """The state before the first step."""
        ...

    def update(self, state: Any, **extra_args: Any) -> Any:
        """The state for the next step."""
        ...

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        """The value at this step."""
        ...


class WrappedScheduleState(NamedTuple):
    """The state of a `WrappedSchedule`.

    Attributes:
        count: Steps done, int32 ().
    """

    count: Int[Array, ""]


class WrappedSchedule:
    """A function of the step count as a `StatefulSchedule`.

    Args:
        schedule_fn: The function.
    """

    def __init__(self, schedule_fn: Callable[[Any], Any]):
        self.schedule_fn = schedule_fn

    def init(self) -> WrappedScheduleState:
        """A count of 0."""
        return WrappedScheduleState(jnp.zeros((), jnp.int32))

    def update(self, state: WrappedScheduleState, **extra_args: Any) -> WrappedScheduleState:
        """Count a step."""
        return WrappedScheduleState(safe_increment(state.count))

    def __call__(self, state: WrappedScheduleState, **extra_args: Any) -> Any:
        """The function at the count."""
        return self.schedule_fn(state.count)


class InjectStatefulHyperparamsState(NamedTuple):
    """The state of `adjustable` and `inject_hyperparams`.

    Attributes:
        count: Steps done, int32 ().
        hyperparams: The numbers by name. Those given as numbers hold until they are set to
            others; a schedule's is its value in the last update (before the first: in that).
        hyperparams_states: The state of each schedule, by the same names.
        inner_state: The transformation's own.
    """

    count: Int[Array, ""]
    hyperparams: dict[str, Any]
    hyperparams_states: dict[str, Any]
    inner_state: OptState


def _stateful(schedule: Any) -> StatefulSchedule:
    return schedule if isinstance(schedule, StatefulSchedule) else WrappedSchedule(schedule)


def _wide(dtype: Any, params: Any) -> Any:
    """The dtype for numbers: what was asked or the parameters', at least float32.

    Fewer digits would make 1 of b2 = 0.999, and 0 of eps in float16.
    """
    return compute_dtype(dtype) if dtype is not None else _tree.compute_dtype(params)


def _injected(
    given: Mapping[str, Any], make: Callable[[dict[str, Any]], Any], dtype: Any, inner: Any
) -> Pair:
    """The transformation that `make` makes of numbers, which are taken from the state.

    `given` are the numbers and schedules at first.
    """
    schedules = {k: _stateful(v) for k, v in given.items() if callable(v)}

    def stored(value: Any, wide: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
        return jnp.asarray(value, wide if floating else None)

    def init(params: Any) -> InjectStatefulHyperparamsState:
        wide = _wide(dtype, params)
        states = {name: schedule.init() for name, schedule in schedules.items()}
        first = {k: schedules[k](states[k]) if k in schedules else v for k, v in given.items()}
        # Copies: the factory, or a schedule, may keep its arrays where no value shows them.
        values = {k: jnp.array(stored(v, wide)) for k, v in first.items()}
        count = jnp.zeros((), jnp.int32)
        inner_state = node_of(make(values)).init(params)
        return InjectStatefulHyperparamsState(count, values, states, inner_state)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if set(getattr(state, "hyperparams", ())) != set(given) or not hasattr(state, "count"):
            wanted = f"InjectStatefulHyperparamsState of {list(given)}"
            raise _checks.wrong_state("adjustable", wanted, state)
        states = state.hyperparams_states
        now = {k: schedule(states[k], **extra_args) for k, schedule in schedules.items()}
        wide = _wide(dtype, updates if params is None else params)
        values = {k: stored(v, wide) for k, v in {**state.hyperparams, **now}.items()}
        node = node_of(make(values))
        new, inner_state = node.update(updates, state.inner_state, params, **extra_args)
        states = {k: schedules[k].update(s, **extra_args) for k, s in states.items()}
        count = safe_increment(state.count)
        return new, InjectStatefulHyperparamsState(count, values, states, inner_state)

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else state.inner_state)}

    return Pair(init, update, parts)


@transformation
def adjustable(
    inner: Transform,
    *,
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Any:
    """Keep a transformation's hyperparameters in the state, so that a running training can change.

    Read them with `hyperparams(tx, state)` and set them with `set_hyperparams(tx, state, b1=0.8)`,
    or in `state.hyperparams` by hand. As long as none is changed, the updates are those of the
    transformation itself, bit for bit.

    Args:
        inner: One of adaptax's transformations, also a chain or groups. The names of its numbers
            are those of the arguments, in a chain ``"1/learning_rate"``, in groups
            ``"*/bias/learning_rate"``.
        static_args: Names of numbers to leave out: they stay as they are.
        hyperparam_dtype: The dtype of the numbers in the state, at least float32; None takes
            float32, or float64 where a parameter has it.

    State: an `InjectStatefulHyperparamsState`. A schedule becomes a number that is computed anew
    at each step, and the inner state that of a transformation with a number there.

    Raises:
        TypeError: The transformation is not adaptax's; `inject_hyperparams` takes any factory.
        ValueError: `static_args` has a name that there is not.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.adjustable(adaptax.adam(1e-3))
    >>> state = adaptax.set_hyperparams(tx, tx.init(jnp.ones(2)), learning_rate=0.5)
    >>> float(adaptax.learning_rate(tx, state))
    0.5
    """
    if call_of(inner) is None:
        wanted = "a transformation of adaptax; inject_hyperparams(factory) takes any factory"
        raise _checks.wrong_kind("adjustable", "inner", wanted, inner)
    fixed = {static_args} if isinstance(static_args, str) else set(static_args)
    every = {one.name: one for one in _hyper.arguments(inner)}
    for name in fixed - set(every):
        raise _checks.no_number("adjustable", name, list(every), False)
    given = {name: one.value for name, one in every.items() if name not in fixed}

    def make(values: Mapping[str, Any]) -> Any:
        def now(one: _hyper.Numeric) -> Any:
            return _exact(one, values[one.name]) if one.name in values else one.value

        return _hyper.replaced(inner, now)

    return _injected(given, make, hyperparam_dtype, inner)


def _exact(one: _hyper.Numeric, value: Any) -> Any:
    """The number, and for a decay that was not changed the digits of the Python double."""
    if not one.kind.decay:
        return value
    traced = Decay.of(value)
    if not isinstance(one.value, float):
        return traced
    first = Decay.of(one.value)
    same = value == jnp.asarray(one.value, value.dtype)
    return jax.tree.map(lambda a, b: jnp.where(same, jnp.asarray(a, b.dtype), b), first, traced)


@transformation
def injected(
    factory: Callable[..., Any], arguments: dict[str, Any], names: tuple[str, ...], dtype: Any
) -> Any:
    """`inject_hyperparams` of a factory that is not adaptax's."""
    given = {name: arguments[name] for name in names}
    inner = factory(**arguments)

    def make(values: Mapping[str, Any]) -> Any:
        return factory(**{**arguments, **values})

    return _injected(given, make, dtype, GradientTransformation(*inner))


def inject_hyperparams(
    inner_factory: Callable[..., Any],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformation]:
    """A factory like the given one, whose transformations keep their hyperparameters in the state.

    For adaptax's factories this is `adjustable` of what they make. For others, such as optax's,
    the numeric arguments (Python numbers, arrays, schedules; not bools) become hyperparameters,
    and the transformation is made anew from the state at each update.

    Args:
        inner_factory: The factory.
        static_args: Names of arguments that stay as they are.
        hyperparam_dtype: The dtype of floating numbers in the state, at least float32; None takes
            float32, or float64 where a parameter has it.

    Raises:
        ValueError: `static_args` has a name that is not one of the factory's arguments.

    >>> import adaptax
    >>> tx = adaptax.inject_hyperparams(adaptax.adam)(1e-3)
    >>> tx == adaptax.adjustable(adaptax.adam(1e-3))
    True
    """
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    signature = inspect.signature(inner_factory)
    for name in static - set(signature.parameters):
        known = list(signature.parameters)
        raise _checks.no_number("inject_hyperparams", name, known, False)

    def factory(*args: Any, **kwargs: Any) -> GradientTransformation:
        if hasattr(inner_factory, "kinds"):
            tx = inner_factory(*args, **kwargs)
            mine = {one.name for one in _hyper.arguments(tx)}
            return adjustable(
                tx, static_args=tuple(sorted(static & mine)), hyperparam_dtype=hyperparam_dtype
            )
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        names = tuple(
            name
            for name, value in bound.arguments.items()
            if name not in static and _is_hyperparameter(value)
        )
        return injected(inner_factory, dict(bound.arguments), names, hyperparam_dtype)

    factory.__name__ = getattr(inner_factory, "__name__", "factory")
    factory.__doc__ = inner_factory.__doc__
    return factory


inject_stateful_hyperparams = inject_hyperparams


def _is_hyperparameter(value: Any) -> bool:
    number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    return (number and not isinstance(value, bool | np.bool_)) or callable(value)


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
                now = _stateful(one.value)(state.hyperparams_states[name])
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
        value = one.value(_clock(one, state)) if callable(one.value) else one.value
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
        raise _checks.wrong_state(one.function, "one with a step count", state)
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
    return {found.one.name: found.value for found in _found(tx, state)}


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
    every = list(_found(tx, state))
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
        state: Its state; it is not changed.
        values: New numbers by name: the whole name as `hyperparams` lists it, a trailing part of
            one, or a glob for all that match, such as ``"*learning_rate"``.
        **named: The same by keyword.

    Raises:
        ValueError: A name is unknown or ambiguous; a number is outside its range; or the number
            is not kept in the state, or follows a schedule.
        TypeError: A value is not a number.
    """
    tx = TransformationKind().canonical("set_hyperparams", "tx", tx)
    every = list(_found(tx, state))
    names = [found.one.name for found in every]
    changes: dict[int, tuple[Any, dict[str, Any]]] = {}
    for name, value in {**(values or {}), **named}.items():
        for i in _hyper.find("set_hyperparams", name, names):
            one, _, holder, scheduled = every[i]
            if holder is None or scheduled:
                raise _fixed(one.name, scheduled)
            if callable(value):
                raise _checks.wrong_kind("set_hyperparams", name, "a number", value)
            value = one.kind.canonical(one.function, one.argument, value)
            key = next(k for k in holder.hyperparams if ("/" + one.name).endswith("/" + k))
            old = jnp.asarray(holder.hyperparams[key])
            if jnp.ndim(value) and jnp.shape(value) != old.shape:
                wanted = f"a number or an array of shape {old.shape}"
                raise _checks.wrong_kind("set_hyperparams", name, wanted, value)
            new = jnp.broadcast_to(jnp.array(value, old.dtype), old.shape)
            changes.setdefault(id(holder), (holder, {}))[1][key] = new
    return jax.tree.map(
        lambda x: _with(x, changes[id(x)][1]) if id(x) in changes else x,
        state,
        is_leaf=lambda x: id(x) in changes,
    )


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
