"""A training loop in a few lines: fit a small network to a noisy sine."""

from functools import partial

import jax
import jax.numpy as jnp

import adaptax

key = jax.random.key(0)
x = jnp.linspace(-3, 3, 256)[:, None]
y = jnp.sin(2 * x) + 0.1 * jax.random.normal(key, x.shape)
params = {
    "w1": jax.random.normal(key, (1, 64)),
    "b1": jnp.linspace(-3, 3, 64),
    "w2": jnp.zeros((64, 1)),
}


def loss_fn(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - y) ** 2)


schedule = adaptax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup_steps=50, decay_steps=1000)
tx = adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adamw(schedule))
state = tx.init(params)


@partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return adaptax.apply_updates(params, updates), state, loss


for i in range(1001):
    params, state, loss = step(params, state, x, y)
    if i % 200 == 0:
        print(f"step {i:4d}, loss {loss:.4f}")
