"""Transformations that hold others: groups, accumulation, guards, averages, hyperparameters."""

from ._describe import Description as Description
from ._describe import LeafDescription as LeafDescription
from ._describe import describe as describe
from ._groups import freeze as freeze
from ._groups import selective_transform as selective_transform
from ._hyperparameters import InjectStatefulHyperparamsState as InjectStatefulHyperparamsState
from ._hyperparameters import StatefulSchedule as StatefulSchedule
from ._hyperparameters import WrappedSchedule as WrappedSchedule
from ._hyperparameters import WrappedScheduleState as WrappedScheduleState
from ._hyperparameters import adjustable as adjustable
from ._hyperparameters import hyperparams as hyperparams
from ._hyperparameters import inject_hyperparams as inject_hyperparams
from ._hyperparameters import inject_stateful_hyperparams as inject_stateful_hyperparams
from ._hyperparameters import learning_rate as learning_rate
from ._hyperparameters import set_hyperparams as set_hyperparams
