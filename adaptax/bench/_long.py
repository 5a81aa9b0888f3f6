"""Thousands of leaves: tracing, lowering and compiling a step, and calling it un-jitted."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from . import _problems
from ._problems import Library
from ._timing import Measurement, Row, Settings, interleave, stopwatch

LEARNING_RATE = 1e-3
LEAVES = 10_000


def trace(settings: Settings, optimizer: str, leaves: int = LEAVES) -> list[Row]:
    """Tracing and lowering a step in a process that has traced nothing.

    "Collecting" runs Python's garbage collector meanwhile, as it does unless it is switched off.
    """
    leaves = leaves // 100 if settings.quick else leaves
    spec = _problems.mixed(leaves)
    parts: dict[str, list[tuple[float, float]]] = {}
    text: dict[str, list[float]] = {}

    def measurement(library: Library, collecting: bool = False) -> Measurement:
        def measure() -> float:
            tx = library.make(optimizer, LEARNING_RATE)
            state = jax.eval_shape(tx.init, spec)
            step = library.step(tx)
            jax.clear_caches()
            if collecting:
                gc.enable()
            start = time.perf_counter()
            traced = step.trace(spec, state, spec)
            middle = time.perf_counter()
            lowered = traced.lower()
            end = time.perf_counter()
            gc.disable()
            parts.setdefault(library.name, []).append((middle - start, end - middle))
            if library.name not in text:
                text[library.name] = [len(lowered.as_text()) / 1024]
            return end - start

        return measure

    libraries, rounds = _problems.libraries(), settings.few
    measurements = {library.name: measurement(library) for library in libraries}
    both = interleave(measurements, rounds, settings.tick)
    traced, lowered = (
        {name: [1e3 * times[i] for times in p[-rounds:]] for name, p in parts.items()}
        for i in range(2)
    )
    measurements = {library.name: measurement(library, collecting=True) for library in libraries}
    collecting = interleave(measurements, rounds, settings.tick, warmup=0)
    name = f"long {optimizer}, {leaves} leaves"
    return [
        Row(name, "trace", "ms", traced),
        Row(name, "lower", "ms", lowered),
        Row(name, "trace + lower", "ms", both),
        Row(name, "trace + lower, collecting", "ms", collecting),
        Row(name, "module text", "KiB", text),
    ]


def eager(settings: Settings, optimizer: str, leaves: int = LEAVES) -> list[Row]:
    """Making the state and calling the update without jit, after a first call."""
    leaves = leaves // 100 if settings.quick else leaves
    spec = _problems.mixed(leaves)
    params, grads = (jax.tree.map(jnp.array, _problems.normal(spec, seed)) for seed in (0, 1))
    init: dict[str, Measurement] = {}
    update: dict[str, Measurement] = {}
    for library in _problems.libraries():
        tx = library.make(optimizer, LEARNING_RATE)
        state = tx.init(params)
        init[library.name] = stopwatch(lambda tx=tx: tx.init(params))
        update[library.name] = stopwatch(lambda tx=tx, s=state: tx.update(grads, s, params))
    name = f"long {optimizer}, {leaves} leaves"
    return [
        Row(name, f"un-jitted {what}", "ms", interleave(run, settings.few, settings.tick))
        for what, run in (("init", init), ("update", update))
    ]


def compilation(settings: Settings, optimizer: str, leaves: int) -> list[Row]:
    """Compiling a step, each sample in a new process, and that process's peak of memory.

    At 10,000 leaves a sample takes minutes and gigabytes: one round.
    """
    rounds = settings.few if leaves < LEAVES else 1
    leaves = leaves // 100 if settings.quick else leaves
    peaks: dict[str, list[float]] = {}

    def measurement(library: Library) -> Measurement:
        code = (
            "from adaptax.bench import _long; "
            f"_long.compile_here({library.name!r}, {optimizer!r}, {leaves})"
        )

        def measure() -> float:
            found = json.loads(in_new_process(code))
            peaks.setdefault(library.name, []).append(found["peak"])
            return found["seconds"]

        return measure

    measurements = {library.name: measurement(library) for library in _problems.libraries()}
    seconds = interleave(measurements, rounds, settings.tick, warmup=0, unit=1.0)
    name = f"long {optimizer}, {leaves} leaves"
    return [Row(name, "compile", "s", seconds), Row(name, "peak of memory", "MiB", peaks)]


def compile_here(library: str, optimizer: str, leaves: int) -> None:
    """Compile a step in this process; print the seconds, and the peak of its memory in MiB."""
    jax.config.update("jax_enable_compilation_cache", False)
    (chosen,) = (one for one in _problems.libraries() if one.name == library)
    spec = _problems.mixed(leaves)
    tx = chosen.make(optimizer, LEARNING_RATE)
    lowered = chosen.step(tx).lower(spec, jax.eval_shape(tx.init, spec), spec)
    start = time.perf_counter()
    lowered.compile()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": _peak()}))


def _peak() -> float:
    """The peak of this process's memory, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other way counts the parent's, too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_new_process(code: str) -> str:
    """What Python prints when it runs this code in a process of its own, with this adaptax."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout
