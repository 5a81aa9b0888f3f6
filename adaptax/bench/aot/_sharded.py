"""Steps on several devices: what of a step lies where, and what they then exchange."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ... import sharding
from ..._core import apply_updates
from .. import _problems
from ._measure import Report, measure, size
from ._targets import devices

AXIS = "data"
EXAMPLES = 256
"""Of a batch, on each device."""


@dataclass(frozen=True)
class Case:
    """How a step is spread over devices.

    Attributes:
        split: Whether parameters and gradients lie in parts (FSDP), and so the state.
        zero: Whether the optimizer is `sharding.zero`.
        training: Whether the gradients are computed in the step, from a batch in parts.
    """

    split: bool = False
    zero: bool = False
    training: bool = False


CASES: dict[str, Case] = {
    "update, FSDP": Case(split=True),
    "update, ZeRO-1": Case(zero=True),
    "training, replicated": Case(training=True),
    "training, ZeRO-1": Case(zero=True, training=True),
    "training, FSDP": Case(split=True, training=True),
}

_UPDATES = tuple(name for name, case in CASES.items() if not case.training)
SUBJECTS: dict[str, tuple[str, ...]] = {
    "adam": tuple(CASES),
    "adam8bit": tuple(CASES),
    "lion8bit": _UPDATES,
}
"""The cases that an optimizer is shown in."""


def _two() -> Any:
    return {name: jax.ShapeDtypeStruct((4096, 4096), jnp.float32) for name in ("a", "b")}


TREES: dict[str, Callable[[], Any]] = {"2x4096x4096": _two, "gpt2": _problems.gpt2}


def loss(params: Any, batch: Any, rows: NamedSharding) -> Any:
    """A number to which every parameter adds, matrices by a product with the batch."""

    def term(w: Any) -> Any:
        if w.ndim == 1:
            out = batch[:, : w.shape[0]] * w[None]
        else:
            w = w if w.shape[0] <= batch.shape[1] else w.T
            out = batch[:, : w.shape[0]] @ w
        # As in a network, each device keeps to its part of the batch.
        return jnp.tanh(jax.lax.with_sharding_constraint(out, rows)).mean()

    return sum(map(term, jax.tree.leaves(params)))


def measure_sharded(tx: Any, tree: Any, target: str, case: Case) -> Report:
    """Compile a transformation's step for several devices; run nothing.

    Args:
        tx: The transformation.
        tree: The parameters, float32; only their shapes count.
        target: The name of a target; see `Target.named`.
        case: How the step is spread.

    Returns:
        The report. An update's floor under ZeRO: a device reads its part of parameters, gradients
        and state, and writes its part of the state and all parameters. Training has none.

    Raises:
        ValueError: There is no such target, or no parameter; or one to train that is neither a
            vector nor a matrix.
        ModuleNotFoundError: The target's compiler is not installed.
    """
    others = [p.shape for p in jax.tree.leaves(tree) if p.ndim not in (1, 2)]
    if case.training and others:
        raise ValueError(
            "measure_sharded: tree must hold vectors and matrices where the case is training, got "
            f"an array of shape {others[0]}; take a case of an update, or another tree."
        )
    mesh = Mesh(np.array(devices(target)), (AXIS,), axis_types=(AxisType.Auto,))
    parts = sharding.split(tree, PartitionSpec(), mesh, axis=AXIS)
    whole = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)
    at = parts if case.split else whole
    if case.zero:
        tx = sharding.zero(tx, PartitionSpec(), mesh, axis=AXIS)
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    params = _placed(tree, at)
    state_at = sharding.state_sharding(tx, params, at, mesh)
    state = _placed(jax.eval_shape(tx.init, params), state_at)

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        params = apply_updates(params, updates)
        pin = jax.lax.with_sharding_constraint
        return jax.tree.map(pin, params, at), jax.tree.map(pin, state, state_at)

    def train(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        return update(params, state, jax.grad(loss)(params, batch, rows))

    if case.training:
        width = max((min(p.shape) for p in jax.tree.leaves(tree)), default=1)
        shape = (EXAMPLES * mesh.size, width)
        batch = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        return dataclasses.replace(measure(train, params, state, batch, target), floor=0)
    report = measure(update, params, state, params, target)
    if case.zero:
        part = size(_placed(tree, parts))
        floor = 2 * part + 2 * report.state + size(params)
        report = dataclasses.replace(report, floor=floor)
    return report


def _placed(tree: Any, shardings: Any) -> Any:
    def one(x: Any, at: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    return jax.tree.map(one, tree, shardings)
