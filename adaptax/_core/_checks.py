"""Every error of the library is made here: what was got, what is wanted, what to do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _hints

SHOWN = 5  # paths listed before "and N more"


class ArgumentError(TypeError, ValueError):
    """An argument of the wrong kind, for which optax raises the one error or the other."""


def wrong_kind(function: str, name: str, wanted: str, value: Any) -> ArgumentError:
    """An argument of the wrong type."""
    return ArgumentError(f"{function}: {name} must be {wanted}, got {_show(value)}.")


def out_of_range(function: str, name: str, interval: str, value: Any, hint: str = "") -> ValueError:
    """An argument of the right type outside its range."""
    verb = "be" if interval.startswith("one of") else "lie in"
    hint = f" {hint}" if hint else ""
    return ValueError(f"{function}: {name} must {verb} {interval}, got {_show(value)}.{hint}")


def bad_call(
    function: str, problem: str, given: Iterable[str] = (), known: Sequence[str] = ()
) -> TypeError:
    """A call whose arguments don't fit the signature: keywords `given`, of `known` arguments."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return TypeError(f"{function}: {problem}.")
    hint = _hints.called_here(unknown, known)
    return TypeError(
        f"{function}: got an unexpected keyword argument {unknown!r}{hint}. "
        f"The arguments are {', '.join(known)}."
    )


def not_a_transformation(function: str, name: str, value: Any) -> TypeError:
    """Something else where a transformation belongs; most often a factory that was not called."""
    if callable(value):
        called = getattr(value, "__name__", repr(value))
        return TypeError(
            f"{function}: {name} is the function {called} itself; call it, as in {called}(...)."
        )
    return TypeError(
        f"{function}: {name} must be a transformation (a pair of init and update), "
        f"got {_show(value)}."
    )


def not_a_schedule(function: str, name: str, schedule: Any, problem: str) -> TypeError:
    """A function that can't be called with the step count alone."""
    return TypeError(
        f"{function}: {name} must be a number or a schedule, a function of the step count; "
        f"{_name_of(schedule)}(count) fails: {problem}."
    )


def not_a_number(function: str, name: str, schedule: Any, value: Any) -> TypeError:
    """A schedule that returned something else."""
    return TypeError(
        f"{function}: {name} must be a number at each step, got {_show(value)} from "
        f"{_name_of(schedule)}."
    )


def _name_of(f: Any) -> str:
    f = getattr(f, "schedule_fn", f)
    return getattr(f, "__qualname__", repr(f))


def schedule_without_count(function: str, name: str) -> TypeError:
    """A schedule where the state has no step count to evaluate it at."""
    return TypeError(
        f"{function}: {name} is a schedule, but this transformation keeps no step count; "
        "give a number."
    )


def no_count(function: str, name: str, state: Any) -> TypeError:
    """A schedule is to be read beside a state that does not say at which step it is."""
    return TypeError(
        f"{function}: {name} is a schedule, and what is given as the state of {function} keeps no "
        f"step count: {_show_state(state)}."
    )


def not_scalar(function: str, name: str, value: Any) -> ValueError:
    """A stacked hyperparameter used outside vmap, or a schedule that returned an array."""
    return ValueError(
        f"{function}: {name} has shape {jnp.shape(value)} where one number is wanted. "
        "A transformation with stacked hyperparameters is for jax.vmap."
    )


def needs_params(where: str) -> ValueError:
    """An update that reads the parameters was called without them."""
    return ValueError(f"{where} needs params: call update(grads, state, params).")


def wrong_state(where: str, wanted: str, state: Any) -> TypeError:
    """The second argument of update is not a state of this transformation."""
    got, hint = _show_state(state), _hints.of_another(state)
    if got == wanted:
        got = f"{type(state).__module__}.{got}"
    elif type(state).__name__ == wanted:
        hint = " adaptax.interop.convert_state(state, tx.init(params)) makes one of adaptax of it."
    return TypeError(
        f"{where}: the second argument of update must be its state, {wanted}, got {got}. "
        "The call is update(grads, state, params), with the state from init or the last update."
        f"{hint}"
    )


def _show_state(state: Any) -> str:
    """A state by the classes that it is made of."""
    kind = type(state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        library = kind.__module__.split(".")[0]
        return kind.__name__ if library == "adaptax" else f"{library}'s {kind.__name__}"
    if kind is tuple and state:
        parts = [_show_state(part) for part in state[:SHOWN]] + ["..."] * (len(state) > SHOWN)
        return f"({', '.join(parts)})"
    if isinstance(state, dict):
        return f"a {kind.__name__} with the keys {listed(map(repr, state))}"
    return _show(state)


def wrong_links(where: str, links: Sequence[str], state: Any) -> "TreeMismatchError":
    """The state of a chain has another number of links."""
    got = _show_state(state)
    if type(state) is tuple:
        got = f"{len(state)} states, {got}" if state else "none"
    return TreeMismatchError(
        f"{where}: its state holds one state for each of its {len(links)} links "
        f"({', '.join(links)}), got {got}. The call is update(grads, state, params)."
        f"{_hints.of_another(state)}",
        (),
    )


def wrong_names(where: str, wanted: Sequence[str], got: Sequence[str]) -> "TreeMismatchError":
    """The state of a named chain has other names, or in another order."""
    return TreeMismatchError(
        f"{where}: its state has the names {list(wanted)} in order, got {list(got)}.", ()
    )


def bad_leaf(where: str, path: Any, leaf: Any, params: Any = None) -> TypeError:
    """A parameter that is not an array."""
    at = jax.tree_util.keystr(path) or "the root"
    problem = f"parameters must be arrays, got {_show(leaf)} at {at}"
    return TypeError(f"{where}: {problem}.{_hints.of_model(params)}")


def bad_prefix(
    where: str, what: str, problem: str, paths: Sequence[str] = ()
) -> "TreeMismatchError":
    """A mask or a tree of labels that does not fit the parameters, or has the wrong leaves."""
    return TreeMismatchError(
        f"{where}: {what} with the parameters' structure (or a prefix of it), or a function that "
        f"makes one from the parameters; {problem}.",
        paths,
    )


def unknown_label(where: str, path: str, label: Any, known: Sequence[Any]) -> ArgumentError:
    """A parameter's label has no transformation."""
    return ArgumentError(
        f"{where}: the label of {path or 'the root'} must be one of {list(known)}, "
        f"got {_show(label)}."
    )


def uncovered(where: str, patterns: Sequence[str], names: Sequence[str]) -> ValueError:
    """Leaves that no path pattern matches."""
    return ValueError(
        f"{where}: no pattern of {list(patterns)} matches {listed(map(_name, names))}. "
        'A last pattern "*" takes all that is left.'
    )


def matches_nothing(
    where: str, pattern: str, names: Sequence[str], missed: Mapping[str, str] | None = None
) -> ValueError:
    """A path pattern that gets no leaf; `missed` are those that an earlier pattern took."""
    if missed:
        taken = (f"{_name(name)} to {earlier!r}" for name, earlier in missed.items())
        return ValueError(
            f"{where}: the pattern {pattern!r} gets no leaf: the first match wins, and what it "
            f"matches went, {listed(taken)}. Put it earlier."
        )
    return ValueError(
        f"{where}: the pattern {pattern!r} matches no leaf; the names are "
        f"{listed(map(_name, names))}."
    )


def uneven_stack(where: str, pattern: str, sizes: Mapping[str, Any]) -> ValueError:
    """Stacked layers whose leaves differ in their leading axis."""
    every = (f"{_name(name)} has {size[0] if size else 'no axis'}" for name, size in sizes.items())
    return ValueError(
        f"{where}: the leaves of the stacked layers {pattern!r} must have one leading size; "
        f"{listed(every)}."
    )


def no_number(where: str, name: str, names: Sequence[str], absent: bool) -> ValueError:
    """A name that no number of a transformation has."""
    why = f"{name} is None or structure here, not a number" if absent else f"there is no {name!r}"
    last = [full.rsplit("/", 1)[-1] for full in names]
    why += "" if absent else _hints.called_here(name, last)
    return ValueError(f"{where}: {why}; the numbers are {listed(names)}.")


def ambiguous(where: str, name: str, names: Sequence[str]) -> ValueError:
    """A name that several numbers have."""
    return ValueError(
        f"{where}: {name!r} is ambiguous: {listed(names)}. Give more of the name, or a glob such "
        f"as '*{name}' for all of them."
    )


def _name(name: str) -> str:
    return name or "the root"


def not_a_matrix(where: str, path: str, ndim: int, numbers: Any) -> ValueError:
    """A leaf whose axes do not make the matrix that was asked for."""
    return ValueError(
        f"{where}: {path or 'the root'} has {ndim} axes, which do not hold the matrix "
        f"of {numbers}. Give weight_dimension_numbers with different axes for rows and columns, "
        "or use muon, which leaves other parameters to AdamW."
    )


def shapes(where: str, name: str, differing: dict[str, tuple[Any, Any]], total: int) -> Exception:
    """Leaves of another shape than the updates ask for: {path: (wanted, got)}."""
    every = (f"{path} has shape {want} against {got}" for path, (want, got) in differing.items())
    return TreeMismatchError(
        f"{where}: updates do not match {name} at {len(differing)} of {total} leaves: "
        f"{listed(every)}.",
        list(differing),
    )


def changed_shape(where: str) -> ValueError:
    """A rule returned an update of another shape than it was given."""
    return ValueError(f"{where}: a rule must return an update of the gradient's shape.")


def repeated_name(where: str, names: Sequence[str]) -> ValueError:
    """Two links of a named chain have one name."""
    twice = next(name for name in names if names.count(name) > 1)
    return ValueError(f"{where}: names must be unique, got {twice!r} more than once.")


def wrong_number(where: str, what: str, wanted: int, got: int) -> ValueError:
    """Too few or too many of something."""
    return ValueError(f"{where}: the number of {what} must be {wanted}, got {got}.")


class LeafError(Exception):
    """Raised inside a kernel; the engine turns it into a `TreeMismatchError` with key paths."""


class ComplexLeafError(LeafError):
    """Raised inside a kernel by a rule that needs an order of numbers."""

    def __init__(self, function: str, hint: str):
        super().__init__(function, hint)
        self.function = function
        self.hint = hint


def complex_leaves(error: ComplexLeafError, updates: Any) -> "TreeMismatchError":
    """Complex updates where only real ones make sense."""
    wrong = [path for path, leaf in _by_path(updates).items() if jnp.iscomplexobj(leaf)]
    return TreeMismatchError(
        f"{error.function}: complex numbers have no order, and updates are complex at "
        f"{listed(wrong)}. {error.hint}",
        wrong,
    )


class TreeMismatchError(ValueError, TypeError):
    """Two trees that should agree in structure, shape or dtype do not. `paths` lists where.

    It is a `ValueError` as well as a `TypeError`: jax raises the one for structures and the other
    for shapes, and optax passes both on.
    """

    def __init__(self, message: str, paths: Sequence[str]):
        super().__init__(message)
        self.paths = tuple(paths)


def mismatch(where: str, name: str, tree: Any, other_name: str, other: Any) -> TreeMismatchError:
    """Compare two trees leaf by leaf and say, at once, everything that differs."""
    left, right = _by_path(tree), _by_path(other)
    problems = {p: f"{p} is not in {name}" for p in right if p not in left}
    problems |= {p: f"{p} is not in {other_name}" for p in left if p not in right}
    for path in left.keys() & right.keys():
        problem = _differ(left[path], right[path])
        if problem:
            problems[path] = f"{path} {problem}"
    if not problems:
        path, mine, others = _different_node((), tree, other)
        return TreeMismatchError(
            f"{where}: {name} and {other_name} have the same paths in different containers: "
            f"{path} is {mine} against {others}.{_hints.of_model(tree, other)}",
            (path,),
        )
    order = [p for p in [*left, *right] if p in problems]
    paths = list(dict.fromkeys(order))
    total = len(left.keys() | right.keys())
    return TreeMismatchError(
        f"{where}: {name} do not match {other_name} at {len(paths)} of {total} leaves: "
        f"{listed(problems[p] for p in paths)}.{_hints.of_model(tree, other)}",
        paths,
    )


def _different_node(path: tuple[Any, ...], tree: Any, other: Any) -> tuple[str, str, str]:
    """The first node of a tree that is of another kind in the other, and the two kinds."""
    sides = [
        jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y, x=x: y is not x)
        for x in (tree, other)
    ]
    (children, structure), (other_children, other_structure) = sides
    if structure != other_structure:
        at = jax.tree_util.keystr(path) or "the root"
        mine, others = (f"{type(x).__module__}.{type(x).__qualname__}" for x in (tree, other))
        if mine == others:  # they differ in what is not an array
            mine, others = (str(s)[len("PyTreeDef(") : -1] for s in (structure, other_structure))
        return at, mine[:200], others[:200]
    for (key, child), (_, other_child) in zip(children, other_children, strict=True):
        if jax.tree.structure(child) != jax.tree.structure(other_child):
            return _different_node(path + key, child, other_child)
    raise AssertionError("the trees have one structure")


def not_floating(where: str, name: str, tree: Any) -> TreeMismatchError:
    """Integer or boolean arrays where a gradient belongs."""
    wrong = {
        path: jnp.result_type(leaf)
        for path, leaf in _by_path(tree).items()
        if leaf is not None
        and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        and jnp.result_type(leaf) != jax.dtypes.float0
    }
    return TreeMismatchError(
        f"{where}: {name} must be floating or complex: "
        f"{listed(f'{p} is {d}' for p, d in wrong.items())}. An integer parameter takes None or "
        "jax's float0 as its gradient, and then stays as it is.",
        list(wrong),
    )


def listed(items: Iterable[str]) -> str:
    """At most `SHOWN` items, then how many more."""
    items = list(items)
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    return {jax.tree_util.keystr(path) or "the root": leaf for path, leaf in leaves}


def _differ(left: Any, right: Any) -> str:
    if left is None or right is None:
        return "" if left is None else "is an array against None"
    if jnp.shape(left) != jnp.shape(right):
        return f"has shape {jnp.shape(left)} against {jnp.shape(right)}"
    return ""


def _show(value: Any) -> str:
    """A value and its type, short."""
    if isinstance(value, Tracer):
        return f"a traced {value.aval.str_short()}"
    if isinstance(value, np.ndarray | jax.Array) and value.size > 8:
        return f"an array of shape {value.shape}"
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"
