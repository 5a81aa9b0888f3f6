"""Adam across architectures: four models on real data, four methods, each at its best α.

A multilayer perceptron and a CNN learn scikit-learn's handwritten digits; a GRU and a small
transformer learn to predict the next character of the documentation inside Python. On each,
gradient descent, momentum, RMSprop and Adam start from the same parameters, see the same
mini-batches, and are run at every α of a grid. What counts is the number of steps until the
training loss, a mean over twenty mini-batches, falls to a target: a fixed number for each problem
(`architecture_models.problems`). A method's best α is the one with the fewest steps to the
target; if no α gets there, the one with the lowest loss. There is one seed, so that differences
of a few tens of steps say little.

An adaptax transformation is a pytree whose leaves are its numbers. So the transformations of a
grid stack into one, and `jax.vmap` trains a model at every α in one compiled program.

    python examples/architectures.py [--quick] [--out results/architectures]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from architecture_models import Problem, problems
from jaxtyping import Array, Float, Int
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import adaptax

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

PLAIN, ADAM = "gradient descent", "Adam"
METHODS: dict[str, tuple[Callable[[float], adaptax.GradientTransformation], list[float]]] = {
    PLAIN: (adaptax.sgd, [0.03, 0.1, 0.3, 1, 3, 10]),
    "momentum": (lambda a: adaptax.sgd(a, momentum=0.9), [0.01, 0.03, 0.1, 0.3, 1, 3]),
    "RMSprop": (adaptax.rmsprop, [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]),
    ADAM: (adaptax.adam, [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]),
}
COLORS = {PLAIN: "0.45", "momentum": "tab:green", "RMSprop": "tab:orange", ADAM: "tab:blue"}
EVERY = 20  # a recorded loss is the mean over so many steps


@dataclass(frozen=True)
class Sweep:
    """One method at every α of its grid, on every problem."""

    alphas: list[float]
    losses: Float[np.ndarray, "problems alphas records"]
    targets: Float[np.ndarray, " problems"]

    @property
    def steps(self) -> Float[np.ndarray, "problems alphas"]:
        """The steps until the loss is at the target; infinity if it never is."""
        # NaN compares as false: a run that diverged reaches nothing.
        reached = self.losses <= self.targets[:, None, None]
        return np.where(reached.any(-1), EVERY * (reached.argmax(-1) + 1), np.inf)

    @property
    def best(self) -> Int[np.ndarray, " problems"]:
        """The index of the best α on each problem."""
        lowest = np.where(np.isnan(self.losses), np.inf, self.losses).min(-1)
        return np.lexsort((lowest, self.steps))[:, 0]


def trainer(problem: Problem, steps: int) -> Callable[[adaptax.GradientTransformation], Array]:
    """A compiled function from a stack of transformations to the loss curve of each."""
    start, loss = problem.functional()

    def train(tx: adaptax.GradientTransformation) -> Float[Array, " records"]:
        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, problem.batch(key))
            updates, state = tx.update(grads, state, params)
            return (adaptax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), steps)
        losses = jax.lax.scan(step, (start, tx.init(start)), keys)[1]
        return losses.reshape(-1, EVERY).mean(1)

    return jax.jit(jax.vmap(train))


def sweep_all(todo: list[Problem], steps: int, quick: bool) -> dict[str, Sweep]:
    """Every method on every problem, at every α."""
    targets = np.array([problem.target for problem in todo])
    trainers = [trainer(problem, steps) for problem in todo]
    sweeps = {}
    with Progress() as progress:
        for method, (make, grid) in METHODS.items():
            alphas = grid[2:4] if quick else grid
            txs = jax.tree.map(lambda *n: jnp.stack(n), *[make(a) for a in alphas])
            bar = progress.track(trainers, description=method)
            losses = np.stack([np.asarray(train(txs)) for train in bar])
            sweeps[method] = Sweep(alphas, losses, targets)
    return sweeps


def count(steps: float, last: int) -> str:
    """A number of steps, or that the target was not reached by the last."""
    return f"{steps:.0f}" if steps <= last else f"> {last}"


def times(slow: float, fast: float, last: int) -> str:
    """How many times as many steps `slow` is; at least how many, if it is infinite."""
    if not np.isfinite(fast):
        return "-"
    return f"{slow / fast:.1f}" if slow <= last else f"> {last / fast:.1f}"


def report(todo: list[Problem], sweeps: dict[str, Sweep], last: int) -> None:
    """Print the table, and the claims with what was measured."""
    title = f"Steps of {last} until the loss is at the target, each method at its best α"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for name in ("problem (target)", "method", "α", "steps", "times fewer", "last loss"):
        table.add_column(name, justify="left" if name[0] in "pm" else "right")
    fewest = {method: s.steps.min(-1) for method, s in sweeps.items()}
    for k, problem in enumerate(todo):
        for method, s in sweeps.items():
            first = f"{problem.name} ({problem.target:g})" if method == PLAIN else ""
            steps, fewer = fewest[method][k], times(fewest[PLAIN][k], fewest[method][k], last)
            alpha, final = f"{s.alphas[s.best[k]]:g}", f"{s.losses[k, s.best[k], -1]:.3f}"
            cells = first, method, alpha, count(steps, last), fewer, final
            table.add_row(*cells, end_section=method == ADAM)
    Console().print(table)

    verdict = {True: "held", False: "DID NOT HOLD"}
    print(f"Adam works, reaching every target: {verdict[bool(np.isfinite(fewest[ADAM]).all())]}")
    beats = bool((fewest[ADAM] < fewest[PLAIN]).all())
    print(f"Adam beats gradient descent, in fewer steps on every problem: {verdict[beats]}")
    fewer = [times(*n, last) for n in zip(fewest[PLAIN], fewest[ADAM], strict=True)]
    print("  times fewer: " + ", ".join(f"{p.name} {n}" for p, n in zip(todo, fewer, strict=True)))
    for other in ("momentum", "RMSprop"):
        print(f"  fewer than {other} on {(fewest[ADAM] < fewest[other]).sum()} of {len(todo)}")

    print("With one α for all architectures, the one that reaches the most targets:")
    reach = {}
    for method, s in sweeps.items():
        reached, total = np.isfinite(s.steps).sum(0), np.minimum(s.steps, last).sum(0)
        best = int(np.lexsort((total, -reached))[0])
        reach[method] = int(reached[best])
        each = ", ".join(count(n, last) for n in s.steps[:, best])
        print(f"  {method}, α = {s.alphas[best]:g}: {reach[method]} of {len(todo)}, steps {each}")
    holds = verdict[reach[ADAM] == len(todo) > reach[PLAIN]]
    print(f"One α of Adam's does for all, and none of gradient descent's: {holds}")


def draw(todo: list[Problem], sweeps: dict[str, Sweep], steps: int, path: Path) -> None:
    """The loss curves at the best α of each method, and the steps to the target against α."""
    figure, axes = plt.subplots(2, len(todo), figsize=(14, 6.6), layout="constrained")
    at = np.arange(EVERY, steps + 1, EVERY)
    for k, (problem, (top, bottom)) in enumerate(zip(todo, axes.T, strict=True)):
        top.axhline(problem.target, color="black", linestyle=":", linewidth=1)
        bottom.axhline(steps, color="black", linestyle=":", linewidth=1)
        for method, s in sweeps.items():
            style = {"color": COLORS[method], "linewidth": 2.2 if method == ADAM else 1.3}
            label = f"{method}, α = {s.alphas[s.best[k]]:g}"
            top.plot(at, s.losses[k, s.best[k]], label=label, **style)
            # An α that never gets there is drawn on the dotted line of the last step.
            bottom.plot(s.alphas, np.minimum(s.steps[k], steps), marker="o", markersize=4, **style)
        top.set(title=problem.name, xlabel="step", yscale="log")
        lowest, highest = top.dataLim.intervaly
        top.set_ylim(max(lowest / 1.1, problem.target / 4), min(1.1 * highest, 6))
        top.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        top.yaxis.set_major_formatter("{x:g}")
        top.yaxis.set_minor_locator(NullLocator())
        top.legend(fontsize=7.5, loc="upper right")
        bottom.set(xscale="log", ylim=(0, 1.05 * steps), xlabel="α")
    axes[0, 0].set_ylabel("training loss (target dotted)")
    axes[1, 0].set_ylabel("steps to the target (never: dotted)")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the sweep, and print and draw what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models, few steps, two α's")
    parser.add_argument("--out", type=Path, default=Path("results/architectures"))
    options = parser.parse_args()

    steps = 100 if options.quick else 600
    todo = problems(options.quick)
    sweeps = sweep_all(todo, steps, options.quick)
    report(todo, sweeps, steps)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "architectures.png"
    draw(todo, sweeps, steps, path)
    print(f"Figure: {path}")


if __name__ == "__main__":
    main()
