"""Figures of a sweep. Matplotlib is imported here only, inside the function."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ABOVE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "ncols": 3,
    "frameon": False,
}
DONE, CUT, LOST = "#0072B2", "#999999", "#D55E00"


def figure(settings: Mapping[str, np.ndarray], score: np.ndarray, status: np.ndarray) -> Any:
    """The score against the numbers that vary."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = "Results.plot needs matplotlib: pip install 'adaptax[plot]'"
        raise ModuleNotFoundError(message, name=error.name) from error

    varied = {n: c for n, c in settings.items() if len(np.unique(c)) > 1} or dict(settings)
    two = len(varied) == 2 and _is_grid(*varied.values())
    panels = 1 if two else len(varied)
    drawing = Figure(figsize=(1.5 + 4 * panels, 4), layout="constrained")
    axes = drawing.subplots(1, panels, sharey=True, squeeze=False)[0]
    if two:
        _map(drawing, axes[0], varied, score, status)
    else:
        for ax, (name, column) in zip(axes, varied.items(), strict=True):
            _panel(ax, name, column, score, status, line=len(varied) == 1)
        axes[0].set_ylabel("score")
        if _spans(_positive(score)):
            axes[0].set_yscale("log", nonpositive="clip")
        if len(set(status)) > 1:
            axes[0].legend(**ABOVE)
    return drawing


def _panel(
    ax: Any, name: str, column: np.ndarray, score: np.ndarray, status: np.ndarray, line: bool
) -> None:
    """The score against one number; what diverged stands at the upper edge."""
    order = np.argsort(column, kind="stable")
    for which, color in (("finished", DONE), ("stopped", CUT)):
        rows = order[status[order] == which]
        if rows.size:
            style = "-o" if line and which == "finished" else "o"
            ax.plot(column[rows], score[rows], style, color=color, markersize=4, label=which)
    lost = status == "diverged"
    if lost.any():
        edge = ax.get_xaxis_transform()
        at = np.full(lost.sum(), 0.98)
        ax.plot(
            *(column[lost], at, "x"),
            **{"color": LOST, "transform": edge, "clip_on": False, "label": "diverged"},
        )
    ax.set_xlabel(name)
    if _spans(column):
        ax.set_xscale("log")


def _map(
    drawing: Any,
    ax: Any,
    varied: Mapping[str, np.ndarray],
    score: np.ndarray,
    status: np.ndarray,
) -> None:
    """Scores as colors over two numbers, each value one row or column."""
    from matplotlib.colors import LogNorm

    (down, rows), (across, columns) = varied.items()
    ys, y = np.unique(rows, return_inverse=True)
    xs, x = np.unique(columns, return_inverse=True)
    values = np.full((len(ys), len(xs)), np.nan)
    values[y, x] = np.where(np.isfinite(score), score, np.nan)
    shown = values[np.isfinite(values)]
    positive = _positive(score)
    norm = LogNorm(positive.min(), positive.max(), clip=True) if _spans(positive) else None
    if shown.size:
        image = ax.imshow(values, origin="lower", aspect="auto", cmap="viridis_r", norm=norm)
        drawing.colorbar(image, ax=ax, label="score")
    for which, mark in (("diverged", "x"), ("stopped", "o")):
        rows_of = status == which
        if rows_of.any():
            style = {"color": LOST} if which == "diverged" else {"color": "0.3", "mfc": "white"}
            ax.plot(x[rows_of], y[rows_of], mark, label=which, linestyle="none", **style)
    if (status != "finished").any():
        ax.legend(**ABOVE)
    for values, axis, name in ((xs, ax.xaxis, across), (ys, ax.yaxis, down)):
        step = -(-len(values) // 8)
        axis.set_ticks(np.arange(0, len(values), step), [f"{v:.3g}" for v in values[::step]])
        axis.set_label_text(name)
    ax.set(xlim=(-0.5, len(xs) - 0.5), ylim=(-0.5, len(ys) - 0.5))


def _is_grid(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(one) == len(np.unique(one)) * len(np.unique(other))


def _positive(score: np.ndarray) -> np.ndarray:
    """The scores that a logarithmic axis has room for; none of them if one is negative."""
    finite = score[np.isfinite(score)]
    return finite[finite > 0] if np.all(finite >= 0) else finite[:0]


def _spans(values: np.ndarray) -> bool:
    """Whether an axis of these is easier to read in powers of ten."""
    return bool(values.size and values.min() > 0 and values.max() > 20 * values.min())
