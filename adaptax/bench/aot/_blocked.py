"""8-bit Adam the straightforward way: what the table compares with, not for training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ... import GradientTransformation


class _Codes(NamedTuple):
    codes: Any
    scale: Any  # one a block


class _State(NamedTuple):
    count: Any
    mu: Any
    nu: Any


def blocked_adam8bit(learning_rate: float, block: int = 256) -> GradientTransformation:
    """Adam whose moments are codes of 8 bits in blocks of the last axis, with their maxima.

    Decode, step, find the maxima, encode, rounding to nearest: the square root of the first
    moment's magnitude in int8, the fourth root of the second moment in uint8.

    Args:
        learning_rate: Its learning rate; the rest is Adam's usual.
        block: Entries in a block.
    """

    def blocks(x: Any) -> Any:
        *front, n = x.shape
        x = jnp.pad(x, [*((0, 0),) * len(front), (0, -n % block)])
        return x.reshape(*front, -1, block)

    def whole(x: Any, like: Any) -> Any:
        return x.reshape(*like.shape[:-1], -1)[..., : like.shape[-1]]

    def encode(x: Any, root: Callable[[Any], Any], dtype: Any) -> _Codes:
        cut = blocks(x)
        scale = jnp.max(jnp.abs(cut), axis=-1)
        part = cut / jnp.where(scale > 0, scale, 1)[..., None]
        codes = jnp.round(root(jnp.abs(part)) * jnp.iinfo(dtype).max) * jnp.sign(part)
        return _Codes(whole(codes, x).astype(dtype), scale)

    def decode(x: _Codes, power: int) -> Any:
        part = blocks(x.codes.astype(jnp.float32) / jnp.iinfo(x.codes.dtype).max)
        return whole(jnp.sign(part) * jnp.abs(part) ** power * x.scale[..., None], x.codes)

    def mu_of(x: Any) -> _Codes:
        return encode(x, jnp.sqrt, jnp.int8)

    def nu_of(x: Any) -> _Codes:
        return encode(x, lambda a: jnp.sqrt(jnp.sqrt(a)), jnp.uint8)

    def init(params: Any) -> _State:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        mu, nu = jax.tree.map(mu_of, zeros), jax.tree.map(nu_of, zeros)
        return _State(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: Any, state: _State, params: Any = None) -> tuple[Any, _State]:
        del params
        count = state.count + 1
        t = count.astype(jnp.float32)

        def leaf(g: Any, mu: _Codes, nu: _Codes) -> tuple[Any, _Codes, _Codes]:
            wide = g.astype(jnp.float32)
            m = 0.9 * decode(mu, 2) + 0.1 * wide
            v = 0.999 * decode(nu, 4) + 0.001 * jnp.square(wide)
            root = jnp.sqrt(v / (1 - 0.999**t)) + 1e-8
            u = -learning_rate * m / (1 - 0.9**t) / root
            return u.astype(g.dtype), mu_of(m), nu_of(v)

        outer = jax.tree.structure(updates)
        found = jax.tree.map(leaf, updates, state.mu, state.nu)
        columns = zip(*outer.flatten_up_to(found), strict=True)
        u, mu, nu = (outer.unflatten(column) for column in columns)
        return u, _State(count, mu, nu)

    return GradientTransformation(init, update)
