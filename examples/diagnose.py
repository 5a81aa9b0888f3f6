"""What is wrong with a training, seen from the optimizer: four runs, pictures, a few numbers.

A network of four layers learns handwritten digits, once well tuned and three times with a fault:
one layer has a learning rate a hundred times too large; one has a rate so small that it does not
learn; or Adam's ε is so large that it acts like plain descent. `adaptax.telemetry.probe` measures
every tenth step inside the compiled training. The faults are then found from the samples alone. A
layer that is too fast begins with a step as long as itself; then it has grown until the step fits,
so that later ratios look sound. A layer that is too slow has small ratios throughout. A large ε
shows in the fraction of entries whose step it decides.

    python examples/diagnose.py [--quick] [--out results/diagnose]
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, Digits, Split, accuracy, batches, cross_entropy, load_split
from rich import box
from rich.console import Console
from rich.table import Table

import adaptax
from adaptax import telemetry

SIZES = (64, 64, 64, 64, 10)
ALPHA = 2e-3
FAST, SLOW = "layers/1/kernel", "layers/2/kernel"
RUNS = {
    "well tuned": adaptax.adam(ALPHA),
    "one layer too fast": adaptax.partition(
        {"layers/1/*": adaptax.adam(100 * ALPHA), "*": adaptax.adam(ALPHA)}
    ),
    "one layer too slow": adaptax.partition(
        {"layers/2/*": adaptax.adam(ALPHA / 1000), "*": adaptax.adam(ALPHA)}
    ),
    "ε too large": adaptax.adam(ALPHA, eps=1.0),
}
SLOWEST, LONGEST = 1e-4, 0.1  # ratios: typical of a layer that learns; of the longest sound step


def init(key: jax.Array) -> dict[str, Any]:
    """The parameters; their names are "layers/0/kernel" and so on."""
    keys = jax.random.split(key, len(SIZES) - 1)
    shapes = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return {
        "layers": [
            {"kernel": jax.random.normal(k, (n, m)) / jnp.sqrt(n), "bias": jnp.zeros(m)}
            for k, n, m in shapes
        ]
    }


def logits(params: Any, images: jax.Array) -> jax.Array:
    *hidden, last = params["layers"]
    for layer in hidden:
        images = jnp.tanh(images @ layer["kernel"] + layer["bias"])
    return images @ last["kernel"] + last["bias"]


@partial(jax.jit, static_argnames=("tx", "epochs"))
def train(tx: adaptax.GradientTransformation, data: Split, epochs: int) -> tuple[Any, jax.Array]:
    """The optimizer's state at the end, with the samples in it, and the test accuracy."""

    def loss(params: Any, batch: Digits) -> jax.Array:
        return cross_entropy(logits(params, batch.images), batch.labels)

    def step(carry: Any, rows: jax.Array) -> Any:
        params, state = carry
        batch = Digits(data.train.images[rows], data.train.labels[rows])
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (adaptax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), epochs)
    order = jnp.concatenate([batches(key, len(data.train.labels)) for key in keys])
    params = init(jax.random.key(0))
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), order)
    return state, accuracy(logits(params, data.test.images), data.test.labels)


def over_time(samples: list[telemetry.Sample], measure: str, statistic: Any) -> dict[str, float]:
    """A statistic of one measure over the steps, by name: of the matrices, and in total."""
    values = statistic([s.values[measure] for s in samples], 0)
    by_name = zip(samples[0].names, values, strict=True)
    return {k: float(x) for k, x in by_name if not k.endswith("bias")}  # biases begin at zero


def findings(samples: list[telemetry.Sample]) -> list[str]:
    """What is wrong, from the samples alone."""
    longest = over_time(samples, "update_ratio", np.max)
    typical = over_time(samples, "update_ratio", np.median)
    layers = [name for name in longest if name != "total"]
    found = [f"{name} too fast" for name in layers if longest[name] > LONGEST]
    if over_time(samples, "eps_fraction", np.median)["total"] > 0.5:
        return [*found, "ε too large"]  # which makes every layer slow
    return found + [f"{name} too slow" for name in layers if typical[name] < SLOWEST]


def claims(runs: dict[str, list[telemetry.Sample]], scores: dict[str, float]) -> list[Claim]:
    """What telemetry promises."""
    wanted = [[], [f"{FAST} too fast"], [f"{SLOW} too slow"], ["ε too large"]]
    found = [findings(samples) for samples in runs.values()]
    longest, typical, by_eps = (
        [over_time(samples, measure, statistic) for samples in runs.values()]
        for measure, statistic in (
            ("update_ratio", np.max),
            ("update_ratio", np.median),
            ("eps_fraction", np.median),
        )
    )
    size = [over_time(samples, "param_rms", lambda x, _: x[-1])[FAST] for samples in runs.values()]
    tuned, fast, slow, eps = scores.values()
    return [
        Claim(
            "Each fault is found from the samples, and none where there is none",
            "; ".join(", ".join(f) or "nothing" for f in found),
            found == wanted,
        ),
        Claim(
            "A layer that is too fast is overwritten at once, and then grows until its steps fit",
            f"its longest step is {longest[1][FAST]:.2f} of it (well tuned: "
            f"{longest[0][FAST]:.3f}), its typical one {typical[1][FAST]:.4f} "
            f"({typical[0][FAST]:.4f}); it ends {size[1] / size[0]:.0f} times as large",
            longest[1][FAST] > 1 and typical[1][FAST] < 1e-2 and size[1] > 3 * size[0],
        ),
        Claim(
            "A large ε decides most steps, a small one few",
            f"{by_eps[3]['total']:.0%} of the entries at ε = 1, {by_eps[0]['total']:.0%} at 1e-8",
            by_eps[3]["total"] > 0.9 and by_eps[0]["total"] < 0.1,
        ),
        Claim(
            "Accuracy shows the large ε, but hardly the slow layer",
            f"well tuned {tuned:.1%}, fast layer {fast:.1%}, slow layer {slow:.1%}, ε {eps:.1%}",
            eps < tuned - 0.05 and abs(slow - tuned) < 0.02,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What is wrong with a training.")
    parser.add_argument("--quick", action="store_true", help="train for a few epochs")
    parser.add_argument("--out", type=Path, default=Path("results/diagnose"))
    options = parser.parse_args()
    epochs = 8 if options.quick else 30
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_split()

    runs, scores, paths = {}, {}, []
    for name, tx in RUNS.items():
        probed = telemetry.probe(tx, every=10, history=200)
        state, score = train(probed, data, epochs)
        runs[name], scores[name] = telemetry.history(state), float(score)
        stem = options.out / name.replace(" ", "_").replace("ε", "eps")
        with telemetry.JSONLSink(stem.with_suffix(".jsonl")) as sink:
            for sample in runs[name]:
                sink(sample.step, sample)
        paths.append(stem.with_suffix(".png"))
        telemetry.plot_update_ratios(sink.path, paths[-1], leaves="*/kernel", title=name)
    paths.append(options.out / "norms.png")
    telemetry.plot_norms(runs["well tuned"], paths[-1])

    table = Table("", *(f"{i}/kernel" for i in range(len(SIZES) - 1)), "by ε", box=box.SIMPLE)
    for name, samples in runs.items():
        *ratios, _ = over_time(samples, "update_ratio", np.median).values()
        by_eps = over_time(samples, "eps_fraction", np.median)["total"]
        table.add_row(name, *(f"{x:.1e}" for x in ratios), f"{by_eps:.0%}")
    verdicts = Table("", "claim", "measured", box=box.SIMPLE)
    found = claims(runs, scores)
    for claim in found:
        verdicts.add_row("held" if claim.held else "did not hold", claim.text, claim.measured)
    console = Console()
    console.print("‖update‖ / ‖parameter‖ of each matrix, and the entries whose step ε decides:")
    console.print(table, verdicts)
    print(f"{sum(c.held for c in found)} of {len(found)} claims held.")
    if options.quick:
        print("A quick run is too short for its verdicts to count.")
    print("Figures:", *paths)


if __name__ == "__main__":
    main()
