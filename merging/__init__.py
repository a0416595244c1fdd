"""Mergescope's domain: reading, planning, merging, inspecting and running models. Knows nothing of the app.

The names below are the public API; everything else may change.
"""

import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m merging` loads torch for seconds before `__main__` begins: until then Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from merging.api import check, inspect, merge, merge_state_dicts, plan_file, run
from merging.checkpoint import Checkpoint
from merging.errors import (
    CheckpointError,
    MergingError,
    OutputError,
    ParameterError,
    PlanError,
    RecipeError,
)
from merging.events import Event, Finished, Progress
from merging.importance import importance, measure_importance
from merging.importances.artefact import Importance
from merging.methods import METHODS, Method
from merging.plan import Plan
from merging.recipe import Recipe
from merging.reports.report import Report
from merging.version import __version__

__all__ = [
    "METHODS",
    "Checkpoint",
    "CheckpointError",
    "Event",
    "Finished",
    "Importance",
    "MergingError",
    "Method",
    "OutputError",
    "ParameterError",
    "Plan",
    "PlanError",
    "Progress",
    "Recipe",
    "RecipeError",
    "Report",
    "__version__",
    "check",
    "importance",
    "inspect",
    "measure_importance",
    "merge",
    "merge_state_dicts",
    "plan_file",
    "run",
]
