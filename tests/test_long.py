"""Thousands of leaves: the benchmarks run, and what was superlinear stays away."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax
from adaptax import bench
from adaptax._core import _numerics
from adaptax.bench import __main__ as command
from adaptax.bench import _long, _suite

TINY = bench.Settings(repeats=1, quick=True)


@pytest.fixture
def _as_a_benchmark(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # the other tests' are kept
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        yield


def check(rows, name):
    for row in rows:
        assert row.name == name
        assert set(row.samples) == {"adaptax", "optax"}
        assert all(math.isfinite(x) and x > 0 for s in row.samples.values() for x in s)
    return {row.quantity: row for row in rows}


@pytest.mark.usefixtures("_as_a_benchmark")
def test_trace():
    rows = check(_long.trace(TINY, "adamw", leaves=1000), "long adamw, 10 leaves")
    parts = [rows[part].samples["adaptax"][0] for part in ("trace", "lower")]
    assert sum(parts) == pytest.approx(rows["trace + lower"].samples["adaptax"][0])
    assert {"trace + lower, collecting", "module text"} <= set(rows)


@pytest.mark.usefixtures("_as_a_benchmark")
def test_eager():
    rows = check(_long.eager(TINY, "rmsprop", leaves=500), "long rmsprop, 5 leaves")
    assert set(rows) == {"un-jitted init", "un-jitted update"}


def test_compilation():
    rows = check(_long.compilation(TINY, "rmsprop", leaves=200), "long rmsprop, 2 leaves")
    assert rows["compile"].unit == "s"
    assert all(peak > 50 for (peak,) in rows["peak of memory"].samples.values())


def test_long_ones_run_only_if_named():
    assert not any(benchmark.slow for benchmark in command.select(None))
    long = command.select(["long"])
    assert long and all(benchmark.slow for benchmark in long)
    assert len(command.select(None)) + len(long) == len(_suite.SUITE)


@pytest.mark.parametrize("count", [1, 2, 64, 65, 130])
def test_fold(count):
    x = np.cos(np.arange(count, dtype=np.float32))
    scalars = list(jnp.asarray(x))
    np.testing.assert_allclose(_numerics.fold(jnp.sum, scalars), x.sum(), rtol=1e-5, atol=1e-6)
    flags = [s > 2 for s in scalars]
    assert not _numerics.fold(jnp.any, flags)
    assert _numerics.fold(jnp.any, [*flags[:-1], jnp.array(True)])


def test_fold_can_be_mapped_and_differentiated():
    def f(x):
        return _numerics.fold(jnp.sum, jnp.unstack(jnp.square(x)))

    x = jnp.arange(66.0)
    total, slope = jax.jit(jax.value_and_grad(f))(x)
    np.testing.assert_allclose(slope, 2 * x)
    mapped = jax.jit(jax.vmap(f))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped, [total, 4 * total], rtol=1e-6)


def widest(f, *args):
    """How many operands the widest fusion of a compiled function has."""
    text = jax.jit(f).lower(*args).compile().as_text() or ""
    fusions = re.findall(r"= \S+ fusion\(([^)]*)\), kind=", text)
    return max((operands.count("%") for operands in fusions), default=0)


def test_no_kernel_grows_with_the_number_of_leaves():
    leaves = [jnp.ones(3) for _ in range(70)]
    assert widest(adaptax.global_norm, leaves) < 10
    chained = lambda xs: sum(jnp.sum(x * x) for x in xs)  # noqa: E731  what it would be
    assert widest(chained, leaves) >= 70


def test_numbers_are_taken_apart_once_for_all_leaves():
    tx = adaptax.adamw(1e-3)

    def slices(leaves):
        params = [jnp.ones(3) for _ in range(leaves)]
        text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
        return text.count("stablehlo.slice")

    assert slices(1) == slices(5) > 0
    kernels = jax.jit(tx.update).lower([jnp.ones(3)], tx.init([jnp.ones(3)]), [jnp.ones(3)])
    _, kernel = kernels.as_text().split("func.func private @scale_by_adam", 1)
    assert "stablehlo.slice" not in kernel
