"""Float32 updates against a float64 trajectory, in units in the last place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _problems
from ._timing import Row, Settings

STEPS = (1, 2, 10, 100, 1000, 10_000)
LEARNING_RATE = 2.0**-10  # a float32 number, so that it adds no error of its own
B1, EPS, WEIGHT_DECAY = 0.9, 1e-8, 0.01

Kept = dict[int, np.ndarray]
"""The updates at some steps."""


class Task(NamedTuple):
    """Gradients for an optimizer; the parameters stay where they are."""

    optimizer: str
    b2: float
    grads: np.ndarray  # float32 (steps, entries)
    params: np.ndarray  # float32 (entries,)
    at: tuple[int, ...]

    @property
    def hyper(self) -> dict[str, float]:
        """Keyword arguments of the factory."""
        if self.optimizer == "rmsprop":
            return {"decay": self.b2, "eps": EPS}
        decay = {"weight_decay": WEIGHT_DECAY} if self.optimizer == "adamw" else {}
        return {"b1": B1, "b2": self.b2, "eps": EPS, **decay}


def task(optimizer: str, b2: float, steps: int, entries: int) -> Task:
    """Normal gradients over seven decades of scale, 1e-5 to 1e2, one scale per entry."""
    rng = np.random.default_rng(0)
    scale = 10 ** rng.uniform(-5, 2, entries)
    grads = rng.standard_normal((steps, entries), np.float32)
    grads *= scale.astype(np.float32)
    params = rng.standard_normal(entries, np.float32)
    return Task(optimizer, b2, grads, params, tuple(t for t in STEPS if t <= steps))


def reference(task: Task, *, eps_in_sqrt: bool = True) -> Kept:
    """The updates in float64, by the papers' formulas.

    `eps_in_sqrt` is RMSprop's: inside the root as in optax, outside as in torch.
    """
    m = np.zeros_like(task.params, np.float64)
    v = np.zeros_like(m)
    decayed = WEIGHT_DECAY * task.params.astype(np.float64) if task.optimizer == "adamw" else 0.0
    kept: Kept = {}
    for t, g in enumerate(task.grads.astype(np.float64), start=1):
        v = task.b2 * v + (1 - task.b2) * g**2
        if task.optimizer == "rmsprop":
            d = g / (np.sqrt(v + EPS) if eps_in_sqrt else np.sqrt(v) + EPS)
        else:
            m = B1 * m + (1 - B1) * g
            d = m / (1 - B1**t) / (np.sqrt(v / (1 - task.b2**t)) + EPS) + decayed
        if t in task.at:
            kept[t] = -LEARNING_RATE * d
    return kept


def in_jax(tx: Any, task: Task) -> Kept:
    """The updates of a transformation, all steps in one jitted scan."""
    at = jnp.array(task.at)

    @jax.jit
    def trajectory(params: Any, grads: Any) -> Any:
        def step(carry: Any, g: Any) -> tuple[Any, None]:
            t, state, kept = carry
            u, state = tx.update(g, state, params)
            return (t + 1, state, jnp.where((at == t)[:, None], u, kept)), None

        kept = jnp.zeros((len(task.at), *params.shape), params.dtype)
        (_, _, kept), _ = jax.lax.scan(step, (jnp.int32(1), tx.init(params), kept), grads)
        return kept

    kept = trajectory(jnp.asarray(task.params), jnp.asarray(task.grads))
    return dict(zip(task.at, np.asarray(kept), strict=True))


def in_torch(torch: Any, task: Task) -> Kept:
    """The updates of torch's optimizer, read off parameters that begin each step at 0."""
    p = torch.zeros(task.params.shape, requires_grad=True)
    if task.optimizer == "rmsprop":
        make = torch.optim.RMSprop([p], LEARNING_RATE, alpha=task.b2, eps=EPS)
    else:
        make = torch.optim.Adam([p], LEARNING_RATE, betas=(B1, task.b2), eps=EPS)
    kept: Kept = {}
    for t, g in enumerate(task.grads, start=1):
        with torch.no_grad():
            p.zero_()
        p.grad = torch.from_numpy(g)
        make.step()
        if t in task.at:
            kept[t] = p.detach().numpy().copy()
    return kept


def ulps(updates: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error of each entry, in units in the last place of the exact value in float32."""
    return np.abs(updates - exact) / np.spacing(np.abs(exact).astype(np.float32))


def ulp(
    settings: Settings, optimizer: str, b2: float, steps: int = STEPS[-1], entries: int = 4096
) -> list[Row]:
    """A row for each step of `STEPS`: the median error over all entries, and its 99th percentile.

    Fixed parameters, the same gradients for all; the learning rate is a power of two.
    """
    given = task(optimizer, b2, *((100, 256) if settings.quick else (steps, entries)))
    exact = reference(given)
    errors: dict[str, dict[int, np.ndarray]] = {}
    for library in _problems.libraries():
        kept = in_jax(library.make(optimizer, LEARNING_RATE, **given.hyper), given)
        errors[library.name] = {t: ulps(kept[t], exact[t]) for t in given.at}
        settings.tick()
    torch, note = _problems.torch_or_none(), ""
    if torch is None:
        note = "torch is not installed"
    elif optimizer == "adamw":
        note = "torch's decay changes p itself: no update to compare"
    else:
        exact = reference(given, eps_in_sqrt=False)
        kept = in_torch(torch, given)
        errors["torch"] = {t: ulps(kept[t], exact[t]) for t in given.at}
    name = f"ulp {optimizer}, {b2:g}"
    return [_row(name, t, errors, note if t == given.at[0] else "") for t in given.at]


def _row(name: str, t: int, errors: dict[str, dict[int, np.ndarray]], note: str) -> Row:
    def quantile(q: float) -> Sequence[tuple[str, float]]:
        return [(library, float(np.quantile(e[t], q))) for library, e in errors.items()]

    samples = {library: [x] for library, x in quantile(0.5)}
    return Row(name, f"error at step {t}", "ULP", samples, dict(quantile(0.99)), note)
