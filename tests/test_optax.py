"""Optax, the second oracle: names, signatures, states and trajectories are its own."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
from cases import CASES, Case, Trajectory, cases
from trees import as_jax, assert_trees_close

import adaptax
from adaptax.interop import convert_state

optax = pytest.importorskip("optax", reason="optax is a second oracle; it is in the extra 'test'")

# Parameters that no call names: *args.
STARRED = inspect.Parameter.VAR_POSITIONAL


def theirs_of(name: str) -> Any:
    """Optax's function of this name, in its main or its contrib namespace."""
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def make_theirs(case: Case) -> Any:
    """Optax's transformation for the same call."""
    return theirs_of(case.factory.__name__)(**case.numbers, **case.options)


@contextmanager
def as_optax_wants() -> Iterator[None]:
    """Optax promotes dtypes and ranks implicitly."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


FUNCTIONS = [
    name
    for name, ours in vars(adaptax).items()
    if not name.startswith("_") and inspect.isfunction(ours) and callable(theirs_of(name))
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_signature_is_that_of_optax_with_more_keywords_at_the_end(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(f).parameters.values())
        for f in (getattr(adaptax, name), theirs_of(name))
    )
    for mine, other in zip(ours, theirs, strict=False):
        assert mine.kind == other.kind, f"{name}: {mine} against {other}"
        if mine.kind is STARRED:
            continue
        assert mine.name == other.name, f"{name}: {mine} against {other}"
        required = other.default is other.empty  # here there may be a default
        if not inspect.isfunction(mine.default) and not required:
            assert mine.default == other.default, f"{name}: {mine} against {other}"
    assert len(ours) >= len(theirs), f"{name} lacks {theirs[len(ours) :]}"
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :]), name


def _described(state: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _classes(state: Any) -> Any:
    """The names of the containers, from the outside in."""
    fields = getattr(state, "_fields", None)
    if fields is not None:
        return type(state).__name__, {f: _classes(getattr(state, f)) for f in fields}
    if isinstance(state, dict):
        return type(state).__name__, {k: _classes(v) for k, v in state.items()}
    if isinstance(state, tuple | list):
        return type(state).__name__, [_classes(v) for v in state]
    return None


@cases(lambda case: case.in_optax)
def test_the_state_has_the_structure_of_optax(case: Case) -> None:
    params = as_jax(case.params_as(np.float32))
    ours = case.make().init(params)
    with as_optax_wants():
        theirs = make_theirs(case).init(params)
    assert _described(ours) == _described(theirs)
    assert _classes(ours) == _classes(theirs)


@cases(lambda case: case.in_optax)
def test_updates_agree_and_states_go_back_and_forth(case: Case) -> None:
    """Halfway each library takes over the state of the other, and both go on as before."""
    trajectory = Trajectory(case.params_as(np.float32), np.float32, 12)
    params = as_jax(trajectory.params[0])
    ours, theirs = case.make(), make_theirs(case)
    my_state = my_start = ours.init(params)
    with as_optax_wants():
        their_state = their_start = theirs.init(params)
        their_update: Callable[..., Any] = jax.jit(theirs.update)
    for t, (g, p) in enumerate(zip(trajectory.grads, trajectory.params, strict=True), 1):
        if t == 7:
            mine, other = my_state, their_state
            my_state = convert_state(other, my_start)
            their_state = convert_state(mine, their_start)
            assert_trees_close(my_state, mine, case.optax_rtol, f"{case.name}, converted state")
            assert_trees_close(their_state, other, case.optax_rtol, f"{case.name}, converted state")
        g, p = as_jax(g), as_jax(p)
        my_updates, my_state = ours.update(g, my_state, p)
        with as_optax_wants():
            their_updates, their_state = their_update(g, their_state, p)
        where = f"{case.name}, step {t}, "
        assert_trees_close(my_updates, their_updates, case.optax_rtol, where + "update")


def test_every_factory_of_the_table_is_compared() -> None:
    """The list of functions above is found by looking; it must not come out empty."""
    wanted = {case.factory.__name__ for case in CASES if case.in_optax}
    assert wanted <= set(FUNCTIONS)


@cases(lambda case: case.in_optax and isinstance(case.numbers.get("learning_rate"), float))
def test_a_negative_rate_ascends_as_with_optax(case: Case) -> None:
    rate = -case.numbers["learning_rate"]
    params = as_jax(case.params_as(np.float32))
    ours = case.make(learning_rate=rate)
    updates, _ = ours.update(params, ours.init(params), params)
    with as_optax_wants():
        theirs = theirs_of(case.factory.__name__)(
            **{**case.numbers, **case.options, "learning_rate": rate}
        )
        wanted, _ = theirs.update(params, theirs.init(params), params)
    assert_trees_close(updates, wanted, case.optax_rtol, case.name)


# Numbers at the edge of what a function is for, which scripts give on purpose.
ON_PURPOSE: dict[str, Callable[[Any], Any]] = {
    "no clipping": lambda lib: lib.clip(np.inf),
    "no clipping by norm": lambda lib: lib.clip_by_global_norm(np.inf),
    "no clipping by blocks": lambda lib: lib.clip_by_block_rms(np.inf),
    "no threshold": lambda lib: lib.adafactor(0.1, clipping_threshold=np.inf),
    "all matrices factored": lambda lib: lib.adafactor(0.1, min_dim_size_to_factor=0),
    "weights that grow": lambda lib: lib.adamw(0.1, weight_decay=-0.5),
    "negative momentum": lambda lib: lib.sgd(0.1, momentum=-0.5),
    "negative momentum of RMSprop": lambda lib: lib.rmsprop(0.1, momentum=-0.5),
    "a trace that grows": lambda lib: lib.trace(1.5),
    "float for a number of steps": lambda lib: lib.apply_every(2.0),
    "float for a number of errors": lambda lib: lib.apply_if_finite(lib.sgd(0.1), 5.0),
}


@pytest.mark.parametrize("make", ON_PURPOSE.values(), ids=ON_PURPOSE)
def test_numbers_that_scripts_give_on_purpose_mean_what_they_mean_in_optax(make: Any) -> None:
    params = {"b": np.linspace(-1.0, 1.0, 4, dtype=np.float32), "w": np.eye(3, dtype=np.float32)}
    updates = {}
    for lib in (adaptax, optax):
        tx = make(lib)
        p, state = as_jax(params), tx.init(as_jax(params))
        updates[lib] = []
        for _ in range(3):
            with as_optax_wants():
                u, state = tx.update(as_jax(params), state, p)
                p = optax.apply_updates(p, u)
            updates[lib].append(u)
    assert_trees_close(updates[adaptax], updates[optax], 2e-5, "update")
