"""The engine: a rule for one array, lifted to trees.

`leafwise` is the only place where an algorithm meets a tree. For each leaf it runs one kernel: the
rules of neighbouring links of a chain, one after the other, in float32 or wider, as an inner
`jax.jit` with the hyperparameters as operands. The kernel depends on the links' structure
alone (their factories and their arguments other than numbers), so it is traced once per shape and
dtype for all leaves, all learning rates and all equal transformations.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _checks, _tree
from ._called import number_now
from ._kinds import frozen
from ._matrices import Task, Together, current_sharing, shared_out
from ._numerics import compute_dtype, mixing, narrowed, safe_increment, widen

SKIP = "skip"  # a leaf's entry in `per_leaf` where the link leaves it alone


@dataclass(frozen=True)
class Slot:
    """One array of state for each parameter: by default zeros like it, float32 or wider.

    Args:
        fill: The initial value.
        dtype: The dtype of storage (its complex counterpart for a complex parameter); None takes
            the parameter's, but float32 for 16 bits.
        real: Real also where the parameter is complex (second moments are).
        make: `(param, dtype) -> array` where the slot is not shaped like the parameter.
    """

    fill: Any = 0.0
    dtype: Any = None
    real: bool = False
    make: Callable[[Any, Any], Any] | None = None

    def init(self, param: Any) -> Any:
        """The slot of one parameter, on the parameter's devices."""
        shape, dtype = jnp.shape(param), jnp.result_type(param)
        inexact, complex_ = (jnp.issubdtype(dtype, k) for k in (jnp.inexact, jnp.complexfloating))
        dtype = self.dtype or compute_dtype(*[dtype] * inexact)
        if complex_ and not self.real:
            dtype = np.result_type(dtype, np.complex64)
        if self.make is not None:
            return self.make(param, dtype)
        if isinstance(param, jax.Array):
            return jnp.full_like(param, self.fill, dtype=dtype)
        return jnp.full(shape, self.fill, dtype)

    def shape(self, param: Any) -> tuple[int, ...]:
        """The shape of the slot of one parameter."""
        return jnp.shape(param) if self.make is None else jax.eval_shape(self.init, param).shape


class Operands(NamedTuple):
    """The scalars of one update that one link's rule receives on every leaf."""

    count: Any  # int32 (), the number of this step; None if the link doesn't count
    numbers: dict[str, Any]  # hyperparameters, schedules evaluated
    shared: dict[str, Any]  # scalars computed from the whole tree


@dataclass(frozen=True, eq=False)
class Leafwise:
    """A transformation that sees one leaf at a time; made by `leafwise`."""

    rule: Callable[..., Any]
    state: type
    slots: Mapping[str, Slot]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    needs_params: bool = False
    shared: Callable[..., dict[str, Any]] | None = None
    per_leaf: Callable[[Any], Sequence[Any]] | None = None
    matrices: bool = False
    wrap: type | None = None
    parts: Any = None  # see `Pair`
    chosen: Any = None
    factory: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, factory: Any, arguments: Mapping[str, Any]) -> "Leafwise":
        """Tell the node the call that it is built from; the innermost factory's counts."""
        if self.factory is not None:
            return self
        bound = replace(self, factory=factory, arguments=arguments)
        scheduled = [name for name, value in bound.numbers.items() if _scheduled(value)]
        if scheduled and not self.counts:
            raise _checks.schedule_without_count(bound.name, scheduled[0])
        return bound

    @property
    def counts(self) -> bool:
        """Whether the state keeps the number of steps."""
        return "count" in self.state._fields  # type: ignore[attr-defined]

    @property
    def name(self) -> str:
        """The factory's name."""
        return getattr(self.factory, "__name__", "leafwise")

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        if self.per_leaf is not None:
            self.per_leaf(params)  # a mask or a pattern that does not fit says so at once
        fields: dict[str, Any] = {"count": jnp.zeros((), jnp.int32)} if self.counts else {}
        real = _tree.compute_dtype(params)
        fields |= {name: jnp.asarray(value, real) for name, value in self.scalars.items()}
        fields |= {name: jax.tree.map(slot.init, params) for name, slot in self.slots.items()}
        state = self.state(**fields)
        return state if self.wrap is None else self.wrap(state)

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """Transform the updates; extra arguments are not needed."""
        dtypes = _tree.dtypes(updates)
        new, (state,) = run([self], [state], updates, params, where=[self.name], dtypes=dtypes)
        return new, state

    @functools.cached_property
    def structure(self) -> "LinkStructure":
        """The part of the link that its kernel is compiled for."""
        rest = {k: v for k, v in self.arguments.items() if k not in self.numbers}
        return LinkStructure(self.factory, tuple(self.numbers), rest)

    @functools.cached_property
    def numbers(self) -> dict[str, Any]:
        """The arguments that are operands: numbers, and schedules, which become numbers."""
        kinds = self.factory.kinds
        return {k: v for k, v in self.arguments.items() if kinds[k].numeric and v is not None}

    def operands(self, where: str, state: Any, updates: Any, params: Any) -> Operands:
        """The scalars of this step; `where` names the link in errors."""
        count = state.count if self.counts else None
        numbers = {}
        for name, value in self.numbers.items():
            if _scheduled(value):
                now = functools.partial(_now, where, name, count)
                value = jax.tree.map(now, value, is_leaf=callable)
                value = self.factory.kinds[name].prepare(value)
            for leaf in jax.tree.leaves(value):
                if jnp.ndim(leaf) != 0:
                    raise _checks.not_scalar(where, name, leaf)
            numbers[name] = value
        count = None if count is None else safe_increment(count)
        shared = {}
        if self.shared is not None:
            shared = self._shared(count, numbers, updates, params, state)
        return Operands(count, numbers, shared)

    def _shared(
        self, count: Any, numbers: dict[str, Any], updates: Any, params: Any, state: Any
    ) -> dict[str, Any]:
        """What `shared` computes of the trees, all of its scalars in one dtype."""
        held = {name: getattr(state, name) for name in self.scalars}
        real = compute_dtype(_tree.compute_dtype(updates), *map(jnp.result_type, held.values()))

        def cast(x: Any) -> Any:
            return x if isinstance(x, float) else jnp.asarray(x, real)

        here = self.structure.link(jax.tree.map(cast, numbers)).shared
        assert here is not None  # its closure has this step's numbers
        t = None if count is None else count.astype(real)
        if held:
            state = state._replace(**{name: cast(x) for name, x in held.items()})
        with mixing(*jax.tree.leaves((updates, params))):
            return here(t, updates, params, state)


def _scheduled(value: Any) -> bool:
    """Whether a schedule is among the numbers of an argument."""
    return any(callable(leaf) for leaf in jax.tree.leaves(value, is_leaf=callable))


def _now(where: str, name: str, count: Any, value: Any) -> Any:
    return number_now(where, name, value, count) if callable(value) else value


def leafwise(
    rule: Callable[..., Any],
    state: type,
    *,
    scalars: Mapping[str, Any] | None = None,
    needs_params: bool = False,
    shared: Callable[..., dict[str, Any]] | None = None,
    per_leaf: Callable[[Any], Sequence[Any]] | None = None,
    matrices: bool = False,
    **slots: Slot,
) -> Leafwise:
    """Lift a rule for one array to a transformation of trees.

    Args:
        rule: `rule(t, g, p, *slots) -> (u, *slots)`, or `-> u` without slots. t is the number of
            the step from 1 (None if the state has no `count`), g the incoming update, p the
            parameter; all arrays are float32 or wider, or complex. The factory's arguments that
            the rule reads are scalars; a decay is a `Decay`, a schedule is its value at this step.
        state: A NamedTuple class with a field for each slot, and perhaps `count` (int32).
        scalars: Initial values of the state's fields that belong to the whole tree.
        needs_params: Whether the rule reads p; else it is None.
        shared: `shared(t, updates, params, state) -> {name: scalar}` is run on the whole trees
            before the rule, which receives its results by keyword; those that have the name of
            a field in `scalars` are its next value.
        per_leaf: `per_leaf(tree) -> [static value for each leaf]`, of the parameters or, without
            them, the updates, None leaves included. Given to the rule as the keyword `spec`; the
            link skips a leaf whose value is `SKIP`.
        matrices: Whether the rule works on whole matrices, through `on_stack`, so that devices
            can share that work.
        **slots: The arrays of state by their field names, in the rule's order.
    """
    return Leafwise(rule, state, slots, scalars or {}, needs_params, shared, per_leaf, matrices)


def run(
    links: Sequence[Leafwise],
    states: Sequence[Any],
    updates: Any,
    params: Any,
    *,
    where: Sequence[str],
    dtypes: Sequence[Any] | None,
) -> tuple[Any, list[Any]]:
    """Run neighbouring links as one kernel per leaf.

    `where` names the links in errors. `dtypes` are those of the resulting updates, leaf by leaf;
    None leaves them in the dtype that the kernel computes in.
    """
    inner = [_tree.check_state(w, link, s) for link, s, w in zip(links, states, where, strict=True)]
    reading = [w for link, w in zip(links, where, strict=True) if link.needs_params]
    if reading and params is None:
        raise _checks.needs_params(reading[0])
    slots = [
        _tree.Beside(w, f"state.{n}", getattr(s, n), slot.shape)
        for link, s, w in zip(links, inner, where, strict=True)
        for n, slot in link.slots.items()
    ]
    others = [_tree.Beside(reading[0], "params", params)] if reading else []
    trees = _tree.Aligned(where[0], updates, others + slots)
    operands = tuple(
        link.operands(w, s, updates, params) for link, s, w in zip(links, inner, where, strict=True)
    )
    counts = tuple(o.count for o in operands)
    scalars, layout = jax.tree.flatten(tuple((o.numbers, o.shared) for o in operands))
    scalars = _packed(scalars)
    if any(isinstance(leaf, Tracer) for leaf in trees.leaves[:1]):
        scalars = _apart(scalars)  # once, instead of in each leaf's copy of its kernel
    else:
        scalars = jax.device_put(scalars)  # once, instead of at each leaf's dispatch
    whole = updates if params is None else params  # params have leaves where updates have None
    specs = [None if k.per_leaf is None else k.per_leaf(whole) for k in links]
    structures = tuple(link.structure for link in links)
    compiled: dict[Any, Any] = {}
    rows: list[Any] = []  # of each leaf its update and slots, or the kernel to run
    for i, g in enumerate(trees.leaves):
        p = trees.columns[0][i] if reading else None
        old = tuple(column[i] for column in trees.columns[bool(reading) :])
        if g is None or _tree.is_float0(g):
            rows.append((g, *old))
            continue
        static = (
            tuple(None if s is None else s[i] for s in specs),
            None if dtypes is None else dtypes[i],
        )
        if static not in compiled:
            compiled[static] = kernel(structures, layout, *static)
        rows.append(Task(static, compiled[static], (counts, scalars, g, p, old)))
    together = current_sharing() if any(link.matrices for link in links) else None
    try:
        rows = _run_all(rows) if together is None else _share(rows, together)
    except _checks.ComplexLeafError as error:
        raise _checks.complex_leaves(error, updates) from None
    except _checks.LeafError:
        raise trees.explain() from None
    new = [[row[k] for row in rows] for k in range(1 + len(slots))]
    columns = (trees.rebuild(column) for column in new)
    result = next(columns)
    return result, [
        _next_state(link, s, k, {n: next(columns) for n in link.slots})
        for link, s, k in zip(links, inner, operands, strict=True)
    ]


def _run_all(rows: list[Any]) -> list[Any]:
    return [row.rule(*row.arguments) if isinstance(row, Task) else row for row in rows]


def _share(rows: list[Any], together: Together) -> list[Any]:
    """The same, with the matrices of all leaves worked on together."""
    tasks = [row._replace(rule=inspect.unwrap(row.rule)) for row in rows if isinstance(row, Task)]
    results = iter(shared_out(tasks, together))
    return [next(results) if isinstance(row, Task) else row for row in rows]


def _packed(scalars: list[Any]) -> Any:
    """Scalars as one vector: one operand to dispatch for each leaf."""
    dtype = jnp.result_type(float)
    if all(isinstance(x, float) for x in scalars):
        return np.asarray(scalars, dtype)
    return _stack(tuple(jnp.asarray(x, dtype) for x in scalars))


@jax.jit
def _stack(scalars: tuple[Any, ...]) -> Any:
    return jnp.stack(scalars)


@functools.partial(jax.jit, inline=True)
def _apart(scalars: Any) -> list[Any]:
    return list(jnp.unstack(scalars))


def _next_state(link: Leafwise, state: Any, operands: Operands, slots: dict[str, Any]) -> Any:
    if link.state._fields:  # type: ignore[attr-defined]  else the state goes on as it is
        fields = {**state._asdict(), **slots}
        if link.counts:
            fields["count"] = operands.count
        for name in link.scalars.keys() & operands.shared.keys():
            fields[name] = operands.shared[name].astype(jnp.result_type(getattr(state, name)))
        state = link.state(**fields)
    return state if link.wrap is None else link.wrap(state)


class LinkStructure:
    """A link without its numbers: hashable, and able to make the link from new numbers."""

    __slots__ = ("arguments", "factory", "key")

    def __init__(self, factory: Any, names: tuple[str, ...], arguments: dict[str, Any]):
        self.factory = factory
        self.arguments = arguments
        self.key = (factory, names, frozen(arguments))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, LinkStructure) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def link(self, numbers: dict[str, Any]) -> Leafwise:
        """The link with these numbers in its rule."""
        return self.factory.build({**self.arguments, **numbers})


@functools.lru_cache(maxsize=4096)
def kernel(
    structures: tuple[LinkStructure, ...], layout: Any, specs: tuple[Any, ...], dtype: Any
) -> Callable[..., Any]:
    """The jitted function that takes one leaf through the rules of all links.

    `layout` says which of the scalars, a vector or a list, is what; `specs` and `dtype` are the
    leaf's.
    """

    def leaf(counts: Any, scalars: Any, g: Any, p: Any, slots: Any) -> Any:
        arrays = [g] if p is None else [g, p]
        if not all(jnp.issubdtype(x.dtype, jnp.inexact) and x.shape == g.shape for x in arrays):
            raise _checks.LeafError
        real = compute_dtype(*(x.dtype for x in jax.tree.leaves((g, p, slots))))
        every = scalars if isinstance(scalars, list) else jnp.unstack(scalars)
        named = layout.unflatten([x.astype(real) for x in every])
        u, p = widen(g, real), None if p is None else widen(p, real)
        rest, new = list(slots), []
        for structure, spec, count, (numbers, shared) in zip(
            structures, specs, counts, named, strict=True
        ):
            link = structure.link(numbers)
            mine, rest = rest[: len(link.slots)], rest[len(link.slots) :]
            if spec == SKIP:
                new += mine
                continue
            for slot, s in zip(link.slots.values(), mine, strict=True):
                if slot.shape(g) != s.shape:
                    raise _checks.LeafError
            keywords = shared | ({} if spec is None else {"spec": spec})
            t = None if count is None else count.astype(real)
            with mixing(g, p, *slots):
                out = link.rule(t, u, p, *(widen(s, real) for s in mine), **keywords)
            u, *after = out if mine else (out,)
            if u.shape != g.shape:
                raise _checks.LeafError
            new += [narrowed(a, s.dtype) for a, s in zip(after, mine, strict=True)]
        return u.astype(u.dtype if dtype is None else dtype), *new

    leaf.__name__ = leaf.__qualname__ = "_".join(s.factory.__name__ for s in structures)
    return jax.jit(leaf)
