"""Adaptive gradient optimizers for JAX: pure (init, update) pairs over pytrees."""

import importlib as _importlib
import sys as _sys
import typing as _typing

from . import tree as tree
from . import tree_utils as tree_utils
from ._core import EmptyState as EmptyState
from ._core import GradientTransformation as GradientTransformation
from ._core import GradientTransformationExtraArgs as GradientTransformationExtraArgs
from ._core import MaskedNode as MaskedNode
from ._core import MaskedState as MaskedState
from ._core import OptState as OptState
from ._core import Params as Params
from ._core import PartitionState as PartitionState
from ._core import ScalarOrSchedule as ScalarOrSchedule
from ._core import Schedule as Schedule
from ._core import TreeMismatchError as TreeMismatchError
from ._core import Updates as Updates
from ._core import apply_updates as apply_updates
from ._core import by_path as by_path
from ._core import chain as chain
from ._core import global_norm as global_norm
from ._core import identity as identity
from ._core import masked as masked
from ._core import multi_transform as multi_transform
from ._core import named_chain as named_chain
from ._core import partition as partition
from ._core import path_names as path_names
from ._core import set_to_zero as set_to_zero
from ._core import stateless as stateless
from ._core import transformation as transformation
from ._core import with_extra_args_support as with_extra_args_support
from .optimizers._adafactor import FactoredState as FactoredState
from .optimizers._adafactor import adafactor as adafactor
from .optimizers._adafactor import scale_by_factored_rms as scale_by_factored_rms
from .optimizers._adagrad import ScaleByRssState as ScaleByRssState
from .optimizers._adagrad import adagrad as adagrad
from .optimizers._adagrad import scale_by_rss as scale_by_rss
from .optimizers._adam import ScaleByAdamState as ScaleByAdamState
from .optimizers._adam import adam as adam
from .optimizers._adam import adamw as adamw
from .optimizers._adam import nadam as nadam
from .optimizers._adam import nadamw as nadamw
from .optimizers._adam import scale_by_adam as scale_by_adam
from .optimizers._adamax import adamax as adamax
from .optimizers._adamax import adamaxw as adamaxw
from .optimizers._adamax import scale_by_adamax as scale_by_adamax
from .optimizers._amsgrad import ScaleByAmsgradState as ScaleByAmsgradState
from .optimizers._amsgrad import amsgrad as amsgrad
from .optimizers._amsgrad import scale_by_amsgrad as scale_by_amsgrad
from .optimizers._lamb import lamb as lamb
from .optimizers._lion import ScaleByLionState as ScaleByLionState
from .optimizers._lion import lion as lion
from .optimizers._lion import scale_by_lion as scale_by_lion
from .optimizers._muon import MuonDimensionNumbers as MuonDimensionNumbers
from .optimizers._muon import MuonState as MuonState
from .optimizers._muon import muon as muon
from .optimizers._muon import scale_by_muon as scale_by_muon
from .optimizers._muon import scale_by_shape as scale_by_shape
from .optimizers._prodigy import ProdigyState as ProdigyState
from .optimizers._prodigy import prodigy as prodigy
from .optimizers._rms import ScaleByRmsState as ScaleByRmsState
from .optimizers._rms import ScaleByRmsWithCountState as ScaleByRmsWithCountState
from .optimizers._rms import ScaleByRStdDevState as ScaleByRStdDevState
from .optimizers._rms import ScaleByRStdDevWithCountState as ScaleByRStdDevWithCountState
from .optimizers._rms import rmsprop as rmsprop
from .optimizers._rms import scale_by_rms as scale_by_rms
from .optimizers._rms import scale_by_stddev as scale_by_stddev
from .optimizers._sgd import sgd as sgd
from .schedules import constant_schedule as constant_schedule
from .schedules import cosine_decay_schedule as cosine_decay_schedule
from .schedules import exponential_decay as exponential_decay
from .schedules import join_schedules as join_schedules
from .schedules import linear_schedule as linear_schedule
from .schedules import piecewise_constant_schedule as piecewise_constant_schedule
from .schedules import polynomial_schedule as polynomial_schedule
from .schedules import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .transforms import EmaState as EmaState
from .transforms import MonitorState as MonitorState
from .transforms import ScaleByScheduleState as ScaleByScheduleState
from .transforms import SnapshotState as SnapshotState
from .transforms import Stacked as Stacked
from .transforms import TraceState as TraceState
from .transforms import WeightDecaySchedule as WeightDecaySchedule
from .transforms import add_decayed_weights as add_decayed_weights
from .transforms import clip as clip
from .transforms import clip_by_block_rms as clip_by_block_rms
from .transforms import clip_by_global_norm as clip_by_global_norm
from .transforms import ema as ema
from .transforms import measure_with_ema as measure_with_ema
from .transforms import monitor as monitor
from .transforms import scale as scale
from .transforms import scale_by_layer_decay as scale_by_layer_decay
from .transforms import scale_by_learning_rate as scale_by_learning_rate
from .transforms import scale_by_param_block_rms as scale_by_param_block_rms
from .transforms import scale_by_path as scale_by_path
from .transforms import scale_by_schedule as scale_by_schedule
from .transforms import scale_by_trust_ratio as scale_by_trust_ratio
from .transforms import snapshot as snapshot
from .transforms import trace as trace
from .tree import bias_correction as bias_correction
from .tree import update_infinity_moment as update_infinity_moment
from .tree import update_moment as update_moment
from .tree import update_moment_per_elem_norm as update_moment_per_elem_norm
from .tree_utils import tree_map_params as tree_map_params
from .wrappers import ApplyEvery as ApplyEvery
from .wrappers import ApplyIfFiniteState as ApplyIfFiniteState
from .wrappers import AverageState as AverageState
from .wrappers import ConditionallyMaskState as ConditionallyMaskState
from .wrappers import ConditionallyTransformState as ConditionallyTransformState
from .wrappers import Description as Description
from .wrappers import DynamicLossScaleState as DynamicLossScaleState
from .wrappers import GuardReport as GuardReport
from .wrappers import GuardState as GuardState
from .wrappers import InjectStatefulHyperparamsState as InjectStatefulHyperparamsState
from .wrappers import LeafDescription as LeafDescription
from .wrappers import LookaheadParams as LookaheadParams
from .wrappers import LookaheadSlowState as LookaheadSlowState
from .wrappers import LookaheadState as LookaheadState
from .wrappers import MultiSteps as MultiSteps
from .wrappers import MultiStepsState as MultiStepsState
from .wrappers import MultiStepsTransformation as MultiStepsTransformation
from .wrappers import ScheduleFreeState as ScheduleFreeState
from .wrappers import StatefulSchedule as StatefulSchedule
from .wrappers import WeightedMultiStepsState as WeightedMultiStepsState
from .wrappers import WrappedSchedule as WrappedSchedule
from .wrappers import WrappedScheduleState as WrappedScheduleState
from .wrappers import adjustable as adjustable
from .wrappers import apply_every as apply_every
from .wrappers import apply_if_finite as apply_if_finite
from .wrappers import conditionally_mask as conditionally_mask
from .wrappers import conditionally_transform as conditionally_transform
from .wrappers import describe as describe
from .wrappers import dynamic_loss_scale as dynamic_loss_scale
from .wrappers import ema_params as ema_params
from .wrappers import eval_params as eval_params
from .wrappers import flatten as flatten
from .wrappers import freeze as freeze
from .wrappers import guard as guard
from .wrappers import guard_report as guard_report
from .wrappers import hyperparams as hyperparams
from .wrappers import incremental_update as incremental_update
from .wrappers import inject_hyperparams as inject_hyperparams
from .wrappers import inject_stateful_hyperparams as inject_stateful_hyperparams
from .wrappers import learning_rate as learning_rate
from .wrappers import lookahead as lookahead
from .wrappers import loss_scale as loss_scale
from .wrappers import periodic_update as periodic_update
from .wrappers import schedule_free as schedule_free
from .wrappers import schedule_free_adamw as schedule_free_adamw
from .wrappers import schedule_free_eval_params as schedule_free_eval_params
from .wrappers import schedule_free_sgd as schedule_free_sgd
from .wrappers import selective_transform as selective_transform
from .wrappers import set_hyperparams as set_hyperparams
from .wrappers import skip_large_updates as skip_large_updates
from .wrappers import skip_not_finite as skip_not_finite
from .wrappers import swa as swa

if _typing.TYPE_CHECKING:
    from . import bench as bench
    from . import catalog as catalog
    from . import checkpoint as checkpoint
    from . import extend as extend
    from . import interop as interop
    from . import lowbit as lowbit
    from . import sharding as sharding
    from . import sweep as sweep
    from . import telemetry as telemetry

__version__ = "0.1.0"

_ON_DEMAND = (
    "bench",
    "catalog",
    "checkpoint",
    "extend",
    "interop",
    "lowbit",
    "sharding",
    "sweep",
    "telemetry",
)

if not _typing.TYPE_CHECKING:  # a type checker would take every name for one of the module's

    def __getattr__(name: str) -> _typing.Any:
        if name in _ON_DEMAND:
            return _importlib.import_module(f".{name}", __name__)
        from ._absent import no_attribute

        raise AttributeError(no_attribute(name), name=name, obj=_sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
