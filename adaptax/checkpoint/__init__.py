"""Checkpoints with Orbax: any state, onto any mesh, in another format, of a changed optimizer."""

from ._report import Report as Report
from ._report import Row as Row
from ._restore import restore as restore
from ._restore import save as save
from ._series import Checkpoints as Checkpoints
from ._series import Restored as Restored
