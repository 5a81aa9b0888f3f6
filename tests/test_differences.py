"""The rows of docs/differences.md: what adaptax does where optax does another thing."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax

PAGE = Path(__file__).parents[1] / "docs" / "differences.md"


def test_each_row_of_the_page_says_why():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    reasons = {row.rstrip(" |").rpartition("| ")[2] for row in rows[1:]}
    assert len(rows) > 40
    assert reasons == set(re.findall(r"^- \*(.*)\*:", PAGE.read_text(), re.MULTILINE))


def one_step(tx, g, p=None):
    """The update of one step, from gradients like the parameters."""
    p = jax.tree.map(jnp.ones_like, g) if p is None else p
    return tx.update(g, tx.init(p), p)[0]


def test_second_moments_of_bfloat16_parameters_move():
    tx = adaptax.scale_by_rms(decay=0.999)
    g = jnp.ones(1, jnp.bfloat16)
    state, _ = jax.lax.scan(lambda s, _: tx.update(g, s)[::-1], tx.init(g), length=2000)
    np.testing.assert_allclose(jax.tree.leaves(state)[0], 1 - 0.999**2000, rtol=1e-5)


BF16 = jnp.bfloat16
MOMENTUM = {
    "mu": (adaptax.scale_by_adam(0.9, mu_dtype=BF16), lambda g, m: 0.9 * m + 0.1 * g),
    "mu of lion": (adaptax.scale_by_lion(b2=0.9, mu_dtype=BF16), lambda g, m: 0.9 * m + 0.1 * g),
    "ema": (adaptax.ema(0.9, accumulator_dtype=BF16), lambda g, m: 0.9 * m + 0.1 * g),
    "trace": (adaptax.trace(0.9, accumulator_dtype=BF16), lambda g, m: 0.9 * m + g),
}


@pytest.mark.parametrize("tx, exact", MOMENTUM.values(), ids=MOMENTUM)
@pytest.mark.parametrize("dtype", [jnp.float32, BF16])
def test_momentum_in_bfloat16_is_rounded_once(tx, exact, dtype):
    rng = np.random.default_rng(0)
    state, m = tx.init(jnp.zeros(500, dtype)), np.zeros(500)
    for _ in range(5):
        g = jnp.asarray(rng.normal(size=500), dtype)
        wanted = exact(np.asarray(g, np.float64), m)
        _, state = tx.update(g, state)
        (stored,) = (x for x in jax.tree.leaves(state) if x.dtype == BF16 and x.shape == (500,))
        m = np.asarray(stored, np.float64)
        half = 2.0**-9 * 2.0 ** np.ceil(np.log2(np.abs(wanted)))  # of a unit in the last place
        assert (np.abs(m - wanted) <= 1.01 * half).all()


@pytest.mark.parametrize("tx", [adaptax.adam(0.1), adaptax.rmsprop(0.1)], ids=repr)
def test_zero_gradients_in_float16_give_zero(tx):
    assert (one_step(tx, jnp.zeros(3, jnp.float16)) == 0).all()


@pytest.mark.parametrize("make", [adaptax.adam, adaptax.sgd, adaptax.scale_by_learning_rate])
def test_no_learning_rate_descends_with_rate_one(make):
    g = jnp.array([0.5, -2.0])
    np.testing.assert_array_equal(one_step(make(None), g), one_step(make(1.0), g))
    assert (jnp.sign(one_step(make(None), g)) == -jnp.sign(g)).all()


@pytest.mark.parametrize("rate", [0.1, lambda count: 0.1], ids=["number", "schedule"])
def test_adafactor_can_multiply_its_decay_by_the_learning_rate(rate):
    g, p = jnp.zeros(3), jnp.full(3, 2.0)
    tx = adaptax.adafactor(rate, weight_decay_rate=0.01, scale_decay_by_rate=True)
    np.testing.assert_allclose(one_step(tx, g, p), -0.1 * 0.01 * p, rtol=1e-6)


def test_adafactor_before_its_offset_steps_as_at_first():
    g = jnp.array([3.0, -4.0])
    early = one_step(adaptax.adafactor(0.1, decay_offset=5), g)
    np.testing.assert_array_equal(early, one_step(adaptax.adafactor(0.1), g))


def test_a_constant_gradient_has_variance_zero_and_not_less():
    tx = adaptax.rmsprop(0.1, centered=True, bias_correction=True, eps_in_sqrt=False)
    g = jnp.linspace(0.1, 7.0, 64)
    _, steps = jax.lax.scan(lambda s, _: tx.update(g, s)[::-1], tx.init(g), length=100)
    assert jnp.isfinite(steps).all()


def test_norms_of_16_bit_leaves_are_accumulated_wider():
    assert adaptax.global_norm(jnp.full(2, 300.0, jnp.float16)) == pytest.approx(424.264, 1e-4)
    leaves = [jnp.ones((), jnp.bfloat16)] * 1000
    assert adaptax.global_norm(leaves) == pytest.approx(1000**0.5, 1e-6)


def test_clipping_zero_gradients_to_norm_zero_gives_zero():
    assert (one_step(adaptax.clip_by_global_norm(0.0), jnp.zeros(3)) == 0).all()


def test_prodigy_keeps_its_estimate_while_gradients_are_zero():
    tx = adaptax.prodigy(estim_lr0=1e-3)
    step, state = tx.update(jnp.zeros(3), tx.init(jnp.ones(3)), jnp.ones(3))
    assert (step == 0).all() and state.estim_lr == np.float32(1e-3)


def test_muon_takes_the_last_rows_of_a_table_of_coefficients():
    rows = ((3.0, -3.0, 1.0), (4.0848, -6.8946, 2.927), (3.9505, -6.3029, 2.6377))
    g = {"w": jax.random.normal(jax.random.key(0), (4, 3))}
    two = one_step(adaptax.muon(0.1, rows, ns_steps=2), g)
    np.testing.assert_array_equal(two["w"], one_step(adaptax.muon(0.1, rows[1:]), g)["w"])


def test_second_moments_of_complex_parameters_are_real():
    state = adaptax.scale_by_adam().init(jnp.ones(2, jnp.complex64))
    assert state.mu.dtype == jnp.complex64 and state.nu.dtype == jnp.float32


def test_integer_parameters_stay_as_they_are():
    params = {"n": jnp.array(3), "w": jnp.ones(2)}
    tx = adaptax.adam(0.1)
    updates, _ = tx.update({"n": None, "w": jnp.ones(2)}, tx.init(params), params)
    assert adaptax.apply_updates(params, updates)["n"] == 3
    with pytest.raises(adaptax.TreeMismatchError, match=r"\['n'\] is int32"):
        adaptax.apply_updates(params, {"n": jnp.array(0.5), "w": jnp.ones(2)})


def test_apply_updates_does_not_grow_a_parameter():
    with pytest.raises(adaptax.TreeMismatchError, match="shape"):
        adaptax.apply_updates(jnp.ones(3), jnp.ones((5, 3)))
