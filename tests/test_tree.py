"""Trees of every kind: what a transformation does to leaves, and to what is not a leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, Trajectory, cases
from trees import ZOO, as_jax, assert_leaves_equal, assert_trees_close, gradients_like, paths

import adaptax


def _first(case: Case, params: Any, grads: Any, steps: int = 2) -> tuple[Any, Any]:
    """The updates and the state after a few equal steps."""
    tx = case.make()
    state = tx.init(params)
    updates = None
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
    return updates, state


@pytest.mark.parametrize("name", ZOO)
@cases(lambda case: case.main)
def test_every_tree_of_the_zoo_keeps_its_structure_shapes_and_dtypes(case: Case, name: str) -> None:
    params = as_jax(ZOO[name]())
    grads = as_jax(gradients_like(ZOO[name]()))
    tx = case.make()
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    where = f"{case.name}, {name}"
    assert jax.tree.structure(updates) == jax.tree.structure(grads), where
    assert jax.tree.structure(after) == jax.tree.structure(state), where
    for tree, like in ((updates, grads), (after, state)):
        for path, a, b in zip(
            paths(tree), jax.tree.leaves(tree), jax.tree.leaves(like), strict=True
        ):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{where}{path}"
            assert np.all(np.isfinite(np.asarray(a, np.float32))), f"{where}{path}: {a}"
    new = adaptax.apply_updates(params, updates)
    for path, a, b in zip(paths(new), jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{where}{path}"


@cases(lambda case: case.main and case.elementwise)
def test_each_leaf_of_a_tree_is_treated_as_if_it_were_alone(case: Case) -> None:
    params, grads = as_jax(ZOO["nested"]()), as_jax(gradients_like(ZOO["nested"]()))
    together, _ = _first(case, params, grads)
    rows = zip(*map(jax.tree.leaves, (params, grads, together)), strict=True)
    for path, (p, g, u) in zip(paths(params), rows, strict=True):
        alone, _ = _first(case, p, g)
        assert_leaves_equal(alone, u, f"{case.name}{path}")


@cases(lambda case: case.elementwise)
def test_splitting_and_permuting_entries_splits_and_permutes_updates(case: Case) -> None:
    params = {"w": _matrix(1)}
    grads = {"w": _matrix(2)}
    whole, _ = _first(case, params, grads)
    order = np.array([5, 2, 0, 1, 4, 3])

    def split(tree: Any) -> Any:
        w = tree["w"][:, order]
        return {"last": w[:, :3], "first": {"w": w[:, 3:]}}

    parts, _ = _first(case, split(params), split(grads))
    assert_trees_close(parts, split(whole), 1e-6, case.name)


def _matrix(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 6)), jnp.float32)


def _replace(tree: Any, at: int, value: Any) -> Any:
    """The tree with another leaf at a position."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(value if i == at else x for i, x in enumerate(leaves))


@cases()
def test_a_gradient_of_none_leaves_parameter_and_state_alone(case: Case) -> None:
    trajectory = Trajectory(case.params_as(np.float32), np.float32, 2)
    params, grads = as_jax(trajectory.params[0]), as_jax(trajectory.grads[0])
    at = 0
    path = paths(params)[at]
    tx = case.make()
    _, state = tx.update(grads, tx.init(params), params)
    partial = _replace(grads, at, None)
    updates, after = tx.update(partial, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(partial), case.name
    assert jax.tree.structure(after) == jax.tree.structure(state), case.name
    rows = zip(paths(state), jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    for name, before, now in rows:
        if name.endswith(path):
            np.testing.assert_array_equal(before, now, err_msg=f"{case.name}, state{name}")
    new = adaptax.apply_updates(params, updates)
    np.testing.assert_array_equal(jax.tree.leaves(new)[at], jax.tree.leaves(params)[at])
    tx.update(grads, after, params)  # and the leaf can come back


@cases(lambda case: case.main)
def test_an_integer_parameter_with_a_gradient_of_float0_stays(case: Case) -> None:
    params = {"w": _matrix(1), "steps": jnp.arange(3)}

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.square(params["w"])) + jnp.sum(params["steps"]).astype(jnp.float32)

    grads = jax.grad(loss, allow_int=True)(params)
    updates, _ = _first(case, params, grads)
    assert updates["steps"].dtype == jax.dtypes.float0, case.name
    new = adaptax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["steps"], params["steps"])
    assert np.all(np.isfinite(updates["w"])), case.name
    alone, _ = _first(case, {"w": params["w"]}, {"w": grads["w"]})
    np.testing.assert_array_equal(updates["w"], alone["w"], err_msg=case.name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@cases(lambda case: case.elementwise)
def test_a_bad_gradient_spoils_no_other_leaf_and_no_other_entry(case: Case, bad: float) -> None:
    trajectory = Trajectory(case.params_as(np.float32), np.float32, 1)
    params, grads = as_jax(trajectory.params[0]), as_jax(trajectory.grads[0])
    good, _ = _first(case, params, grads)
    first = jax.tree.leaves(grads)[0]
    spoiled, _ = _first(case, params, _replace(grads, 0, first.at[1].set(bad)))
    first, *rest = zip(jax.tree.leaves(good), jax.tree.leaves(spoiled), strict=True)
    for a, b in rest:
        np.testing.assert_array_equal(a, b, err_msg=case.name)
    np.testing.assert_array_equal(*(np.delete(x, 1) for x in first), err_msg=case.name)


@cases(lambda case: case.abstract)
def test_init_needs_only_shapes_and_dtypes(case: Case) -> None:
    params = as_jax(case.params_as(np.float32))
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    tx = case.make()
    state, wanted = tx.init(abstract), jax.eval_shape(tx.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(wanted), case.name
    for path, a, b in zip(
        paths(state), jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{case.name}{path}"


@cases()
def test_parameters_may_be_abstract_under_eval_shape(case: Case) -> None:
    """The way that checkpoints are laid out, open to every optimizer."""
    params = as_jax(case.params_as(np.float32))
    tx = case.make()
    state = tx.init(params)
    wanted = jax.eval_shape(tx.init, params)
    for path, a, b in zip(
        paths(state), jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{case.name}{path}"


@cases(lambda case: case.complex)
def test_complex_updates_turn_with_their_gradients(case: Case) -> None:
    """Real gradients times i give the real updates times i; second moments stay real."""
    trajectory = Trajectory(case.params_as(np.float32), np.float32, 3)
    tx = case.make()
    real_state = tx.init(as_jax(trajectory.params[0]))
    turn = lambda tree: jax.tree.map(lambda x: jnp.asarray(1j * x, jnp.complex64), tree)  # noqa: E731
    state = tx.init(turn(trajectory.params[0]))
    for t, (g, p) in enumerate(zip(trajectory.grads, trajectory.params, strict=True), 1):
        real, real_state = tx.update(as_jax(g), real_state, as_jax(p))
        updates, state = tx.update(turn(g), state, turn(p))
        for path, u, r in zip(
            paths(updates), jax.tree.leaves(updates), jax.tree.leaves(real), strict=True
        ):
            where = f"{case.name}, step {t}, update{path}"
            assert u.dtype == jnp.complex64, where
            u = np.asarray(u)
            assert_trees_close(np.imag(u), r, case.rtol32, where)
            assert_trees_close(1 + np.real(u), np.ones_like(r), 1e-5, where)
