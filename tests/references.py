"""Float64 numpy references for the optimizers, one step each, transcribed from the papers.

Every reference is a pair of functions over lists of arrays, one array per parameter leaf::

    state = reference.init(params, **hyper)
    updates, state = reference.step(t, grads, params, state, **hyper)

``t = 1, 2, ...`` is the number of the step. ``updates`` is what is added to the parameters; for
the ``scale_by_*`` and the other plain transforms it is the direction, not negated. A learning rate
(or weight decay) is the number that holds at this step. The keys of the state are the field names
of optax's states without the step count, and the names of the hyperparameters are optax's.

In the formulas g is the gradient, p the parameter, u the update, d a direction before its sign
and step size.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Leaves = list[Any]
State = dict[str, Any]
Coefficients = tuple[float, float, float]


class Reference(NamedTuple):
    """An algorithm: `init(params, **hyper)` and `step(t, grads, params, state, **hyper)`."""

    init: Callable[..., State]
    step: Callable[..., tuple[Leaves, State]]


class Slot(NamedTuple):
    """A state array of one leaf: its value before step 1, and whether these hypers have it."""

    start: Callable[[Array, dict[str, Any]], Array | None]
    present: Callable[[dict[str, Any]], bool] = lambda hyper: True


def lift(kernel: Callable[..., Any], **slots: Slot) -> Reference:
    """Makes a reference out of `(t, g, p, *slots, **hyper) -> (u, *slots)` for one array."""

    def init(params: Leaves, **hyper: Any) -> State:
        present = {name: slot for name, slot in slots.items() if slot.present(hyper)}
        return {name: [slot.start(p, hyper) for p in params] for name, slot in present.items()}

    def step(
        t: int, grads: Leaves, params: Leaves, state: State, **hyper: Any
    ) -> tuple[Leaves, State]:
        absent = [None] * len(params)
        columns = [state.get(name, absent) for name in slots]
        rows = [
            kernel(t, _float64(g), _float64(p), *row, **hyper)
            for g, p, *row in zip(grads, params, *columns, strict=True)
        ]
        results = [[_float64(row[i]) for row in rows] for i in range(1 + len(slots))]
        new = dict(zip(slots, results[1:], strict=True))
        return results[0], {name: new[name] for name in state}

    return Reference(init, step)


def _float64(x: Any) -> Any:
    return None if x is None else np.asarray(x, dtype=np.float64)


def _start_full(name: str, default: float) -> Slot:
    """A slot filled with the hyperparameter `name`."""
    return Slot(lambda p, hyper: np.full_like(p, hyper.get(name, default), dtype=np.float64))


def _start_zeros(p: Array, hyper: dict[str, Any]) -> Array:
    return np.zeros_like(p, dtype=np.float64)


ZEROS = Slot(_start_zeros)
NEVER = Slot(_start_zeros, lambda hyper: False)
ZEROS_IF_CENTERED = Slot(_start_zeros, lambda hyper: hyper.get("centered", False))
ZEROS_IF_MOMENTUM = Slot(_start_zeros, lambda hyper: hyper.get("momentum") is not None)


def _average(old: Array, new: Array, decay: float) -> Array:
    """Exponential moving average: decay * old + (1 - decay) * new."""
    return decay * old + (1 - decay) * new


def _unbiased(average: Array, decay: float, t: int) -> Array:
    """Adam's bias correction, Kingma & Ba 2015, section 3: average / (1 - decay^t)."""
    return average / (1 - decay**t)


def _norm(x: Array) -> float:
    return np.sqrt(np.sum(x**2))


def _rms(x: Array) -> float:
    return np.sqrt(np.mean(x**2))


def _scale(t: int, g: Array, p: Array, *, step_size: float) -> Any:
    """u = step_size * g."""
    return (step_size * g,)


def _scale_by_learning_rate(
    t: int, g: Array, p: Array, *, learning_rate: float | None = None, flip_sign: bool = True
) -> Any:
    """u = -lr * g, or lr * g without `flip_sign`; g itself, sign kept, if lr is None (optax)."""
    if learning_rate is None:
        return (g,)
    return (-learning_rate * g if flip_sign else learning_rate * g,)


def _add_decayed_weights(t: int, g: Array, p: Array, *, weight_decay: float = 0.0) -> Any:
    """u = g + weight_decay * p."""
    return (g + weight_decay * p,)


def _clip(t: int, g: Array, p: Array, *, max_delta: float) -> Any:
    """Elementwise clipping to [-max_delta, max_delta]."""
    return (np.clip(g, -max_delta, max_delta),)


def _clip_by_global_norm_step(
    t: int, grads: Leaves, params: Leaves, state: State, *, max_norm: float
) -> tuple[Leaves, State]:
    """Pascanu et al. 2013, Algorithm 1, the norm being that of all leaves together."""
    norm = np.sqrt(sum(np.sum(g**2) for g in grads))
    if norm < max_norm:
        return [_float64(g) for g in grads], {}
    return [_float64(g * max_norm / norm) for g in grads], {}


def _trace(
    t: int, g: Array, p: Array, trace: Array, *, decay: float, nesterov: bool = False
) -> Any:
    """Polyak 1964, undamped: trace = g + decay * trace; with Nesterov, u = g + decay * trace."""
    trace = g + decay * trace
    return g + decay * trace if nesterov else trace, trace


def _ema(t: int, g: Array, p: Array, ema: Array, *, decay: float, debias: bool = True) -> Any:
    """Kingma & Ba 2015, section 3: m = decay * m + (1 - decay) * g, over 1 - decay^t if debias."""
    ema = _average(ema, g, decay)
    return _unbiased(ema, decay, t) if debias else ema, ema


def _scale_by_trust_ratio(
    t: int,
    g: Array,
    p: Array,
    *,
    min_norm: float = 0.0,
    trust_coefficient: float = 1.0,
    eps: float = 0.0,
) -> Any:
    """You et al. 2017 (LARS), eq. 6: u = c |p| / (|g| + eps) * g; the ratio is 1 at a zero norm."""
    p_norm = max(_norm(p), min_norm)
    g_norm = max(_norm(g), min_norm)
    if p_norm == 0 or g_norm == 0:
        return (g,)
    return (trust_coefficient * p_norm / (g_norm + eps) * g,)


def descend(kernel: Callable[..., Any], weight_decay: float | None = None) -> Callable[..., Any]:
    """u = -lr * d; with a decay: Loshchilov & Hutter 2019, Algorithm 2, u = -lr * (d + wd * p)."""

    def plain(t: int, g: Array, p: Array, *slots: Any, learning_rate: float, **hyper: Any) -> Any:
        d, *slots = kernel(t, g, p, *slots, **hyper)
        return -learning_rate * d, *slots

    def decayed(t: int, g: Array, p: Array, *slots: Any, learning_rate: float, **hyper: Any) -> Any:
        wd = hyper.pop("weight_decay", weight_decay)
        d, *slots = kernel(t, g, p, *slots, **hyper)
        return -learning_rate * (d + wd * p), *slots

    return plain if weight_decay is None else decayed


def _sgd(
    t: int,
    g: Array,
    p: Array,
    trace: Array | None,
    *,
    learning_rate: float,
    momentum: float | None = None,
    nesterov: bool = False,
) -> Any:
    """Sutskever et al. 2013 in PyTorch's form: u = -lr * trace(g), the rate outside the trace."""
    if momentum is None:
        return -learning_rate * g, None
    d, trace = _trace(t, g, p, trace, decay=momentum, nesterov=nesterov)
    return -learning_rate * d, trace


def _scale_by_rss(
    t: int,
    g: Array,
    p: Array,
    sum_of_squares: Array,
    *,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
) -> Any:
    """Duchi et al. 2011, diagonal: s = s + g^2, u = g / sqrt(s + eps), and 0 where s is 0."""
    s = sum_of_squares + g**2
    return np.where(s > 0, g / np.sqrt(np.where(s > 0, s + eps, 1.0)), 0.0), s


def _scale_by_stddev(
    t: int,
    g: Array,
    p: Array,
    mu: Array | None,
    nu: Array,
    *,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,  # of nu
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Any:
    """Graves 2013, eqs. 38-40, nu - mu^2 clamped at 0; no mu: Tieleman & Hinton 2012, RMSProp."""
    nu = _average(nu, g**2, decay)
    variance = _unbiased(nu, decay, t) if bias_correction else nu
    if mu is not None:
        mu = _average(mu, g, decay)
        mean = _unbiased(mu, decay, t) if bias_correction else mu
        variance = np.maximum(variance - mean**2, 0.0)
    return g / (np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps), mu, nu


def _rmsprop(
    t: int,
    g: Array,
    p: Array,
    mu: Array | None,
    nu: Array,
    trace: Array | None,
    *,
    learning_rate: float,
    centered: bool = False,  # then there is a mu
    momentum: float | None = None,
    nesterov: bool = False,
    **hyper: Any,
) -> Any:
    """Tieleman & Hinton 2012, Graves 2013, eqs. 38-41: the trace is of the update with its rate."""
    d, mu, nu = _scale_by_stddev(t, g, p, mu, nu, **hyper)
    u = -learning_rate * d
    if momentum is not None:
        u, trace = _trace(t, u, p, trace, decay=momentum, nesterov=nesterov)
    return u, mu, nu, trace


def _first_moment(t: int, g: Array, mu: Array, b1: float, nesterov: bool) -> tuple[Array, Array]:
    """mu_hat of Adam or, with Nesterov, of Nadam (Dozat 2016, Algorithm 2, b1 constant); mu."""
    mu = _average(mu, g, b1)
    if nesterov:
        return b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t), mu
    return mu / (1 - b1**t), mu


def _scale_by_adam(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    nu: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
) -> Any:
    """Kingma & Ba 2015, Algorithm 1, eps outside the root; nu_hat of Nadam without Dozat's b2."""
    mu_hat, mu = _first_moment(t, g, mu, b1, nesterov)
    nu = _average(nu, g**2, b2)
    nu_hat = nu / (1 - b2**t)
    return mu_hat / (np.sqrt(nu_hat + eps_root) + eps), mu, nu


def _scale_by_amsgrad(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    nu: Array,
    nu_max: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    correct_after_max: bool = False,
) -> Any:
    """Reddi et al. 2018, Algorithm 2; bias corrected before the maximum (optax) or after it."""
    mu = _average(mu, g, b1)
    nu = _average(nu, g**2, b2)
    mu_hat = _unbiased(mu, b1, t) if bias_correction_mu else mu
    if bias_correction_nu and correct_after_max:
        nu_max = np.maximum(nu_max, nu)
        nu_hat = _unbiased(nu_max, b2, t)
    else:
        nu_max = np.maximum(nu_max, _unbiased(nu, b2, t) if bias_correction_nu else nu)
        nu_hat = nu_max
    return mu_hat / (np.sqrt(nu_hat + eps_root) + eps), mu, nu, nu_max


def _scale_by_adamax(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    nu: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Any:
    """Kingma & Ba 2015, Algorithm 2, eps beside the new gradient: nu = max(b2 * nu, |g| + eps)."""
    mu = _average(mu, g, b1)
    nu = np.maximum(b2 * nu, np.abs(g) + eps)
    return mu / (1 - b1**t) / nu, mu, nu


def _scale_by_lion(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    mode: str = "hard",
    smooth_beta: float = 1.0,
) -> Any:
    """Chen et al. 2023, Algorithm 2: u = sign(c), or tanh(smooth_beta * c), or c cut to [-1, 1]."""
    c = b1 * mu + (1 - b1) * g
    signs = {"hard": np.sign(c), "smooth": np.tanh(smooth_beta * c), "refined": np.clip(c, -1, 1)}
    return signs[mode], _average(mu, g, b2)


def _lamb(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    nu: Array,
    *,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    **hyper: Any,
) -> Any:
    """You et al. 2020, Algorithm 2, phi the identity: d = |p| / |r + wd * p| * (r + wd * p)."""
    r, mu, nu = _scale_by_adam(t, g, p, mu, nu, eps=eps, **hyper)
    (d,) = _scale_by_trust_ratio(t, r + weight_decay * p, p)
    return d, mu, nu


def factored_axes(
    shape: tuple[int, ...], factored: bool, min_dim_size_to_factor: int
) -> tuple[int, int] | None:
    """The axes (second largest, largest) as optax picks them: of equal ones the last is larger."""
    if not factored or len(shape) < 2:
        return None
    *_, second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])  # stable
    return (second, largest) if shape[second] >= min_dim_size_to_factor else None


def _adafactor_slot(which: str) -> Slot:
    """v_row averages over the largest axis, v_col over the second largest; (1,) where unused."""

    def start(p: Array, hyper: dict[str, Any]) -> Array:
        threshold = hyper.get("min_dim_size_to_factor", 128)
        axes = factored_axes(np.shape(p), hyper.get("factored", True), threshold)
        if axes is None:
            return np.zeros(np.shape(p) if which == "v" else (1,))
        second, largest = axes
        removed = {"v_row": largest, "v_col": second}
        return np.zeros((1,) if which == "v" else np.delete(np.shape(p), removed[which]))

    return Slot(start)


def _adafactor(
    t: int,
    g: Array,
    p: Array,
    v_row: Array,
    v_col: Array,
    v: Array,
    ema: Array | None,
    *,
    learning_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    weight_decay_rate: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    scale_decay_by_rate: bool = False,
) -> Any:
    """Shazeer & Stern 2018, Algorithms 4 and 5, with means for sums; p decays by wd, or lr * wd."""
    lr = 1.0 if learning_rate is None else learning_rate
    beta2 = 1 - float(max(t - decay_offset, 1)) ** -decay_rate
    square = g**2 + eps
    axes = factored_axes(p.shape, factored, min_dim_size_to_factor)
    if axes is None:
        v = _average(v, square, beta2)
        v_hat = v
    else:
        second, largest = axes
        v_row = _average(v_row, np.mean(square, axis=largest), beta2)
        v_col = _average(v_col, np.mean(square, axis=second), beta2)
        row = np.expand_dims(v_row, largest)
        col = np.expand_dims(v_col, second)
        v_hat = row * col / np.mean(row, axis=second, keepdims=True)
    d = g / np.sqrt(v_hat)
    if clipping_threshold is not None:
        d = d / max(1.0, _rms(d) / clipping_threshold)
    d = lr * d
    if multiply_by_parameter_scale:
        d = max(_rms(p), 1e-3) * d
    if momentum is not None:
        d = ema = _average(ema, d, momentum)
    if weight_decay_rate is not None:
        d = d + (lr if scale_decay_by_rate else 1.0) * weight_decay_rate * p
    return -d, v_row, v_col, v, ema


def _prodigy_init(params: Leaves, *, estim_lr0: float = 1e-6, **hyper: Any) -> State:
    zeros = ("exp_avg", "exp_avg_sq", "grad_sum")
    state: State = {name: [_start_zeros(p, hyper) for p in params] for name in zeros}
    state["params0"] = [np.array(p, dtype=np.float64) for p in params]
    return state | {"estim_lr": float(estim_lr0), "numerator_weighted": 0.0}


def _prodigy_step(
    t: int,
    grads: Leaves,
    params: Leaves,
    state: State,
    *,
    learning_rate: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: float = 0.0,
    safeguard_warmup: bool = False,
) -> tuple[Leaves, State]:
    """Mishchenko & Defazio 2024, Adam version; authors' code: bias corrected, eps times new d."""
    b1, b2 = betas
    beta3 = np.sqrt(b2) if beta3 is None else beta3
    d, d0 = state["estim_lr"], estim_lr0
    step_size = d * learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
    m = [_average(m, d * g, b1) for m, g in zip(state["exp_avg"], grads, strict=True)]
    v = [_average(v, (d * g) ** 2, b2) for v, g in zip(state["exp_avg_sq"], grads, strict=True)]

    moved = zip(grads, state["params0"], params, strict=True)
    inner = sum(float(np.sum(g * (p0 - p))) for g, p0, p in moved)
    # r and s are the paper's over 1 - beta3 and over d0, which cancel in r / |s|_1.
    r = beta3 * state["numerator_weighted"] + d / d0 * step_size * inner
    weight = d / d0 * (d if safeguard_warmup else step_size)
    s = [beta3 * s + weight * g for s, g in zip(state["grad_sum"], grads, strict=True)]
    s_norm = sum(float(np.sum(np.abs(x))) for x in s)
    if s_norm > 0:  # d stays while every gradient has been zero
        d = max(d, estim_lr_coef * r / s_norm)

    updates = [
        -step_size * (m / (np.sqrt(v) + d * eps) + weight_decay * p)
        for m, v, p in zip(m, v, params, strict=True)
    ]
    new = {"exp_avg": m, "exp_avg_sq": v, "grad_sum": s, "params0": state["params0"]}
    new = {name: [_float64(x) for x in leaves] for name, leaves in new.items()}
    new |= {"estim_lr": float(d), "numerator_weighted": float(r)}
    return [_float64(u) for u in updates], new


MUON_COEFFICIENTS: Coefficients = (3.4445, -4.7750, 2.0315)


def newton_schulz(g: Array, coeffs: Coefficients, steps: int, eps: float) -> Array:
    """Jordan et al. 2024: X = G / (|G|_F + eps), then X = a X + (b A + c A^2) X, A = X X^T."""
    a, b, c = coeffs
    x = g / (_norm(g) + eps)
    for _ in range(steps):  # of X and X^T alike: f(X^T) = f(X)^T
        xxt = x @ x.T
        x = a * x + (b * xxt + c * xxt @ xxt) @ x
    return x


def _scale_by_muon(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    *,
    ns_coeffs: Coefficients = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    nesterov: bool = True,
    adaptive: bool = False,
) -> Any:
    """Jordan et al. 2024, on the mu_hat of Adam or Nadam (optax); adaptive: times <mu_hat, u>."""
    mu_hat, mu = _first_moment(t, g, mu, beta, nesterov)
    u = newton_schulz(mu_hat, ns_coeffs, ns_steps, eps)
    return np.sum(mu_hat * u) * u if adaptive else u, mu


def _muon(
    t: int,
    g: Array,
    p: Array,
    mu: Array,
    nu: Array | None,
    *,
    learning_rate: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    consistent_rms: float | None = None,
    adam_learning_rate: float | None = None,
    **hyper: Any,
) -> Any:
    """Jordan et al. 2024 for (in, out) matrices, RMS scale of Liu et al. 2025; AdamW for others."""
    defaults = {"b1": 0.9, "b2": 0.999, "eps_root": 0.0, "weight_decay": 0.0}
    adam = {name: hyper.pop(f"adam_{name}", value) for name, value in defaults.items()}
    if p.ndim != 2:
        lr = learning_rate if adam_learning_rate is None else adam_learning_rate
        adam |= {"learning_rate": lr, "eps": eps, "nesterov": nesterov}
        return descend(_scale_by_adam, weight_decay=0.0)(t, g, p, mu, nu, **adam)
    d, mu = _scale_by_muon(t, g, p, mu, eps=eps, nesterov=nesterov, **hyper)
    fan_in, fan_out = p.shape
    if consistent_rms is None:
        d = np.sqrt(max(1.0, fan_out / fan_in)) * d
    else:
        d = np.sqrt(max(fan_in, fan_out)) * consistent_rms * d
    return -learning_rate * (d + weight_decay * p), mu, None


def _muon_nu(p: Array, hyper: dict[str, Any]) -> Array | None:
    return None if np.ndim(p) == 2 else _start_zeros(p, hyper)


_NU = _start_full("initial_scale", 0.0)
_SUM = _start_full("initial_accumulator_value", 0.1)
_NADAM = partial(_scale_by_adam, nesterov=True)
_ADAFACTOR = {name: _adafactor_slot(name) for name in ("v_row", "v_col", "v")}

REFERENCES: dict[str, Reference] = {
    "scale": lift(_scale),
    "scale_by_learning_rate": lift(_scale_by_learning_rate),
    "add_decayed_weights": lift(_add_decayed_weights),
    "clip": lift(_clip),
    "clip_by_global_norm": Reference(lambda params, **hyper: {}, _clip_by_global_norm_step),
    "trace": lift(_trace, trace=ZEROS),
    "ema": lift(_ema, ema=ZEROS),
    "scale_by_trust_ratio": lift(_scale_by_trust_ratio),
    "sgd": lift(_sgd, trace=ZEROS_IF_MOMENTUM),
    "scale_by_rss": lift(_scale_by_rss, sum_of_squares=_SUM),
    "adagrad": lift(descend(_scale_by_rss), sum_of_squares=_SUM),
    "scale_by_rms": lift(_scale_by_stddev, mu=NEVER, nu=_NU),
    "scale_by_stddev": lift(_scale_by_stddev, mu=ZEROS, nu=_NU),
    "rmsprop": lift(_rmsprop, mu=ZEROS_IF_CENTERED, nu=_NU, trace=ZEROS_IF_MOMENTUM),
    "scale_by_adam": lift(_scale_by_adam, mu=ZEROS, nu=ZEROS),
    "adam": lift(descend(_scale_by_adam), mu=ZEROS, nu=ZEROS),
    "adamw": lift(descend(_scale_by_adam, weight_decay=1e-4), mu=ZEROS, nu=ZEROS),
    "nadam": lift(descend(_NADAM), mu=ZEROS, nu=ZEROS),
    "nadamw": lift(descend(_NADAM, weight_decay=1e-4), mu=ZEROS, nu=ZEROS),
    "scale_by_amsgrad": lift(_scale_by_amsgrad, mu=ZEROS, nu=ZEROS, nu_max=ZEROS),
    "amsgrad": lift(descend(_scale_by_amsgrad), mu=ZEROS, nu=ZEROS, nu_max=ZEROS),
    "scale_by_adamax": lift(_scale_by_adamax, mu=ZEROS, nu=ZEROS),
    "adamax": lift(descend(_scale_by_adamax), mu=ZEROS, nu=ZEROS),
    "adamaxw": lift(descend(_scale_by_adamax, weight_decay=1e-4), mu=ZEROS, nu=ZEROS),
    "scale_by_lion": lift(_scale_by_lion, mu=ZEROS),
    "lion": lift(descend(_scale_by_lion, weight_decay=1e-3), mu=ZEROS),
    "lamb": lift(descend(_lamb), mu=ZEROS, nu=ZEROS),
    "adafactor": lift(_adafactor, **_ADAFACTOR, ema=ZEROS_IF_MOMENTUM),
    "prodigy": Reference(_prodigy_init, _prodigy_step),
    "scale_by_muon": lift(_scale_by_muon, mu=ZEROS),
    "muon": lift(_muon, mu=ZEROS, nu=Slot(_muon_nu)),
}
