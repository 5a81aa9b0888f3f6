"""Reductions of leaves, and their combination into rows: leaves, groups, total."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import _manual, widen

Column = Mapping[int, Any]
"""Arrays by the number of their leaf among all leaves of the tree."""


class Stats(NamedTuple):
    """Statistics of one tree, a vector over the rows each."""

    norm: Any
    max: Any
    mean: Any
    nonfinite: Any
    rms: Any


class Rows:
    """The rows of a sample: which leaves each of them is made of.

    A leaf's reductions are combined without its entries, so that a group costs nothing.

    Args:
        leaves: The numbers of the leaves that have a row.
        groups: For each group the places of its leaves among these.
        real: The dtype.
        like: A number that devices share inside `jax.shard_map`, so that the rows are about whole
            arrays where they hold parts; None: the arrays are whole.
    """

    def __init__(
        self, leaves: Sequence[int], groups: Sequence[Sequence[int]], real: Any, like: Any = None
    ):
        self.leaves = list(leaves)
        self.sets = [*groups, range(len(self.leaves))]
        self.real = real
        self.like = like

    def stats(self, arrays: Column) -> Stats:
        """The statistics of the arrays of one tree."""
        split = {i: self._split(x) for i, x in arrays.items()}
        every = [arrays[i].size * _parts_over(split[i]) if i in arrays else 0 for i in self.leaves]
        sizes = np.array(every, np.float64)

        def together(table: Any, at: np.ndarray) -> Any:
            shares = jnp.asarray(sizes[at] / max(sizes[at].sum(), 1), self.real)
            norm, peak, mean, count = table.T
            total = _norm(norm), jnp.max(peak), jnp.sum(shares * mean), jnp.sum(count)
            return jnp.stack(total)

        vectors = {i: _of_parts(stats_of(x, self.real), split[i]) for i, x in arrays.items()}
        table = self._table(vectors, together, 4)
        entries = [*sizes, *(sizes[list(one)].sum() for one in self.sets)]
        root = jnp.asarray(np.sqrt(np.maximum(entries, 1)), self.real)
        return Stats(*table.T, rms=table[:, 0] / root)

    def fraction(self, pairs: Column) -> Any:
        """Σ a / Σ b of pairs of counts (a, b)."""
        pairs = {i: _sum_of_parts(x, self._split(x)) for i, x in pairs.items()}
        part, whole = self._table(pairs, lambda table, at: jnp.sum(table, 0), 2).T
        return part / whole

    def cosine(self, cosines: Column, x: Stats, y: Stats) -> Any:
        """Σ cᵢ ‖xᵢ‖ ‖yᵢ‖ / (‖x‖ ‖y‖) from the cosines cᵢ of the leaves."""
        n = len(self.leaves)
        table = self._table({i: c[None] for i, c in cosines.items()}, lambda t, at: t[0], 1)[:, 0]
        totals = []
        for row, one in enumerate(self.sets, n):
            at = np.array([k for k in one if self.leaves[k] in cosines], np.int32)
            safe = [jnp.where(s.norm[row] > 0, s.norm[row], 1) for s in (x, y)]
            terms = table[at] * (x.norm[at] / safe[0]) * (y.norm[at] / safe[1])
            totals.append(jnp.sum(terms) if at.size else table[row])
        return jnp.concatenate([table[:n], jnp.stack(totals)])

    def _split(self, x: Any) -> tuple[Any, ...]:
        """The mesh axes over which an array is in parts."""
        return () if self.like is None else _manual.parted(x, self.like)

    def _table(self, vectors: Column, together: Callable[[Any, Any], Any], width: int) -> Any:
        """A vector for each row; NaN where no leaf has one."""
        nothing = jnp.full(width, jnp.nan, self.real)
        table = [vectors.get(i, nothing) for i in self.leaves]
        leaves = jnp.stack(table) if table else nothing[None]
        for one in self.sets:
            at = np.array([k for k in one if self.leaves[k] in vectors], np.int32)
            table.append(together(leaves[at], at) if at.size else nothing)
        return jnp.stack(table)


def _parts_over(axes: tuple[Any, ...]) -> int:
    return math.prod(map(jax.lax.axis_size, axes))


def _sum_of_parts(x: Any, axes: tuple[Any, ...]) -> Any:
    return jax.lax.psum(x, axes) if axes else x


def _of_parts(stats: Any, axes: tuple[Any, ...]) -> Any:
    """`stats_of` an array from those of its parts."""
    if not axes:
        return stats
    norm, peak, mean, nonfinite = stats
    norm, peak = _manual.norm_of_parts(norm, axes), _manual.maximum(peak, axes)
    return jnp.stack([norm, peak, jax.lax.pmean(mean, axes), jax.lax.psum(nonfinite, axes)])


def _norm(x: Any) -> Any:
    """√Σ|x|² of a vector of norms."""
    unit = _unit(jnp.max(x))
    return unit * jnp.sqrt(jnp.sum(jnp.square(x * (1 / unit))))


def _unit(peak: Any) -> Any:
    """What to scale by for squares that stay in range: the largest modulus, nearly.

    Neither it nor its inverse is subnormal. NaN stays NaN.
    """
    tiny = np.finfo(peak.dtype).tiny
    return jnp.clip(peak, tiny, 1 / (4 * tiny))


def _parts(x: Any, real: Any) -> list[Any]:
    """The real and the imaginary part, wide."""
    x = widen(x, real)
    return [jnp.real(x), jnp.imag(x)] if jnp.iscomplexobj(x) else [x]


def _peak(x: Any, real: Any) -> Any:
    return jnp.max(jnp.abs(widen(x, real)), initial=0)


@partial(jax.jit, static_argnames="real")
def stats_of(x: Any, real: Any) -> Any:
    """(norm, max, mean, nonfinite) of an array, of which the mean is that of the real part."""
    parts = _parts(x, real)
    mean = parts[0] * np.asarray(1 / max(x.size, 1), real)
    modulus = jnp.abs(widen(x, real))
    peak, mean, nonfinite = _together(
        (modulus, mean, _ones(~jnp.isfinite(x), real)), (jnp.maximum, jnp.add, jnp.add)
    )
    unit = _unit(peak)
    squares = sum(jnp.sum(jnp.square(part * (1 / unit))) for part in parts)
    return jnp.stack([unit * jnp.sqrt(squares), peak, mean, nonfinite])


def _together(arrays: Sequence[Any], operations: Sequence[Any]) -> Sequence[Any]:
    """Reductions of arrays of one shape in one pass, which keeps none of them in memory."""
    zeros = [np.zeros((), x.dtype) for x in arrays]

    def step(ours: Any, theirs: Any) -> Any:
        return tuple(f(a, b) for f, a, b in zip(operations, ours, theirs, strict=True))

    return jax.lax.reduce(tuple(arrays), tuple(zeros), step, tuple(range(arrays[0].ndim)))


def _ones(flags: Any, real: Any) -> Any:
    """1 where True; their sum is exact to 2^24 in float32."""
    return jnp.where(flags, np.asarray(1, real), np.asarray(0, real))


@partial(jax.jit, static_argnames="real")
def against(u: Any, g: Any, real: Any) -> Any:
    """How many entries of u go against g, and how many of g are not 0."""
    products = zip(_parts(jnp.sign(u), real), _parts(jnp.sign(g), real), strict=False)
    descends = sum(x * y for x, y in products) < 0
    flags = [_ones(x, real) for x in (descends, g != 0)]
    return jnp.stack(_together(flags, (jnp.add, jnp.add)))


@partial(jax.jit, static_argnames="real")
def cosine_of(x: Any, y: Any, real: Any) -> Any:
    """The cosine of the angle between two arrays; 0 if one is 0."""
    scales = [1 / _unit(_peak(a, real)) for a in (x, y)]
    xs, ys = ([p * c for p in _parts(a, real)] for a, c in zip((x, y), scales, strict=True))
    dot = sum(jnp.sum(a * b) for a, b in zip(xs, ys, strict=False))
    squares = [sum(jnp.sum(jnp.square(p)) for p in parts) for parts in (xs, ys)]
    length = jnp.sqrt(squares[0]) * jnp.sqrt(squares[1])
    return jnp.where(length == 0, jnp.zeros_like(length), dot / jnp.where(length == 0, 1, length))


@partial(jax.jit, static_argnames="real")
def below(nu: Any, eps: Any, weight: Any, real: Any) -> Any:
    """How many entries of a corrected second moment have a root below ε, and of how many."""
    count = _ones(jnp.sqrt(widen(nu, real) / weight) < eps, real)
    entries = jnp.ones_like(count)
    return jnp.stack(_together((count, entries), (jnp.add, jnp.add)))
