"""Eight devices: the state follows the parameters, and the update is the same on all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, cases
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import assert_trees_close, gradients_like, paths

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
SPECS = {"w": P("data", "model"), "b": P("model")}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """4 by 2 devices."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices; XLA_FLAGS was read before conftest.py set it")
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


@pytest.fixture(scope="module")
def explicit_mesh(mesh: Mesh) -> Mesh:
    """The same devices, with shardings as a part of types."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)


def _values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "w": rng.normal(size=(8, 4)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(np.float32),
    }


def _place(tree: Any, mesh: Mesh) -> Any:
    return {k: jax.device_put(v, NamedSharding(mesh, SPECS[k])) for k, v in tree.items()}


def _unsharded(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _assert_follows(state: Any, params: Any, where: str) -> None:
    """State of a parameter's shape has its sharding."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = getattr(path[-1], "key", None)
        if name in params and leaf.shape == params[name].shape:
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), (
                f"{where}, state{jax.tree_util.keystr(path)} has {leaf.sharding}, "
                f"its parameter {params[name].sharding}"
            )


@cases(lambda case: case.main)
def test_the_state_lies_where_its_parameters_lie(case: Case, mesh: Mesh) -> None:
    params = _place(_values(), mesh)
    _assert_follows(case.make().init(params), params, case.name)


@cases(lambda case: case.main)
def test_a_jitted_init_follows_shardings_that_are_types(case: Case, explicit_mesh: Mesh) -> None:
    """On an automatic mesh the compiler places what jit makes; there, init without jit."""
    params = _place(_values(), explicit_mesh)
    with jax.set_mesh(explicit_mesh):
        state = jax.jit(case.make().init)(params)
    _assert_follows(state, params, case.name)


@cases(lambda case: case.main)
def test_the_sharded_update_is_the_unsharded_one(case: Case, mesh: Mesh) -> None:
    values, gradients = _values(), gradients_like(_values())
    tx = case.make()
    params, grads = _unsharded(values), _unsharded(gradients)
    state = tx.init(params)
    wanted, wanted_state = tx.update(grads, state, params)

    params, grads = _place(values, mesh), _place(gradients, mesh)
    state = tx.init(params)
    compiled = jax.jit(tx.update).lower(grads, state, params).compile()
    updates, after = compiled(grads, state, params)
    assert_trees_close(updates, wanted, case.rtol32, f"{case.name}, update")
    assert_trees_close(after, wanted_state, case.rtol32, f"{case.name}, state")
    for path, u, p in zip(
        paths(updates), jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        assert u.sharding.is_equivalent_to(p.sharding, u.ndim), f"{case.name}, update{path}"
    text = compiled.as_text()
    assert text
    found = [name for name in COLLECTIVES if name in text]
    assert not (case.elementwise and found), f"{case.name} communicates: {found}"
