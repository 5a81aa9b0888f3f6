"""The parts of a state that are like the parameters."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from .._core import _checks
from .._core._tree import Laid, NotAPrefix, is_hole


@jax.tree_util.register_static
class Placeholder:
    """Stands for the parameters: a tree without leaves, which a map over it returns as it is."""

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Placeholder)

    def __hash__(self) -> int:
        return hash(Placeholder)


def map_params(
    initable: Any,
    f: Callable[..., Any],
    state: Any,
    /,
    *rest: Any,
    transform_non_params: Callable[..., Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Apply a function to the leaves of a state that belong to parameters: moments, averages, ...

    Where a state's part is like the parameters is found out by an init without any; parameters
    are not needed, and the state may be one of `jax.ShapeDtypeStruct`.

    Args:
        initable: The transformation that the state is of, or its init. Of optax's, too.
        f: `f(leaf, *leaves of rest)`.
        state: A state.
        *rest: Trees with the structure of the parameters.
        transform_non_params: A function of each other leaf, such as the count of steps; None
            leaves them as they are.
        is_leaf: What counts as a leaf of the parts, as for `jax.tree.map`. By default f does not
            see None and `MaskedNode`, which stay as they are.

    Raises:
        ValueError: The state is not of this transformation.

    >>> import adaptax
    >>> tx = adaptax.adam(0.1)
    >>> state = tx.init({"w": 1.0, "b": 2.0})
    >>> specs = {"w": "rows", "b": "replicated"}
    >>> placed = adaptax.tree.map_params(
    ...     tx, lambda x, spec: spec, state, specs, transform_non_params=lambda x: None
    ... )
    >>> placed[0].count, placed[0].mu
    (None, {'b': 'replicated', 'w': 'rows'})
    """
    placeholder = _placeholder()
    init = getattr(initable, "init", initable)
    mark = type(placeholder)
    try:
        laid = Laid.of(init(placeholder), state, lambda x: isinstance(x, mark))
    except NotAPrefix as error:
        raise _not_its_state(initable, str(error)) from None

    def map_part(part: Any) -> Any:
        if is_leaf is not None:
            return jax.tree.map(f, part, *rest, is_leaf=is_leaf)
        return jax.tree.map(
            lambda x, *xs: x if is_hole(x) else f(x, *xs), part, *rest, is_leaf=is_hole
        )

    def others(part: Any) -> Any:
        return part if transform_non_params is None else transform_non_params(part)

    parts = laid.structure.flatten_up_to(state)
    return laid.structure.unflatten(
        map_part(part) if isinstance(value, mark) else others(part)
        for value, part in zip(laid.values, parts, strict=True)
    )


def _placeholder() -> Any:
    """Optax's own where optax is loaded, because its `masked` knows no other."""
    module = sys.modules.get("optax.tree_utils._state_utils")
    return getattr(module, "_ParamsPlaceholder", Placeholder)()


def _not_its_state(initable: Any, problem: str) -> ValueError:
    return ValueError(
        f"tree.map_params: state must be one of {_checks._show(initable)}; {problem}. To map a "
        "state of optax give optax's transformation, or convert it: interop.convert_state."
    )
