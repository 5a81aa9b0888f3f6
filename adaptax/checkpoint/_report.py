"""What became of each leaf, by path."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["restored", "cast", "decoded", "encoded", "recoded", "kept", "dropped"]
SHOWN = 20  # lines of one kind in the printed report


@dataclass(frozen=True)
class Row:
    """What became of one leaf.

    Attributes:
        name: Its path in the restored tree ("state/0/mu/w"); of a dropped one, in the checkpoint.
        outcome: "restored" as it was; "cast" to another dtype; "decoded" from a storage format,
            "encoded" in one, "recoded" from one to another; "kept" as it was in `like`, the
            checkpoint has none; "dropped", the restored tree has no place for it.
        source: Its path in the checkpoint; empty where it was kept.
        detail: Dtypes or formats, before and after.
    """

    name: str
    outcome: Outcome
    source: str = ""
    detail: str = ""

    @property
    def moved(self) -> bool:
        """Whether it was found under another path."""
        return bool(self.source) and self.source != self.name

    def __str__(self) -> str:
        origin = f"from {self.source}" if self.moved else ""
        detail = f"({self.detail})" if self.detail else ""
        return " ".join(filter(None, [f"{self.outcome:8}", self.name, origin, detail]))


@dataclass(frozen=True)
class Report:
    """What became of every leaf; printed as a list of those that are not simply as they were.

    Attributes:
        rows: In the order of the restored tree, then those that were dropped.
        verified: Whether the checkpoint has checksums, and all its files are what was written.
            It has none if an earlier version of adaptax wrote it, or Orbax alone.
    """

    rows: tuple[Row, ...]
    verified: bool = True

    def of(self, outcome: Outcome) -> tuple[str, ...]:
        """The paths of the leaves with this outcome."""
        return tuple(row.name for row in self.rows if row.outcome == outcome)

    @property
    def exact(self) -> bool:
        """Whether all leaves are, bit by bit, what was saved, and none is left over."""
        return all(row.outcome == "restored" for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        counts = Counter(row.outcome for row in self.rows)
        total = len(self.rows) - counts["dropped"]
        yield f"{total} leaves: " + (", ".join(f"{n} {o}" for o, n in counts.items()) or "none")
        if not self.verified:
            yield "not verified: the checkpoint has no checksums"
        shown: Counter[str] = Counter()
        for row in self.rows:
            if row.outcome == "restored" and not row.moved:
                continue
            shown[row.outcome] += 1
            if shown[row.outcome] <= SHOWN:
                yield str(row)
        for outcome, n in shown.items():
            if n > SHOWN:
                yield f"{outcome:8} and {n - SHOWN} more"
