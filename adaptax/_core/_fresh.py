"""Memory of its own for each array of a new state, so that it can be donated."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def fresh(state: Any, *others: Any) -> Any:
    """The state, with a copy of each array whose memory it has twice, or others have too.

    A donated array may stand in one place alone, and what is donated is gone for others: for
    parameters that a state keeps, and for hyperparameters.
    """
    taken: set[int] = set()
    for leaf in jax.tree.leaves(others):
        taken |= _memory(leaf)

    def own(x: Any) -> Any:
        mine = _memory(x)
        if not taken.isdisjoint(mine):
            x = x.copy()  # where it is: the same devices, the same kind of memory
            mine = _memory(x)
        taken.update(mine)
        return x

    leaves, structure = jax.tree.flatten(state)
    new = [own(x) for x in leaves]
    same = all(a is b for a, b in zip(leaves, new, strict=True))
    return state if same else structure.unflatten(new)


def _memory(x: Any) -> set[int]:
    """What tells the memory of an array: its addresses; of a traced one, itself."""
    if isinstance(x, Tracer):
        return {-id(x)}
    if isinstance(x, np.ndarray):
        return {x.ctypes.data}
    if not isinstance(x, jax.Array) or x.is_deleted():
        return set()
    try:
        if len(x.sharding.device_set) == 1:
            return {x.unsafe_buffer_pointer()}
        return {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    except (NotImplementedError, RuntimeError):  # a backend that does not tell
        return {-id(x)}
