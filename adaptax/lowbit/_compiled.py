"""What a compiled program must still hold, if its compiler has not folded a rounding away."""

import re
from typing import Any

import jax.numpy as jnp


def missing(hlo: str, method: str, dtype: Any) -> list[str]:
    """The signs of a 16-bit rounding that a compiled program lacks.

    XLA may drop a conversion to 16 bits and back (it does so on GPUs), and with it what the
    conversion rounds away. The roundings here are made of what has no such meaning to a compiler:
    a stochastic one of integers (the hash of the index, its sum with the bits, the mask that cuts
    them off), one to nearest of `reduce-precision`.

    Args:
        hlo: The text of the optimized program of a step, ``compiled.as_text()``.
        method: "stochastic_rounding", "kahan", "ulp_correction" or "master_weights".
        dtype: The dtype of the parameters, bfloat16 or float16.

    Returns:
        What is not there, in words; an empty list if the rounding survived.
    """
    info = jnp.finfo(dtype)
    to_nearest = rf"reduce-precision\(.*exponent_bits={info.nexp}, mantissa_bits={info.nmant}\b"
    signs = {f"a reduce-precision to {info.nmant} bits": to_nearest}
    if info.nexp < 8:
        signs["the rounding of subnormal numbers"] = r"round-nearest-even\("
    if method in ("stochastic_rounding", "ulp_correction"):
        drop = 23 - info.nmant - (8 if method == "ulp_correction" else 0)
        signs["the first factor of the hash"] = _constant(0x85EBCA6B)
        signs["the second factor of the hash"] = _constant(0xC2B2AE35)
        signs["a shift of the random bits"] = r"u32\[[\d,]+\]\S* shift-right-logical\("
        signs[f"the mask of all but {drop} bits"] = _constant(2**32 - 2**drop)
        signs["an and with the mask"] = r"u32\[[\d,]+\]\S* and\("
        signs["the bits as a float"] = r"f32\[[\d,]+\]\S* bitcast(-convert)?\("
    return [what for what, pattern in signs.items() if not re.search(pattern, hlo)]


def _constant(value: int) -> str:
    return rf"constant\({value}\)"
