"""What all tests share: eight CPU devices, strict promotion, fixed keys."""

import gc
import os
import subprocess
import sys

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
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def accepted(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the flags that this jaxlib knows.

    Releases of jaxlib drop flags, and one that XLA doesn't know ends the process: others try them.
    """
    result = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        check=False,
    )
    if result.returncode == 0:
        return flags
    if len(flags) == 1:
        return ()
    return tuple(flag for one in flags for flag in accepted((one,)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--unoptimized",
        action="store_true",
        help="compile without most optimizations, and leave out the tests that are about them",
    )
    parser.addoption(
        "--every", type=int, default=1, metavar="N", help="run every N-th test only, of all files"
    )


def pytest_configure(config: pytest.Config) -> None:
    # jax reads them with its first array; the workers of pytest-xdist inherit them.
    if config.getoption("unoptimized") and not hasattr(config, "workerinput"):
        os.environ["XLA_FLAGS"] = " ".join([os.environ["XLA_FLAGS"], *accepted(UNOPTIMIZED)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = items
    if config.getoption("unoptimized"):
        chosen = [item for item in items if not item.get_closest_marker("optimized")]
    chosen = chosen[:: config.getoption("every")]
    left_out = set(items) - set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = chosen


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
