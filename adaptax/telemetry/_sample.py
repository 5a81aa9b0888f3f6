"""What is measured at one step: a pytree of a few vectors, with names for their entries."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._core import _checks

TOTAL = "total"


class Sample(NamedTuple):
    """Measures of each leaf, of each group of leaves and of all leaves together.

    A pytree of arrays: it can be returned from a jitted function, stacked by `jax.lax.scan` and
    `jax.vmap`, carried in a state. Names are keys of dicts that hold nothing else.

    Attributes:
        step: The number of the update, from 0, int32 (); -1 where nothing was measured yet.
        values: For each measure a vector (rows,) over `names`, float32 or wider. NaN where a
            measure is not defined, as for a leaf without a gradient.
        leaves: The names of the leaves ("layers/0/kernel"), as keys.
        groups: The names of the groups, as keys.
    """

    step: Any
    values: dict[str, Any]
    leaves: dict[str, None]
    groups: dict[str, None]

    records = True  # guards pass over it

    @property
    def names(self) -> list[str]:
        """The names of the rows: leaves, groups, "total"."""
        return [*sorted(self.leaves), *sorted(self.groups), TOTAL]

    def of(self, name: str) -> dict[str, Any]:
        """The measures of one leaf, one group or the total."""
        row = self.names.index(name)
        return {measure: self.values[measure][..., row] for measure in self.values}


def flat(sample: Sample) -> dict[str, float]:
    """A sample as numbers by "name/measure": "layers/0/kernel/update_ratio", "total/update_rms".

    Args:
        sample: One sample; for several, see `history`.

    Raises:
        TypeError: There are several samples.

    >>> import jax.numpy as jnp
    >>> from adaptax import telemetry
    >>> g = {"w": jnp.array([3.0, 4.0])}
    >>> telemetry.flat(telemetry.measure(g, g))["w/update_norm"]
    5.0
    """
    return {
        f"{name}/{measure}" if name else measure: value
        for name, measures in rows(sample).items()
        for measure, value in measures.items()
    }


def rows(sample: Sample) -> dict[str, dict[str, float]]:
    """A sample as numbers by name and measure, on the host."""
    if np.ndim(sample.step):
        wanted = "one sample; telemetry.history(state) lists those of a state"
        raise _checks.wrong_kind("flat", "sample", wanted, f"{np.shape(sample.step)} of them")
    values = jax.device_get(sample.values)
    return {
        name: {measure: float(values[measure][i]) for measure in sorted(values)}
        for i, name in enumerate(sample.names)
    }


def from_rows(
    step: int,
    leaves: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, Mapping[str, float]],
    total: Mapping[str, float],
) -> Sample:
    """The sample of numbers by name and measure."""
    every = [leaves[k] for k in sorted(leaves)] + [groups[k] for k in sorted(groups)] + [total]
    values = {m: np.array([row[m] for row in every], np.float64) for m in sorted(total)}
    return Sample(np.int32(step), values, dict.fromkeys(leaves), dict.fromkeys(groups))


def unstacked(samples: "Sample | Iterable[Sample]") -> list[Sample]:
    """Samples one by one, on the host, in the order of their steps; those not taken are left out.

    Args:
        samples: One sample, one with leading axes (from `jax.lax.scan`), or several.
    """
    found = [one for sample in _several(samples) for one in _split(sample) if one.step >= 0]
    return sorted(found, key=lambda sample: int(sample.step))


def _several(samples: Any) -> Iterable[Sample]:
    return [samples] if isinstance(samples, Sample) else samples


def _split(sample: Sample) -> Iterator[Sample]:
    sample = jax.device_get(sample)
    for index in np.ndindex(np.shape(sample.step)):
        values = {m: np.asarray(v[index]) for m, v in sample.values.items()}
        yield Sample(np.asarray(sample.step)[index], values, sample.leaves, sample.groups)


def natural(name: str) -> list[Any]:
    """A key to sort names by, "layers/2" before "layers/10"."""
    return [(1, "", int(s)) if s.isdigit() else (0, s, 0) for s in re.split(r"(\d+)", name) if s]
