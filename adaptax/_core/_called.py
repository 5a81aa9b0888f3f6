"""Users' functions, called so that what goes wrong says whose arguments they are."""

from collections.abc import Callable
from typing import Any

from . import _checks
from ._kinds import Numeric


def called(function: str, name: str, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of the function that is an argument of a factory; what it raises gets a note."""
    try:
        return f(*args, **kwargs)
    except Exception as error:
        error.add_note(f"adaptax: raised by the function given to {function} as {name}")
        raise


def number_now(function: str, name: str, schedule: Any, *args: Any, **kwargs: Any) -> Any:
    """The number that a schedule gives."""
    value = called(function, name, schedule, *args, **kwargs)
    if not isinstance(value, Numeric) and not hasattr(value, "__jax_array__"):
        raise _checks.not_a_number(function, name, schedule, value)
    return value
