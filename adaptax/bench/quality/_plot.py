"""Figures of loss curves. Matplotlib is imported here only, inside the function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _problems
from ._candidates import CANDIDATES, CHANCE, EIGHT, FLOAT32, FOUR, SIXTEEN, Candidate
from ._results import Results
from ._suite import Variant

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


def draw(results: Results, variants: Sequence[Variant], folder: Path) -> dict[str, str]:
    """One PNG for each problem that has results; their names by problem."""
    with _problems.needing_extra():
        import matplotlib  # noqa: F401
    names: dict[str, str] = {}
    for problem in dict.fromkeys(variant.problem for variant in variants):
        variant = next(v for v in variants if v.problem == problem)
        figure = _figure(results, variant)
        if figure is not None:
            names[problem] = f"quality-{problem}.png"
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / names[problem], dpi=90, metadata={"Software": None})
    return names


def _figure(results: Results, variant: Variant) -> Any:
    """Above, the loss; below, the difference from the baseline. A column for each group."""
    from matplotlib.figure import Figure

    curves = {c.name: _curve(results, variant, c) for c in CANDIDATES}
    groups = {
        group: [c for c in CANDIDATES if c.group == group and curves[c.name] is not None]
        for group in (EIGHT, FOUR, SIXTEEN, CHANCE)
    }
    groups = {g: cs for g, cs in groups.items() if any(curves[c.baseline] is not None for c in cs)}
    if not groups:
        return None
    figure = Figure(figsize=(4.2 * len(groups), 5.2), layout="constrained")
    axes = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
    for (group, candidates), (top, bottom) in zip(groups.items(), axes.T, strict=True):
        baselines = {c.baseline for c in candidates}
        for c in CANDIDATES:
            if c.group == FLOAT32 and c.name in baselines and curves[c.name] is not None:
                top.plot(*_mean(curves[c.name], variant), "k", linewidth=1.2)
        for color, c in zip(COLORS, candidates, strict=False):
            top.plot(*_mean(curves[c.name], variant), color=color, linewidth=1.2, label=c.name)
            base = curves[c.baseline]
            if base is not None:
                seeds = min(len(base), len(curves[c.name]))
                ratio = curves[c.name][:seeds] / base[:seeds] - 1
                bottom.plot(*_mean(100 * ratio, variant), color=color, linewidth=1.2)
        top.set(title=f"{group} (black: float32)", yscale="log")
        top.legend(fontsize=7, frameon=False)
        bottom.axhline(0, color="black", linewidth=0.8)
        bottom.set(xlabel="step", yscale="symlog")
        bottom.yaxis.set_major_formatter("{x:g}")
    low, high = axes[1, 0].get_ylim()
    axes[1, 0].set_ylim(min(low, -1), max(high, 1))
    axes[0, 0].set_ylabel("loss" if _kind(variant) == "loss" else "validation loss")
    axes[1, 0].set_ylabel("difference from float32, %")
    return figure


def _kind(variant: Variant) -> str:
    return "loss" if variant.problem in ("quadratic", "stall") else "validation"


def _curve(results: Results, variant: Variant, candidate: Candidate) -> Any:
    """(seeds, records), or None."""
    found = results.of(variant.problem, variant.name, candidate.name)
    kind = _kind(variant)
    return np.array([row["curves"][kind] for row in found.values()]) if found else None


def _mean(curves: Any, variant: Variant) -> tuple[Any, Any]:
    steps = variant.settings["steps"]
    return np.arange(1, curves.shape[1] + 1) * steps / curves.shape[1], curves.mean(0)
