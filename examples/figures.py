"""The figures of the lecture."""

from pathlib import Path

import matplotlib
import numpy as np
from common import ACCURACY, LOSS, History, best
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from valley import CURVATURE, START, Rides

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Told apart by those who see no red or no green, and in gray by their lightness.
COLORS = {
    "gradient descent": "#555555",
    "momentum": "#E69F00",
    "RMSprop": "#0072B2",
    "Adam": "#D55E00",
}
plt.rcParams.update(
    {
        "figure.dpi": 120,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.08,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.92",
        "legend.frameon": False,
    }
)


def _save(path: Path) -> Path:
    plt.savefig(path)
    plt.close()
    return path


def _accuracy_axis(ax: Axes, ticks: list[int]) -> None:
    """Errors in % on a logarithmic axis, upside down and labeled as accuracy."""
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.set_yticks([100 - t for t in ticks], [str(t) for t in ticks])
    ax.invert_yaxis()
    ax.set_ylabel("test accuracy in %")


def draw_valley(rides: dict[str, Rides], path: Path) -> Path:
    """One path of each method over the contours: at its largest safe α, and at a common pace."""
    figure, axes = plt.subplots(2, len(rides), figsize=(13, 5.6), sharex=True, sharey=True)
    highest = max(np.abs(r.path[:, 1]).max() for pair in rides.values() for r in pair)
    x, y = np.linspace(-11, 2, 200), np.linspace(-1.15, 1.15, 200) * highest
    height = 0.5 * (CURVATURE[0] * x**2 + CURVATURE[1] * y[:, None] ** 2)
    top = 0.5 * float(CURVATURE @ START**2)
    for column, (name, pair) in zip(axes.T, rides.items(), strict=True):
        for ax, ride in zip(column, pair, strict=True):
            ax.grid(False)
            ax.contour(x, y, height, top * np.geomspace(0.01, 1, 6), colors="0.8", linewidths=0.8)
            ax.plot(*ride.path.T, "-o", color=COLORS[name], markersize=2.5, linewidth=1)
            ax.plot(0, 0, "k+", markersize=8)
            ax.set_title(
                f"{name}, α = {ride.alpha:.3g}\n{ride.steps:.0f} steps, Σ|Δy| = {ride.across:.1f}",
                fontsize=10,
            )
    axes[0, 0].set_ylabel("largest safe α\n\ny (steep)")
    axes[1, 0].set_ylabel("gradient descent's pace\n\ny (steep)")
    for ax in axes[1]:
        ax.set_xlabel("x (flat)")
    figure.suptitle("Until |x| < 1, on mini-batches; the loss is ½(x² + 50 y²), its minimum at +")
    return _save(path)


def draw_training(alphas: dict[str, np.ndarray], runs: dict[str, History], path: Path) -> Path:
    """Training loss and test error by epoch, each method at its best α."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
    for name, run in runs.items():
        i = best(run)
        epochs = np.arange(1, run.loss.shape[1] + 1)
        style = {"color": COLORS[name], "label": f"{name}, α = {alphas[name][i]:.2g}"}
        left.plot(epochs, run.loss[i], **style)
        right.plot(epochs, 100 * (1 - run.test[i]), **style)
    left.axhline(LOSS, color="black", linestyle=":", linewidth=1)
    right.axhline(100 - 100 * ACCURACY, color="black", linestyle=":", linewidth=1)
    left.set(xlabel="epoch (dotted: the loss timed to)", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch (dotted: the accuracy timed to)")
    _accuracy_axis(right, [90, 95, 97, 98])
    left.legend()
    return _save(path)


def draw_alphas(alphas: dict[str, np.ndarray], runs: dict[str, History], path: Path) -> Path:
    """Test accuracy after the last epoch against α; the chosen α is marked."""
    _, ax = plt.subplots(figsize=(7.5, 4.2))
    for name, run in runs.items():
        i, error = best(run), 100 - 100 * run.test[:, -1]
        ax.plot(alphas[name], error, "-o", color=COLORS[name], markersize=3, label=name)
        ax.plot(alphas[name][i], error[i], "o", color=COLORS[name], markersize=9, mfc="none")
    ax.set(xscale="log", xlabel="α (ringed: the best by the validation set)")
    _accuracy_axis(ax, [10, 50, 80, 90, 95, 97, 98])
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 0.05))
    return _save(path)


def _draw_betas(ax: Axes, b1: list[float], b2: list[float], score: np.ndarray) -> None:
    ax.grid(False)
    ax.imshow(100 * score, cmap="Blues", aspect="auto")
    middle = (score.min() + score.max()) / 2
    for i, j in np.ndindex(score.shape):
        default = (b1[i], b2[j]) == (0.9, 0.999)
        ax.text(
            *(j, i, f"{100 * score[i, j]:.1f}"),
            ha="center",
            va="center",
            color="white" if score[i, j] > middle else "black",
            fontweight="bold" if default else "normal",
        )
        if default:
            ax.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, lw=2))
    ax.set_xticks(range(len(b2)), [f"{b:g}" for b in b2])
    ax.set_yticks(range(len(b1)), [f"{b:g}" for b in b1])
    ax.set(
        xlabel="β₂ (framed: the defaults)",
        ylabel="β₁",
        title="Test accuracy in %, averaged over the epochs",
    )


def draw_checks(
    eps: tuple[list[float], np.ndarray],
    betas: tuple[list[float], list[float], np.ndarray],
    lengths: dict[str, np.ndarray],
    corrected: tuple[np.ndarray, History, History],
    path: Path,
) -> Path:
    """Adam's ε, its β's, and its correction of V and S."""
    _, axes = plt.subplots(2, 2, figsize=(11, 8))
    ax = axes[0, 0]
    ax.axvspan(1e-10, 1e-4, color="0.95", zorder=0)
    ax.plot(eps[0], 100 * eps[1], "-o", color=COLORS["Adam"], markersize=4)
    ax.set(xscale="log", xlabel="ε (shaded: the range of the claim)", ylabel="test accuracy in %")
    ax.set(title="Adam at its best α, other ε", ylim=(min(90, 100 * eps[1].min() - 1), 100))
    _draw_betas(axes[0, 1], *betas)
    colors = [COLORS["Adam"], "#CC79A7", COLORS["RMSprop"]]

    ax = axes[1, 0]
    for (name, length), color in zip(lengths.items(), colors, strict=True):
        ax.plot(np.arange(1, len(length) + 1), length, color=color, label=name)
    ax.set(xscale="log", yscale="log", xlabel="step", ylabel="length of the step / α")
    ax.set(title="On a gradient that is always 1")
    ax.set_yticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    ax.minorticks_off()
    ax.legend()

    ax = axes[1, 1]
    alphas, *pair = corrected
    for run, name, color in zip(pair, list(lengths)[:2], colors[:2], strict=True):
        error = 100 - 100 * run.test[:, -1]
        ax.plot(alphas, error, "-o", color=color, markersize=4, label=name)
    _accuracy_axis(ax, [20, 50, 80, 90, 95, 98])
    ax.set(xscale="log", xlabel="α", title="The digits after the last epoch")
    ax.legend(loc="lower left")
    return _save(path)
