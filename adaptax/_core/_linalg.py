"""Matrix iterations."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ._numerics import abs_sq, root

Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]


def newton_schulz(
    x: Any, coefficients: Any, eps: Any, preconditioning: Preconditioning = "frobenius"
) -> Any:
    r"""Drive the singular values of each matrix of a stack towards 1.

    With A = XXᴴ, each row (a, b, c) of coefficients is one step X := aX + (bA + cA²)X, which acts
    on every singular value as aσ + bσ³ + cσ⁵ and leaves the singular vectors alone.

    Args:
        x: Matrices, (..., m, n), real or complex.
        coefficients: One (a, b, c) for each step.
        eps: Added to (or the floor of) what X is divided by.
        preconditioning: What brings the singular values below 1 before (or in) the first step:
            the Frobenius norm, the spectral norm, rows of |A| (AOL), or the norm of A.
    """
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    if preconditioning == "frobenius":
        x = x / (_frobenius(x) + eps)
    elif preconditioning == "spectral":
        x = x / (jnp.linalg.norm(x, ord=2, axis=(-2, -1), keepdims=True) + eps)
    elif preconditioning == "aol":
        rows = jnp.sum(jnp.abs(x @ x.mT.conj()), axis=-1, keepdims=True)
        x = x / jnp.sqrt(jnp.maximum(rows, eps))
    else:
        gram = x @ x.mT.conj()
        unit = _power_of_two(jnp.max(jnp.abs(gram), (-2, -1), keepdims=True))
        x = x / jnp.sqrt(jnp.maximum(_frobenius(gram / unit) * unit, eps))
    for a, b, c in coefficients:
        gram = x @ x.mT.conj()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def _frobenius(x: Any) -> Any:
    return root(jnp.sum(abs_sq(x), (-2, -1), keepdims=True))


def _power_of_two(x: Any) -> Any:
    """The power of two next to a number >= 0, to scale by without rounding; no slope."""
    _, exponent = jnp.frexp(jax.lax.stop_gradient(x))
    return jnp.ldexp(jnp.ones_like(x), jnp.clip(exponent, -100, 100))
