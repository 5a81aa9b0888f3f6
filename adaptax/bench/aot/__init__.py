"""Steps compiled for devices that are not there: `python -m adaptax.bench.aot`.

Needs the extra `adaptax[aot]` for TPUs and GPUs.
"""

from ._measure import Report as Report
from ._measure import floor as floor
from ._measure import measure as measure
from ._measure import measure_optimizer as measure_optimizer
from ._program import Program as Program
from ._program import read as read
from ._sharded import CASES as CASES
from ._sharded import Case as Case
from ._sharded import measure_sharded as measure_sharded
from ._subjects import OPTIMIZERS as OPTIMIZERS
from ._subjects import TREES as TREES
from ._subjects import Subject as Subject
from ._targets import Target as Target
from ._targets import available as available
from ._targets import devices as devices
from ._targets import prepare as prepare
