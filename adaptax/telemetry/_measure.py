"""Measures of a step: how long it is beside the parameters, which way it goes, what drives it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._core import (
    GradientTransformation,
    OptState,
    Params,
    Updates,
    _checks,
    compute_dtype,
    matches,
    path_names,
    unboxed,
)
from .._core._paths import PathPattern, is_pattern, spelled
from .._core._tree import is_hole, is_inexact
from ._rows import Rows, against, below, cosine_of
from ._sample import TOTAL, Sample
from ._slots import Slots, first_moment, floors, slots_of

Groups: TypeAlias = Any
"""Path patterns by name, or a sequence of path patterns."""


def measure(
    updates: Updates,
    params: Params | None,
    state: OptState = None,
    *,
    gradients: Updates | None = None,
    previous: Updates | None = None,
    tx: GradientTransformation | None = None,
    groups: Groups | None = None,
    eps: Any = None,
    step: Any = 0,
) -> Sample:
    r"""Measure one step, leaf by leaf, by groups of leaves, and in total.

    With u the updates, p the parameters, g the gradients, all as far as they are given:

    - ``gradient_norm``, ``gradient_rms``, ``gradient_max``: :math:`\lVert g \rVert`, the root
      mean square of its entries, the largest :math:`|g_i|`; ``gradient_nonfinite``: how many
      entries are infinite or NaN. The same for ``update`` and ``param``.
    - ``update_ratio``: :math:`\lVert u \rVert / \lVert p \rVert`. Around 1e-3 is usual for weight
      matrices; infinite for parameters that are 0.
    - ``step_size``: the effective step size, :math:`\mathrm{RMS}(u) / \mathrm{RMS}(g)`;
      ``moment_step_size``: the same with the first moment (the slot ``mu`` or ``trace`` as it is
      stored, without bias correction) in the place of g.
    - ``sign_agreement``: the fraction of the entries with :math:`g_i \ne 0` that step against
      their gradient, :math:`\mathrm{Re}(\bar g_i u_i) < 0`.
    - ``cosine``: of the angle between the updates and the previous ones. Near -1 the steps go to
      and fro: the learning rate is too large. Only where ``previous`` is given.
    - ``eps_fraction``: the fraction of the entries with :math:`\sqrt{\hat\nu_i} < \varepsilon`,
      whose step is in proportion to the gradient. :math:`\hat\nu` is the slot ``nu``, divided by
      :math:`1 - \beta_2^t` where the state counts its steps and β₂ is known.
    - ``mu_rms``, ``mu_mean``, ``mu_max``: of each array of the state that is shaped like the
      parameter, by its field's name (mu, nu, trace, ...): the root mean square, the mean (of the
      real part) and the largest modulus.

    What is not defined is NaN: where a tree is not given, a leaf is None or float0, a slot is not
    there, or 0/0. Of a leaf without entries, norms are 0. A norm that a NaN or an infinity is part
    of is NaN or infinite. Leaves of the parameters that are None, masked out, or not floating have
    no row. Reductions are in float32 or wider and do not overflow where the result does not.

    Args:
        updates: What is added to the parameters.
        params: The parameters before that, of the same structure; or None.
        state: The state after the update, adaptax's or optax's, for the moments.
        gradients: The gradients as they came to the transformation.
        previous: The updates of the step before.
        tx: The transformation, to find its ε and β₂. Without, they are looked for in the state
            (`adjustable`, `inject_hyperparams`).
        groups: Path patterns by name, or patterns, which are then their own names. A leaf may be
            in several groups.
        eps: ε, where it can't be found (outside the root; √ε̄ of one inside), a number or scalar.
        step: The number of the update, which the sample takes along.

    Returns:
        A `Sample`.

    Raises:
        TreeMismatchError: The trees have different structures.
        ValueError: A group's pattern matches no leaf, or a name occurs twice ("total" is taken).
        TypeError: `groups` is something else.

    >>> import adaptax, jax.numpy as jnp
    >>> from adaptax import telemetry
    >>> params = {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([0.6, -0.8]), "b": jnp.ones(1)}
    >>> tx = adaptax.adam(0.01)
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> sample = telemetry.measure(updates, params, state, gradients=grads, tx=tx)
    >>> {name: round(float(x), 4) for name, x in sample.of("w").items() if "mu_" in name}
    {'mu_max': 0.08, 'mu_mean': -0.01, 'mu_rms': 0.0707}
    """
    updates, params, state, gradients, previous = unboxed(
        (updates, params, state, gradients, previous)
    )
    whole = updates if params is None else params
    names = _trained("measure", whole)
    return measured(
        Trees("measure", updates, params, state, gradients, previous),
        names,
        members("measure", groups, list(names)),
        tx=tx,
        eps=eps,
        step=step,
    )


class Trees(NamedTuple):
    """What is measured."""

    where: str
    updates: Any
    params: Any = None
    state: Any = None
    gradients: Any = None
    previous: Any = None


def _trained(where: str, tree: Any) -> dict[str, int]:
    """The leaves that have a row, by name in the order of the names, with their numbers."""
    names = path_names(tree, is_hole)
    leaves = jax.tree.leaves(tree, is_leaf=is_hole)
    kept = {name: i for i, (name, x) in enumerate(zip(names, leaves, strict=True)) if is_inexact(x)}
    if TOTAL in kept or len(set(names)) < len(names):
        raise _checks.repeated_name(where, [*names, TOTAL])
    return dict(sorted(kept.items()))


def trained(where: str, tree: Any) -> list[str]:
    """The names of the leaves that have a row."""
    return list(_trained(where, tree))


def numbers(where: str, tree: Any, names: Sequence[str]) -> dict[str, int]:
    """The numbers of the leaves of some names in another tree."""
    every = {name: i for i, name in enumerate(path_names(tree, is_hole))}
    if not every.keys() >= set(names):
        raise _checks.wrong_state(where, "that of the same parameters", f"one of {sorted(names)}")
    return {name: every[name] for name in sorted(names)}


def members(where: str, groups: Groups | None, names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each group's leaves."""
    found = {}
    for name, pattern in sorted(_patterns(where, groups).items()):
        found[name] = [i for i, leaf in enumerate(names) if matches(pattern, leaf)]
        if not found[name]:
            raise _checks.matches_nothing(where, spelled(pattern), list(names))
    if len({*names, *found, TOTAL}) < len(names) + len(found) + 1:
        raise _checks.repeated_name(where, [*names, *found, TOTAL])
    return found


def _patterns(where: str, groups: Any) -> dict[str, PathPattern]:
    given = groups or {}
    if isinstance(given, list | tuple) and all(map(is_pattern, given)):
        given = {spelled(pattern): pattern for pattern in given}
    wanted = "path patterns by name, or a sequence of path patterns"
    if not isinstance(given, Mapping):
        raise _checks.wrong_kind(where, "groups", wanted, groups)
    if not all(isinstance(name, str) and is_pattern(p) for name, p in given.items()):
        raise _checks.wrong_kind(where, "groups", wanted, groups)
    return dict(given)


def measured(
    trees: Trees,
    names: Mapping[str, int],
    groups: Mapping[str, list[int]],
    *,
    tx: Any = None,
    eps: Any = None,
    step: Any = 0,
    like: Any = None,
) -> Sample:
    """`measure`, of the leaves of some names; for `like` see `Rows`."""
    whole = trees.updates if trees.params is None else trees.params
    u, p, g, v = (_column(trees, name) for name in ("updates", "params", "gradients", "previous"))
    real = compute_dtype(*(x.dtype for column in (u, p, g, v) for x in column.values()))
    slots = slots_of(trees.state, whole)
    rows = Rows(list(names.values()), list(groups.values()), real, like)
    of_u, of_p, of_g = (rows.stats(column) for column in (u, p, g))
    values = {
        f"{name}_{how}": getattr(of, how)
        for name, of in {"gradient": of_g, "update": of_u, "param": of_p}.items()
        for how in ("norm", "rms", "max", "nonfinite")
    }
    values["update_ratio"] = of_u.norm / of_p.norm
    values["step_size"] = of_u.rms / of_g.rms
    values["moment_step_size"] = of_u.rms / rows.stats(first_moment(slots)).rms
    values["sign_agreement"] = rows.fraction({i: against(u[i], g[i], real) for i in u if i in g})
    if trees.previous is not None:
        turns = {i: cosine_of(u[i], v[i], real) for i in u if i in v}
        values["cosine"] = rows.cosine(turns, of_u, rows.stats(v))
    values["eps_fraction"] = rows.fraction(_dominated(slots, tx, trees.state, eps, real))
    for name, arrays in slots.items():
        of = rows.stats(arrays)
        values |= {f"{name}_rms": of.rms, f"{name}_mean": of.mean, f"{name}_max": of.max}
    values = {name: values[name] for name in sorted(values)}
    step = jnp.asarray(step, jnp.int32)
    return Sample(step, values, dict.fromkeys(names), dict.fromkeys(groups))


def _column(trees: Trees, name: str) -> dict[int, Any]:
    """The arrays of one of the trees by their numbers; none if it is not given."""
    tree, updates = getattr(trees, name), trees.updates
    if tree is None:
        return {}
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_hole)
    mine, wanted = jax.tree.flatten(updates, is_leaf=is_hole)
    differing = structure != wanted or any(
        jnp.shape(x) != jnp.shape(u)
        for x, u in zip(leaves, mine, strict=True)
        if is_inexact(x) and is_inexact(u)
    )
    if differing:
        raise _checks.mismatch(trees.where, "updates", updates, name, tree)
    return {i: jnp.asarray(x) for i, x in enumerate(leaves) if is_inexact(x)}


def _dominated(slots: Slots, tx: Any, state: Any, eps: Any, real: Any) -> dict[int, Any]:
    """Of each leaf with a second moment, how many entries ε dominates, and of how many."""
    found = floors(tx, state, eps)
    pairs = {}
    for i, nu in ((i, nu) for arrays in slots.values() for i, nu in arrays.items()):
        if id(nu) in found:
            floor = found[id(nu)]
            bounds = (jnp.asarray(x).astype(real) for x in (floor.eps, floor.weight))
            pairs[i] = below(nu, *bounds, real)
    return pairs
