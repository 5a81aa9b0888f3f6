"""What all tests share: eight CPU devices, strict promotion, fixed keys."""

import os

# Before jax makes its backend.
os.environ["JAX_PLATFORMS"] = "cpu"
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    """A fixed key."""
    return jax.random.key(20)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed generator of numpy's."""
    return np.random.default_rng(20)


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test with 64-bit arrays."""
    with jax.enable_x64(True):
        yield
