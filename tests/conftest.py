"""What all tests share: eight CPU devices, strict promotion, fixed keys."""

import gc
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

# Compiling is most of the time of most tests, and this takes a sixth of it: no optimizations by
# LLVM, and each loop emitted without MLIR. The passes over whole programs are the same.
UNOPTIMIZED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--unoptimized",
        action="store_true",
        help="compile without most optimizations, and leave out the tests that are about them",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("unoptimized"):
        os.environ["XLA_FLAGS"] += f" {UNOPTIMIZED}"  # jax reads it with its first array


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("unoptimized"):
        left_out = [item for item in items if item.get_closest_marker("optimized")]
        items[:] = [item for item in items if not item.get_closest_marker("optimized")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="module")
def no_search_for_old_garbage() -> None:
    """What the modules before have left, jax's programs mostly, is not searched in this one."""
    gc.collect()
    gc.freeze()


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
