"""The errors of a sweep: what was got, what is wanted, what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._core import _checks


def no_settings(where: str, what: str) -> ValueError:
    """Nothing to train."""
    return ValueError(
        f"{where}: {what} must hold at least one value of at least one number, got none. Give "
        '{"learning_rate": [...]}, or what grid or draw returns.'
    )


def no_numbers(where: str, tx: Any) -> ValueError:
    """A transformation whose numbers can't be set."""
    return ValueError(
        f"{where}: tx must be made by adaptax and have numbers, got {tx!r}, which has none to set."
    )


def not_a_column(where: str, name: str, value: Any) -> TypeError:
    """The values of a number are no sequence of numbers."""
    return _checks.wrong_kind(where, name, "a sequence of real numbers, one for each", value)


def not_finite(
    where: str, name: str, positions: Sequence[int], values: Sequence[Any]
) -> ValueError:
    """NaN or an infinity among the values of a number."""
    found = _checks.listed(f"{v} at {i}" for i, v in zip(positions, values, strict=True))
    return ValueError(f"{where}: {name} must hold finite numbers, got {found}. Leave them out.")


def lengths(where: str, lengths: Mapping[str, int]) -> ValueError:
    """Columns of different lengths."""
    found = _checks.listed(f"{name} has {n}" for name, n in lengths.items())
    return ValueError(
        f"{where}: settings must have as many values for each number, got {found}. "
        "Setting i takes the i-th value of each; for all combinations use grid."
    )


def twice(where: str, name: str, one: str, other: str) -> ValueError:
    """Two names of settings mean one number."""
    return ValueError(
        f"{where}: settings must name each number once, got {one!r} and {other!r}, "
        f"which both set {name}. Leave one out."
    )


def not_a_scalar(where: str, name: str, got: str) -> TypeError:
    """A loss or a score that is not one real number."""
    return TypeError(f"{where}: {name} must return a real scalar, got {got}. Reduce it to a mean.")


def not_an_array(where: str, name: str, path: str, leaf: Any) -> TypeError:
    """Something that is no number in a tree of arrays."""
    return _checks.wrong_kind(where, f"{name}{path}", "an array", leaf)


def leading_axes(where: str, differing: Mapping[str, Any]) -> ValueError:
    """Batches that are not stacked along one leading axis."""
    found = _checks.listed(f"{path} has shape {shape}" for path, shape in differing.items())
    return ValueError(
        f"{where}: batches must be a function of the step, or arrays that share a leading axis "
        f"of at least one batch; {found}."
    )


def same_runs(where: str, seeds: int) -> ValueError:
    """Several seeds, and nothing that depends on them."""
    return ValueError(
        f"{where}: seeds must be one seed where params is a tree, got {seeds}: their runs would be "
        "equal. Give params as a function of a key."
    )


def too_small(where: str, needed: int, max_bytes: int) -> ValueError:
    """A memory limit below what one setting needs."""
    return ValueError(
        f"{where}: max_bytes must be at least {needed}, what one setting on each device needs, "
        f"got {max_bytes}. Raise it, or train with smaller batches."
    )


def other_request(where: str, directory: Any, parts: Sequence[str]) -> ValueError:
    """A directory that holds another sweep."""
    return ValueError(
        f"{where}: directory must be new or hold pieces of this same sweep, got {directory}, whose "
        f"sweep has another {_checks.listed(parts)}. Give another directory, or remove this one."
    )


def other_format(where: str, directory: Any, there: Any, here: int) -> ValueError:
    """A directory that another version of adaptax wrote."""
    return ValueError(
        f"{where}: directory must be new or hold pieces in format {here}, got {directory} with "
        f"format {there}, of another version of adaptax. Give another directory, remove this one, "
        "or finish the sweep with the version that began it."
    )


def not_a_folder(where: str, path: Any) -> ValueError:
    """A file where a directory belongs."""
    return ValueError(f"{where}: directory must be a folder or new, got the file {path}.")


def in_use(where: str, directory: Any, by: str) -> RuntimeError:
    """A directory in which another sweep is running."""
    return RuntimeError(
        f"{where}: directory must not be in use, got {directory}, in which a sweep is running "
        f"({by or 'its process is unknown'}). Wait until it ends, or give another directory."
    )


def damaged_manifest(where: str, path: Any) -> str:
    """A warning: what the sweep is can't be read."""
    return f"{where}: {path} is damaged; it is written again."


def damaged_piece(where: str, path: Any) -> str:
    """A warning: a piece that is not what was written."""
    return (
        f"{where}: {path} is damaged, or was written by an older version of adaptax (it has no "
        "valid digest); its settings are trained again."
    )


def other_piece(where: str, path: Any) -> str:
    """A warning: a piece of something else."""
    return f"{where}: {path} is not a piece of this sweep; it is replaced."


def all_diverged(settings: int) -> ValueError:
    """A sweep without a survivor."""
    return ValueError(
        f"Results.best: at least one setting must have a finite score, got {settings} that all "
        "diverged. Try smaller learning rates, or a larger bound."
    )
