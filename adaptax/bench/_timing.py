"""Measurements taken in turn, and the rows that they are reported in."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

Measurement = Callable[[], float]
"""Takes one sample and returns it, in seconds."""


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        repeats: Rounds of tracing and of un-jitted calls. Jitted steps, which are fast, get three
            times as many; compiling and processes, which are slow, a third (at least three).
        quick: Small problems: to see that all runs, not to compare.
        tick: Called between rounds, outside the timings.
    """

    repeats: int = 15
    quick: bool = False
    tick: Callable[[], None] = lambda: None

    @property
    def many(self) -> int:
        """Rounds of the fast measurements."""
        return 3 * self.repeats

    @property
    def few(self) -> int:
        """Rounds of the slow measurements."""
        return min(self.repeats, max(3, self.repeats // 3))


@dataclass(frozen=True)
class Row:
    """One quantity, side by side for all libraries.

    Attributes:
        name: What was run, such as "step adamw, gpt2".
        quantity: What was measured, such as "time".
        unit: Its unit, such as "ms".
        samples: All samples of each library, in the order of the rounds.
        p99: Beside a median over entries: the 99th percentile.
        note: What a reader should know.
    """

    name: str
    quantity: str
    unit: str
    samples: Mapping[str, list[float]]
    p99: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def medians(self) -> dict[str, float]:
        """The median of each library's samples."""
        return {name: statistics.median(s) for name, s in self.samples.items() if s}

    def ratios(self, against: str = "optax") -> list[float]:
        """Adaptax over another library, round by round; empty where one was not measured."""
        pairs = zip(self.samples.get("adaptax", []), self.samples.get(against, []), strict=False)
        return [ours / theirs for ours, theirs in pairs if theirs]

    def ratio(self, against: str = "optax") -> float | None:
        """The median of the ratios."""
        ratios = self.ratios(against)
        return statistics.median(ratios) if ratios else None

    def quartiles(self, against: str = "optax") -> tuple[float, float] | None:
        """The middle half of the ratios: how much to trust their median."""
        ratios = self.ratios(against)
        if len(ratios) < 4:
            return None
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    def map(self, quantity: str, unit: str, f: Callable[[str, float], float]) -> "Row":
        """A row of another quantity, computed from each sample: `f(library, sample)`."""
        samples = {name: [f(name, x) for x in s] for name, s in self.samples.items()}
        return Row(self.name, quantity, unit, samples)


def stopwatch(run: Callable[[], Any]) -> Measurement:
    """Measure a call up to the moment when the arrays that it returns are there."""

    def measure() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return measure


def interleave(
    measurements: Mapping[str, Measurement],
    rounds: int,
    tick: Callable[[], None] = lambda: None,
    *,
    warmup: int = 1,
    unit: float = 1e-3,
) -> dict[str, list[float]]:
    """Take one sample of each in turn, round after round, each round in another order.

    Whatever else the machine does falls on all of them, and no one always follows the same
    neighbor. Garbage is collected between rounds and never inside one.

    Args:
        measurements: What to measure, by name.
        rounds: How many samples of each.
        tick: Called after each round.
        warmup: Rounds before these whose samples are dropped.
        unit: The unit of the result, in seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in measurements}
    orders = itertools.cycle(itertools.permutations(measurements))
    enabled = gc.isenabled()
    try:
        for i in range(warmup + rounds):
            gc.collect()
            gc.disable()
            for name in next(orders):
                sample = measurements[name]() / unit
                if i >= warmup:
                    samples[name].append(sample)
            gc.enable()
            tick()
    finally:
        (gc.enable if enabled else gc.disable)()
    return samples
