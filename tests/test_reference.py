"""Trajectories against the float64 references: updates and every leaf of the state."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from cases import CASES, KINDS, Case, Trajectory, cases
from trees import as_jax, assert_close, by_field, paths, size_of

from adaptax.catalog import CATALOG

STEPS = 25
ROUNDING = {jnp.bfloat16.dtype: 2.0**-8, np.dtype(np.float16): 2.0**-11}


@pytest.fixture(autouse=True)
def annotations_are_not_checked() -> Iterator[None]:
    """In the twenty thousand updates here; the other tests check them for every optimizer."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def follow(
    case: Case, trajectory: Trajectory, rtol: float, rtol_updates: float | None = None
) -> None:
    """Run the case along the trajectory and compare everything with the reference."""
    tx = case.make()
    state = tx.init(as_jax(trajectory.params[0]))
    constant = by_field(state)
    # What was large once has left its rounding, also where it has since shrunk.
    sizes: dict[Any, float] = {}
    inputs = zip(trajectory.grads, trajectory.params, trajectory.reference(case), strict=True)
    for t, (grads, params, (wanted_updates, wanted_state)) in enumerate(inputs, 1):
        updates, state = tx.update(
            as_jax(grads), state, as_jax(params) if case.needs_params else None
        )
        where = f"{case.name}, step {t}, "
        for path, update in zip(paths(updates), jax.tree.leaves(updates), strict=True):
            dtype = jax.tree.leaves(grads)[0].dtype
            assert update.dtype == dtype, f"{where}update{path} is {update.dtype}"
            assert_close(update, wanted_updates[path], rtol_updates or rtol, f"{where}update{path}")
        found = by_field(state)
        for (name, path), leaf in list(found.items()):
            if name == "count":
                assert int(leaf) == t and leaf.dtype == jnp.int32, f"{where}count is {leaf}"
            elif name == "ns_coeffs":
                np.testing.assert_array_equal(leaf, constant[name, path], err_msg=where + name)
            else:
                continue
            del found[name, path]
        assert found.keys() == wanted_state.keys(), where
        for key, leaf in found.items():
            size = sizes[key] = max(sizes.get(key, 0.0), size_of(wanted_state[key]))
            name = f"{where}state.{key[0]}{key[1]}"
            assert_close(leaf, wanted_state[key], rtol, name, size)


def test_the_table_covers_the_catalogue() -> None:
    covered = {case.factory.__name__ for case in CASES}
    for entry in CATALOG:
        assert entry.name in covered, entry.name
        assert entry.transform is None or entry.transform.__name__ in covered, entry.name
        (main,) = [c for c in CASES if c.main and c.factory is entry.factory]
        assert main.elementwise == ("elementwise" in entry.tags), entry.name
        assert main.needs_params == ("params" in entry.needs), entry.name
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", KINDS)
@cases(lambda case: case.has_reference)
def test_float64_follows_the_reference(case: Case, kind: str, x64: None) -> None:
    params = case.params_as(np.float64)
    follow(case, Trajectory(params, np.float64, STEPS, kind), case.rtol64)


@pytest.mark.parametrize("kind", KINDS)
@cases(lambda case: case.has_reference)
@pytest.mark.optimized
def test_float32_follows_the_reference(case: Case, kind: str) -> None:
    params = case.params_as(np.float32)
    follow(case, Trajectory(params, np.float32, STEPS, kind), case.rtol32)


@cases(lambda case: case.has_reference)
@pytest.mark.optimized
def test_float32_follows_the_reference_far_from_one(case: Case) -> None:
    for scale in case.scales:
        trajectory = Trajectory(case.params_as(np.float32), np.float32, STEPS, scale=scale)
        follow(case, trajectory, case.rtol32)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@cases(lambda case: case.main)
def test_16_bit_parameters_keep_float32_moments(case: Case, dtype: Any) -> None:
    """Fed the same 16-bit numbers, only the update is rounded to 16 bits; the state is not."""
    trajectory = Trajectory(case.params_as(dtype), dtype, 10)
    follow(case, trajectory, case.rtol32, case.rtol16 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@cases(lambda case: case.main)
def test_16_bit_zero_gradients_give_no_nan(case: Case, dtype: Any) -> None:
    params = as_jax(case.params_as(dtype))
    tx = case.make()
    state = tx.init(params)
    for step in range(3):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, state, params)
        for path, u in zip(paths(updates), jax.tree.leaves(updates), strict=True):
            assert np.all(np.isfinite(np.asarray(u, np.float32))), f"step {step}, {path}: {u}"
