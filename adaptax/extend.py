"""What a new algorithm is made of; see "A new algorithm" in the documentation.

from adaptax.extend import Slot, leafwise, transformation
"""

from ._core import SKIP as SKIP
from ._core import Decay as Decay
from ._core import DecayLike as DecayLike
from ._core import DTypeLike as DTypeLike
from ._core import Leafwise as Leafwise
from ._core import LearningRate as LearningRate
from ._core import MaskLike as MaskLike
from ._core import NonNegative as NonNegative
from ._core import Positive as Positive
from ._core import Real as Real
from ._core import Slot as Slot
from ._core import abs_sq as abs_sq
from ._core import average as average
from ._core import debias as debias
from ._core import leafwise as leafwise
from ._core import norm as norm
from ._core import root_mean_square as root_mean_square
from ._core import schedule as schedule
from ._core import transformation as transformation
