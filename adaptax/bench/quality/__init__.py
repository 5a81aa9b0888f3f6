"""Training with low-precision optimizers, beside float32: `python -m adaptax.bench.quality`."""

from . import _char
from ._quadratic import Stationary as Stationary
from ._quadratic import compare as compare
from ._quadratic import stationary as stationary

char = _char  # the character model, for examples
