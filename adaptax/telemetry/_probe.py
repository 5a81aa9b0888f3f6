"""`probe`: a transformation that measures itself every few steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from .._core import (
    Count,
    NonNegative,
    OptState,
    Pair,
    Transform,
    _checks,
    _manual,
    node_of,
    safe_increment,
    transformation,
    unboxed,
)
from .._core._tree import is_inexact
from . import _errors
from ._measure import Groups, Trees, measured, members, numbers, trained
from ._sample import Sample, unstacked


class ProbeState(NamedTuple):
    """The state of `probe`.

    Attributes:
        count: Steps done, int32 ().
        samples: The last samples, each array with a leading axis of their number. A ring: the
            oldest is overwritten; step is -1 where there is none yet.
        inner_state: The transformation's own.
    """

    count: Int[Array, "..."]
    samples: Sample
    inner_state: OptState


@transformation
def probe(
    inner: Transform,
    every: Count = 100,
    *,
    groups: Groups | None = None,
    eps: NonNegative | None = None,
    history: Count = 1,
) -> Pair:
    """Measure a transformation in every so many steps, and keep the last samples in the state.

    The updates are those of the transformation. Its first update is measured, and each
    `every`-th after it, by `measure`: the updates, the parameters before them, the state after
    them, and the gradients as they come to `probe`. Read the samples with `latest(state)` and
    `history(state)`, at any time: the state has one structure from `init` on.

    Under jit the measuring stands in a `jax.lax.cond`, with an update of its own beside the one
    that counts; in the other steps nothing is computed for it. For that branch XLA reserves memory
    as large as the gradients, the updates and the next state. Under `jax.vmap` over states it is
    taken in each step.

    Args:
        inner: The transformation, adaptax's or optax's. It is best the whole chain.
        every: How many steps there are from one sample to the next, >= 1.
        groups: As in `measure`.
        eps: ε, where it can't be found in the transformation; see `measure`.
        history: How many samples are kept, >= 1. Each takes four bytes for each measure of each
            leaf.

    State: a `ProbeState`.

    Raises:
        ValueError: A number lies outside its range; at `init`, a group's pattern matches no leaf,
            or a name occurs twice.
        TypeError: At `init`, `groups` has another form.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import telemetry
    >>> tx = telemetry.probe(adaptax.sgd(0.5), every=2)
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> float(telemetry.latest(state).of("w")["update_ratio"])
    0.5
    """
    node = node_of(inner)

    def sample(trees: Trees, names: list[str], step: Any) -> Sample:
        whole = trees.updates if trees.params is None else trees.params
        rows = numbers("probe", whole, names)
        chosen = members("probe", groups, list(rows))
        return measured(trees, rows, chosen, tx=inner, eps=eps, step=step, like=step)

    def init(params: Any) -> ProbeState:
        inner_state = node.init(params)
        names = trained("probe", params)

        def first(params: Any, state: Any) -> Sample:
            return sample(Trees("probe", params, params, state, params), names, 0)

        shapes = jax.eval_shape(first, params, inner_state)
        return ProbeState(jnp.zeros((), jnp.int32), _empty(shapes, history), inner_state)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ProbeState]:
        if not isinstance(state, ProbeState):
            raise _checks.wrong_state("probe", "ProbeState", state)

        def update_inner(updates: Any) -> tuple[Any, Any]:
            return node.update(updates, state.inner_state, params, **extra_args)

        def taken(new: Any, inner_state: Any) -> Sample:
            trees = Trees("probe", new, params, inner_state, updates)
            now = sample(trees, list(state.samples.leaves), state.count)
            place = (state.count // every) % history
            return jax.tree.map(
                lambda old, x: jnp.asarray(old).at[place].set(x.astype(old.dtype)),
                state.samples,
                now,
            )

        due, samples = state.count % every == 0, state.samples
        if isinstance(due, Tracer):
            # The branch makes the update again, so that nothing outside is kept for it alone.
            samples = _manual.cond(due, lambda: taken(*update_inner(updates)), lambda: samples)
            new, inner_state = update_inner(_after(samples, updates))
        else:
            new, inner_state = update_inner(updates)
            samples = taken(new, inner_state) if due else samples
        return new, ProbeState(safe_increment(state.count), samples, inner_state)

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else state.inner_state)}

    return Pair(init, update, parts)


def _empty(shapes: Sample, history: int) -> Sample:
    """So many samples that are not taken yet."""
    values = {m: jnp.full((history, *x.shape), jnp.nan, x.dtype) for m, x in shapes.values.items()}
    return shapes._replace(step=jnp.full(history, -1, jnp.int32), values=values)


def _after(samples: Sample, updates: Any) -> Any:
    """The updates as they are, but in XLA's eyes dependent on the samples.

    So the samples are taken first, and what they read can then be overwritten in place. Without,
    parameters and moments are copied in each step.
    """
    impossible = jnp.any(samples.step < -1)

    def later(g: Any) -> Any:
        if not is_inexact(g):
            return g
        return jnp.where(impossible, jnp.full((), jnp.nan, g.dtype), g)

    return jax.tree.map(later, updates)


def _is_probe(x: Any) -> bool:
    return isinstance(x, ProbeState)


def _samples(where: str, state: Any) -> Sample:
    found = [x for x in jax.tree.leaves(unboxed(state), is_leaf=_is_probe) if _is_probe(x)]
    if len(found) != 1:
        raise _errors.no_probe(where, state, len(found))
    return found[0].samples


def latest(state: OptState) -> Sample:
    """The last sample in a state; its step is -1 if none was taken yet.

    It may be called under jit, and of states with leading axes.

    Args:
        state: The state of `probe`, or one that holds such a state somewhere.

    Raises:
        TypeError: There is none, or there are several.
    """
    samples = _samples("latest", state)
    place = jnp.argmax(samples.step, -1, keepdims=True)

    def last(x: Any, axis: int) -> Any:
        at = place.reshape(*place.shape, *(1,) * (x.ndim - place.ndim))
        return jnp.take_along_axis(x, at, axis).squeeze(axis)

    axis = samples.step.ndim - 1
    values = {measure: last(x, axis) for measure, x in samples.values.items()}
    return samples._replace(step=last(samples.step, axis), values=values)


def history(state: OptState) -> list[Sample]:
    """The samples that are kept in a state, from the oldest to the last, as numpy arrays.

    Args:
        state: The state of `probe`, or one that holds such a state somewhere.

    Raises:
        TypeError: There is none, or there are several.
    """
    return unstacked(_samples("history", state))
