"""Groups of parameters: freezing some, training some."""

from .._core import (
    MaskLike,
    Node,
    Transform,
    _masking,
    masked,
    node_of,
    partition,
    set_to_zero,
    transformation,
)


@transformation
def freeze(mask: MaskLike = True) -> Node:
    """Updates of zero for the leaves that a mask selects; the others pass unchanged.

    Args:
        mask: A path pattern, a tree of bools or a function that makes one (see `masked`); True
            is all leaves.

    State: a `MaskedState`, without arrays.

    >>> import adaptax, jax.numpy as jnp
    >>> grads = {"embed": jnp.ones(()), "out": jnp.ones(())}
    >>> tx = adaptax.freeze("embed")
    >>> {name: float(u) for name, u in tx.update(grads, tx.init(grads))[0].items()}
    {'embed': 0.0, 'out': 1.0}
    """
    return node_of(masked(set_to_zero(), mask))


@transformation
def selective_transform(optimizer: Transform, *, freeze_mask: MaskLike) -> Node:
    """Train some leaves; freeze those that a mask selects.

    Frozen leaves have updates of zero and no state, and cost nothing in a compiled step.

    Args:
        optimizer: The transformation for the leaves that are not frozen.
        freeze_mask: A path pattern, a tree of bools or a function that makes one (see `masked`).

    State: a `PartitionState` with the labels "train" and "freeze".
    """
    groups = {"train": optimizer, "freeze": set_to_zero()}
    return node_of(partition(groups, _masking.Labels(freeze_mask, "freeze", "train")))
