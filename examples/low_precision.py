"""A quarter of the memory: Adam with 8-bit state, and 16-bit parameters that do not stall.

A network of three layers learns handwritten digits with a learning rate that falls to zero, so that
the last steps are small. Its state is kept in float32 or in 8 bits (`adaptax.lowbit.adam8bit`), its
parameters in float32 or bfloat16: as they are, rounded by chance (`stochastic_rounding`), or with a
byte beside them (`ulp_correction`). All runs start alike and see the same mini-batches.

    python examples/low_precision.py [--quick] [--out results/low_precision]
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import Claim, Digits, Split, batches, cross_entropy, load_split
from rich import box
from rich.console import Console
from rich.table import Table

import adaptax
from adaptax import lowbit

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZES = (64, 256, 256, 10)
ALPHA = 1e-3
WIDE, EIGHT = "float32", "8-bit state"
PLAIN, CHANCE, BYTE = "bf16, plain", "bf16, rounded by chance", "bf16 and a byte"
COLORS = ("black", "#0072B2", "#D55E00", "#E69F00", "#009E73")


class Run(NamedTuple):
    """The mean loss of each epoch, and the loss at the end on other images."""

    losses: np.ndarray
    validation: float


def methods(steps: int) -> dict[str, tuple[adaptax.GradientTransformation, Any]]:
    """The optimizers, and the dtypes of the parameters."""
    alpha = adaptax.cosine_decay_schedule(ALPHA, steps)
    adam = adaptax.adam(alpha)
    return {
        WIDE: (adam, jnp.float32),
        EIGHT: (lowbit.adam8bit(alpha), jnp.float32),
        PLAIN: (adam, jnp.bfloat16),
        CHANCE: (adaptax.chain(adam, lowbit.stochastic_rounding()), jnp.bfloat16),
        BYTE: (adaptax.chain(adam, lowbit.ulp_correction()), jnp.bfloat16),
    }


def init(dtype: Any) -> Any:
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    shapes = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return [
        {
            "kernel": (jax.random.normal(k, (n, m)) / jnp.sqrt(n)).astype(dtype),
            "bias": jnp.zeros(m, dtype),
        }
        for k, n, m in shapes
    ]


def logits(params: Any, images: jax.Array) -> jax.Array:
    *hidden, last = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    for layer in hidden:
        images = jnp.tanh(images @ layer["kernel"] + layer["bias"])
    return images @ last["kernel"] + last["bias"]


@partial(jax.jit, static_argnames=("tx", "dtype"))
def train(tx: adaptax.GradientTransformation, dtype: Any, data: Split, order: jax.Array) -> Any:
    """The mean loss of each epoch, and the validation loss at the end."""

    def loss(params: Any, batch: Digits) -> jax.Array:
        return cross_entropy(logits(params, batch.images), batch.labels)

    def step(carry: Any, rows: jax.Array) -> Any:
        params, state = carry
        batch = Digits(data.train.images[rows], data.train.labels[rows])
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (adaptax.apply_updates(params, updates), state), value

    def epoch(carry: Any, rows: jax.Array) -> Any:
        carry, losses = jax.lax.scan(step, carry, rows)
        return carry, losses.mean()

    params = init(dtype)
    (params, _), losses = jax.lax.scan(epoch, (params, tx.init(params)), order)
    return losses, loss(params, data.val)


def state_bytes(tx: adaptax.GradientTransformation, dtype: Any) -> float:
    """The bytes of the state over the number of parameters."""
    return lowbit.report(tx, init(dtype)).bytes_per_parameter


def claims(runs: dict[str, Run], size: dict[str, float]) -> list[Claim]:
    """What low precision promises."""
    end = {name: run.losses[-1] for name, run in runs.items()}
    return [
        Claim(
            "8 bits hold the state of Adam",
            f"training loss at the end {end[EIGHT]:.5f} against {end[WIDE]:.5f}, validation "
            f"{runs[EIGHT].validation:.4f} against {runs[WIDE].validation:.4f}",
            bool(abs(end[EIGHT] / end[WIDE] - 1) < 0.05),
        ),
        Claim(
            "in a quarter of the bytes",
            f"{size[EIGHT]:.2f} a parameter against {size[WIDE]:.2f}; small arrays stay float32",
            size[EIGHT] < 0.3 * size[WIDE],
        ),
        Claim(
            "Parameters in bfloat16 stall",
            f"training loss at the end {end[PLAIN]:.5f}, validation {runs[PLAIN].validation:.4f}",
            bool(end[PLAIN] > 1.5 * end[WIDE]),
        ),
        Claim(
            "rounded by chance they do not",
            f"training loss at the end {end[CHANCE]:.5f}",
            bool(abs(end[CHANCE] / end[WIDE] - 1) < 0.05),
        ),
        Claim(
            "and with a byte beside them they train as float32 ones",
            f"training loss at the end {end[BYTE]:.5f}",
            bool(abs(end[BYTE] / end[WIDE] - 1) < 0.05),
        ),
    ]


def draw(runs: dict[str, Run], path: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, run), color in zip(runs.items(), COLORS, strict=True):
        epochs = np.arange(1, len(run.losses) + 1)
        ratio = 100 * (run.losses / runs[WIDE].losses - 1)
        for ax, y in zip(axes, (run.losses, ratio), strict=True):
            ax.plot(epochs, y, color=color, label=name, linewidth=1.3)
    axes[0].set(ylabel="training loss", yscale="log")
    axes[1].set(ylabel="difference from float32, %")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[1].yaxis.set_major_formatter("{x:g}")
    for ax in axes:
        ax.set(xlabel="epoch")
        ax.grid(color="0.92")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train for a few epochs")
    parser.add_argument("--out", type=Path, default=Path("results/low_precision"))
    options = parser.parse_args()
    epochs = 4 if options.quick else 40
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_split()
    keys = jax.random.split(jax.random.key(1), epochs)
    order = jnp.stack([batches(key, len(data.train.labels)) for key in keys])

    runs, size = {}, {}
    for name, (tx, dtype) in methods(order.shape[0] * order.shape[1]).items():
        losses, validation = train(tx, dtype, data, order)
        runs[name] = Run(np.asarray(losses), float(validation))
        size[name] = state_bytes(tx, dtype)

    table = Table("", "state", "parameters", "loss at the end", "validation", box=box.SIMPLE)
    for name, run in runs.items():
        width = "2" if name.startswith("bf16") else "4"
        ends = f"{run.losses[-1]:.5f}", f"{run.validation:.4f}"
        table.add_row(name, f"{size[name]:.2f}", width, *ends)
    verdicts = Table("", "claim", "measured", box=box.SIMPLE)
    found = claims(runs, size)
    for claim in found:
        verdicts.add_row("held" if claim.held else "did not hold", claim.text, claim.measured)
    console = Console()
    console.print("Bytes a parameter, and losses:")
    console.print(table, verdicts)
    print(f"{sum(c.held for c in found)} of {len(found)} claims held.")
    if options.quick:
        print("A quick run is too short for its verdicts to count.")
    print("Figure:", draw(runs, options.out / "low_precision.png"))


if __name__ == "__main__":
    main()
