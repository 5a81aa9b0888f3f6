"""α must be tuned by trying a range: 64 learning rates of Adam, trained in one compiled program.

A transformation is a value whose leaves are its numbers, so a sweep is a `vmap` over it. The same
network learns the handwritten digits with each α; what it makes of the validation set is the
score. A second sweep stops the worst half at each rung, and must find an α as good with less work.

    python examples/sweep.py [--quick] [--out results/sweep]
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
from common import Claim, Digits, Split, batches, cross_entropy, init, load_split, logits

import adaptax
from adaptax import sweep

matplotlib.use("Agg")

TRACES = {"loss": 0}  # counted while JAX traces


def loss_fn(params: dict[str, jax.Array], batch: Digits) -> jax.Array:
    TRACES["loss"] += 1
    return cross_entropy(logits(params, batch.images), batch.labels)


def stack_batches(data: Digits, epochs: int) -> Digits:
    """The mini-batches of some epochs, each epoch in an order of its own."""
    shuffled = partial(batches, count=len(data.labels))
    rows = jax.vmap(shuffled)(jax.random.split(jax.random.key(1), epochs))
    rows = rows.reshape(-1, rows.shape[-1])
    return Digits(data.images[rows], data.labels[rows])


def claims(full: sweep.Results, halved: sweep.Results, traces: int) -> list[Claim]:
    """What was promised, what was measured."""
    alphas, score = full.settings["learning_rate"], full.score
    near = alphas[score < 2 * score.min()]
    work = halved.steps.sum() / full.steps.sum()
    return [
        Claim(
            "α must be tuned by trying a range",
            f"from {alphas[0]:g} to {alphas[-1]:g} the validation loss is {score.min():.3f} to "
            f"{score[np.isfinite(score)].max():.2f}; it is below twice the best from "
            f"{near.min():.2g} to {near.max():.2g} ({len(near)} of {len(full)})",
            bool(score.max() > 3 * score.min() and len(near) < len(full) / 2),
        ),
        Claim(
            "one compiled program trains them all",
            f"the loss was traced {traces} times for {len(full)} settings of "
            f"{full.losses.shape[1]} steps, {full.seconds:.1f} s in all",
            traces <= 3,
        ),
        Claim(
            "stopping the worst half at each rung finds an α as good",
            f"{halved.best.setting['learning_rate']:.2g} with a loss of {halved.best.score:.3f} "
            f"against {full.best.setting['learning_rate']:.2g} with {full.best.score:.3f}, for "
            f"{work:.0%} of the steps",
            bool(halved.best.score < 1.1 * full.best.score and work < 0.5),
        ),
    ]


def draw(results: sweep.Results, path: Path) -> Path:
    """The final loss against α; crosses mark what diverged."""
    figure = results.plot()
    ax = figure.axes[0]
    ax.axvline(1e-3, color="black", linestyle=":", linewidth=1)
    ax.set(xlabel="α (dotted: 0.001, the usual first choice)", ylabel="validation loss at the end")
    figure.suptitle(f"{len(results)} learning rates of Adam in one program")
    ax.grid(color="0.92")
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    """Run both sweeps, and print and draw what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few settings and epochs")
    parser.add_argument("--out", type=Path, default=Path("results/sweep"), help="for figures")
    options = parser.parse_args()
    count, epochs = (8, 4) if options.quick else (64, 20)

    data: Split = load_split()
    train = stack_batches(data.train, epochs)
    steps = len(train.labels)
    settings = sweep.grid({"learning_rate": sweep.log_range(1e-5, 10.0, count)})

    def validation(params: dict[str, jax.Array]) -> jax.Array:
        return cross_entropy(logits(params, data.val.images), data.val.labels)

    run = partial(
        sweep.run, adaptax.adam(1e-3), settings, loss_fn, init, train, steps=steps, bound=100.0
    )
    full = run(evaluate=validation)
    traces = TRACES["loss"]
    rungs = [steps // 8, steps // 4, steps // 2]
    halved = run(evaluate=validation, halving=sweep.halving(rungs, keep=0.5))

    print(full)
    print()
    found = claims(full, halved, traces)
    for claim in found:
        print(f"{'held' if claim.held else 'did not hold'}: {claim.text}\n    {claim.measured}")
    print(f"{sum(c.held for c in found)} of {len(found)} claims held.")
    if options.quick:
        print("A quick run is too short for its verdicts to count.")
    images, labels = data.test
    right = (logits(full.best.params, images).argmax(-1) == labels).mean()
    print(f"{full.best.tx!r} has {right:.1%} test accuracy.")
    options.out.mkdir(parents=True, exist_ok=True)
    print("Figure:", draw(full, options.out / "sweep.png"))


if __name__ == "__main__":
    main()
