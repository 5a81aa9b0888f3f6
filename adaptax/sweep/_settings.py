"""Settings: for each number, by name, its values; setting i takes the i-th of each."""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._core import Decay, _checks, set_numbers
from .._core._hyper import arguments, find, numerics
from .._core._value import ScheduleValue
from . import _errors

Columns: TypeAlias = dict[str, np.ndarray]
"""Settings in their canonical form: float64 arrays of one length, at least one, by name."""


@dataclass(frozen=True)
class Space:
    """What to draw a number from: its quantile function, from [0, 1) to values.

    Attributes:
        quantile: `quantile(u) -> values`, for an array of numbers in [0, 1).
    """

    quantile: Callable[[np.ndarray], np.ndarray]


def uniform(low: float, high: float) -> Space:
    """A number between two, all equally likely.

    Args:
        low: The least value.
        high: The end of the range, > low, not in it.

    Raises:
        ValueError: Not finite, or `high` is not greater than `low`.
    """
    low, high = _ends("uniform", low, high, -math.inf)
    return Space(lambda u: low + (high - low) * u)


def log_uniform(low: float, high: float) -> Space:
    """A positive number between two, all orders of magnitude equally likely.

    Args:
        low: The least value, > 0.
        high: The end of the range, > low, not in it.

    Raises:
        ValueError: Not finite, `low` is not positive, or `high` is not greater than `low`.
    """
    low, high = _ends("log_uniform", low, high, 0.0)
    return Space(lambda u: low * (high / low) ** u)


def choices(values: Sequence[float]) -> Space:
    """One of some numbers, all equally likely.

    Args:
        values: The numbers, at least one.

    Raises:
        ValueError: There is none, or one is not finite.
    """
    column = _column("choices", "values", values)
    return Space(lambda u: column[(u * len(column)).astype(int)])


def log_range(low: float, high: float, count: int) -> np.ndarray:
    """Numbers from one to another, both included, each the same multiple of the one before.

    Args:
        low: The first, > 0.
        high: The last, > low.
        count: How many, >= 2.

    Raises:
        ValueError: A number lies outside its range.

    >>> log_range(1e-3, 1.0, 4).round(6).tolist()
    [0.001, 0.01, 0.1, 1.0]
    """
    low, high = _ends("log_range", low, high, 0.0)
    return np.geomspace(low, high, whole("log_range", "count", count, 2))


def grid(spaces: Mapping[str, Any]) -> Columns:
    """All combinations of some values; the last number varies fastest.

    Args:
        spaces: For each number, by name, its values.

    Returns:
        Float64 arrays of one length, by name.

    Raises:
        ValueError: There is none, or a value is not finite.
        TypeError: Values are not a sequence of numbers.

    >>> {k: v.tolist() for k, v in grid({"learning_rate": [0.1, 1.0], "b1": [0.8, 0.9]}).items()}
    {'learning_rate': [0.1, 0.1, 1.0, 1.0], 'b1': [0.8, 0.9, 0.8, 0.9]}
    """
    columns = [_column("grid", name, values) for name, values in _named("grid", spaces).items()]
    combined = np.array(list(itertools.product(*columns)))
    return dict(zip(spaces, combined.T.copy(), strict=True))


def draw(spaces: Mapping[str, Space], count: int, key: Any) -> Columns:
    """Random settings. What is drawn for one number does not depend on the others.

    Args:
        spaces: For each number, by name, a `uniform`, `log_uniform` or `choices`.
        count: How many settings, >= 1.
        key: A jax key, or an integer >= 0. Equal keys draw equal settings.

    Returns:
        Float64 arrays of length `count`, by name.

    Raises:
        ValueError: There is nothing to draw, or a number lies outside its range.
        TypeError: A space or the key is of another kind.

    >>> draw({"learning_rate": log_uniform(1e-4, 1.0)}, 3, key=0)["learning_rate"].shape
    (3,)
    """
    count, words = whole("draw", "count", count, 1), _words(key)
    drawn = {}
    for name, space in _named("draw", spaces).items():
        if not isinstance(space, Space):
            raise _checks.wrong_kind("draw", name, "a uniform, log_uniform or choices", space)
        rng = np.random.default_rng([*words, zlib.crc32(name.encode())])
        drawn[name] = space.quantile(rng.random(count))
    return drawn


def whole(where: str, name: str, value: Any, least: int) -> int:
    """A concrete integer of at least so much."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise _checks.wrong_kind(where, name, "an integer", value)
    if value < least:
        raise _checks.out_of_range(where, name, f"[{least}, inf)", value)
    return int(value)


class Grid:
    """Checked settings of a transformation, ready to go into a program.

    Attributes:
        columns: The values by the names that the caller gave.
        names: The full names of the numbers that are set.
        numbers: For each of those, its values: an array (settings,), or a `Decay` of two.
    """

    def __init__(self, where: str, tx: Any, settings: Any):
        self.columns = _columns(where, settings)
        every = list(numerics(tx))
        if not every:
            raise _errors.no_numbers(where, tx)
        names = [one.name for one in every]
        meant: dict[int, str] = {}
        for name, column in self.columns.items():
            _check(where, tx, name, column)
            for i in find(where, name, names):
                if i in meant:
                    raise _errors.twice(where, names[i], meant[i], name)
                meant[i] = name
        if any(isinstance(one.value, ScheduleValue) for one in arguments(tx)):
            for setting in self.each():
                _build_schedules(set_numbers(tx, setting, where))
        self.names = tuple(names[i] for i in meant)
        self.numbers = tuple(
            _stacked(self.columns[given], every[i].kind.decay) for i, given in meant.items()
        )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def each(self) -> Any:
        """The settings, one after the other, as floats by name."""
        return ({n: float(c[i]) for n, c in self.columns.items()} for i in range(len(self)))


def _stacked(column: np.ndarray, decay: bool) -> Any:
    """Values for `jax.vmap`; a decay keeps the digits that its double has near one."""
    real = jnp.result_type(float)
    if not decay:
        return column.astype(real)
    each = [Decay.of(float(b)) for b in column]
    complement, log = np.array([(d.complement, d.log) for d in each]).T.astype(real)
    return Decay(complement, log)


def _check(where: str, tx: Any, name: str, column: np.ndarray) -> None:
    """Raise where a name is not one number's or a value lies outside its range."""
    try:
        set_numbers(tx, {name: column}, where)
    except ValueError:
        for value in column:  # one of them is to be named
            set_numbers(tx, {name: float(value)}, where)
        raise


def _build_schedules(tx: Any) -> None:
    """Build the schedules that run: numbers that don't fit each other raise here."""
    for one in arguments(tx):
        if isinstance(one.value, ScheduleValue):
            one.value.call.built  # noqa: B018


def _named(where: str, spaces: Any) -> Mapping[str, Any]:
    if not isinstance(spaces, Mapping) or not all(isinstance(name, str) for name in spaces):
        raise _checks.wrong_kind(where, "settings", "a mapping from names of numbers", spaces)
    if not spaces:
        raise _errors.no_settings(where, "settings")
    return spaces


def _column(where: str, name: str, values: Any) -> np.ndarray:
    try:
        given = np.asarray(values)
    except ValueError:  # ragged
        raise _errors.not_a_column(where, name, values) from None
    if given.ndim == 1 and not given.size:
        raise _errors.no_settings(where, name)
    real = given.dtype != bool and jnp.issubdtype(given.dtype, jnp.number)
    if given.ndim != 1 or not real or np.iscomplexobj(given):
        raise _errors.not_a_column(where, name, values)
    column = given.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise _errors.not_finite(where, name, bad.tolist(), column[bad].tolist())
    return column


def _columns(where: str, settings: Any) -> Columns:
    columns = {name: _column(where, name, v) for name, v in _named(where, settings).items()}
    if len({len(column) for column in columns.values()}) > 1:
        raise _errors.lengths(where, {name: len(column) for name, column in columns.items()})
    return columns


def _ends(where: str, low: Any, high: Any, above: float) -> tuple[float, float]:
    for name, value, least in (("low", low, above), ("high", high, low)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise _checks.wrong_kind(where, name, "a number", value)
        if not (least < value and math.isfinite(value)):
            raise _checks.out_of_range(where, name, f"({least:g}, inf)", value)
    return float(low), float(high)


def _words(key: Any) -> list[int]:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(key)).tolist()
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.shape == (2,):
        return np.asarray(key).tolist()
    return [whole("draw", "key", key, 0)]
