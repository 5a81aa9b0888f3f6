"""Trajectories against torch.optim, in float64."""

import jax
import numpy as np
import pytest
from cases import Case, Trajectory, cases
from trees import as_jax, assert_close, paths

import adaptax

torch = pytest.importorskip("torch", reason="torch is a second oracle; it is in the extra 'test'")


@cases(lambda case: case.torch is not None)
def test_the_parameters_follow_torch(case: Case, x64: None) -> None:
    trajectory = Trajectory(case.params_as(np.float64), np.float64, 30)
    theirs = [torch.tensor(p.copy()) for p in jax.tree.leaves(trajectory.params[0])]
    assert case.torch is not None
    optimizer = case.torch(torch.optim, theirs)
    tx, params = case.make(), as_jax(trajectory.params[0])
    state = tx.init(params)
    for t, grads in enumerate(trajectory.grads, 1):
        for tensor, g in zip(theirs, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(g.copy())
        optimizer.step()
        updates, state = tx.update(as_jax(grads), state, params)
        params = adaptax.apply_updates(params, updates)
        for path, p, tensor in zip(paths(params), jax.tree.leaves(params), theirs, strict=True):
            assert_close(p, tensor.numpy(), 1e-11, f"{case.name}, step {t}, params{path}")
