"""A whole training run as one compiled program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ... import _core


@dataclass(frozen=True)
class Task:
    """A model to train, its data, and for how long.

    Attributes:
        name: What the page calls it.
        init: `key -> params`, float32.
        loss: `(params, batch) -> ()`; it computes in float32, whatever the parameters' dtype.
        batch: `key -> batch`, a random mini-batch of the training data.
        validation: `params -> ()`, the mean loss over held-out data, always the same.
        glance: The same over a part of it, for the curve.
        steps: A multiple of `every`.
        every: Steps between two records of a curve.
    """

    name: str
    init: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    batch: Callable[[Any], Any]
    validation: Callable[[Any], Any]
    glance: Callable[[Any], Any]
    steps: int
    every: int


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        train: The loss of the mini-batches, a mean over `every` steps.
        validation: The loss over a part of the validation data, after every `every` steps.
        final: The loss over all of it, at the end.
    """

    train: Float[np.ndarray, " records"]
    validation: Float[np.ndarray, " records"]
    final: float

    @property
    def area(self) -> float:
        """The mean training loss of the whole run: less is faster."""
        return float(self.train.mean())


def run(
    task: Task,
    tx: Any,
    seeds: Sequence[int],
    *,
    param_dtype: Any = jnp.float32,
    nudge: float = 0.0,
    done: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Train once for each seed; the program is compiled once.

    A seed fixes the initial parameters and the mini-batches, for every transformation alike.

    Args:
        task: What to train.
        tx: A transformation.
        seeds: One run for each.
        param_dtype: Of the parameters; their gradients have it too.
        nudge: A relative change of the initial parameters, normally distributed. What a change of
            1e-7 does to the end is what chance does.
        done: Called after each run.
    """
    program = _program(task, tx, param_dtype)
    results = []
    for seed in seeds:
        train, validation, final = program(np.uint32(seed), np.float32(nudge))
        results.append(Result(np.asarray(train), np.asarray(validation), float(final)))
        done()
    return results


def _program(task: Task, tx: Any, param_dtype: Any) -> Any:
    """The jitted function `(seed, nudge) -> (train, validation, final)`."""

    def start(key: Any, nudge: Any) -> Any:
        leaves, treedef = jax.tree.flatten(task.init(key))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        nudged = [
            (x * (1 + nudge * jax.random.normal(k, x.shape))).astype(param_dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, nudged)

    def program(seed: Any, nudge: Any) -> Any:
        draws, inits = jax.random.split(jax.random.key(seed))
        params = start(inits, nudge)

        def step(carry: Any, t: Any) -> tuple[Any, Any]:
            params, state = carry
            batch = task.batch(jax.random.fold_in(draws, t))
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (_core.apply_updates(params, updates), state), loss

        def record(carry: Any, first: Any) -> tuple[Any, Any]:
            carry, losses = jax.lax.scan(step, carry, first + jnp.arange(task.every))
            return carry, (losses.mean(), task.glance(carry[0]))

        begins = task.every * jnp.arange(task.steps // task.every)
        (params, _), curves = jax.lax.scan(record, (params, tx.init(params)), begins)
        return *curves, task.validation(params)

    return jax.jit(program)
