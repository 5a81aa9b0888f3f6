"""A transformation is a value: the call that makes it, factory and arguments.

`transformation` turns a function that builds a transformation into a factory of such values. They
compare, hash, pickle and print as their call, and their numbers are the leaves of a pytree. The
init and update of a value are bound to the call; they build what they run from it.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from . import _checks, _tree
from ._fresh import fresh
from ._kinds import Kind, frozen, kind_of
from ._node import Foreign, Node
from ._spelling import is_default, spelled

P = ParamSpec("P")


class Call:
    """A factory with its arguments: numbers (the leaves) and structure (the rest)."""

    __slots__ = ("__weakref__", "_built", "_key", "factory", "numbers", "structure")

    def __init__(self, factory: Any, numbers: dict[str, Any], structure: dict[str, Any]):
        self.factory = factory
        self.numbers = numbers
        self.structure = structure

    def __reduce__(self) -> Any:
        return Call, (self.factory, self.numbers, self.structure)

    @property
    def name(self) -> str:
        """The factory's name."""
        return self.factory.__name__

    @property
    def key(self) -> Any:
        """Everything but the numbers, hashable."""
        try:
            return self._key
        except AttributeError:
            self._key = (self.factory, tuple(self.numbers), frozen(self.structure))
            return self._key

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if not isinstance(other, Call) or self.key != other.key:
            return False
        mine, theirs = jax.tree.flatten(self.numbers), jax.tree.flatten(other.numbers)
        return mine[1] == theirs[1] and all(map(_same, mine[0], theirs[0]))

    def __hash__(self) -> int:
        leaves, treedef = jax.tree.flatten(self.numbers)
        return hash((self.key, treedef, frozen(leaves)))

    def __repr__(self) -> str:
        given = self.given
        shown = []
        for name, parameter in self.factory.signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                shown += [repr(v) for v in given[name]]
            elif not is_default(given[name], parameter.default):
                shown.append(f"{name}={spelled(given[name])}")
        return f"{self.name}({', '.join(shown)})"

    @property
    def given(self) -> dict[str, Any]:
        """The arguments in their canonical form, in the order of the numbers."""
        return {**self.numbers, **self.structure}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as the factory's body receives them."""
        kinds = self.factory.kinds
        return {k: kinds[k].prepare(v) for k, v in self.given.items()}

    def with_arguments(self, given: dict[str, Any]) -> "Call":
        """The factory's call with other arguments, in canonical form."""
        numbers, structure = {}, {}
        for name, value in given.items():
            numeric = self.factory.kinds[name].numeric and _is_tree_of_numbers(value)
            (numbers if numeric else structure)[name] = value
        return Call(self.factory, numbers, structure)

    @property
    def built(self) -> Any:
        """What the factory's body makes of the arguments.

        Kept only where all numbers are Python floats: what is built from traced numbers belongs
        to the trace that builds it.
        """
        try:
            return self._built
        except AttributeError:
            arguments = self.arguments
            built = self.factory.build(arguments)
            if is_ours(built):
                built = node_of(built)
            bind = getattr(built, "bind", None)
            built = built if bind is None else bind(self.factory, arguments)
            if all(type(leaf) is float for leaf in jax.tree.leaves(self.numbers)):
                self._built = built
            return built


class Method:
    """A call's init or update, as a function that compares and prints by its call."""

    __slots__ = ("__weakref__", "call", "name")

    def __init__(self, call: Call, name: str):
        self.call = call
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = _updated if self.name == "update" else _begun
        return run(self.call, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return _SIGNATURES[self.name]

    @property
    def __name__(self) -> str:
        return f"{self.call.name}_{self.name}"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Method) and (self.name, self.call) == (other.name, other.call)

    def __hash__(self) -> int:
        return hash((self.name, self.call))

    def __reduce__(self) -> Any:
        return Method, (self.call, self.name)

    def __repr__(self) -> str:
        return f"{self.call!r}.{self.name}"


def _begun(call: Call, params: Any) -> Any:
    _tree.check_arrays(call.name, params)
    return fresh(call.built.init(params), params, call.numbers)


def _updated(
    call: Call, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    return call.built.update(updates, state, _tree.trained(updates, params), **extra_args)


_SIGNATURES = {
    "init": inspect.signature(lambda params: None),
    "update": inspect.signature(lambda updates, state, params=None, **extra_args: None),
}


def _of_optax(name: str) -> Any:
    """A class of optax's, if the program has imported optax."""
    return getattr(sys.modules.get("optax"), name, None)


class _Functions(NamedTuple):
    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


class _OptaxToo(type):
    """Makes `isinstance(tx, GradientTransformation)` true for optax's transformations."""

    def __instancecheck__(cls, instance: Any) -> bool:
        if type.__instancecheck__(cls, instance):
            return True
        theirs = _of_optax("GradientTransformation") if cls is GradientTransformation else None
        return theirs is not None and isinstance(instance, theirs)


class GradientTransformation(_Functions, metaclass=_OptaxToo):
    """A pair of pure functions over pytrees, and a value.

    `init(params)` makes a state; `update(updates, state, params=None, **extra_args)` returns the
    transformed updates (in the dtypes of those given) and the next state.

    A pair from one of adaptax's factories equals another from an equal call, has its hash, can
    be pickled and copied, prints as the call that makes it, and is a pytree whose leaves are its
    numeric hyperparameters. So it can be an argument of a jitted function (new numbers don't
    retrace), be stacked and mapped with `jax.vmap`, be differentiated, or be a static argument.

    A pair of your own functions works everywhere too; it has no leaves and compares by identity.

    `isinstance` takes the class and optax's for one, in both directions: a transformation is an
    `optax.GradientTransformationExtraArgs` in a program that has imported optax.
    """

    __slots__ = ()

    @property
    def __class__(self) -> Any:
        """What `isinstance` reads beside the type: optax's class, once there is one."""
        return _of_optax("GradientTransformationExtraArgs") or type(self)

    def __reduce__(self) -> Any:
        return type(self), tuple(self)  # object's own goes by __class__

    @classmethod
    def of(cls, call: Call) -> "GradientTransformation":
        """The value of a call."""
        return cls(Method(call, "init"), Method(call, "update"))

    def __repr__(self) -> str:
        call = call_of(self)
        if call is not None:
            return repr(call)
        return f"GradientTransformation(init={self.init!r}, update={self.update!r})"


def is_ours(tx: Any) -> bool:
    """Whether a value is of our class, whatever `isinstance` says of optax's."""
    return issubclass(type(tx), GradientTransformation)


GradientTransformationExtraArgs: TypeAlias = GradientTransformation
"""Optax's name for a transformation that takes extra arguments; here all do."""

T = TypeVar("T", bound=GradientTransformation)


class ScheduleValue:
    """A schedule that compares, prints and flattens as the call that makes it."""

    __slots__ = ("__weakref__", "call")

    def __init__(self, call: Call):
        self.call = call

    def __call__(self, count: Any) -> Any:
        return self.call.built(count)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ScheduleValue) and self.call == other.call

    def __hash__(self) -> int:
        return hash(self.call)

    def __reduce__(self) -> Any:
        return ScheduleValue, (self.call,)

    def __repr__(self) -> str:
        return repr(self.call)


def call_of(tx: Any) -> Call | None:
    """The call behind a transformation, or None for a pair of plain functions."""
    init = getattr(tx, "init", None)
    return init.call if isinstance(init, Method) else None


def node_of(tx: Any) -> Node:
    """What a transformation runs: its built node, or the pair itself, taught to drop extras."""
    call = call_of(tx)
    return Foreign(*tx) if call is None else call.built


class TransformationKind(Kind):
    """A transformation as an argument. Its numbers are numbers of the whole."""

    numeric = True

    def canonical(self, function: str, name: str, value: Any) -> GradientTransformation:
        if is_ours(value):
            return value
        if not (isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))):
            raise _checks.not_a_transformation(function, name, value)
        return GradientTransformation(*value)

    def named(self, value: Any) -> Mapping[str, GradientTransformation]:
        """The transformations in a canonical argument, in the order of its leaves, by name."""
        if is_ours(value):
            return {"": value}
        return {str(i): tx for i, tx in enumerate(value)}


def transformation(build: Callable[P, Any]) -> Callable[P, GradientTransformation]:
    """Decorate a function that builds a transformation: its calls become values.

    The annotations of the function are the checks of its arguments (see `_kinds`). The body
    receives them checked; it may run many times, and inside a trace with traced numbers, so it
    only builds: no Python `if` on a number, no arithmetic outside the rule.
    """
    return _factory(build, GradientTransformation.of)


def transformation_of(cls: type[T]) -> Callable[[Callable[P, Any]], Callable[P, T]]:
    """`transformation` for values of a subclass of `GradientTransformation` with more methods."""
    _register(cls, call_of, cls.of)
    return lambda build: _factory(build, cls.of)


def schedule(build: Callable[P, Callable[[Any], Any]]) -> Callable[P, ScheduleValue]:
    """Decorate a function that builds a function of the step count: its calls become values."""
    return _factory(build, ScheduleValue)


def _factory(build: Any, value: Callable[[Call], Any]) -> Any:
    signature = inspect.signature(build, eval_str=True)
    kinds = {name: kind_of(p.annotation) for name, p in signature.parameters.items()}
    starred = [n for n, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL]

    @functools.wraps(build)
    def factory(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = [name for name in kinds if name not in starred]
            raise _checks.bad_call(build.__name__, str(error), kwargs, known) from None
        bound.apply_defaults()
        given = {}
        for name, argument in bound.arguments.items():
            kind = kinds[name]
            if name in starred:
                given[name] = tuple(
                    kind.canonical(build.__name__, f"argument {i + 1}", v)
                    for i, v in enumerate(argument)
                )
            else:
                given[name] = kind.canonical(build.__name__, name, argument)
        call = Call(factory, {}, {}).with_arguments(given)
        call.built  # noqa: B018  a bad combination of arguments raises here
        return value(call)

    def build_from(arguments: dict[str, Any]) -> Any:
        named = {k: v for k, v in arguments.items() if k not in starred}
        return build(*(v for name in starred for v in arguments[name]), **named)

    factory.signature = signature  # type: ignore[attr-defined]
    factory.kinds = kinds  # type: ignore[attr-defined]
    factory.build = build_from  # type: ignore[attr-defined]
    return factory


def _is_tree_of_numbers(value: Any) -> bool:
    """Whether all leaves are numbers: a user's own schedule function, or None, is structure."""
    return value is not None and not any(callable(leaf) for leaf in jax.tree.leaves(value))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    if isinstance(a, np.ndarray | jax.Array) or isinstance(b, np.ndarray | jax.Array):
        return frozen(a) == frozen(b)
    return type(a) is type(b) and bool(a == b)


class Structure:
    """A call without its numbers: what jax compares when it asks for equal tree structures."""

    __slots__ = ("factory", "key", "names", "structure")

    def __init__(self, call: Call):
        self.factory = call.factory
        self.names = tuple(call.numbers)
        self.structure = call.structure
        self.key = call.key

    def with_numbers(self, numbers: Any) -> Call:
        """The call with these numbers, whatever they are; nothing is checked."""
        return Call(self.factory, dict(zip(self.names, numbers, strict=True)), self.structure)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Structure) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.factory.__name__


def _register(cls: type, call_of: Callable[[Any], Any], make: Callable[[Call], Any]) -> None:
    """Register a value as a pytree of its call's numbers, under their argument names."""

    def flatten_with_keys(value: Any) -> Any:
        call = call_of(value)
        if call is None:
            return (), tuple(value)
        keys = tuple(jax.tree_util.GetAttrKey(name) for name in call.numbers)
        return tuple(zip(keys, call.numbers.values(), strict=True)), Structure(call)

    def flatten(value: Any) -> Any:
        call = call_of(value)
        if call is None:
            return (), tuple(value)
        return tuple(call.numbers.values()), Structure(call)

    def unflatten(aux: Any, children: Any) -> Any:
        return make(aux.with_numbers(children)) if isinstance(aux, Structure) else cls(*aux)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


_register(
    GradientTransformation,
    call_of,
    GradientTransformation.of,
)
_register(ScheduleValue, lambda value: value.call, ScheduleValue)
