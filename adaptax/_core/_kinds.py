"""Kinds of arguments: what each may be, how it is checked, and whether it is a number.

A factory's signature is the declaration. `b2: DecayLike = 0.999` says that `b2` is a number in
[0, 1); `nesterov: bool` that it is structure. `kind_of` reads an annotation; each kind then
checks a value (raising in the words of `_checks`) and brings it to one canonical form, so that
equal calls are equal values.
"""

import inspect
import math
import operator
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _checks
from ._numerics import Decay

Numeric = (float, int, np.ndarray, np.generic, jax.Array)


@dataclass(frozen=True)
class Kind:
    """An argument that is structure: kept as it is, compared and hashed by value."""

    numeric = False  # numeric arguments are the leaves of the transformation

    def canonical(self, function: str, name: str, value: Any) -> Any:
        """Check a value and return its canonical form."""
        return value

    def prepare(self, value: Any) -> Any:
        """What the factory's body receives."""
        return value


@dataclass(frozen=True)
class Number(Kind):
    """A number in an interval, or a schedule of such numbers."""

    interval: str
    decay: bool = False
    numeric = True

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if isinstance(value, Decay):
            return value
        if callable(value) and not isinstance(value, type):
            check_schedule(function, name, value)
            return value
        if isinstance(value, bool | np.bool_) or not isinstance(value, Numeric):
            raise _checks.wrong_kind(function, name, "a number or a schedule", value)
        if isinstance(value, Tracer):
            return value
        if not jnp.issubdtype(jnp.result_type(value), jnp.number) or np.iscomplexobj(value):
            raise _checks.wrong_kind(function, name, "a real number", value)
        try:
            inside = self._holds(np.asarray(value, np.float64))
        except OverflowError:  # a Python int beyond the floats
            inside = False
        if not inside:
            raise _checks.out_of_range(function, name, self.interval, value)
        # One number is a float, an array too: nnx.Optimizer takes no arrays in what is static.
        return float(value) if np.ndim(value) == 0 else jnp.asarray(value)

    def _holds(self, x: np.ndarray) -> bool:
        low, high = (float(s) for s in self.interval[1:-1].split(","))
        above = operator.ge if self.interval[0] == "[" else operator.gt
        below = operator.le if self.interval[-1] == "]" else operator.lt
        return bool(np.all(above(x, low) & below(x, high)))

    def prepare(self, value: Any) -> Any:
        if self.decay and value is not None and not callable(value):
            return Decay.of(value)
        return value


def check_schedule(function: str, name: str, value: Any) -> None:
    """Refuse a function that can't be called with a step count alone."""
    try:
        inspect.signature(value).bind(0)
    except TypeError as error:
        raise _checks.not_a_schedule(function, name, value, str(error)) from None
    except ValueError:  # it does not tell
        pass


@dataclass(frozen=True)
class Constant(Number):
    """A number in an interval, in whose place no schedule may stand."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if callable(value) and not isinstance(value, type):
            raise _checks.wrong_kind(function, name, "a number", value)
        return super().canonical(function, name, value)


@dataclass(frozen=True)
class Numbers(Kind):
    """A tuple (of tuples) of numbers, each of one kind."""

    each: Number
    length: int | None = None
    schedules: bool = False
    numeric = True

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if not isinstance(value, list | tuple) or self.length not in (None, len(value)):
            wanted = "a tuple" if self.length is None else f"a tuple of {self.length}"
            raise _checks.wrong_kind(function, name, wanted, value)
        return self._canonical(function, name, value)

    def _canonical(self, function: str, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(self._canonical(function, f"{name}[{i}]", v) for i, v in enumerate(value))
        if callable(value) and not self.schedules:
            raise _checks.wrong_kind(function, name, "a number", value)
        return self.each.canonical(function, name, value)

    def prepare(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.prepare(v) for v in value)
        return self.each.prepare(value)


@dataclass(frozen=True)
class Optional(Kind):
    """None, or a value of another kind."""

    kind: Kind

    @property
    def numeric(self) -> bool:  # type: ignore[override]
        return self.kind.numeric

    def canonical(self, function: str, name: str, value: Any) -> Any:
        return None if value is None else self.kind.canonical(function, name, value)

    def prepare(self, value: Any) -> Any:
        return None if value is None else self.kind.prepare(value)


@dataclass(frozen=True)
class Flag(Kind):
    """True or False, as structure."""

    def canonical(self, function: str, name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise _checks.wrong_kind(function, name, "True or False", value)
        return bool(value)


@dataclass(frozen=True)
class StaticInt(Kind):
    """A whole number that decides structure, so that it can't be traced."""

    least: int | None = None

    def canonical(self, function: str, name: str, value: Any) -> int:
        if isinstance(value, bool | np.bool_ | Tracer):
            raise _checks.wrong_kind(function, name, "a concrete integer", value)
        number: Any = value
        if isinstance(value, float | np.floating) and float(value).is_integer():
            number = int(value)
        try:
            number = operator.index(number)
        except TypeError:
            raise _checks.wrong_kind(function, name, "a concrete integer", value) from None
        if self.least is not None and number < self.least:
            raise _checks.out_of_range(function, name, f"[{self.least}, inf)", value)
        return number


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few strings."""

    options: tuple[str, ...]

    def canonical(self, function: str, name: str, value: Any) -> str:
        if value not in self.options:
            wanted = "one of " + ", ".join(repr(o) for o in self.options)
            raise _checks.out_of_range(function, name, wanted, value)
        return value


@dataclass(frozen=True)
class DType(Kind):
    """A floating or complex dtype, or None."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if value is None:
            return None
        try:
            dtype = jax.dtypes.canonicalize_dtype(value)
        except TypeError:
            raise _checks.wrong_kind(function, name, "a dtype", value) from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise _checks.wrong_kind(function, name, "a floating or complex dtype", value)
        return dtype


def kind_of(annotation: Any) -> Kind:
    """The kind that a parameter's annotation declares; plain `Kind` where it declares none."""
    if get_origin(annotation) is Annotated:
        return next((m for m in annotation.__metadata__ if isinstance(m, Kind)), Kind())
    if get_origin(annotation) in (Union, types.UnionType):
        members = [a for a in get_args(annotation) if a is not type(None)]
        inner = kind_of(members[0]) if len(members) == 1 else Kind()
        return Optional(inner) if type(inner) is not Kind else Kind()
    if get_origin(annotation) is Literal:
        return Choice(get_args(annotation))
    if annotation is bool:
        return Flag()
    if annotation is int:
        return StaticInt()
    return Kind()


def bits(array: Any) -> np.ndarray:
    """An array in numpy; of PRNG keys their data."""
    key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if key else array)


def frozen(value: Any) -> Any:
    """A hashable stand-in for an argument, equal exactly when the argument is.

    What can be neither hashed nor taken apart, and what is traced, is equal to itself alone.
    """
    if isinstance(value, Tracer):
        return (Tracer, id(value))
    if isinstance(value, np.ndarray | jax.Array):
        return (str(value.dtype), value.shape, bits(value).tobytes())
    if isinstance(value, Mapping):
        return (type(value), frozenset((k, frozen(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), tuple(frozen(v) for v in value))
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    try:
        hash(value)
    except TypeError:
        leaves, structure = jax.tree.flatten(value)
        if jax.tree_util.treedef_is_leaf(structure):
            return (type(value), id(value))
        return (structure, tuple(frozen(v) for v in leaves))
    return (type(value), value)
