"""What the lecture says of the rest of Adam: ε, the β's, and the correction of both averages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, History, best

import adaptax
from adaptax.extend import Leafwise, Slot, average, leafwise, transformation

Train = Callable[[list[adaptax.GradientTransformation]], History]


def check_eps(train: Train, alpha: float, eps: list[float]) -> tuple[np.ndarray, Claim]:
    """Accuracy for each ε, all at one α."""
    test = train([adaptax.adam(alpha, eps=e) for e in eps]).test[:, -1]
    small = test[np.array(eps) < 2e-4]
    measured = f"from 1e-10 to 1e-4, accuracy is {small.min():.2%} to {small.max():.2%}"
    return test, Claim("ε hardly matters", measured, bool(np.ptp(small) < 0.005))


def check_betas(
    train: Train, alphas: np.ndarray, b1: list[float], b2: list[float]
) -> tuple[np.ndarray, Claim]:
    """Accuracy averaged over the epochs, so that speed counts, of each pair at its best α."""
    pairs = [(x, y) for x in b1 for y in b2]
    runs = train([adaptax.adam(a, x, y) for x, y in pairs for a in alphas])
    val, test = (h.mean(1).reshape(len(pairs), len(alphas)) for h in (runs.val, runs.test))
    score = np.take_along_axis(test, val.argmax(1)[:, None], 1)[:, 0]
    default = score[pairs.index((0.9, 0.999))]
    x, y = pairs[score.argmax()]
    measured = (
        f"accuracy averaged over the epochs is {default:.2%}; of {len(pairs)} pairs, each at its "
        f"best α, the best ({x:g} and {y:g}) has {score.max():.2%}, the worst {score.min():.2%}"
    )
    held = bool(score.max() - default < 0.005)
    claim = Claim("β₁ = 0.9 and β₂ = 0.999 can stay as they are", measured, held)
    return score.reshape(len(b1), len(b2)), claim


class Averages(NamedTuple):
    """The state of `scale_by_uncorrected_adam`."""

    v: Any
    s: Any


@transformation
def scale_by_uncorrected_adam() -> Leafwise:
    """Adam's direction without the correction. A rule of one's own takes no more than this."""

    def rule(t, g, p, v, s):
        v, s = average(g, v, 0.9), average(g * g, s, 0.999)
        return v / (jnp.sqrt(s) + 1e-8), v, s

    return leafwise(rule, Averages, v=Slot(), s=Slot())


def uncorrected_adam(alpha: float) -> adaptax.GradientTransformation:
    return adaptax.chain(scale_by_uncorrected_adam(), adaptax.scale_by_learning_rate(alpha))


def lengths(tx: adaptax.GradientTransformation, steps: int = 5000) -> np.ndarray:
    """The lengths of the steps on a gradient that is always 1, in one dimension."""
    g = jnp.ones(())

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        update, state = tx.update(g, state)
        return state, -update

    return np.asarray(jax.lax.scan(step, tx.init(g), None, steps)[1])


def check_correction(
    train: Train, alphas: np.ndarray, adam: History
) -> tuple[dict[str, np.ndarray], History, Claim]:
    """The lengths of steps in units of α, and a sweep of Adam without the correction."""
    steps = {
        "Adam": lengths(adaptax.adam(1.0)),
        "Adam, uncorrected": lengths(uncorrected_adam(1.0)),
        "RMSprop, β₂ = 0.999": lengths(adaptax.rmsprop(1.0, decay=0.999)),
    }
    corrected, bare, rms = steps.values()
    runs = train([uncorrected_adam(a) for a in alphas])
    i, j = best(adam), best(runs)
    measured = (
        f"with it the first step is {corrected[0]:.2f} α long, without {bare[0]:.1f} α and the "
        f"longest {bare.max():.1f} α (RMSprop at β₂ = 0.999: {rms[0]:.0f} α); at Adam's best α the "
        f"loss in the first epoch is {adam.loss[i, 0]:.2f} with, {runs.loss[i, 0]:.2f} without. "
        f"At an α of its own, {alphas[j]:.2g}, the uncorrected one ends at {runs.test[j, -1]:.1%} "
        f"(Adam: {adam.test[i, -1]:.1%})"
    )
    held = abs(corrected[0] - 1) < 0.01 and bare[0] > 2 and runs.loss[i, 0] > adam.loss[i, 0]
    text = "V and S start at zero, so the first steps need the correction"
    return steps, runs, Claim(text, measured, bool(held))
