"""The compiled programs of a sweep: start lanes, take them some steps, score them.

A lane is one setting trained from one seed. A program has a fixed width, its number of lanes; it
maps one lane over them, split over the devices of a mesh.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._core import apply_updates, set_numbers
from .._core._manual import each_alone

AXIS = "settings"
LANES, WHOLE = PartitionSpec(AXIS), PartitionSpec()
CAPACITY = 1024
"""The most steps that one call of `advance` takes."""


class Lane(NamedTuple):
    """One setting, one seed. Stacked along a leading axis everywhere but inside `_step`.

    Attributes:
        params: The parameters.
        state: The state of the transformation.
        alive: Whether every loss so far was finite and within the bound; bool.
        steps: Steps done, int32.
    """

    params: Any
    state: Any
    alive: Any
    steps: Any


@dataclass(frozen=True)
class Plan:
    """What is trained: all that is static in the programs. Equal plans share their programs.

    Attributes:
        tx: The transformation, whose numbers of these names are replaced.
        names: The full names of the numbers that are set.
        loss_fn: `loss_fn(params, batch) -> scalar`.
        evaluate: `evaluate(params) -> scalar`, or None.
        make_batch: `make_batch(step) -> batch`, or None where batches are given.
        bound: The largest loss of a lane that is alive.
        mesh: The devices, along one axis.
    """

    tx: Any
    names: tuple[str, ...]
    loss_fn: Callable[..., Any]
    evaluate: Callable[..., Any] | None
    make_batch: Callable[..., Any] | None
    bound: float
    mesh: Mesh

    def transformation(self, numbers: Any) -> Any:
        """The transformation of one lane."""
        return set_numbers(self.tx, dict(zip(self.names, numbers, strict=True)))

    def over_lanes(self, f: Any, in_specs: Any, out_specs: Any) -> Any:
        """A function of lanes, each device doing its own."""
        return jax.shard_map(
            each_alone(f),
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )

    def place(self, tree: Any, spec: PartitionSpec) -> Any:
        """Arrays on the devices."""
        return jax.device_put(tree, NamedSharding(self.mesh, spec))


def start_one(plan: Plan, numbers: Any, which: Any, starts: Any) -> Lane:
    """A lane before its first step, from one of the stacked starts."""
    params = jax.tree.map(lambda x: x[which], starts)
    state = plan.transformation(numbers).init(params)
    return Lane(params, state, jnp.bool_(True), jnp.int32(0))


def step_one(plan: Plan, numbers: Any, lane: Lane, batch: Any) -> tuple[Lane, Any]:
    """One step of a lane, and its loss: NaN for a lane that had ended before.

    A lane whose loss is not finite or beyond the bound ends; it keeps what it had.
    """
    loss, grads = jax.value_and_grad(plan.loss_fn, allow_int=True)(lane.params, batch)
    loss = jnp.asarray(loss, jnp.result_type(float))
    alive = lane.alive & jnp.isfinite(loss) & (loss <= plan.bound)
    tx = plan.transformation(numbers)
    updates, state = tx.update(grads, lane.state, lane.params, value=loss)
    new = Lane(apply_updates(lane.params, updates), state, alive, lane.steps + 1)
    kept = jax.tree.map(partial(jnp.where, alive), new, lane)
    return kept._replace(alive=alive), jnp.where(lane.alive, loss, jnp.nan)


def batch_at(plan: Plan, batches: Any, step: Any) -> Any:
    """The batch of a step."""
    if plan.make_batch is not None:
        return plan.make_batch(step)
    count = jax.tree.leaves(batches)[0].shape[0]
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, step % count, keepdims=False), batches
    )


@partial(jax.jit, static_argnums=0)
def start(plan: Plan, numbers: Any, which: Any, starts: Any) -> Lane:
    """Lanes before their first step: which of the starts each takes, and the starts, stacked."""
    lanes = jax.vmap(partial(start_one, plan), (0, 0, None))
    return plan.over_lanes(lanes, (LANES, LANES, WHOLE), LANES)(numbers, which, starts)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
    plan: Plan, numbers: Any, lanes: Lane, batches: Any, first: Any, count: Any
) -> tuple[Lane, Any]:
    """Take `count` steps, at most `CAPACITY`; the losses are (CAPACITY, lanes), first ones filled.

    The number of steps is an operand, so that one program does a long piece and its rest.
    """

    def loop(numbers: Any, lanes: Lane, batches: Any, first: Any, count: Any) -> Any:
        step = jax.vmap(partial(step_one, plan), (0, 0, None))
        losses = jnp.full((CAPACITY, len(lanes.alive)), jnp.nan, jnp.result_type(float))

        def body(i: Any, carry: Any) -> Any:
            lanes, losses, batch = carry
            lanes, loss = step(numbers, lanes, batch)
            after = batch_at(plan, batches, first + jnp.minimum(i + 1, count - 1))
            return lanes, losses.at[i].set(loss), after

        # The batch is carried, or XLA would compute parts of it anew for each lane.
        carry = lanes, losses, batch_at(plan, batches, first)
        return jax.lax.fori_loop(0, count, body, carry)[:2]

    specs = (LANES, LANES, WHOLE, WHOLE, WHOLE)
    run = plan.over_lanes(loop, specs, (LANES, PartitionSpec(None, AXIS)))
    return run(numbers, lanes, batches, first, count)


@partial(jax.jit, static_argnums=0)
def score(plan: Plan, params: Any) -> Any:
    """What `evaluate` makes of each lane's parameters, (lanes,)."""
    assert plan.evaluate is not None
    scores = plan.over_lanes(jax.vmap(plan.evaluate), (LANES,), LANES)(params)
    return scores.astype(jnp.result_type(float))
