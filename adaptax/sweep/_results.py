"""What a sweep found: a table, the best setting, a figure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .._core import set_numbers
from . import _errors, _plot

FINISHED, STOPPED, DIVERGED = "finished", "stopped", "diverged"
SHOWN = 20  # rows printed before "and N more"


def ranked(score: np.ndarray, steps: np.ndarray, status: np.ndarray) -> np.ndarray:
    """The places of settings from best to worst."""
    return np.lexsort((score, -steps, status == DIVERGED))


class Best(NamedTuple):
    """The best setting, the first of `Results.order`.

    Attributes:
        index: Its place among the settings.
        setting: Its values by name.
        tx: The transformation with these values, plain numbers all.
        score: Its score, the mean over the seeds.
        params: What was trained with it, from the seed with the lowest score.
    """

    index: int
    setting: dict[str, float]
    tx: Any
    score: float
    params: Any


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a sweep over n settings, numpy arrays all; lower scores are better.

    Attributes:
        settings: The values of each number by name, float64 (n,).
        score: The mean over the seeds of what `evaluate` says at a setting's last step, or of the
            losses of the last tenth of its steps; infinity where a loss diverged; float64 (n,).
        scores: The same for each seed, float64 (n, seeds).
        losses: The loss at each step, mean over the seeds, NaN after the last one; (n, steps).
        status: "finished", "stopped" (by halving) or "diverged" (in any seed, a loss was not finite
            or beyond the bound, or the parameters after the last step were not finite), (n,).
        steps: Steps done, int64 (n,); of a setting that diverged, before it did.
        tx: The transformation that was swept.
        seconds: How long it took, wall time, compiling included.
    """

    settings: Mapping[str, np.ndarray]
    score: np.ndarray
    scores: np.ndarray
    losses: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    tx: Any
    seconds: float
    _best_params: Any = field(repr=False)

    def __len__(self) -> int:
        return len(self.score)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The table: the numbers by name, then score, status and steps."""
        rest = {"score": self.score, "status": self.status, "steps": self.steps}
        return {**self.settings, **rest}

    @property
    def order(self) -> np.ndarray:
        """The settings from best to worst: those that came further, then those of lower score.

        Those that diverged come last.

        Scores of settings that were stopped at different steps can't be compared.
        """
        return ranked(self.score, self.steps, self.status)

    def setting(self, index: int) -> dict[str, float]:
        """The values of one setting by name."""
        return {name: float(column[index]) for name, column in self.settings.items()}

    def transformation(self, index: int) -> Any:
        """The transformation with one setting's values, plain numbers all."""
        return set_numbers(self.tx, self.setting(index))

    @property
    def best(self) -> Best:
        """The best setting.

        Raises:
            ValueError: All settings diverged, and none has a finite score.
        """
        i = int(self.order[0])
        if not np.isfinite(self.score[i]):
            raise _errors.all_diverged(len(self))
        setting, score = self.setting(i), float(self.score[i])
        return Best(i, setting, self.transformation(i), score, self._best_params)

    def plot(self) -> Any:
        """A figure (matplotlib's): the score against the numbers; crosses mark what diverged.

        One number: a curve. A full grid of two: a map. Others: a panel for each number. Axes are
        logarithmic where values span more than a factor of 20. `figure.savefig(path)` writes it.
        """
        return _plot.figure(self.settings, self.score, self.status)

    def __str__(self) -> str:
        order = self.order[:SHOWN]
        head = [*self.settings, "score", "status", "steps"]
        rows = [
            [
                *(f"{column[i]:.6g}" for column in self.settings.values()),
                f"{self.score[i]:.6g}",
                str(self.status[i]),
                str(self.steps[i]),
            ]
            for i in order
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in [head, *rows]
        ]
        counts = ", ".join(
            f"{count} {status}"
            for status in (FINISHED, STOPPED, DIVERGED)
            if (count := int((self.status == status).sum()))
        )
        more = f"{len(self) - SHOWN} more. " if len(self) > SHOWN else ""
        lines.append(f"{more}{len(self)} settings: {counts}; {self.seconds:.1f} s")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Results of {len(self)} settings of {', '.join(self.settings)}>"
