"""One lecture on optimization: its sentences are run, measured and printed.

Gradient descent on mini-batches zigzags across a narrow valley. RMSprop damps the steep direction,
so that a larger α is safe. Adam adds momentum, corrects both averages for their start at zero, and
is much faster; its β's and ε can stay as they are, α must be tuned. `valley.py` has the valley.
Then a network learns handwritten digits with each method, and `checks.py` tries other β's, ε's and
no correction. An α is chosen by the validation accuracy and reported by the test accuracy; both
are means over several starts of the network. That Adam works across many architectures is
measured by `architectures.py`.

    python examples/lecture.py [--quick] [--out results/lecture]
"""

import argparse
from pathlib import Path

import figures
import numpy as np
import valley
from checks import check_betas, check_correction, check_eps
from common import ACCURACY, LOSS, TRACES, Claim, History, best, load_split, sweep
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import adaptax

# Gradient descent and momentum step in proportion to the gradient, RMSprop and Adam don't, so each
# method has its own range of α.
RANGES = {
    "gradient descent": (1e-2, 10),
    "momentum": (1e-3, 1),
    "RMSprop": (1e-4, 1),
    "Adam": (1e-4, 1),
}
EPS = [10.0**k for k in range(-10, 1)]
B1, B2 = [0.0, 0.5, 0.8, 0.9, 0.95, 0.99], [0.9, 0.99, 0.999, 0.9999]


def first(reached: np.ndarray) -> float:
    """The first epoch of those reached; infinity if there is none."""
    return float(reached.argmax()) + 1 if reached.any() else np.inf


def spelled(epoch: float, epochs: int) -> str:
    return f"{epoch:g}" if np.isfinite(epoch) else f"> {epochs}"


def claims(alphas: dict[str, np.ndarray], runs: dict[str, History]) -> list[Claim]:
    """What the lecture says of training with each method."""
    plain, adam = runs["gradient descent"], runs["Adam"]
    i, j = best(plain), best(adam)
    epochs, last, tried = adam.test.shape[1], adam.test[:, -1], alphas["Adam"]
    good = tried[last > last.max() - 0.01]

    def faster(what: str, slow: float, fast: float) -> Claim:
        measured = f"at its best α it needs {spelled(fast, epochs)} against {spelled(slow, epochs)}"
        text = f"Adam is much faster than plain gradient descent: at most half the epochs to {what}"
        return Claim(text, measured, bool(np.isfinite(fast) and fast <= slow / 2))

    return [
        faster(
            f"a training loss of {LOSS}", *(first(r <= LOSS) for r in (plain.loss[i], adam.loss[j]))
        ),
        faster(
            f"{ACCURACY:.0%} test accuracy",
            *(first(r >= ACCURACY) for r in (plain.test[i], adam.test[j])),
        ),
        Claim(
            "α must be tuned by trying a range",
            f"with Adam and α from {tried[0]:g} to {tried[-1]:g}, accuracy is {last.min():.1%} to "
            f"{last.max():.1%}; from {good.min():.2g} to {good.max():.2g} it is within 1 point of "
            "the best",
            bool(np.ptp(last) > 0.1),
        ),
    ]


def valley_table(rides: dict[str, valley.Rides]) -> Table:
    table = Table(title="The narrow valley: the largest safe α, and a common pace", box=box.SIMPLE)
    for column in ("", "largest α", "steps", "Σ|Δy|", "α at pace", "steps", "Σ|Δy|"):
        table.add_column(column, justify="right" if column else "left")
    for name, pair in rides.items():
        cells = [(f"{r.alpha:.3g}", f"{r.steps:.0f}", f"{r.across:.1f}") for r in pair]
        table.add_row(name, *cells[0], *cells[1])
    return table


def digits_table(alphas: dict[str, np.ndarray], runs: dict[str, History]) -> Table:
    epochs = runs["Adam"].test.shape[1]
    table = Table(title=f"Handwritten digits, {epochs} epochs at the best α", box=box.SIMPLE)
    for column in ("", "best α", f"epochs to loss {LOSS}", f"to {ACCURACY:.0%}", "test accuracy"):
        table.add_column(column, justify="right" if column else "left")
    for name, run in runs.items():
        i = best(run)
        reached = run.loss[i] <= LOSS, run.test[i] >= ACCURACY
        needed = [spelled(first(r), epochs) for r in reached]
        table.add_row(name, f"{alphas[name][i]:.3g}", *needed, f"{run.test[i, -1]:.1%}")
    return table


def claims_table(found: list[Claim]) -> Table:
    table = Table(title="The lecture's claims", box=box.SIMPLE)
    table.add_column("")
    table.add_column("claim", ratio=2)
    table.add_column("measured", ratio=3)
    for claim in found:
        verdict = "[green]held[/]" if claim.held else "[red]did not\nhold[/]"
        table.add_row(verdict, claim.text, claim.measured, end_section=True)
    return table


def main() -> None:
    """Run everything, and print and draw what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few settings, epochs and starts")
    parser.add_argument("--out", type=Path, default=Path("results/lecture"), help="for figures")
    options = parser.parse_args()
    quick: bool = options.quick

    settings, epochs, seeds = (5, 4, 1) if quick else (17, 30, 8)
    eps, b1, b2 = (EPS[:9:2], [0.5, 0.9], [0.9, 0.999]) if quick else (EPS, B1, B2)
    alphas = {name: np.geomspace(*ends, settings) for name, ends in RANGES.items()}
    near_best = np.geomspace(10**-2.5, 0.1, 2 if quick else 4)
    data = load_split()
    console = Console()

    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(valley.METHODS) + epochs * (len(alphas) + 3))
        trained = 0

        def done() -> None:
            progress.advance(bar)

        def train(txs: list[adaptax.GradientTransformation]) -> History:
            nonlocal trained
            trained += len(txs) * seeds
            return sweep(txs, data, epochs=epochs, seeds=seeds, done=done)

        progress.update(bar, description="the narrow valley")
        rides = valley.explore(settings=61 if quick else 401, seeds=2 if quick else 16, done=done)
        runs: dict[str, History] = {}
        for name, method in valley.METHODS.items():
            progress.update(bar, description=f"digits, {name}")
            runs[name] = train([method(a) for a in alphas[name]])
        adam = runs["Adam"]
        progress.update(bar, description="Adam without correction")
        steps, uncorrected, of_correction = check_correction(train, alphas["Adam"], adam)
        progress.update(bar, description="Adam, other ε")
        by_eps, of_eps = check_eps(train, alphas["Adam"][best(adam)], eps)
        progress.update(bar, description="Adam, other β₁ and β₂")
        by_betas, of_betas = check_betas(train, near_best, b1, b2)

    found = [*valley.claims(rides), *claims(alphas, runs), of_correction, of_eps, of_betas]
    for table in valley_table(rides), digits_table(alphas, runs), claims_table(found):
        console.print(table)
    print(f"{sum(c.held for c in found)} of {len(found)} claims held.")
    if quick:
        print("A quick run is too short for its verdicts to count.")
    print(f"{trained} networks were trained by {TRACES['sweep']} compiled programs.")

    options.out.mkdir(parents=True, exist_ok=True)
    paths = [
        figures.draw_valley(rides, options.out / "valley.png"),
        figures.draw_training(alphas, runs, options.out / "training.png"),
        figures.draw_alphas(alphas, runs, options.out / "alphas.png"),
        figures.draw_checks(
            (eps, by_eps),
            (b1, b2, by_betas),
            steps,
            (alphas["Adam"], adam, uncorrected),
            options.out / "checks.png",
        ),
    ]
    print("Figures:", *paths)


if __name__ == "__main__":
    main()
