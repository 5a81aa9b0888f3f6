"""The time of a step on this machine, with state in few bits and in float32."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ... import _core, lowbit
from ...optimizers._adam import adam
from ...optimizers._rms import rmsprop
from .. import _problems, _report
from .._problems import Library
from .._timing import Measurement, Settings, interleave, stopwatch

OPTIMIZERS: dict[str, tuple[Callable[[], Any], str]] = {
    "adam": (lambda: adam(1e-3), "adam"),
    "adam8bit": (lambda: lowbit.adam8bit(1e-3), "adam"),
    "adam4bit": (lambda: lowbit.adam4bit(1e-3), "adam"),
    "rmsprop": (lambda: rmsprop(1e-3), "rmsprop"),
    "rmsprop8bit": (lambda: lowbit.rmsprop8bit(1e-3), "rmsprop"),
}
"""How to make each, and the name of the one that it is compared with."""


def steps(settings: Settings) -> dict[str, Any]:
    """Jitted, donating steps on GPT-2 small's 148 leaves, taken in turn; times in ms."""
    spec = _problems.small(4) if settings.quick else _problems.gpt2()
    size = _problems.count(spec)
    library = Library("adaptax", lambda *_: None, _core.apply_updates)
    initial = _problems.normal(spec, 0)
    grads = jax.tree.map(jnp.array, _problems.normal(spec, 1))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def measurement(make: Callable[[], Any]) -> Measurement:
        tx = make()
        params = jax.tree.map(jnp.array, initial)
        carry = params, tx.init(params)
        jitted = library.step(tx)

        def run() -> Any:
            nonlocal carry
            carry = jitted(*carry, grads)
            return carry

        return stopwatch(run)

    measurements = {name: measurement(make) for name, (make, _) in OPTIMIZERS.items()}
    samples = interleave(measurements, settings.repeats, settings.tick, warmup=2)
    reports = {name: lowbit.report(make(), initial) for name, (make, _) in OPTIMIZERS.items()}
    return {
        "parameters": size,
        "load": load,
        "environment": _report.environment(),
        "bytes": {name: report.bytes_per_parameter for name, report in reports.items()},
        "samples": samples,
    }
