"""Many settings of a transformation's numbers, trained at once in one compiled program.

A transformation is a pytree whose leaves are its numbers, so `jax.vmap` over it trains all
settings together: the program is traced and compiled once, and small matrix products become large
ones.

>>> import jax.numpy as jnp
>>> from adaptax import adam, sweep
>>> settings = sweep.grid({"learning_rate": sweep.log_range(1e-3, 1.0, 4)})
>>> loss_fn = lambda params, batch: jnp.mean((params["w"] - batch) ** 2)
>>> params, batches = {"w": jnp.zeros(3)}, jnp.ones((1, 3))
>>> results = sweep.run(
...     adam(1e-3), settings, loss_fn, params, batches, steps=50, progress=False
... )
>>> results.best.tx
adam(learning_rate=0.1)
"""

from ._halving import Halving as Halving
from ._halving import halving as halving
from ._results import Best as Best
from ._results import Results as Results
from ._run import run as run
from ._settings import Space as Space
from ._settings import choices as choices
from ._settings import draw as draw
from ._settings import grid as grid
from ._settings import log_range as log_range
from ._settings import log_uniform as log_uniform
from ._settings import uniform as uniform
