"""Figures of samples. Only here is matplotlib imported, and only inside functions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .._core import _checks, matches
from .._core._paths import PathPattern
from . import _errors
from ._lines import read
from ._sample import Sample, natural, unstacked

Samples: TypeAlias = Sample | Iterable[Sample] | str | Path
"""Samples in memory (also stacked), or the path of a file of `CSVSink` or `JSONLSink`."""

HEALTHY = (1e-4, 1e-2)  # around 1e-3
FLOOR, CEILING = 1e-6, 1.0


def plot_update_ratios(
    samples: Samples,
    path: str | Path | None = None,
    *,
    leaves: PathPattern = "*",
    healthy: tuple[float, float] = HEALTHY,
    title: str = "",
) -> Any:
    """A heat map of the update-to-parameter ratios ‖u‖ / ‖p‖, by leaf and step.

    The color scale is logarithmic. The middle of the healthy band is white, what is below blue
    (the leaf hardly moves), what is above red (it is overwritten); lines on the scale bound the
    band. Gray is where there is no ratio; parameters that are 0 are as red as can be.

    Args:
        samples: The samples.
        path: Where to save the figure, if at all.
        leaves: A path pattern: the leaves to draw.
        healthy: The band.
        title: The title.

    Returns:
        The matplotlib `Figure`.

    Raises:
        ValueError: There are no samples, or the pattern matches no leaf.
        ImportError: matplotlib is not installed.
    """
    figure, every = _start("plot_update_ratios", samples)
    from matplotlib.colors import LogNorm

    names = _chosen("plot_update_ratios", every, leaves)
    steps, ratios = _series(every, names, "update_ratio")
    middle = np.sqrt(healthy[0] * healthy[1])
    reach = max(middle / FLOOR, CEILING / middle)
    norm = LogNorm(middle / reach, middle * reach, clip=True)
    figure.set_size_inches(8, min(2.2 + 0.26 * len(names), 30))
    ax = figure.subplots()
    shown = np.ma.masked_invalid(np.clip(ratios, norm.vmin, norm.vmax))
    ax.set_facecolor("0.8")
    image = ax.pcolormesh(_edges(steps), np.arange(len(names) + 1), shown, norm=norm, cmap="RdBu_r")
    ax.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="step", title=title)
    bar = figure.colorbar(image, ax=ax, label="‖update‖ / ‖parameter‖")
    for bound in healthy:
        bar.ax.axhline(bound, color="black", linewidth=1.2)
    return _finish(figure, path)


def plot_norms(samples: Samples, path: str | Path | None = None, *, name: str = "total") -> Any:
    """Curves of the norms of gradients, updates and parameters, on a logarithmic axis.

    Args:
        samples: The samples.
        path: Where to save the figure, if at all.
        name: Whose: a leaf's, a group's, or "total".

    Returns:
        The matplotlib `Figure`.

    Raises:
        ValueError: There are no samples, or none has the name.
        ImportError: matplotlib is not installed.
    """
    figure, every = _start("plot_norms", samples)
    if name not in every[0].names:
        raise _checks.matches_nothing("plot_norms", name, every[0].names)
    ax = figure.subplots()
    for what, color in {"gradient": "#0072B2", "update": "#D55E00", "param": "#555555"}.items():
        steps, (norms,) = _series(every, [name], f"{what}_norm")
        ax.plot(steps, np.where(norms > 0, norms, np.nan), color=color, label=what)
    ax.set(xlabel="step", ylabel="norm", yscale="log", title=name)
    ax.legend(frameon=False)
    return _finish(figure, path)


def plot_leaves(
    samples: Samples,
    measure: str = "update_ratio",
    path: str | Path | None = None,
    *,
    leaves: PathPattern = "*",
    log: bool = True,
) -> Any:
    """A curve of one measure for each leaf.

    Args:
        samples: The samples.
        measure: A measure, such as "update_ratio", "sign_agreement" or "nu_rms".
        path: Where to save the figure, if at all.
        leaves: A path pattern: the leaves to draw.
        log: Whether the axis is logarithmic; what is not positive is then left out.

    Returns:
        The matplotlib `Figure`.

    Raises:
        ValueError: There are no samples, the pattern matches no leaf, or there is no such measure.
        ImportError: matplotlib is not installed.
    """
    figure, every = _start("plot_leaves", samples)
    from matplotlib import colormaps

    if measure not in every[0].values:
        options = ", ".join(map(repr, sorted(every[0].values)))
        raise _checks.out_of_range("plot_leaves", "measure", f"one of {options}", measure)
    names = _chosen("plot_leaves", every, leaves)
    steps, curves = _series(every, names, measure)
    ax = figure.subplots()
    for curve, name, shade in zip(curves, names, np.linspace(0, 0.9, len(names)), strict=True):
        shown = np.where(curve > 0, curve, np.nan) if log else curve
        ax.plot(steps, shown, color=colormaps["viridis"](shade), label=name)
    ax.set(xlabel="step", ylabel=measure, yscale="log" if log else "linear")
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(figure, path)


def _start(where: str, samples: Samples) -> tuple[Any, list[Sample]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _errors.needs(where, "matplotlib", "plot") from None
    every = unstacked(read(samples) if isinstance(samples, str | Path) else samples)
    if not every:
        raise _checks.out_of_range(where, "samples", "[1, inf) in number", 0)
    return Figure(figsize=(8, 4), dpi=120, layout="constrained"), every


def _finish(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path)
    return figure


def _chosen(where: str, samples: Sequence[Sample], pattern: PathPattern) -> list[str]:
    """The leaves that a pattern matches, "layers/2" before "layers/10"."""
    names = sorted(samples[0].leaves, key=natural)
    chosen = [name for name in names if matches(pattern, name)]
    if not chosen:
        raise _checks.matches_nothing(where, str(pattern), names)
    return chosen


def _series(
    samples: Sequence[Sample], names: Sequence[str], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and a row of values for each name."""
    every = [[float(s.of(name)[measure]) for s in samples] for name in names]
    return np.array([int(s.step) for s in samples]), np.array(every)


def _edges(steps: np.ndarray) -> np.ndarray:
    """The borders of cells that begin at the steps."""
    width = steps[-1] - steps[-2] if len(steps) > 1 else 1
    return np.append(steps, steps[-1] + max(width, 1))
