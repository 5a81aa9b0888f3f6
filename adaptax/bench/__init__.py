"""The benchmark suite: `python -m adaptax.bench`. Needs the extra `adaptax[bench]`."""

from ._suite import SUITE as SUITE
from ._suite import Benchmark as Benchmark
from ._timing import Row as Row
from ._timing import Settings as Settings
