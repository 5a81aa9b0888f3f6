"""Derivatives at zero, and the alarms of jax_debug_nans and jax_debug_infs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, cases

import adaptax
from adaptax import tree
from adaptax._core import newton_schulz


def two_steps(case: Case) -> Any:
    """A number made of two steps, of multiples of fixed gradients and fixed parameters."""
    tx, fixed = case.make(), case.params_as(np.float64)

    def f(g: Any, p: Any) -> Any:
        grads, params = (jax.tree.map(lambda a, x=x: x * a, fixed) for x in (g, p))
        first, state = tx.update(grads, tx.init(params), params)
        second, _ = tx.update(grads, state, adaptax.apply_updates(params, first))
        return tree.vdot(fixed, first) + tree.vdot(fixed, second)

    return jax.jit(jax.value_and_grad(f, (0, 1)))


@cases(lambda case: case.whole)
def test_slopes_at_zero_are_finite_and_right(case, x64):
    f = two_steps(case)
    for point, which, step in (
        ((0.0, 0.0), 0, 1e-40),  # of the gradients, beside which every ε is large
        ((0.0, 0.0), 1, 1e-40),  # of the parameters
        ((1.0, 0.0), 1, 1e-7),
    ):
        value, slopes = f(*point)
        assert np.isfinite(slopes).all()

        def quotient(by: float, point: Any = point, which: int = which, value: Any = value) -> Any:
            moved = [x + by * (i == which) for i, x in enumerate(point)]
            return (float(f(*moved)[0]) - float(value)) / by

        quotients = [quotient(by * step) for by in (1, 2, -1)]
        kink = not np.allclose(quotients, quotients[0], 1e-4, 1e-7)
        if case.smooth_at_zero and not kink:
            np.testing.assert_allclose(slopes[which], quotients[0], 1e-4, 1e-7)


@pytest.mark.parametrize("order", [None, 1, np.inf])
def test_slopes_of_norms_at_zero(order):
    zeros = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    for slope in (jax.grad, jax.jacfwd):
        slopes = slope(lambda t: tree.norm(t, order))(zeros)
        most = 0 if order is None else 1  # jax's |x| has a slope of 1 there
        assert all((abs(x) <= most).all() for x in jax.tree.leaves(slopes))
    assert jax.grad(adaptax.global_norm)(jnp.full(3, 1e-30))[0] == pytest.approx(3**-0.5)
    assert jax.grad(adaptax.global_norm)(jnp.full(3, 1e30))[0] == pytest.approx(3**-0.5)


def test_slopes_through_a_norm_of_zero_are_those_beside_it():
    zeros, ones = jnp.zeros(3), jnp.ones(3)

    def by_gradient(tx: Any, p: Any = ones) -> float:
        return float(jax.grad(lambda c: jnp.sum(tx.update(zeros + c, tx.init(p), p)[0]))(0.0))

    def by_parameter(tx: Any) -> float:
        return float(jax.grad(lambda c: jnp.sum(tx.update(ones, tx.init(ones), zeros + c)[0]))(0.0))

    assert by_gradient(adaptax.scale_by_trust_ratio()) == 3
    assert by_gradient(adaptax.clip_by_global_norm(1.0)) == 3
    assert by_gradient(adaptax.clip_by_block_rms(1.0)) == 3
    assert by_gradient(adaptax.scale_by_adam(eps=0.5)) == pytest.approx(6)  # g / (|g| + ε)
    assert by_gradient(adaptax.scale_by_rms(eps=0.5, eps_in_sqrt=False)) == pytest.approx(6)
    assert by_gradient(adaptax.scale_by_rss(0.0, eps=0.25)) == pytest.approx(6)
    assert by_parameter(adaptax.scale_by_param_block_rms()) == 0
    assert by_parameter(adaptax.scale_by_trust_ratio()) == 0


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_slopes_of_newton_schulz_at_zero(preconditioning):
    def f(x: Any) -> Any:
        matrix = x * jnp.arange(6.0).reshape(2, 3)
        return newton_schulz(matrix, [(3.0, -3.2, 1.2)], 0.25, preconditioning)[1, 2]

    divisor = 0.25 if preconditioning in ("frobenius", "spectral") else 0.5
    for slope in (jax.grad, jax.jacfwd):
        assert slope(f)(0.0) == pytest.approx(3.0 * 5.0 / divisor)


@cases(lambda case: case.whole)
@pytest.mark.parametrize("jitted", [False, True], ids=["un-jitted", "jitted"])
def test_no_alarm_is_false(case, jitted):
    tx = case.make()
    params = case.params_as(np.float32)
    update = jax.jit(tx.update) if jitted else tx.update
    with jax.debug_nans(True), jax.debug_infs(True):
        state = tx.init(params)
        for size in (0.0, 1.0, 0.0, 1e17):
            u, state = update(jax.tree.map(lambda p, s=size: s * p, params), state, params)
        zeros = jax.tree.map(np.zeros_like, params)
        u, _ = update(zeros, tx.init(zeros), zeros)
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(u))


def test_clipping_raises_no_false_alarm():
    with jax.debug_nans(True), jax.debug_infs(True):
        for most in (0.0, 1e-30, 1.0, 1e30):
            tx = adaptax.clip_by_global_norm(most)
            for size in (0.0, 1e-38, 1.0, 1e38, 3.4e38):
                u, _ = tx.update(jnp.full(9, size), adaptax.EmptyState())
                assert float(adaptax.global_norm(u)) <= most * (1 + 1e-6)
