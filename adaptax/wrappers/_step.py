"""What guards share: an update that is done or left out, which leaves the state untouched."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from .._core import Node, OptState, Updates, _checks, _manual, _numerics, _tree, unboxed
from .._core._apply import added


@jax.jit
def _finite(arrays: Sequence[Any]) -> Any:
    flags = [jnp.all(jnp.isfinite(x)) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    return _numerics.fold(jnp.all, flags) if flags else jnp.array(True)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no entry of a tree is infinite or NaN; None and integers never are."""
    return _finite([jnp.asarray(x) for x in jax.tree.leaves(tree) if not _tree.is_float0(x)])


@jax.jit
def _sound(steps: Sequence[Any], slots: Sequence[Any]) -> Any:
    flags = [jnp.all(jnp.isfinite(u)) if p is None else jnp.all(_lands(p, u)) for u, p in steps]
    flags += [~jnp.any(jnp.isnan(new) & ~jnp.isnan(old)) for new, old in slots]
    return _numerics.fold(jnp.all, flags) if flags else jnp.array(True)


def _lands(p: Any, u: Any) -> Any:
    """Where an update is finite, and does not make a finite parameter infinite."""
    return jnp.isfinite(u) & (jnp.isfinite(added(p, u)) | ~jnp.isfinite(p))


def _fits(p: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(p, jax.Array | np.ndarray) and _tree.is_inexact(p) and p.shape == shape


def _records(x: Any) -> bool:
    return getattr(type(x), "records", False)


def _slots(state: Any) -> list[Any]:
    """The arrays of a state that its next updates may come from."""
    leaves = jax.tree.leaves(state, is_leaf=_records)
    return [jnp.asarray(x) for x in leaves if not _records(x) and _tree.is_inexact(x)]


def sound(updates: Any, params: Any, state: Any, before: Any) -> Bool[Array, ""]:
    """Whether training can continue from what came out of a step.

    The updates have to be finite, and the parameters with them; in the state, which may hold
    infinities (a sum that is full), nothing has become NaN. Measurements do not count.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_tree.is_none)
    try:
        beside = treedef.flatten_up_to(params)
    except ValueError:  # without parameters, or they are another's business
        beside = [None] * len(leaves)
    steps = [
        (jnp.asarray(u), p if _fits(p, jnp.shape(u)) else None)
        for u, p in zip(leaves, beside, strict=True)
        if _tree.is_inexact(u)
    ]
    pairs = zip(_slots(state), _slots(before), strict=True)
    return _sound(steps, [(new, old) for new, old in pairs if new.shape == old.shape])


def choose(proceed: Any, go: Callable[[], Any], stay: Callable[[], Any]) -> Any:
    """The result of one of two functions; the other one is not computed."""
    if isinstance(proceed, Tracer):
        return _manual.cond(proceed, go, stay)
    return go() if proceed else stay()  # un-jitted, a cond would compile at every call


class Step(NamedTuple):
    """One update of a wrapped transformation, to be done or left out."""

    node: Node
    updates: Updates
    state: OptState
    params: Any
    extra_args: dict[str, Any]

    def dtypes(self) -> list[Any]:
        """The dtypes of the resulting updates, leaf by leaf.

        Those of the given ones, except that a transformation may widen 16 bits on purpose.
        """
        given = _tree.dtypes(self.updates)
        if not any(d is not None and jnp.issubdtype(d, jnp.inexact) and _narrow(d) for d in given):
            return given

        def arrays() -> list[Any]:
            new, _ = self.node.update(self.updates, self.state, self.params, **self.extra_args)
            leaves = jax.tree.leaves(new, is_leaf=_tree.is_none)
            return [None if _tree.is_float0(x) else x for x in leaves]

        new = jax.eval_shape(arrays)
        return [d if x is None else x.dtype for x, d in zip(new, given, strict=True)]

    def done(
        self, dtypes: Sequence[Any], updates: Any = None, rounds: bool = False
    ) -> tuple[Any, Any]:
        """The new updates and state, perhaps from wider `updates`; in the dtypes of before.

        `rounds` says whether the transformation is to see wider updates in the dtypes of the
        given ones.
        """
        updates = self.updates if updates is None else updates
        if rounds:
            updates = _tree.round_to(updates, _tree.dtypes(self.updates))
        new, state = self.node.update(updates, self.state, self.params, **self.extra_args)
        return _tree.round_to(new, dtypes), jax.tree.map(_as_before, self.state, state)

    def left_out(
        self, dtypes: Sequence[Any], instead: Callable[[Any], Any] = jnp.zeros_like
    ) -> tuple[Any, Any]:
        """Zeros, or what `instead` makes of each update; and the state as it is."""

        def leaf(g: Any) -> Any:
            return g if g is None or _tree.is_float0(g) else instead(g)

        new = jax.tree.map(leaf, self.updates, is_leaf=_tree.is_none)
        return _tree.round_to(new, dtypes), self.state

    def taken_if(
        self, proceed: Any, instead: Callable[[Any], Any] = jnp.zeros_like
    ) -> tuple[Any, Any]:
        """`done` where `proceed` holds, else `left_out`."""
        dtypes = self.dtypes()
        return choose(proceed, lambda: self.done(dtypes), lambda: self.left_out(dtypes, instead))

    def taken_if_sound(
        self,
        proceed: Any,
        like: Any,
        *,
        anyway: Any = False,
        updates: Callable[[], Any] | None = None,
        rounds: bool = False,
    ) -> tuple[Any, Any, Any]:
        """`done` where `proceed` holds and what comes out is `sound`, else `left_out`.

        Args:
            proceed: A bool. Inside `jax.shard_map` it has to hold on all devices that share `like`.
            like: A counter of the wrapper's.
            anyway: Where True, it is done in any case.
            updates: Makes what the inner transformation gets, if it is not the updates.
            rounds: As in `done`.

        Returns:
            Updates, state, and whether `proceed` holds and what came out is sound.
        """
        dtypes = self.dtypes()
        proceed = _manual.everywhere(proceed, like)

        def go() -> tuple[Any, Any]:
            return self.done(dtypes, None if updates is None else updates(), rounds)

        def judged(new: Any, state: Any) -> Any:
            return sound(new, self.params, state, self.state)

        def stay() -> tuple[Any, Any]:
            return self.left_out(dtypes)

        if not isinstance(proceed, Tracer):
            result = go() if proceed or anyway else stay()
            good = jnp.asarray(proceed) & judged(*result)
            return *choose(good | anyway, lambda: result, stay), good
        # The step is computed twice, first only to look at it. So nothing is kept for the case
        # that it is left out: the state is overwritten in place.
        good = choose(proceed, lambda: judged(*go()), lambda: jnp.array(False))
        good = _manual.everywhere(good, like)
        return *choose(good | anyway, go, stay), good


def _narrow(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


def _as_before(old: Any, new: Any) -> Any:
    """The new leaf of a state in the old one's dtype; transformations from elsewhere may widen."""
    dtype = jnp.result_type(old)
    return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)


def boolean(function: str, name: str, value: Any) -> Any:
    """A function's answer; refuse anything but one bool."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if not isinstance(value, bool) and (dtype != np.bool_ or shape != ()):
        raise _checks.wrong_kind(function, name, "one bool", value)
    return value


def checked(function: str, wanted: type, state: Any) -> Any:
    """The state, which must be of this class."""
    if not isinstance(state, wanted):
        raise _checks.wrong_state(function, wanted.__name__, state)
    return state


def inner_part(inner: Any) -> Any:
    """The `parts` of a wrapper with a field `inner_state`."""
    return lambda state: {"": (inner, None if state is None else state.inner_state)}


def only_state(function: str, state: Any, wanted: type) -> Any:
    """The one state of this class inside of a state, the outermost where they are nested."""

    def is_wanted(x: Any) -> bool:
        return isinstance(x, wanted)

    found = [x for x in jax.tree.leaves(unboxed(state), is_leaf=is_wanted) if is_wanted(x)]
    if len(found) == 1:
        return found[0]
    todo = "give the part of the state that is meant" if found else "give the optimizer's state"
    raise ValueError(
        f"{function}: the state must hold one {wanted.__name__}, got {len(found)}; {todo}."
    )
