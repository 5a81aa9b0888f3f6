"""Muon: orthogonalized momentum for matrices, AdamW for everything else."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._core import (
    SKIP,
    ArrayTree,
    Count,
    Decay,
    DecayLike,
    DTypeLike,
    EmptyState,
    GradientTransformation,
    Leafwise,
    LearningRate,
    MaskLike,
    NonNegative,
    Number,
    Numbers,
    Positive,
    Preconditioning,
    Real,
    Slot,
    _checks,
    _tree,
    average,
    chain,
    debias,
    leafwise,
    newton_schulz,
    on_stack,
    partition,
    saturated,
    transformation,
)
from ..transforms import add_decayed_weights, scale_by_learning_rate
from ._adam import adamw

JORDAN = (3.4445, -4.7750, 2.0315)
DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class _CoefficientsKind(Numbers):
    """(a, b, c), one such for each step, or the name of a set."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        sets = {"standard": JORDAN, "dion": DION}
        if isinstance(value, str):
            if value not in sets:
                raise _checks.out_of_range(function, name, f"one of {sorted(sets)}", value)
            value = sets[value]
        if hasattr(value, "tolist"):
            value = value.tolist()
        rows = super().canonical(function, name, value)
        triples = rows if rows and isinstance(rows[0], tuple) else (rows,)
        if any(not isinstance(row, tuple) or len(row) != 3 for row in triples):
            raise _checks.wrong_kind(function, name, "(a, b, c) or a tuple of such", value)
        return rows


Coefficients = Annotated[Any, _CoefficientsKind(Number("(-inf, inf)"))]


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a parameter make a matrix; all others are batches.

    Attributes:
        reduction_axis: The axis, or axes, that x is summed over in x @ w.
        output_axis: The axis, or axes, that remain.
    """

    reduction_axis: Sequence[int] | int = 0
    output_axis: Sequence[int] | int = 1


_WHAT = "the dimension numbers are a tree"

DimensionNumbers = MuonDimensionNumbers | ArrayTree | Callable[[Any], ArrayTree]


class MuonState(NamedTuple):
    """The state of `scale_by_muon`.

    Attributes:
        count: Steps done, int32 ().
        mu: The average of g, like the parameters, float32 or wider unless asked otherwise.
        ns_coeffs: The coefficients, (3,) or (n, 3). The rule does not read it; optax keeps it.
    """

    count: Int[Array, ""]
    mu: ArrayTree
    ns_coeffs: Float[Array, "..."]


class _Axes(NamedTuple):
    """The reduction and the output axes of one leaf, counted from 0."""

    reduction: tuple[int, ...]
    output: tuple[int, ...]

    def fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, columns = (math.prod(shape[a] for a in axes) for axes in self)
        return rows, columns

    def on_matrices(self, f: Callable[[Any], Any], x: Any) -> Any:
        """Apply f to x as a stack of matrices, (batch, rows, columns)."""
        batch = tuple(a for a in range(x.ndim) if a not in self.reduction + self.output)
        order = batch + self.reduction + self.output
        moved = jnp.transpose(x, order)
        stacked = moved.reshape(math.prod(x.shape[a] for a in batch), *self.fans(x.shape))
        inverse = tuple(order.index(a) for a in range(x.ndim))
        return jnp.transpose(on_stack(f, stacked).reshape(moved.shape), inverse)


def _axes_of(dimensions: DimensionNumbers | None) -> Callable[[Any], list[Any]]:
    """For the engine: the axes of each leaf of a tree."""

    def per_leaf(tree: Any) -> list[Any]:
        given = _tree.resolved(dimensions, tree)
        given = MuonDimensionNumbers() if given is None else given
        listed = _tree.broadcast("scale_by_muon", _WHAT, given, tree, is_leaf=_is_dimension_numbers)
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
        return [
            SKIP if leaf is None else _normalized(path, one, jnp.ndim(leaf))
            for path, one, leaf in zip(_tree.paths(tree), listed, leaves, strict=True)
        ]

    return per_leaf


def _normalized(path: str, numbers: Any, ndim: int) -> _Axes:
    if not _tree.is_marker(numbers, MuonDimensionNumbers):
        raise _checks.not_a_matrix("scale_by_muon", path, ndim, numbers)
    both = [(a,) if isinstance(a, int) else tuple(a) for a in numbers]
    flat = [a for axes in both for a in axes]
    fits = ndim >= 2 and all(-ndim <= a < ndim for a in flat)
    if not fits or len({a % ndim for a in flat}) < len(flat):
        raise _checks.not_a_matrix("scale_by_muon", path, ndim, numbers)
    reduction, output = (tuple(a % ndim for a in axes) for axes in both)
    return _Axes(reduction, output)


def _is_dimension_numbers(x: Any) -> bool:
    return _tree.is_hole(x) or _tree.is_marker(x, MuonDimensionNumbers)


@transformation
def scale_by_muon(
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: Count = 5,
    beta: DecayLike = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> Leafwise:
    r"""Replace each matrix of gradients by its averaged and orthogonalized self.

    .. math::

        \begin{aligned}
        M_t &= \beta M_{t-1} + (1 - \beta)\, G_t, \qquad M_0 = 0 \\
        \hat M_t &= \beta M_t / (1 - \beta^{t+1}) + (1 - \beta)\, G_t / (1 - \beta^t)
            \;\text{ or, without nesterov, }\; M_t / (1 - \beta^t) \\
        U_t &\approx P Q^\top \quad\text{where}\quad \hat M_t = P \Sigma Q^\top
        \end{aligned}

    by Newton-Schulz iteration, which with the usual coefficients takes the singular values to
    about [0.7, 1.2]. State: one array a parameter.

    Args:
        ns_coeffs: (a, b, c) of the iteration, one such for each step, "standard" or "dion".
        ns_steps: How many steps; of a set with one (a, b, c) for each step, the last so many
            (all, if there are fewer).
        beta: β, in [0, 1).
        eps: ε >= 0, added to the norm that a matrix is divided by first.
        mu_dtype: The dtype in which M is stored; None: the parameter's, float32 for 16 bits.
        nesterov: Look one step ahead.
        adaptive: Multiply U by the inner product of M̂ and U, the dual norm of M̂.
        preconditioning: What bounds the singular values before the iteration; see
            `newton_schulz`.
        weight_dimension_numbers: A `MuonDimensionNumbers` for each parameter (a tree, a prefix
            of it, or a function that makes one from the parameters); None: all are matrices.

    Raises:
        ValueError: A number lies outside its range; at `update`, a leaf is not a matrix.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
        Bernstein & Newhouse, "Old Optimizer, New Norm", 2024, arXiv:2409.20325 (adaptive).
        Ahn et al., "Dion", 2025, arXiv:2504.05295 (its coefficients).
        The average is bias-corrected, as in optax.
    """
    single = not isinstance(ns_coeffs[0], tuple)
    steps = (ns_coeffs,) * ns_steps if single else ns_coeffs[-ns_steps:]

    def rule(t, g, p, mu, *, spec):
        rows, columns = spec.fans(g.shape)
        g = saturated(g, rows * columns)
        mu = average(g, mu, beta)
        if nesterov:
            d = Decay.of(beta)
            m = d.value * debias(mu, beta, t + 1) + d.complement * debias(g, beta, t)
        else:
            m = debias(mu, beta, t)
        u = spec.on_matrices(lambda x: newton_schulz(x, steps, eps, preconditioning), m)
        return (jnp.sum(m.conj() * u) * u if adaptive else u), mu

    return leafwise(
        rule,
        MuonState,
        per_leaf=_axes_of(weight_dimension_numbers),
        matrices=True,
        scalars={"ns_coeffs": ns_coeffs if single else steps},
        mu=Slot(dtype=mu_dtype),
    )


@transformation
def scale_by_shape(
    weight_dimension_numbers: DimensionNumbers | None = None,
    consistent_rms: Positive | None = None,
) -> Leafwise:
    r"""Multiply each matrix by a function of its size.

    .. math::

        u = g \sqrt{\max(1, n / m)} \quad\text{or, with consistent_rms,}\quad
        u = c\, g \sqrt{\max(m, n)}

    for m reduction and n output entries.

    Args:
        weight_dimension_numbers: As in `scale_by_muon`.
        consistent_rms: c > 0; 0.2 gives an orthogonal matrix the root mean square of Adam's steps.

    References:
        Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982 (consistent_rms).
    """

    def rule(t, g, p, *, spec):
        rows, columns = spec.fans(g.shape)
        if consistent_rms is None:
            return math.sqrt(max(1.0, columns / max(rows, 1))) * g
        return (consistent_rms * math.sqrt(max(rows, columns))) * g

    return leafwise(rule, EmptyState, per_leaf=_axes_of(weight_dimension_numbers))


@transformation
def muon(
    learning_rate: LearningRate | None,
    ns_coeffs: Coefficients = JORDAN,
    ns_steps: Count = 5,
    beta: DecayLike = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Real = 0.0,
    weight_decay_mask: MaskLike | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: DecayLike = 0.9,
    adam_b2: DecayLike = 0.999,
    adam_eps_root: NonNegative = 0.0,
    adam_weight_decay: Real = 0.0,
    adam_learning_rate: LearningRate | None = None,
    muon_weight_dimension_numbers: DimensionNumbers | None = None,
    consistent_rms: Positive | None = None,
) -> GradientTransformation:
    r"""Muon: orthogonalized momentum for matrices, AdamW for everything else.

    .. math::

        W := W - \alpha\, (c_{mn}\, U + \lambda W)

    with U from `scale_by_muon` and :math:`c_{mn}` from `scale_by_shape`, for the parameters with
    two axes; the others take `adamw`. **Embeddings and output layers have two axes too**; the
    method is not meant for them. Name the matrices with ``muon_weight_dimension_numbers``: what
    has None there takes AdamW. State: one array a matrix, two for other parameters.

    Args:
        learning_rate: α, a number or a schedule.
        ns_coeffs: As in `scale_by_muon`, like the next three.
        ns_steps: Steps of the iteration.
        beta: β, in [0, 1).
        eps: ε >= 0, of both methods.
        weight_decay: λ of the matrices, a number or a schedule.
        weight_decay_mask: Which matrices decay; see `add_decayed_weights`.
        mu_dtype: The dtype of both methods' first moments.
        nesterov: Look one step ahead, in both methods.
        adaptive: As in `scale_by_muon`.
        preconditioning: As in `scale_by_muon`.
        adam_b1: β₁ of AdamW, in [0, 1).
        adam_b2: β₂ of AdamW, in [0, 1).
        adam_eps_root: ε̄ of AdamW, >= 0.
        adam_weight_decay: λ of AdamW.
        adam_learning_rate: α of AdamW; None: that of Muon.
        muon_weight_dimension_numbers: A tree (or a prefix of one, or a function that makes one
            from the parameters) of `MuonDimensionNumbers`, or None for AdamW; None as a whole
            takes Muon for every parameter with two axes.
        consistent_rms: As in `scale_by_shape`.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
        Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982.
    """
    dimensions = muon_weight_dimension_numbers

    def by_leaf(params: Any) -> Any:
        """MuonDimensionNumbers over each matrix of the tree, None over other leaves."""
        if dimensions is None:
            return jax.tree.map(
                lambda x: MuonDimensionNumbers() if jnp.ndim(x) == 2 else None, params
            )
        return _tree.resolved(dimensions, params)

    def labels(params: Any) -> Any:
        return jax.tree.map(
            lambda d: "adam" if d is None else "muon",
            by_leaf(params),
            is_leaf=_is_dimension_numbers,
        )

    matrices = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            weight_dimension_numbers=dimensions,
        ),
        scale_by_shape(dimensions, consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    others = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    return partition({"muon": matrices, "adam": others}, labels)
