"""Hyperparameters as part of the state: `adjustable`, `inject_hyperparams`."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._core import (
    Decay,
    DTypeLike,
    GradientTransformation,
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
from .._core._called import number_now
from .._core._value import ScheduleValue, TransformationKind, call_of


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


def stateful(schedule: Any) -> StatefulSchedule:
    """A schedule as a `StatefulSchedule`; a function of the step count gets a count of its own."""
    return schedule if isinstance(schedule, StatefulSchedule) else WrappedSchedule(schedule)


def _wide(dtype: Any, params: Any) -> Any:
    """The dtype for numbers: what was asked or the parameters', at least float32.

    Fewer digits would make 1 of b2 = 0.999, and 0 of eps in float16.
    """
    return compute_dtype(dtype) if dtype is not None else _tree.compute_dtype(params)


def _injected(
    where: str,
    given: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Any],
    dtype: Any,
    inner: Any = None,
) -> Pair:
    """The transformation that `make` makes of numbers, which are taken from the state.

    `where` is the function, for errors. `given` are the numbers and schedules at first. `inner`
    is what is wrapped, for readers; None takes what `make` makes of the numbers at step 0.
    """
    schedules = {k: stateful(v) for k, v in given.items() if callable(v)}

    def stored(value: Any, wide: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
        return jnp.asarray(value, wide if floating else None)

    def at_first(states: Mapping[str, Any]) -> dict[str, Any]:
        now = {k: number_now(where, k, schedules[k], state) for k, state in states.items()}
        return {k: now.get(k, v) for k, v in given.items()}

    def init(params: Any) -> InjectStatefulHyperparamsState:
        wide = _wide(dtype, params)
        states = {name: schedule.init() for name, schedule in schedules.items()}
        # Copies: the factory, or a schedule, may keep its arrays where no value shows them.
        values = {k: jnp.array(stored(v, wide)) for k, v in at_first(states).items()}
        count = jnp.zeros((), jnp.int32)
        inner_state = node_of(make(values)).init(params)
        return InjectStatefulHyperparamsState(count, values, states, inner_state)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if set(getattr(state, "hyperparams", ())) != set(given) or not hasattr(state, "count"):
            wanted = f"InjectStatefulHyperparamsState of {list(given)}"
            raise _checks.wrong_state(where, wanted, state)
        states = state.hyperparams_states
        now = {
            k: number_now(where, k, schedule, states[k], **extra_args)
            for k, schedule in schedules.items()
        }
        wide = _wide(dtype, updates if params is None else params)
        values = {k: stored(v, wide) for k, v in {**state.hyperparams, **now}.items()}
        node = node_of(make(values))
        new, inner_state = node.update(updates, state.inner_state, params, **extra_args)
        states = {k: schedules[k].update(s, **extra_args) for k, s in states.items()}
        count = safe_increment(state.count)
        return new, InjectStatefulHyperparamsState(count, values, states, inner_state)

    def parts(state: Any) -> Any:
        whole = inner
        if whole is None:
            whole = make(at_first({name: schedule.init() for name, schedule in schedules.items()}))
        return {"": (whole, None if state is None else state.inner_state)}

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

    State: an `InjectStatefulHyperparamsState`. A schedule becomes a number that is computed at
    each step, and the inner state that of a transformation with a number there.

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

    return _injected("adjustable", given, make, hyperparam_dtype, inner)


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
    """`inject_hyperparams` of a factory of another's; its arguments as `_flat` has them."""
    given = {name: arguments[name] for name in names}
    signature = inspect.signature(factory)

    def make(values: Mapping[str, Any]) -> Any:
        bound = _bound(signature, {**arguments, **values})
        made = factory(*bound.args, **bound.kwargs)
        name = f"what {getattr(factory, '__name__', repr(factory))} returns"
        return TransformationKind().canonical("inject_hyperparams", name, made)

    # The factory sees numbers, never schedules; these are not evaluated before they are needed.
    inner = None if any(map(callable, given.values())) else make(given)
    return _injected("inject_hyperparams", given, make, dtype, inner)


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name; those of `*args` are "args/0", "args/1", those of `**kwargs` as called."""
    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            flat |= {f"{name}/{i}": one for i, one in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            flat |= value
        else:
            flat[name] = value
    return flat


def _bound(signature: inspect.Signature, flat: Mapping[str, Any]) -> inspect.BoundArguments:
    """The inverse of `_flat`."""
    arguments: dict[str, Any] = {}
    rest = dict(flat)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            numbered = itertools.takewhile(
                rest.__contains__, map(f"{name}/{{}}".format, itertools.count())
            )
            arguments[name] = tuple(rest.pop(one) for one in numbered)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments[name] = rest
        else:
            arguments[name] = rest.pop(name)
    return inspect.BoundArguments(signature, arguments)  # type: ignore[arg-type]


def inject_hyperparams(
    inner_factory: Callable[..., Any],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformation]:
    """A factory like the given one, whose transformations keep their hyperparameters in the state.

    For adaptax's factories this is `adjustable` of what they make. For others, such as optax's
    or your own functions, the numeric arguments (Python numbers, arrays, PRNG keys, schedules; not
    bools) become hyperparameters, and the function is called with their values at each update: it
    sees numbers, never schedules. Those of ``*args`` are called "args/0", "args/1", those of
    ``**kwargs`` by their keywords. A pytree that can be called, such as an Equinox module, is no
    schedule and passes as it is.

    Args:
        inner_factory: The factory.
        static_args: Names of arguments that stay as they are; that of ``*args`` stands for all
            of them.
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
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
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
        arguments = _flat(bound)
        names = tuple(
            name
            for name, value in arguments.items()
            if name.split("/")[0] not in static and _is_hyperparameter(value)
        )
        return injected(inner_factory, arguments, names, hyperparam_dtype)

    factory.__name__ = getattr(inner_factory, "__name__", "factory")
    factory.__doc__ = inner_factory.__doc__
    return factory


inject_stateful_hyperparams = inject_hyperparams


def _is_hyperparameter(value: Any) -> bool:
    if isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return not isinstance(value, bool | np.bool_)
    schedule = isinstance(value, ScheduleValue | StatefulSchedule) or _tree.is_function(value)
    return schedule and not isinstance(value, type)
