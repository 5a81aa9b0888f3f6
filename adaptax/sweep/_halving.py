"""Successive halving: at some steps, only the best settings go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .._core import _checks
from ._settings import whole


@dataclass(frozen=True)
class Halving:
    """When settings are compared, and how many go on.

    Attributes:
        rungs: The steps after which they are compared, rising.
        keep: The fraction of those compared that goes on, in (0, 1).
    """

    rungs: tuple[int, ...]
    keep: float

    def ends(self, steps: int) -> tuple[int, ...]:
        """Where the pieces of a run of so many steps end."""
        return (*(r for r in self.rungs if r < steps), steps)

    def survivors(self, score: np.ndarray) -> np.ndarray:
        """The positions of the best of some scores, in order; those that are not finite fall."""
        best = np.argsort(score, kind="stable")[: self.kept(len(score))]
        return np.sort(best[np.isfinite(score[best])])

    def kept(self, count: int) -> int:
        """How many of so many go on: the fraction, rounded up."""
        return math.ceil(self.keep * count - 1e-9)


NONE = Halving((), 0.5)


def halving(rungs: Sequence[int], keep: float = 0.5) -> Halving:
    """Stop the worst settings early.

    After each rung, the fraction `keep` of the settings still in the race goes on, those with the
    lowest scores; it is rounded up. What is left is trained in smaller batches, so that the work
    of those stopped is saved. With n settings and rungs at r, 2r, 4r, ... each piece costs half of
    the one before at keep = 1/2.

    Args:
        rungs: The steps after which settings are compared, >= 1, rising. Those at or after the
            last step are ignored.
        keep: The fraction that goes on, in (0, 1).

    Raises:
        ValueError: A number lies outside its range, or the rungs do not rise.

    References:
        Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
        Optimization", 2016, arXiv:1502.07943, figure 3; the rungs are free here.

    >>> halving([100, 300], keep=1 / 3).ends(900)
    (100, 300, 900)
    """
    if not isinstance(rungs, list | tuple | range | np.ndarray) or len(rungs) == 0:
        raise _checks.wrong_kind("halving", "rungs", "a sequence of at least one step", rungs)
    steps = tuple(whole("halving", f"rungs[{i}]", r, 1) for i, r in enumerate(rungs))
    if any(a >= b for a, b in pairwise(steps)):
        raise _checks.out_of_range("halving", "rungs", "rising order", steps)
    _fraction("halving", "keep", keep)
    return Halving(steps, float(keep))


def _fraction(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise _checks.wrong_kind(where, name, "a number", value)
    if not 0 < value < 1:
        raise _checks.out_of_range(where, name, "(0, 1)", value)
