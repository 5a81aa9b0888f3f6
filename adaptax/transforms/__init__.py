"""What goes in a chain beside an algorithm: scaling, clipping, decay, averages."""

from ._averaging import EmaState as EmaState
from ._averaging import TraceState as TraceState
from ._averaging import ema as ema
from ._averaging import trace as trace
from ._by_path import Stacked as Stacked
from ._by_path import scale_by_layer_decay as scale_by_layer_decay
from ._by_path import scale_by_path as scale_by_path
from ._clipping import clip as clip
from ._clipping import clip_by_block_rms as clip_by_block_rms
from ._clipping import clip_by_global_norm as clip_by_global_norm
from ._decay import WeightDecaySchedule as WeightDecaySchedule
from ._decay import add_decayed_weights as add_decayed_weights
from ._monitoring import MonitorState as MonitorState
from ._monitoring import SnapshotState as SnapshotState
from ._monitoring import measure_with_ema as measure_with_ema
from ._monitoring import monitor as monitor
from ._monitoring import snapshot as snapshot
from ._scaling import ScaleByScheduleState as ScaleByScheduleState
from ._scaling import scale as scale
from ._scaling import scale_by_learning_rate as scale_by_learning_rate
from ._scaling import scale_by_param_block_rms as scale_by_param_block_rms
from ._scaling import scale_by_schedule as scale_by_schedule
from ._scaling import scale_by_trust_ratio as scale_by_trust_ratio
