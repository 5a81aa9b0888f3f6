"""Flax NNX: a network learns handwritten digits; `nnx.Optimizer` takes the transformation.

python examples/flax_nnx.py [--epochs 10]
"""

import argparse
from functools import partial

import jax
from common import Digits, accuracy, batches, cross_entropy, load_split
from flax import nnx

import adaptax


class Perceptron(nnx.Module):
    """One hidden layer, with dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.hidden(images))))


# The old model and optimizer are donated: the new ones take over their memory.
@partial(nnx.jit, donate_argnums=(0, 1))
def train_step(model: Perceptron, optimizer: nnx.Optimizer, batch: Digits) -> jax.Array:
    """Update the model and the optimizer in place."""

    def loss_fn(model: Perceptron) -> jax.Array:
        return cross_entropy(model(batch.images), batch.labels)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def evaluate(model: Perceptron, digits: Digits) -> jax.Array:
    return accuracy(model(digits.images), digits.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    epochs: int = parser.parse_args().epochs

    data = load_split()
    train = data.train
    steps = epochs * len(batches(jax.random.key(0), len(train.labels)))
    schedule = adaptax.cosine_decay_schedule(1e-2, steps)
    model = Perceptron(nnx.Rngs(0))
    tx = adaptax.adamw(schedule)
    # Declared to take optax's class, it takes anything with init and update.
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)  # type: ignore[arg-type]

    for epoch in range(epochs):
        model.train()
        losses = []
        for rows in batches(jax.random.key(epoch), len(train.labels)):
            batch = Digits(train.images[rows], train.labels[rows])
            losses.append(train_step(model, optimizer, batch))
        model.eval()
        correct = evaluate(model, data.test)
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}, test accuracy {correct:.1%}"
        )


if __name__ == "__main__":
    main()
