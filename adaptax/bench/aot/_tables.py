"""The two tables: what each shows, and how."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from . import _report, _sharded, _subjects


@dataclass(frozen=True)
class Table:
    """What a page shows.

    Attributes:
        page: How it shows it.
        command: What makes it, but for where to.
        targets: The devices.
        trees: The trees of parameters.
        optimizers: The optimizers' names.
        cases: How steps are spread over several devices.
        shown: `(optimizer, tree, target, case) -> bool`, whether it has such a row.
    """

    page: _report.Page
    command: str
    targets: tuple[str, ...]
    trees: Mapping[str, Callable[[], Any]]
    optimizers: Collection[str]
    cases: tuple[str, ...]
    shown: Callable[[str, str, str, str], bool]


ONE_DEVICE = Table(
    page=_report.ONE_DEVICE,
    command="python -m adaptax.bench.aot",
    targets=("v5e", "v6e", "h100"),
    trees=_subjects.TREES,
    optimizers=_subjects.OPTIMIZERS,
    cases=("",),
    shown=lambda optimizer, tree, target, _: _subjects.shown(optimizer, tree, target),
)
SHARDED = Table(
    page=_report.SHARDED,
    command="python -m adaptax.bench.aot --sharded",
    targets=("v5e:2x4", "h100:8"),
    trees=_sharded.TREES,
    optimizers=_sharded.SUBJECTS,
    cases=tuple(_sharded.CASES),
    shown=lambda optimizer, tree, target, case: case in _sharded.SUBJECTS[optimizer],
)
