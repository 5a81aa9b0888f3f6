"""Working with optax and torch: their transformations here, ours there, states both ways."""

from . import torch as torch
from ._optax import as_optax as as_optax
from ._optax import convert_state as convert_state
