"""How far float32 updates are from exact ones, in units of the last place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import REFERENCES

import adaptax

pytestmark = pytest.mark.optimized

STEPS, SIZE = 10_000, 512
CHECKED = (1, 2, 10, 100, 1000, 10_000)


def _ulps(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The distance to the exact number, in spacings of float32 there."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(actual.astype(np.float64) - exact) / spacing


@pytest.fixture(scope="module")
def gradients() -> np.ndarray:
    """Float32 gradients, a row for each step; the entries' sizes span seven decades."""
    rng = np.random.default_rng(3)
    sizes = 10.0 ** np.linspace(-3.5, 3.5, SIZE)
    return (sizes * rng.normal(0.3, 1.0, (STEPS, SIZE))).astype(np.float32)


@pytest.mark.parametrize(("b2", "bound"), [(0.9, 3.0), (0.999, 3.0), (0.9999, 8.0)])
@pytest.mark.parametrize(
    ("factory", "decay", "hyper"),
    [
        (adaptax.adam, "b2", {}),
        (adaptax.adamw, "b2", {"weight_decay": 0.1}),
        (adaptax.rmsprop, "decay", {}),
    ],
    ids=["adam", "adamw", "rmsprop"],
)
def test_the_median_error_stays_within_a_few_units_of_the_last_place(
    factory: Callable[..., Any],
    decay: str,
    hyper: dict[str, Any],
    b2: float,
    bound: float,
    gradients: np.ndarray,
    record_property: Callable[[str, object], None],
) -> None:
    hyper = {"learning_rate": 1.0, decay: b2, **hyper}
    params = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)  # fixed: the direction is measured
    tx = factory(**hyper)

    def step(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, jnp.asarray(params))
        return state, updates

    _, updates = jax.jit(lambda s, gs: jax.lax.scan(step, s, gs))(tx.init(params), gradients)
    updates = np.asarray(updates)
    reference = REFERENCES[factory.__name__]
    exact_params = [params.astype(np.float64)]
    state = reference.init(exact_params, **hyper)
    medians = {}
    for t in range(1, STEPS + 1):
        grads = [gradients[t - 1].astype(np.float64)]
        (exact,), state = reference.step(t, grads, exact_params, state, **hyper)
        if t in CHECKED:
            medians[t] = float(np.median(_ulps(updates[t - 1], exact)))
    record_property("ulps", medians)
    assert all(m <= bound for m in medians.values()), f"median error by step, in ULP: {medians}"
