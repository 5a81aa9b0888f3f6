"""Devices to compile for that this machine does not have."""

import functools
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax

# What a compiler must know of an H100. The compute capability alone is not enough: the compiler
# divides by some of the other numbers.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# The smallest topology that the compiler takes without further options.
_TPUS = {
    "v4": "2x2x1",
    "v5e": "2x2",
    "v5p": "2x2x1",
    "v6e": "2x2",
    "tpu7x": "2x2x1",
}
_GPUS = {"h100": _H100}

_ENVIRONMENT = {
    # Without it a second process that compiles at the same time fails on a lock file.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    # These keep warnings from stderr; they do not choose the target.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # The CUDA plugin otherwise wants a driver.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}


@dataclass(frozen=True)
class Target:
    """A device to compile for.

    Attributes:
        name: What `named` was called with.
        platform: "tpu", "cuda" or "cpu".
        topology: What the platform calls the arrangement of chips.
        chips: How many of its devices to take; None for all.
        description: The GPU, for the compiler.
        main: The memory spaces that are main memory in its programs.
    """

    name: str
    platform: str
    topology: str = ""
    chips: int | None = None
    description: str = ""
    main: tuple[int, ...] = (0,)

    @classmethod
    def named(cls, name: str) -> "Target":
        """The target of this name.

        Args:
            name: A TPU generation, as in "v5e", for one chip, or with its topology, as in
                "v5e:2x4", for all chips of it; "h100", or "h100:8" for eight; "cpu" for this
                machine.

        Raises:
            ValueError: There is no such target.
        """
        kind, _, topology = name.partition(":")
        if name == "cpu":
            return cls(name, "cpu", chips=1)
        if kind in _TPUS:
            chips = None if topology else 1
            return cls(name, "tpu", f"{kind}:{topology or _TPUS[kind]}", chips)
        if kind in _GPUS and (not topology or topology.isdecimal()):
            # A GPU's memory space 1 holds what collectives use, in main memory as well.
            return cls(name, "cuda", f"1x1x{topology or 1}", None, _GPUS[kind], (0, 1))
        known = ", ".join([*_TPUS, *_GPUS, "cpu"])
        raise ValueError(
            f"Target.named: name must be one of {known}, or such a TPU or GPU with its topology, "
            f"as in 'v5e:2x4' and 'h100:8', got {name!r}."
        )


def available(name: str) -> str | None:
    """Why it is impossible to compile for a target here; None if it is possible.

    It looks for the compilers and loads none.
    """
    platform = Target.named(name).platform
    missing = []
    if platform == "tpu" and find_spec("libtpu") is None:
        missing.append("libtpu")
    if platform == "cuda":
        if find_spec("jax_cuda12_plugin") is None:
            missing.append("jax-cuda12-plugin")
        if not _has_nvcc():
            missing.append("nvidia-cuda-nvcc-cu12")
    if not missing:
        return None
    packages = " and ".join(missing)
    return f"compiling for {name} needs {packages}: pip install 'adaptax[aot]'"


def _has_nvcc() -> bool:
    """Whether ptxas is there, from its wheel or from an installed toolkit."""
    try:
        return find_spec("nvidia.cuda_nvcc") is not None or shutil.which("ptxas") is not None
    except ModuleNotFoundError:  # no package nvidia at all
        return shutil.which("ptxas") is not None


def prepare() -> None:
    """Set what the compilers read from the environment, and keep jax on this machine's CPU.

    Call it before jax starts a back end. What the environment says already stays.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")


@functools.cache
def devices(name: str) -> tuple[Any, ...]:
    """The devices of a target: to compile for, never to run on (but for "cpu").

    Raises:
        ValueError: There is no such target.
        ModuleNotFoundError: Its compiler is not installed.
    """
    wanted = Target.named(name)
    if wanted.platform == "cpu":
        return tuple(jax.devices("cpu")[:1])
    reason = available(name)
    if reason is not None:
        raise ModuleNotFoundError(reason)
    from jax.experimental import topologies

    if wanted.platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=wanted.topology)
    else:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name=name,
            target_config=wanted.description,
            topology=wanted.topology,
        )
    return tuple(found.devices[: wanted.chips])
