"""The errors of telemetry: what was got, what is wanted, what to do."""

from collections.abc import Sequence
from typing import Any

from .._core import _checks


def no_probe(where: str, state: Any, found: int) -> TypeError:
    """A state without samples, or with those of several probes."""
    got = type(state).__name__
    if found:
        return TypeError(
            f"{where}: state must hold one ProbeState, got a {got} with {found}. Give the part of "
            "the state that has the one you want."
        )
    return TypeError(
        f"{where}: state must hold a ProbeState, got a {got} without one. Samples are taken by "
        "tx = telemetry.probe(tx): make the state with its init, and give the state that its "
        "update returned last."
    )


def wrong_columns(path: Any, there: Sequence[str], here: Sequence[str]) -> ValueError:
    """Measures that are not the columns of a table."""
    lacks = [f"{name} is not in the file" for name in here if name not in there]
    more = [f"{name} is not in the sample" for name in there if name not in here]
    return ValueError(
        f"CSVSink: the measures of a sample must be the columns of {path}: "
        f"{_checks.listed([*lacks, *more]) or 'they have another order'}. Give a new file."
    )


def foreign_file(sink: str, path: Any, first: str) -> ValueError:
    """A file that a sink did not write."""
    return ValueError(
        f"{sink}: path must be new or a file of {sink}, got {path}, which begins with {first!r}. "
        "Give another path."
    )


def closed(sink: str, path: Any) -> ValueError:
    """A sample after the last one."""
    return ValueError(f"{sink}: the sink of {path} is closed. Make another with append=True.")


def damaged_line(where: str, path: Any, line: int, why: str) -> ValueError:
    """A line, not the last one, that no sink wrote."""
    return ValueError(
        f"{where}: line {line} of {path} is damaged: {why}. Remove the lines of its sample."
    )


def needs(function: str, package: str, extra: str) -> ImportError:
    """A package that is not installed."""
    return ImportError(f"{function} needs {package}: pip install 'adaptax[{extra}]'.")
