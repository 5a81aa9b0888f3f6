"""THE table: every optimizer and transform that the tests run, and the only list of them.

A row is a call with numbers that differ from the defaults, and what is special about it. A test
body never asks for a name; it asks for a column. `cases(keep)` parametrizes a test by rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import REFERENCES, Reference, lift
from trees import BFLOAT16, paths

import adaptax

# Arguments that say how or where something is done: the references know nothing of them.
NOT_MATHEMATICS = {
    "accumulator_dtype",
    "dtype_momentum",
    "mask",
    "mu_dtype",
    "muon_weight_dimension_numbers",
    "weight_decay_mask",
    "weight_dimension_numbers",
}

SCALES = (1e-15, 1e15)


def _shapes(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def mixed() -> Any:
    """A vector and a matrix."""
    flat = _shapes(b=(6,), w=(4, 6))
    return {"b": flat["b"], "layers": [{"w": flat["w"]}]}


def matrices() -> Any:
    """A wide and a tall matrix."""
    return _shapes(wide=(4, 6), tall=(6, 4))


def batched() -> Any:
    """A matrix, a stack of matrices between whose axes the smallest lies, and a vector."""
    return _shapes(w=(4, 6), conv=(5, 2, 4), b=(6,))


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: What the test is called by.
        factory: The function of adaptax.
        numbers: Its numeric arguments (numbers, schedules and tuples), not the defaults.
        options: Its other arguments.
        reference: The float64 reference; None takes the one of the factory's name.
        has_reference: False where optax is the only oracle.
        hyper: What the reference is given beside, or instead of, numbers and options.
        params: Makes the parameters, float64 numpy.
        main: The row that stands for its entry in the catalogue.
        elementwise: Whether each entry is treated by itself.
        needs_params: Whether `update` reads the parameters.
        complex: Whether complex parameters are defined, and turn with their gradients.
        smooth: Whether the update can be differentiated by the numbers.
        smooth_at_zero: Whether gradients and parameters of zero have no ratio that matters.
        abstract: Whether `init` needs only shapes and dtypes, not values.
        scales: Scales of the gradients, beside 1, at which float32 is accurate.
        rtol64: What a float64 trajectory may differ from the reference.
        rtol32: And a float32 one.
        rtol16: How many units of 16-bit rounding updates may differ by.
        in_optax: Whether optax has the same, for the same arguments.
        optax_rtol: What float32 updates may differ from optax's.
        torch: Makes torch's optimizer: `torch(torch.optim, parameters)`.
    """

    name: str
    factory: Callable[..., adaptax.GradientTransformation]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    has_reference: bool = True
    hyper: Mapping[str, Any] = field(default_factory=dict)
    params: Callable[[], Any] = mixed
    main: bool = False
    elementwise: bool = True
    needs_params: bool = False
    complex: bool = True
    smooth: bool = True
    smooth_at_zero: bool = True
    abstract: bool = True
    scales: tuple[float, ...] = SCALES
    rtol64: float = 1e-12
    rtol32: float = 2e-6
    rtol16: float = 2.0
    in_optax: bool = True
    optax_rtol: float = 2e-5
    torch: Callable[[Any, Any], Any] | None = None

    def make(self, **numbers: Any) -> adaptax.GradientTransformation:
        """The transformation, with some numbers of the row replaced."""
        return self.factory(**{**self.numbers, **numbers}, **self.options)

    @property
    def oracle(self) -> Reference:
        """The reference."""
        return self.reference or REFERENCES[self.factory.__name__]

    @property
    def whole(self) -> bool:
        """Whether no other row holds all of it: `scale_by_adam` is in `adam`."""
        of_transforms = self.factory.__module__.startswith("adaptax.transforms")
        return self.main or self.scheduled or (of_transforms and self.first)

    @property
    def first(self) -> bool:
        """Whether this is the first row of its factory: where one is enough."""
        return next(c for c in CASES if c.factory is self.factory) is self

    @property
    def scheduled(self) -> bool:
        """Whether a number is a schedule."""
        return any(callable(number) for number in self.numbers.values())

    @property
    def stores_otherwise(self) -> bool:
        """Whether an argument gives the dtype of some state."""
        return any("dtype" in name for name in self.options)

    def hyper_at(self, t: int) -> dict[str, Any]:
        """What the reference receives at step t: schedules are evaluated."""
        hyper: dict[str, Any] = {**self.numbers, **self.options}
        hyper = {k: v for k, v in hyper.items() if k not in NOT_MATHEMATICS} | dict(self.hyper)
        return {k: float(cast(Any, v(t - 1))) if callable(v) else v for k, v in hyper.items()}

    def params_as(self, dtype: Any) -> Any:
        """The parameters in a dtype, as numpy arrays."""
        return jax.tree.map(lambda x: np.asarray(x, dtype), self.params())


def where_masked(
    reference: Reference, mask: Sequence[bool], name: str = "weight_decay"
) -> Reference:
    """The reference, with decay only in leaves where the mask is true; the state ignores decay."""

    def step(t: int, grads: Any, params: Any, state: Any, **hyper: Any) -> Any:
        decayed, new = reference.step(t, grads, params, state, **hyper)
        plain, _ = reference.step(t, grads, params, state, **{**hyper, name: 0.0})
        return [d if m else u for d, u, m in zip(decayed, plain, mask, strict=True)], new

    return Reference(reference.init, step)


def renamed(name: str, sign: float = 1.0, **names: str) -> Reference:
    """Another algorithm's reference under other names (ours=theirs), perhaps with another sign."""
    other = REFERENCES[name]

    def translated(hyper: dict[str, Any]) -> dict[str, Any]:
        return {names.get(k, k): v for k, v in hyper.items()}

    def step(t: int, grads: Any, params: Any, state: Any, **hyper: Any) -> Any:
        updates, state = other.step(t, grads, params, state, **translated(hyper))
        return [sign * u for u in updates], state

    return Reference(lambda params, **hyper: other.init(params, **translated(hyper)), step)


def _rms(x: np.ndarray) -> Any:
    return np.sqrt(np.mean(x**2))


IDENTITY = lift(lambda t, g, p: (g,))
SET_TO_ZERO = lift(lambda t, g, p: (0 * g,))
CLIP_BY_BLOCK_RMS = lift(lambda t, g, p, *, threshold: (g / max(1.0, _rms(g) / threshold),))
SCALE_BY_PARAM_BLOCK_RMS = lift(lambda t, g, p, *, min_scale: (g * max(_rms(p), min_scale),))
SCALE_BY_SHAPE = lift(
    lambda t, g, p, *, consistent_rms: (consistent_rms * np.sqrt(max(g.shape)) * g,)
)
CLIPPED_ADAM = Reference(
    REFERENCES["adam"].init,
    lambda t, grads, params, state, *, max_norm, **hyper: REFERENCES["adam"].step(
        t,
        REFERENCES["clip_by_global_norm"].step(t, grads, params, {}, max_norm=max_norm)[0],
        params,
        state,
        **hyper,
    ),
)


def clipped_adam(
    max_norm: Any, learning_rate: Any, b1: Any, b2: Any, eps: Any
) -> adaptax.GradientTransformation:
    """A chain as users write it: a link that sees the whole tree, then leafwise ones."""
    return adaptax.chain(
        adaptax.clip_by_global_norm(max_norm), adaptax.adam(learning_rate, b1, b2, eps)
    )


def _only_matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ndim(p) == 2, params)


_MASK = [np.ndim(p) == 2 for p in jax.tree.leaves(mixed())]
_DECAYING = adaptax.linear_schedule(0.1, 0.02, 6)
_WARMING = adaptax.linear_schedule(0.0, 0.3, 5)
_ADAM = {"learning_rate": 0.02, "b1": 0.8, "b2": 0.97, "eps": 1e-4}
_ADAMW = {**_ADAM, "weight_decay": 0.05}
_SCALE_BY_ADAM = {"b1": 0.8, "b2": 0.97, "eps": 1e-4}
_RMS = {"learning_rate": 0.02, "decay": 0.8, "eps": 1e-4}
_LION = {"learning_rate": 0.01, "b1": 0.8, "b2": 0.95, "weight_decay": 0.1}
_FACTORED = {"min_dim_size_to_factor": 3}
_MUON = {"learning_rate": 0.03, "beta": 0.9, "eps": 1e-7, "weight_decay": 0.05}
_MUON_ADAM = {"adam_b1": 0.8, "adam_b2": 0.97, "adam_eps_root": 1e-6, "adam_weight_decay": 0.02}
# The Newton-Schulz iteration stretches small singular values, and with them their rounding.
_MATRIX: dict[str, Any] = {"elementwise": False, "rtol64": 1e-10, "rtol32": 2e-4, "rtol16": 8.0}
_BFLOAT16_STATE: dict[str, Any] = {"rtol64": 2e-2, "rtol32": 2e-2, "rtol16": 8.0}
# A variance is a difference of two numbers that can be nearly equal.
_VARIANCE: dict[str, Any] = {"rtol64": 1e-11, "rtol32": 2e-5}

CASES = (
    # Gradient descent
    Case("sgd", adaptax.sgd, {"learning_rate": 0.3}, main=True),
    Case(
        "sgd_without_rate",
        adaptax.sgd,
        {"learning_rate": None},
        hyper={"learning_rate": 1.0},
        in_optax=False,
    ),  # optax: climbs
    Case(
        "sgd_momentum",
        adaptax.sgd,
        {"learning_rate": 0.3, "momentum": 0.7},
        torch=lambda o, p: o.SGD(p, lr=0.3, momentum=0.7),
    ),
    Case(
        "sgd_nesterov",
        adaptax.sgd,
        {"learning_rate": 0.3, "momentum": 0.7},
        {"nesterov": True},
        torch=lambda o, p: o.SGD(p, lr=0.3, momentum=0.7, nesterov=True),
    ),
    Case("sgd_schedule", adaptax.sgd, {"learning_rate": _DECAYING, "momentum": 0.7}),
    Case(
        "sgd_bfloat16_trace",
        adaptax.sgd,
        {"learning_rate": 0.3, "momentum": 0.7},
        {"accumulator_dtype": BFLOAT16},
        complex=False,  # there is no complex type of 16 bits
        optax_rtol=2e-2,
        **_BFLOAT16_STATE,
    ),
    # RMSprop
    Case("rmsprop", adaptax.rmsprop, _RMS, main=True),
    Case(
        "rmsprop_eps_outside",
        adaptax.rmsprop,
        _RMS,
        {"eps_in_sqrt": False},
        torch=lambda o, p: o.RMSprop(p, lr=0.02, alpha=0.8, eps=1e-4),
    ),
    Case(
        "rmsprop_centered",
        adaptax.rmsprop,
        _RMS,
        {"eps_in_sqrt": False, "centered": True},
        torch=lambda o, p: o.RMSprop(p, lr=0.02, alpha=0.8, eps=1e-4, centered=True),
        optax_rtol=2e-4,
        **_VARIANCE,
    ),
    Case(
        "rmsprop_momentum",
        adaptax.rmsprop,
        {**_RMS, "momentum": 0.7},
        {"eps_in_sqrt": False},
        torch=lambda o, p: o.RMSprop(p, lr=0.02, alpha=0.8, eps=1e-4, momentum=0.7),
    ),
    Case("rmsprop_nesterov", adaptax.rmsprop, {**_RMS, "momentum": 0.7}, {"nesterov": True}),
    Case("rmsprop_bias_correction", adaptax.rmsprop, _RMS, {"bias_correction": True}),
    Case("rmsprop_initial_scale", adaptax.rmsprop, {**_RMS, "initial_scale": 0.5}, scales=(1e15,)),
    Case(
        "rmsprop_everything",
        adaptax.rmsprop,
        {**_RMS, "learning_rate": _DECAYING, "initial_scale": 0.5, "momentum": 0.7},
        {"eps_in_sqrt": False, "centered": True, "nesterov": True, "bias_correction": True},
        scales=(1e-15,),  # beside 1e30 the variance of the first step is lost in float64 too
        optax_rtol=2e-4,
        **_VARIANCE,
    ),
    Case("scale_by_rms", adaptax.scale_by_rms, {"decay": 0.8, "eps": 1e-4, "initial_scale": 0.1}),
    Case("scale_by_stddev", adaptax.scale_by_stddev, {"decay": 0.8, "eps": 1e-4}, **_VARIANCE),
    # Adam and its family
    Case(
        "adam",
        adaptax.adam,
        _ADAM,
        main=True,
        torch=lambda o, p: o.Adam(p, lr=0.02, betas=(0.8, 0.97), eps=1e-4),
    ),
    Case("adam_eps_root", adaptax.adam, {**_ADAM, "eps_root": 1e-3}),
    Case("adam_b1_zero", adaptax.adam, {**_ADAM, "b1": 0.0}),
    Case("adam_nesterov", adaptax.adam, _ADAM, {"nesterov": True}),
    Case("adam_schedule", adaptax.adam, {**_ADAM, "learning_rate": _WARMING}),
    Case(
        "adam_mu_dtype",
        adaptax.adam,
        _ADAM,
        {"mu_dtype": BFLOAT16},
        complex=False,  # likewise
        optax_rtol=2e-2,
        **_BFLOAT16_STATE,
    ),
    Case(
        "adamw",
        adaptax.adamw,
        _ADAMW,
        main=True,
        needs_params=True,
        torch=lambda o, p: o.AdamW(p, lr=0.02, betas=(0.8, 0.97), eps=1e-4, weight_decay=0.05),
    ),
    Case(
        "adamw_mask",
        adaptax.adamw,
        _ADAMW,
        {"mask": _only_matrices},
        reference=where_masked(REFERENCES["adamw"], _MASK),
        needs_params=True,
    ),
    Case(
        "adamw_schedules",
        adaptax.adamw,
        {**_ADAMW, "learning_rate": _WARMING, "weight_decay": _DECAYING},
        {"nesterov": True},
        needs_params=True,
    ),
    Case("nadam", adaptax.nadam, _ADAM, main=True),
    Case("nadamw", adaptax.nadamw, _ADAMW, main=True, needs_params=True),
    Case("amsgrad", adaptax.amsgrad, _ADAM, main=True),
    Case(
        "amsgrad_as_torch",
        adaptax.amsgrad,
        _ADAM,
        {"correct_after_max": True},
        in_optax=False,  # only ours has the order of PyTorch
        torch=lambda o, p: o.Adam(p, lr=0.02, betas=(0.8, 0.97), eps=1e-4, amsgrad=True),
    ),
    Case(
        "amsgrad_uncorrected",
        adaptax.amsgrad,
        {**_ADAM, "eps_root": 1e-3},
        {"bias_correction_mu": False, "bias_correction_nu": False},
    ),
    Case(
        "adamax",
        adaptax.adamax,
        _ADAM,
        main=True,
        torch=lambda o, p: o.Adamax(p, lr=0.02, betas=(0.8, 0.97), eps=1e-4),
    ),
    Case("adamaxw", adaptax.adamaxw, _ADAMW, main=True, needs_params=True),
    Case("scale_by_adam", adaptax.scale_by_adam, {**_SCALE_BY_ADAM, "eps_root": 1e-3}),
    Case("scale_by_amsgrad", adaptax.scale_by_amsgrad, _SCALE_BY_ADAM),
    Case("scale_by_adamax", adaptax.scale_by_adamax, _SCALE_BY_ADAM),
    # Adagrad
    Case(
        "adagrad",
        adaptax.adagrad,
        {"learning_rate": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-4},
        main=True,
    ),
    Case(
        "adagrad_from_zero",
        adaptax.adagrad,
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 1e-30},
        smooth=False,  # the slope of the root at its start is 5e14
        torch=lambda o, p: o.Adagrad(p, lr=0.1, initial_accumulator_value=0.0, eps=1e-30),
    ),
    Case("scale_by_rss", adaptax.scale_by_rss, {"initial_accumulator_value": 0.3, "eps": 1e-4}),
    # Lion
    Case("lion", adaptax.lion, _LION, main=True, needs_params=True),
    Case(
        "lion_mask",
        adaptax.lion,
        {**_LION, "learning_rate": _DECAYING},
        {"mask": _only_matrices},
        reference=where_masked(REFERENCES["lion"], _MASK),
        needs_params=True,
    ),
    Case("scale_by_lion", adaptax.scale_by_lion, {"b1": 0.8, "b2": 0.95}),
    Case(
        "scale_by_lion_smooth",
        adaptax.scale_by_lion,
        {"b1": 0.8, "b2": 0.95, "smooth_beta": 3.0},
        {"mode": "smooth"},
        complex=False,
    ),
    Case(
        "scale_by_lion_refined", adaptax.scale_by_lion, {"b1": 0.8, "b2": 0.95}, {"mode": "refined"}
    ),
    # LAMB
    Case(
        "lamb",
        adaptax.lamb,
        {**_ADAMW, "eps_root": 1e-6},
        main=True,
        elementwise=False,
        smooth_at_zero=False,
        needs_params=True,
    ),
    Case(
        "lamb_mask",
        adaptax.lamb,
        _ADAMW,
        {"mask": _only_matrices},
        reference=where_masked(REFERENCES["lamb"], _MASK),
        elementwise=False,
        smooth_at_zero=False,
        needs_params=True,
    ),
    # Adafactor
    Case(
        "adafactor",
        adaptax.adafactor,
        {"learning_rate": 0.1, "decay_rate": 0.7, "clipping_threshold": 0.6, "eps": 1e-28},
        _FACTORED,
        params=batched,
        main=True,
        elementwise=False,
        needs_params=True,
    ),
    Case(
        "adafactor_unfactored",
        adaptax.adafactor,
        {"learning_rate": 0.1, "decay_rate": 0.7},
        {"factored": False, "clipping_threshold": None, "multiply_by_parameter_scale": False},
    ),
    Case(
        "adafactor_momentum",
        adaptax.adafactor,
        {"learning_rate": _DECAYING, "momentum": 0.8},
        _FACTORED,
        rtol64=1e-6,  # the average is stored in float32, also for float64 parameters
        smooth=False,  # likewise
        rtol32=4e-6,
        params=batched,
        elementwise=False,
        needs_params=True,
    ),
    Case(
        "adafactor_decay",
        adaptax.adafactor,
        {"learning_rate": 0.1, "weight_decay_rate": 0.05},
        _FACTORED,
        params=batched,
        elementwise=False,
        needs_params=True,
    ),
    Case(
        "adafactor_scaled_decay",
        adaptax.adafactor,
        {"learning_rate": _DECAYING, "weight_decay_rate": 0.05},
        {**_FACTORED, "scale_decay_by_rate": True},
        params=batched,
        elementwise=False,
        needs_params=True,
        in_optax=False,  # an option of ours
    ),
    Case(
        "adafactor_decay_mask",
        adaptax.adafactor,
        {"learning_rate": _DECAYING, "weight_decay_rate": 0.05},
        {"weight_decay_mask": _only_matrices},
        reference=where_masked(REFERENCES["adafactor"], _MASK, "weight_decay_rate"),
        elementwise=False,
        needs_params=True,
    ),
    Case(
        "scale_by_factored_rms",
        adaptax.scale_by_factored_rms,
        {"decay_rate": 0.7, "epsilon": 1e-28},
        _FACTORED,
        reference=renamed("adafactor", sign=-1.0, epsilon="eps"),
        hyper={"clipping_threshold": None, "multiply_by_parameter_scale": False},
        params=batched,
        elementwise=False,
    ),
    Case(
        "scale_by_factored_rms_offset",
        adaptax.scale_by_factored_rms,
        {"step_offset": 3},
        {"factored": False},
        reference=renamed("adafactor", sign=-1.0, step_offset="decay_offset"),
        hyper={"clipping_threshold": None, "multiply_by_parameter_scale": False},
        in_optax=False,  # NaN before the offset
        smooth=False,  # the offset counts steps
    ),
    # Prodigy
    Case(
        "prodigy",
        adaptax.prodigy,
        {
            "learning_rate": 0.9,
            "betas": (0.8, 0.97),
            "eps": 1e-6,
            "estim_lr0": 1e-3,
            "estim_lr_coef": 0.8,
            "weight_decay": 0.05,
        },
        main=True,
        elementwise=False,
        needs_params=True,
        abstract=False,
        scales=(1e-6, 1e6),
        rtol32=1e-5,
        rtol16=8.0,
    ),
    Case(
        "prodigy_safeguard",
        adaptax.prodigy,
        {"learning_rate": _WARMING, "beta3": 0.9, "estim_lr0": 1e-3},
        {"safeguard_warmup": True},
        elementwise=False,
        needs_params=True,
        abstract=False,
        scales=(1e-6, 1e6),
        rtol32=1e-5,
        rtol16=8.0,
    ),
    # Muon
    Case("muon", adaptax.muon, {**_MUON, **_MUON_ADAM}, main=True, needs_params=True, **_MATRIX),
    Case(
        "muon_consistent_rms",
        adaptax.muon,
        {**_MUON, "adam_learning_rate": _DECAYING, "consistent_rms": 0.2},
        {"nesterov": False, "ns_steps": 3},
        needs_params=True,
        **_MATRIX,
    ),
    Case(
        "muon_mask",
        adaptax.muon,
        _MUON,
        {"weight_decay_mask": {"tall": False, "wide": True}},
        reference=where_masked(REFERENCES["muon"], [False, True]),
        params=matrices,
        needs_params=True,
        **_MATRIX,
    ),
    Case(
        "scale_by_muon",
        adaptax.scale_by_muon,
        {"beta": 0.9, "ns_coeffs": (3.0, -3.2, 1.2)},
        {"ns_steps": 4},
        params=matrices,
        in_optax=False,  # which needs weight_dimension_numbers there
        **_MATRIX,
    ),
    Case(
        "scale_by_muon_adaptive",
        adaptax.scale_by_muon,
        {"beta": 0.9},
        {"adaptive": True},
        params=matrices,
        in_optax=False,  # likewise
        **_MATRIX,
    ),
    *(
        Case(
            f"muon_{preconditioning}",
            adaptax.muon,
            {"learning_rate": 0.03, "beta": 0.9, "ns_coeffs": coefficients},
            {"preconditioning": preconditioning, "adaptive": adaptive, "ns_steps": steps},
            has_reference=False,
            params=matrices,
            needs_params=True,
            optax_rtol=1e-3,
            **_MATRIX,
        )
        for preconditioning, coefficients, steps, adaptive in (
            ("spectral", "dion", 5, False),
            ("aol", (3.0, -3.2, 1.2), 5, True),
            ("schatten", ((4.0, -6.0, 2.5), (3.0, -3.2, 1.2)), 2, False),
        )
    ),
    Case(
        "scale_by_shape",
        adaptax.scale_by_shape,
        {"consistent_rms": 0.3},
        reference=SCALE_BY_SHAPE,
        params=matrices,
        in_optax=False,  # optax does not export it
        elementwise=False,
    ),
    # Plain transforms
    Case("identity", adaptax.identity, reference=IDENTITY),
    Case("set_to_zero", adaptax.set_to_zero, reference=SET_TO_ZERO),
    Case("trace", adaptax.trace, {"decay": 0.7}),
    Case("trace_nesterov", adaptax.trace, {"decay": 0.7}, {"nesterov": True}),
    Case("ema", adaptax.ema, {"decay": 0.7}),
    Case("ema_undebiased", adaptax.ema, {"decay": 0.7}, {"debias": False}),
    Case("clip", adaptax.clip, {"max_delta": 0.7}, complex=False),
    Case("clip_by_global_norm", adaptax.clip_by_global_norm, {"max_norm": 0.7}, elementwise=False),
    Case(
        "clip_by_block_rms",
        adaptax.clip_by_block_rms,
        {"threshold": 0.7},
        reference=CLIP_BY_BLOCK_RMS,
        elementwise=False,
    ),
    Case(
        "add_decayed_weights", adaptax.add_decayed_weights, {"weight_decay": 0.3}, needs_params=True
    ),
    Case(
        "add_decayed_weights_mask",
        adaptax.add_decayed_weights,
        {"weight_decay": _DECAYING},
        {"mask": _only_matrices},
        reference=where_masked(REFERENCES["add_decayed_weights"], _MASK),
        needs_params=True,
    ),
    Case("scale", adaptax.scale, {"step_size": -0.3}),
    Case(
        "scale_by_schedule",
        adaptax.scale_by_schedule,
        {"step_size_fn": _DECAYING},
        reference=renamed("scale", step_size_fn="step_size"),
    ),
    Case(
        "scale_by_learning_rate",
        adaptax.scale_by_learning_rate,
        {"learning_rate": 0.3},
        {"flip_sign": False},
    ),
    Case(
        "scale_by_param_block_rms",
        adaptax.scale_by_param_block_rms,
        {"min_scale": 0.2},
        reference=SCALE_BY_PARAM_BLOCK_RMS,
        elementwise=False,
        needs_params=True,
    ),
    Case(
        "scale_by_trust_ratio",
        adaptax.scale_by_trust_ratio,
        {"min_norm": 0.1, "trust_coefficient": 0.3, "eps": 1e-4},
        elementwise=False,
        needs_params=True,
    ),
    # Compositions
    Case(
        "clipped_adam",
        clipped_adam,
        {"max_norm": 0.7, **_ADAM},
        reference=CLIPPED_ADAM,
        elementwise=False,
        in_optax=False,  # not a name of either library
    ),
)


def cases(keep: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Parametrize a test by the rows that are kept."""
    kept = [pytest.param(case, id=case.name) for case in CASES if keep(case)]
    return pytest.mark.parametrize("case", kept)


class Trajectory:
    """Parameters and gradients that everything is fed, whatever it makes of them.

    The parameters go down the gradients, so that estimates of the distance gone have something
    to find; what an optimizer would have done with them does not matter here.

    Attributes:
        params: The parameters of each step.
        grads: The gradients of each step.
    """

    def __init__(
        self, params: Any, dtype: Any, steps: int, kind: str = "normal", scale: float = 1.0
    ):
        rng = np.random.default_rng(11)
        flat, treedef = jax.tree.flatten(params)
        signs = [np.sign(rng.normal(size=np.shape(p))) for p in flat]
        now = [np.asarray(p, np.float64) for p in flat]
        self.params: list[Any] = []
        self.grads: list[Any] = []
        for t in range(1, steps + 1):
            grads = [scale * _GRADIENTS[kind](t, s, rng.normal(size=np.shape(s))) for s in signs]
            self.params.append(treedef.unflatten([np.asarray(p, dtype) for p in now]))
            self.grads.append(treedef.unflatten([np.asarray(g, dtype) for g in grads]))
            now = [p - 0.02 * np.tanh(g) for p, g in zip(now, grads, strict=True)]

    def reference(self, case: Case) -> Any:
        """For each step, the reference's updates and the state after it, by field and path."""
        names = paths(self.params[0])
        state = case.oracle.init(_float64(self.params[0]), **case.hyper_at(1))
        for t, (g, p) in enumerate(zip(self.grads, self.params, strict=True), 1):
            updates, state = case.oracle.step(
                t, _float64(g), _float64(p), state, **case.hyper_at(t)
            )
            wanted = {}
            for name, values in state.items():
                rows = (
                    zip(names, values, strict=True) if isinstance(values, list) else [("", values)]
                )
                wanted |= {(name, path): value for path, value in rows if value is not None}
            yield dict(zip(names, updates, strict=True)), wanted


def _float64(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def _with_zeros(t: int, signs: Any, noise: Any) -> Any:
    """Entries that are always zero, and steps that are all zero."""
    return np.where(signs > 0, noise, 0.0) * (t % 4 != 0)


_GRADIENTS: dict[str, Callable[[int, Any, Any], Any]] = {
    "normal": lambda t, signs, noise: signs + 0.5 * noise,
    "zeros": _with_zeros,
    "flips": lambda t, signs, noise: signs * (-1.0) ** t * (1.0 + 0.1 * np.tanh(noise)),
}
KINDS = tuple(_GRADIENTS)
