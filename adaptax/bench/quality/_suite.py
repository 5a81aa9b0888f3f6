"""The problems, each with its settings, and how a candidate is run on one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ... import schedules
from . import _char, _digits, _quadratic, _train
from ._candidates import Candidate

Outcome = dict[str, Any]
"""Of one seed: "final", "area" (less is faster), "at" (steps), and "curves" by name."""

POINTS = 50
"""A curve is kept as means over so many pieces at most."""


@dataclass(frozen=True)
class Variant:
    """A problem with fixed settings.

    Attributes:
        problem: The name of the problem.
        name: Which of its variants.
        settings: What the results depend on, apart from the transformation and the seed.
        learning_rates: By the name of the baseline; tuned in float32 and the same for all.
        run: `(candidate, learning_rate, seeds, done) -> outcomes`.
        warmup: Steps up to the learning rate, before half a cosine to zero; None: it is constant.
    """

    problem: str
    name: str
    settings: Mapping[str, Any]
    learning_rates: Mapping[str, float]
    run: Callable[..., list[Outcome]] = field(repr=False)
    warmup: int | None = None

    def make(self, candidate: Candidate) -> Any:
        """The transformation, with the learning rate of this problem.

        Raises:
            AttributeError: Adaptax does not have it.
        """
        rate = self.learning_rates[candidate.baseline]
        if self.warmup is None:
            return candidate.make(rate)
        steps = self.settings["steps"]
        return candidate.make(schedules.warmup_cosine_decay_schedule(0.0, rate, self.warmup, steps))


def _thin(curve: np.ndarray) -> list[float]:
    pieces = np.array_split(curve, min(POINTS, len(curve)))
    return [float(f"{piece.mean():.6g}") for piece in pieces]


def _on_quadratic(
    settings: Mapping[str, Any], candidate: Candidate, tx: Any, seeds: Sequence[int], done: Any
) -> list[Outcome]:
    found = _quadratic.stationary(tx, seeds=seeds, param_dtype=candidate.param_dtype, **settings)
    outcomes: list[Outcome] = []
    for i in range(len(seeds)):
        done()
        outcomes.append(
            {
                "final": float(found.loss[i]),
                "area": float(found.area[i]),
                "decades": found.stationary_decades[i].tolist(),
                "curves": {"loss": _thin(found.curve[i])},
            }
        )
    return outcomes


def _on_task(
    make: Callable[..., _train.Task],
    settings: Mapping[str, Any],
    candidate: Candidate,
    tx: Any,
    seeds: Sequence[int],
    done: Any,
) -> list[Outcome]:
    results = _train.run(
        make(**settings),
        tx,
        seeds,
        **{"param_dtype": candidate.param_dtype, "nudge": candidate.nudge, "done": done},
    )
    return [
        {
            "final": result.final,
            "area": result.area,
            "curves": {"validation": _thin(result.validation), "train": _thin(result.train)},
        }
        for result in results
    ]


def _quadratics(steps: int) -> Iterator[Variant]:
    rates = {"adam": 1e-2, "rmsprop": 1e-2, "lion": 1e-3}
    for noise, layout, shape in (
        ("curvature", "sorted", "matrix"),
        ("curvature", "shuffled", "vector"),
        ("root", "sorted", "vector"),
        ("root", "shuffled", "matrix"),
    ):
        settings = {"noise": noise, "layout": layout, "shape": shape, "steps": steps}
        name = f"{noise}, {layout}, {shape}"
        yield Variant("quadratic", name, settings, rates, partial(_on_quadratic, settings))


def variants(quick: bool = False) -> list[Variant]:
    """All problems; `quick` makes them so small that they only show that they run."""
    char: dict[str, Any] = {"steps": 1500}
    digits: dict[str, Any] = {"steps": 600}
    stall: dict[str, Any] = {"optimum": 1.0, "steps": 2000}
    if quick:
        char = {"steps": 2, "every": 1, "width": 8, "depth": 1, "context": 8, "held_out": 64}
        digits = {"steps": 2, "every": 1, "channels": 2, "hidden": 4, "size": 4}
        stall["steps"] = 20
    rates = {"adam": 1e-3, "rmsprop": 1e-3, "lion": 2e-4}
    image_rates = {"adam": 8e-3, "rmsprop": 4e-3, "lion": 1e-3, "adamw": 8e-3}
    away = Variant("stall", "", stall, {"adam": 3e-3}, partial(_on_quadratic, stall))

    def on(name: str, make: Any, settings: Any, rates: Any, warmup: int) -> Variant:
        run = partial(_on_task, make, settings)
        return Variant(name, "", settings, rates, run, 1 if quick else warmup)

    quadratics = list(_quadratics(20 if quick else _quadratic.STEPS))
    return [
        *(quadratics[:1] if quick else quadratics),
        away,
        on("digits", _digits.task, digits, image_rates, 40),
        on("char", _char.task, char, rates, 100),
    ]
