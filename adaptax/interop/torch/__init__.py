"""PyTorch's checkpoints: parameters and the states of `torch.optim`, from there and back."""

from ._dump import dump_state as dump_state
from ._load import load_state as load_state
from ._names import Matched as Matched
from ._names import Names as Names
from ._names import match as match
from ._numbers import optimizer as optimizer
from ._params import dump_params as dump_params
from ._params import load_params as load_params
from ._tensors import load as load
