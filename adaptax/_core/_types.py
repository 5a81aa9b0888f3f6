"""The words of the library: what a scalar, a tree, a schedule and an argument may be."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import numpy as np

from ._kinds import DType, Number, StaticInt

ArrayTree: TypeAlias = Any
"""A pytree of arrays. None is a leaf that is not there."""
Params: TypeAlias = ArrayTree
Updates: TypeAlias = ArrayTree
OptState: TypeAlias = ArrayTree

ScalarLike: TypeAlias = float | int | np.ndarray | np.generic | jax.Array
Schedule: TypeAlias = Callable[[Any], Any]
"""A function of the number of steps done so far (0 at the first update)."""
ScalarOrSchedule: TypeAlias = ScalarLike | Schedule

# A signature states the range of each number; the factory checks it (see `_kinds`). A user gives
# a number or a schedule; the body and the rule receive a scalar, perhaps traced, or a `Decay`.
DecayLike = Annotated[Any, Number("[0, 1)", decay=True)]
NonNegative = Annotated[Any, Number("[0, inf)")]
Positive = Annotated[Any, Number("(0, inf)")]
Real = Annotated[Any, Number("(-inf, inf)")]
LearningRate = Real  # a negative one ascends
Bound = Annotated[Any, Number("[0, inf]")]  # inf: no bound
PositiveBound = Annotated[Any, Number("(0, inf]")]
Count = Annotated[int, StaticInt(1)]
DTypeLike = Annotated[Any, DType()]
MaskLike: TypeAlias = ArrayTree | Callable[[Params], ArrayTree]


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""
