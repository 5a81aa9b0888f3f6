"""The benchmarks: each measures adaptax beside optax (and torch) and returns rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _accuracy, _long, _probe, _problems, _sweep
from ._problems import Library
from ._timing import Measurement, Row, Settings, interleave, stopwatch

LEARNING_RATE = 1e-3
NO_TORCH = "torch is not installed"


@dataclass(frozen=True)
class Benchmark:
    """A name to select it by, and a function that runs it; a slow one runs only if named."""

    name: str
    run: Callable[[Settings], list[Row]]
    slow: bool = False


def trace(settings: Settings, leaves: int) -> list[Row]:
    """Tracing and lowering a whole adamw step, as a process does again for each new function.

    "Cleared" empties jax's caches before each sample, as in a process that starts.
    """
    leaves = leaves // 10 if settings.quick else leaves
    params = _problems.mixed(leaves)
    text: dict[str, float] = {}

    def measurement(library: Library, clear: bool) -> Measurement:
        def measure() -> float:
            tx = library.make("adamw", LEARNING_RATE)
            state = jax.eval_shape(tx.init, params)
            step = library.step(tx)
            if clear:
                jax.clear_caches()
            start = time.perf_counter()
            lowered = step.trace(params, state, params).lower()
            seconds = time.perf_counter() - start
            if library.name not in text:
                text[library.name] = len(lowered.as_text()) / 1024
            return seconds

        return measure

    name = f"trace adamw, {leaves} leaves"
    rows = []
    for quantity, clear, rounds in (
        ("trace + lower", False, settings.repeats),
        ("trace + lower, cleared", True, settings.few),
    ):
        measurements = {lib.name: measurement(lib, clear) for lib in _problems.libraries()}
        samples = interleave(measurements, rounds, settings.tick)
        rows.append(Row(name, quantity, "ms", samples))
    sizes = {library: [size] for library, size in text.items()}
    return [*rows, Row(name, "module text", "KiB", sizes)]


def eager(settings: Settings, leaves: int) -> list[Row]:
    """Calling adamw's update without jit, after a first call."""
    leaves = leaves // 10 if settings.quick else leaves
    spec = _problems.mixed(leaves)
    params, grads = (jax.tree.map(jnp.array, _problems.normal(spec, seed)) for seed in (0, 1))

    def measurement(library: Library) -> Measurement:
        tx = library.make("adamw", LEARNING_RATE)
        state = tx.init(params)
        return stopwatch(lambda: tx.update(grads, state, params))

    measurements = {library.name: measurement(library) for library in _problems.libraries()}
    samples = interleave(measurements, settings.repeats, settings.tick, warmup=2)
    return [Row(f"eager adamw, {leaves} leaves", "update", "ms", samples)]


STEP_TREES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "16M": (partial(_problems.single, 1 << 24), partial(_problems.single, 1 << 10)),
    "gpt2": (_problems.gpt2, partial(_problems.gpt2, 2, 32, 128, 16)),
    "small": (partial(_problems.small, 800), partial(_problems.small, 20)),
}
"""The trees of the jitted step: full, and quick."""


def step(settings: Settings, optimizer: str, tree: str) -> list[Row]:
    """A jitted, donating step: compiling it, running it, and the memory traffic of both."""
    spec = STEP_TREES[tree][settings.quick]()
    size = _problems.count(spec)
    libraries = _problems.libraries()
    name = f"step {optimizer}, {tree}"
    accessed: dict[str, float] = {}

    def compilation(library: Library) -> Measurement:
        def measure() -> float:
            tx = library.make(optimizer, LEARNING_RATE)
            state = jax.eval_shape(tx.init, spec)
            lowered = library.step(tx).lower(spec, state, spec)
            start = time.perf_counter()
            compiled = lowered.compile()
            seconds = time.perf_counter() - start
            costs = compiled.cost_analysis() or {}
            accessed[library.name] = costs.get("bytes accessed", float("nan")) / size
            return seconds

        return measure

    compiling = {library.name: compilation(library) for library in libraries}
    compiled = interleave(compiling, settings.few, settings.tick)

    initial, gradients = _problems.normal(spec, 0), _problems.normal(spec, 1)
    grads = jax.tree.map(jnp.array, gradients)

    def measurement(library: Library) -> Measurement:
        tx = library.make(optimizer, LEARNING_RATE)
        params = jax.tree.map(jnp.array, initial)
        carry = params, tx.init(params)
        jitted = library.step(tx)

        def run() -> Any:
            nonlocal carry
            carry = jitted(*carry, grads)
            return carry

        return stopwatch(run)

    measurements = {library.name: measurement(library) for library in libraries}
    torch_step, note = _torch_step(optimizer, initial, gradients)
    if torch_step is not None:
        measurements["torch"] = torch_step
    floor = _problems.floor_bytes(optimizer)
    timed = interleave(measurements, settings.many, settings.tick, warmup=3)
    time_row = Row(name, "time", "ms", timed, note=note)
    jax_only = Row(name, "time", "ms", {lib.name: timed[lib.name] for lib in libraries})
    return [
        Row(name, "compile", "ms", compiled),
        time_row,
        Row(name, "bytes accessed", "B/param", {k: [v] for k, v in accessed.items()}),
        jax_only.map("bytes accessed / time", "GB/s", lambda k, ms: accessed[k] * size / ms / 1e6),
        time_row.map(f"floor {floor:g} B / time", "GB/s", lambda _, ms: floor * size / ms / 1e6),
    ]


def _torch_step(optimizer: str, params: Any, grads: Any) -> tuple[Measurement | None, str]:
    torch = _problems.torch_or_none()
    if torch is None:
        return None, NO_TORCH
    if optimizer != "adamw":
        return None, "torch has no fused one on CPU"
    leaves = [torch.from_numpy(p).clone().requires_grad_() for p in jax.tree.leaves(params)]
    for leaf, g in zip(leaves, jax.tree.leaves(grads), strict=True):
        leaf.grad = torch.from_numpy(g)
    # The same numbers as the other two's defaults.
    fused = torch.optim.AdamW(leaves, lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
    return stopwatch(lambda: fused.step()), ""


def triad(settings: Settings) -> list[Row]:
    """The limit to hold the steps against: a = b + s·c, in the libraries' own threads.

    12 bytes an entry. Jax writes a into b's memory (donated), torch into an array of its own;
    numpy runs in one thread.
    """
    size = 1 << (12 if settings.quick else 24)
    b, c = (_problems.normal(_problems.single(size), seed)["w"] for seed in (0, 1))
    s = np.float32(1e-3)
    jitted = jax.jit(lambda b, c: b + s * c, donate_argnums=0)
    carry, other = jnp.array(b), jnp.array(c)

    def in_jax() -> Any:
        nonlocal carry
        carry = jitted(carry, other)
        return carry

    def in_numpy() -> None:
        np.multiply(c, s, out=a)
        np.add(a, b, out=a)

    a = np.empty_like(b)
    measurements = {"jax": stopwatch(in_jax), "numpy": stopwatch(in_numpy)}
    torch = _problems.torch_or_none()
    if torch is not None:
        tb, tc, ta = torch.from_numpy(b), torch.from_numpy(c), torch.from_numpy(a)
        measurements["torch"] = stopwatch(lambda: torch.add(tb, tc, alpha=float(s), out=ta) is None)
    samples = interleave(measurements, settings.many, settings.tick, warmup=3)
    rates = {k: [12 * size / ms / 1e6 for ms in times] for k, times in samples.items()}
    row = Row(f"triad, {size} entries", "12 B / time", "GB/s", rates)
    limits = ", ".join(f"{name} {rate:.1f}" for name, rate in row.medians.items())
    return [replace(row, note=f"the limit: {limits}")]


def imports(settings: Settings) -> list[Row]:
    """What the import adds to that of jax and jax.numpy, each sample in a new process."""

    def measurement(module: str) -> Measurement:
        code = (
            "import time, jax, jax.numpy; t = time.perf_counter(); "
            f"import {module}; print(time.perf_counter() - t)"
        )
        return lambda: float(_long.in_new_process(code))

    measurements = {library.name: measurement(library.name) for library in _problems.libraries()}
    samples = interleave(measurements, settings.few, settings.tick)
    return [Row("import", "over jax", "ms", samples)]


SUITE: tuple[Benchmark, ...] = (
    *(Benchmark(f"trace-{n}", partial(trace, leaves=n)) for n in (50, 200, 800)),
    *(Benchmark(f"eager-{n}", partial(eager, leaves=n)) for n in (50, 200, 800)),
    Benchmark("triad", triad),
    *(
        Benchmark(f"step-{optimizer}-{tree}", partial(step, optimizer=optimizer, tree=tree))
        for optimizer in ("adamw", "rmsprop")
        for tree in STEP_TREES
    ),
    Benchmark("sweep", _sweep.digits_sweep),
    Benchmark("probe", _probe.probe),
    Benchmark("import", imports),
    *(
        Benchmark(f"ulp-{optimizer}-{b2:g}", partial(_accuracy.ulp, optimizer=optimizer, b2=b2))
        for optimizer in ("adam", "adamw", "rmsprop")
        for b2 in (0.999, 0.9999)
    ),
    *(
        Benchmark(f"long-{optimizer}-{what}", partial(run, optimizer=optimizer), slow=True)
        for optimizer in ("adamw", "rmsprop")
        for what, run in (
            ("trace", _long.trace),
            ("eager", _long.eager),
            *((f"compile-{n}", partial(_long.compilation, leaves=n)) for n in (1000, 2500, 10_000)),
        )
    ),
)
"""All benchmarks, in the order in which they run."""
