"""What an optimizer does in each step: measured, kept, written, drawn."""

from ._lines import read as read
from ._measure import measure as measure
from ._plot import plot_leaves as plot_leaves
from ._plot import plot_norms as plot_norms
from ._plot import plot_update_ratios as plot_update_ratios
from ._probe import ProbeState as ProbeState
from ._probe import history as history
from ._probe import latest as latest
from ._probe import probe as probe
from ._sample import Sample as Sample
from ._sample import flat as flat
from ._sinks import CSVSink as CSVSink
from ._sinks import DictSink as DictSink
from ._sinks import JSONLSink as JSONLSink
from ._sinks import Sink as Sink
from ._tensorboard import TensorBoardSink as TensorBoardSink
