"""State in the host's memory, on the device only during a step."""

from typing import Annotated, Any

import jax
from jax.core import Tracer

from .._core import Node, Pair, Transform, node_of, transformation
from .._core._kinds import StaticInt
from . import _errors

HOST = "pinned_host"


@transformation
def offload(inner: Transform, *, min_size: Annotated[int, StaticInt(0)] = 4096) -> Node:
    """Keep a transformation's state in the host's memory; a step fetches it and puts it back.

    Frees the device of the state between steps, at the price of moving it twice over the bus in
    each; inside one `jax.jit`, where the compiler can overlap that with the gradients. For
    backends whose devices have a memory of the kind "pinned_host": GPUs, TPUs, and the CPU, where
    it is there to test with. Works on any transformation; around `zero` only each device's part
    moves.

    Args:
        inner: The transformation.
        min_size: Arrays with fewer entries stay on the device.

    State: the inner state. To donate it, give `jax.jit` both in_shardings and out_shardings (see
    `state_sharding`); jax otherwise lends host memory to results on the device, and fails.

    Raises:
        ValueError: At `init`, if the parameters' device has no such memory.

    >>> import adaptax, jax, jax.numpy as jnp
    >>> from adaptax import sharding
    >>> tx = sharding.offload(adaptax.adam(1e-3))
    >>> state = jax.jit(tx.init)({"w": jnp.ones((64, 64))})
    >>> state[0].mu["w"].sharding.memory_kind
    'pinned_host'
    """
    node = node_of(inner)

    def moved(state: Any, space: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x, space) if _moves(x) else x, state)

    def _moves(x: Any) -> bool:
        return x.size >= max(min_size, 1)

    def init(params: Any) -> Any:
        for leaf in jax.tree.leaves(params):
            if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
                check_host_memory(next(iter(leaf.devices())))
        return moved(node.init(params), jax.memory.Space.Host)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = moved(state, jax.memory.Space.Device)
        updates, state = node.update(updates, state, params, **extra_args)
        return updates, moved(state, jax.memory.Space.Host)

    return Pair(init, update, lambda state: {"": (inner, state)})


def check_host_memory(device: Any) -> None:
    """Refuse a device whose backend has no host memory that programs can address."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise _errors.no_host_memory(device, kinds)
