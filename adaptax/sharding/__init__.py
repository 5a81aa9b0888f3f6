"""States on meshes of devices: where they lie, how they are split, what a device holds."""

from ._offload import offload as offload
from ._placement import Placed as Placed
from ._placement import Placement as Placement
from ._placement import check_placement as check_placement
from ._placement import placement as placement
from ._split import split as split
from ._state import state_sharding as state_sharding
from ._zero import zero as zero
