"""The page: tables of final losses beside float32's, verdicts and figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._candidates import CANDIDATES, CHANCE, FLOAT32, LIMITS, Candidate
from ._quadratic import compare
from ._results import Results
from ._suite import Variant

TITLES = {
    "quadratic": "A noisy quadratic",
    "stall": "The quadratic away from zero, with 16-bit parameters",
    "digits": "The digits CNN",
    "char": "The character transformer",
}
NOTES = {
    "quadratic": (
        "131,072 coordinates whose curvature h lies evenly in its logarithm between 1e-2 and 10; "
        "gradients h w + s ξ with s = h (second moments over six decades) or s = √h (over three); "
        "constant learning rate, 2000 steps from three times the stationary spread. The final loss "
        "is a mean over the last third. *Flat* and *steep* are the ratios of the loss of the "
        "decade of the least and the greatest curvature. *Fall* is that of the mean loss over the "
        "first tenth of the steps: above 1 is slower."
    ),
    "stall": (
        "The same quadratic (s = h), its minimum at ±[1, 2], where the steps of Adam "
        "(learning rate 3e-3) are smaller than half the spacing of bf16 numbers. The "
        "loss is that of the parameters as they are stored: rounding the best of them to nearest "
        "adds 0.3 %, whatever is kept beside them."
    ),
    "digits": (
        "Two convolutions and two linear layers, 85,066 parameters, 600 steps of 128 noisy images "
        "of scikit-learn's digits, labels smoothed by 0.1; warm-up, then half a cosine to zero. "
        "The final loss is the cross-entropy over 900 held-out images. *Fall* is the ratio of the "
        "mean training loss over the whole run."
    ),
    "char": (
        "Two blocks of width 208, 1,095,120 parameters, 1500 steps of 4 windows of 64 characters "
        "of Python's documentation; warm-up, then half a cosine to zero. The final loss is the "
        "cross-entropy over 60,000 held-out characters. *Fall* is the ratio of the mean training "
        "loss over the whole run."
    ),
}
HEAD = """---
orphan: true
---

# Quality of training in low precision

Written by `python -m adaptax.bench.quality` from `quality.json` beside it; do not edit.

A low-precision optimizer and its baseline start from the same parameters and see the same
mini-batches and noise, at the same learning rate. On the two networks it was chosen in float32 on
one seed, about the best of a coarse grid. The *ratio* is the final loss over the baseline's: a
mean over seeds, paired by seed, with its standard error. It holds where it is within the limit,
on either side; where the error reaches over the limit, other seeds may say otherwise. Where rows
have different numbers of seeds, only ratios compare. The rows *chance* start from parameters that
differ by a relative 1e-7 or 1e-3: what rounding alone, and what another path to the same place,
does to the end.
"""
USUAL = 3
"""Seeds; of a candidate with more, the page shows each."""


@dataclass(frozen=True)
class Line:
    """A candidate on a variant of a problem."""

    candidate: Candidate
    ratios: tuple[float, ...]
    loss: float
    ratio: float
    error: float
    area: float
    decades: tuple[float, ...]
    limit: float | None

    @property
    def baseline(self) -> bool:
        """Whether it is compared with itself."""
        return self.candidate.name == self.candidate.baseline

    @property
    def seeds(self) -> int:
        """On how many seeds."""
        return len(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the ratio is within the limit."""
        if self.limit is None:
            return ""
        if not np.isfinite(self.ratio):
            return "DIVERGED"
        if abs(self.ratio - 1) <= self.limit:
            return "holds"
        return "ABOVE" if self.ratio > 1 else "below"


def lines(results: Results, variant: Variant) -> Iterator[Line]:
    """All candidates with outcomes, and whose baseline has them, on the same seeds."""
    for candidate in CANDIDATES:
        names = variant.problem, variant.name
        ours = results.of(*names, candidate.name)
        base = results.of(*names, candidate.baseline)
        seeds = [seed for seed in ours if seed in base]
        if not seeds:
            continue

        def columns(key: str, ours: Any = ours, base: Any = base, seeds: Any = seeds) -> Any:
            return [np.array([rows[seed][key] for seed in seeds]) for rows in (ours, base)]

        final, baseline = columns("final")
        decades: tuple[float, ...] = ()
        if "decades" in ours[seeds[0]]:
            one, other = columns("decades")
            decades = tuple((one / other).mean(0).tolist())
        ratio, error = compare(final, baseline)
        limit = LIMITS.get(candidate.group, {}).get(variant.problem)
        area = compare(*columns("area"))[0]
        ratios = tuple((final / baseline).tolist())
        yield Line(candidate, ratios, float(final.mean()), ratio, error, area, decades, limit)


def render(results: Results, variants: Sequence[Variant], figures: dict[str, str]) -> str:
    """The page in Markdown; figures are paths by problem."""
    parts = [HEAD]
    for problem, title in TITLES.items():
        shown = [(v, list(lines(results, v))) for v in variants if v.problem == problem]
        shown = [(variant, found) for variant, found in shown if found]
        if not shown:
            continue
        parts.append(f"## {title}\n\n{NOTES[problem]}\n")
        if problem in figures:
            parts.append(f"![{title}]({figures[problem]})\n")
        for variant, found in shown:
            rates = ", ".join(f"{rate:g} ({name})" for name, rate in variant.learning_rates.items())
            where = f"{variant.name[0].upper()}{variant.name[1:]}. " if variant.name else ""
            parts.append(f"{where}Learning rate {rates}.\n\n{_table(found)}\n")
            parts += [_by_seed(line) for line in found if line.seeds > USUAL and not line.baseline]
    return "\n".join(parts)


def _by_seed(line: Line) -> str:
    ratios = ", ".join(f"{ratio:.4f}" for ratio in line.ratios)
    return f"The ratios of `{line.candidate.name}`, seed by seed: {ratios}.\n"


def write(page: Path, text: str) -> None:
    """Write the page."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _table(found: Sequence[Line]) -> str:
    decades = any(line.decades for line in found)
    head = ["optimizer", "parameters", "group", "seeds", "final loss", "ratio"]
    head += ["flat", "steep"] if decades else []
    head += ["fall", "limit", "verdict"]
    rows = [head, ["---"] * 3 + ["---:"] * (len(head) - 4) + ["---"]]
    for line in found:
        one = line.candidate
        error = "" if np.isnan(line.error) else f" ± {line.error:.4f}"
        # What a decade is worth next to its own noise is of use in the worst direction only.
        ends = [f"{line.decades[i]:.3f}" for i in (0, -1)] if line.decades else ["", ""]
        rows.append(
            [
                one.name,
                np.dtype(one.param_dtype).name,
                one.group if one.group not in (FLOAT32, CHANCE) else f"*{one.group}*",
                str(line.seeds),
                f"{line.loss:.5g}",
                "1" if line.baseline else f"{line.ratio:.4f}{error}",
                *((["1", "1"] if line.baseline else ends) if decades else []),
                "1" if line.baseline else f"{line.area:.4f}",
                "" if line.limit is None else f"{100 * line.limit:g} %",
                line.verdict,
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
