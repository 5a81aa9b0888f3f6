"""What storage formats lose, and what a step costs on a CPU: `python -m adaptax.bench.formats`."""

from ._errors import measure as measure
from ._steps import steps as steps
from ._subjects import SUBJECTS as SUBJECTS
from ._subjects import Subject as Subject
