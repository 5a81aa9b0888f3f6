"""The race: all settings from rung to rung, and what is known of each."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _progress
from ._halving import Halving
from ._host import finite, join, take
from ._program import Lane
from ._results import DIVERGED, FINISHED, STOPPED, Results, ranked
from ._train import Piece, Task, Trainer

TAIL = 0.1
"""The part of the steps whose losses are the score."""


class Race:
    """The settings of a sweep and how far each has come."""

    def __init__(self, trainer: Trainer, settings: int, seeds: int, steps: int, halving: Halving):
        self._trainer, self._halving = trainer, halving
        self._ends = halving.ends(steps)
        self.lanes = settings * seeds
        self._losses = np.full((settings, seeds, steps), np.nan, jnp.result_type(float))
        self._scores = np.full((settings, seeds), np.inf)
        self._steps = np.zeros((settings, seeds), int)
        self._status = np.full(settings, FINISHED, "<U8")
        self._ids = np.arange(settings)  # in the race
        self._at: list[np.ndarray] | None = None  # their lanes
        self._left: dict[int, Any] = {}  # parameters of the best of those that left it

    def run(self, size: int, bar: _progress.Silent) -> None:
        """Rung after rung, in pieces of at most so many lanes."""
        for rung, span in enumerate(pairwise((0, *self._ends))):
            if not self._ids.size:
                break
            bar.describe(f"{len(self._ids)} settings", self._steps_left(rung))
            self._train(rung, span, size)
            if span[1] != self._ends[-1]:
                self._select()

    def _train(self, rung: int, span: tuple[int, int], size: int) -> None:
        """Take all lanes in the race over one span, in pieces of equal width."""
        trainer, seeds = self._trainer, self._scores.shape[1]
        lanes = (self._ids[:, None] * seeds + np.arange(seeds)).ravel()
        count = math.ceil(len(lanes) / size)
        each = math.ceil(len(lanes) / count)
        width = trainer.width(each)
        tasks = []
        for i in range(0, len(lanes), each):
            rows = np.arange(i, min(i + each, len(lanes)))
            before = None if self._at is None else take(self._at, rows)
            tasks.append(Task(f"rung{rung}-{i // each}", lanes[rows], before, *span, width))
        pieces = list(trainer.train(tasks))
        self._at = join([piece.lanes for piece in pieces])
        self._record(lanes, span, pieces)

    def _record(self, lanes: np.ndarray, span: tuple[int, int], pieces: list[Piece]) -> None:
        first, last = span
        every = self._losses.reshape(self.lanes, -1)
        every[lanes, first:last] = np.concatenate([piece.losses for piece in pieces], 1).T
        ended = self._lane
        if self._trainer.plan.evaluate is None:
            with np.errstate(invalid="ignore"):
                tail = every[lanes, last - math.ceil(TAIL * last) : last]
                score = tail.mean(1, dtype=np.float64)
        else:
            score = np.concatenate([piece.score for piece in pieces])
        # A lane has a score if no loss ended it: its last loss says this.
        loss = every[lanes, last - 1]
        known = np.isfinite(loss) & (loss <= self._trainer.plan.bound) & np.isfinite(score)
        known &= finite(jax.tree.leaves(ended.params), len(lanes))
        self._scores.reshape(-1)[lanes] = np.where(known, score, np.inf)
        self._steps.reshape(-1)[lanes] = ended.steps
        self._status[lanes[~(known & ended.alive)] // self._scores.shape[1]] = DIVERGED

    def _select(self) -> None:
        """Leave the best in the race, and only their lanes."""
        ids = self._ids
        score = np.where(self._status[ids] == DIVERGED, np.inf, self._scores[ids].mean(1))
        stay = self._halving.survivors(score)
        left = np.setdiff1d(ids, ids[stay])
        self._status[left[self._status[left] == FINISHED]] = STOPPED
        if left.size:
            best = int(left[self._ranked(left)[0]])
            self._left[best] = self._params(best)
        seeds = self._scores.shape[1]
        rows = (stay[:, None] * seeds + np.arange(seeds)).ravel()
        assert self._at is not None
        self._ids, self._at = ids[stay], take(self._at, rows)

    def _ranked(self, ids: np.ndarray) -> np.ndarray:
        scores, steps = self._scores[ids].mean(1), self._steps[ids].min(1)
        return ranked(scores, steps, self._status[ids])

    def _params(self, index: int) -> Any:
        """The parameters of a setting in the race, from the seed with the lowest score."""
        row = int(np.flatnonzero(self._ids == index)[0]) * self._scores.shape[1]
        row += int(self._scores[index].argmin())
        return jax.tree.map(lambda x: jnp.asarray(x[row]), self._lane.params)

    @property
    def _lane(self) -> Lane:
        """The lanes in the race."""
        assert self._at is not None
        return self._trainer.layout.from_host(self._at)

    def _steps_left(self, rung: int) -> int:
        """Steps still to do, summed over the lanes, if no more settings diverge."""
        count, total = len(self._ids), 0
        for first, last in list(pairwise((0, *self._ends)))[rung:]:
            total += count * (last - first) * self._scores.shape[1]
            count = self._halving.kept(count)
        return total

    def results(self, columns: Any, tx: Any, seconds: float) -> Results:
        """What was found."""
        with np.errstate(invalid="ignore"):
            losses = self._losses.mean(1)
        found = Results(
            settings=columns,
            score=self._scores.mean(1),
            scores=self._scores,
            losses=losses,
            status=self._status,
            steps=self._steps.min(1),
            tx=tx,
            seconds=seconds,
            _best_params=None,
        )
        best = int(found.order[0])
        params = self._left[best] if best in self._left else self._params(best)
        return dataclasses.replace(found, _best_params=params)
