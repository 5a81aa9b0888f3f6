"""Many matrices in one stack, each device of a mesh axis with its part."""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ._shardings import constrain, is_explicit, pieces


def work_together(
    mesh: Any, axis: tuple[str, ...], f: Callable[[Any], Any], stacks: list[Any]
) -> list[Any]:
    """f of each of some stacks of matrices, (n, rows, columns), computed in one stack.

    Its first axis is split over the mesh axis, so that every device works on its matrices, whole
    ones.
    """
    explicit = is_explicit(NamedSharding(mesh, PartitionSpec()))
    rest = None if explicit else PartitionSpec.UNCONSTRAINED
    parted = NamedSharding(mesh, PartitionSpec(axis, rest, rest))
    whole = NamedSharding(mesh, PartitionSpec())
    if explicit and len({jax.typeof(x).sharding for x in stacks}) > 1:
        stacks = [constrain(x, whole) for x in stacks]  # types that differ can't be concatenated
    ends = [0, *accumulate(x.shape[0] for x in stacks)]
    x = jnp.concatenate(stacks)
    # What fills up the last device's part is nobody's; ones go through any iteration.
    x = jnp.pad(x, ((0, -ends[-1] % pieces(mesh, axis)), (0, 0), (0, 0)), constant_values=1)
    x = constrain(f(constrain(x, parted)), parted)
    if explicit:
        x = constrain(x, whole)  # slices of a split axis have no type
    return [x[a:b] for a, b in pairwise(ends)]
