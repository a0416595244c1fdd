"""The merge methods: one file each. Importing this package fills METHODS, in the order they are presented."""

# isort: off
from merging.methods import linear, task_arithmetic, magnitude, ties, dare, della, pcb, dppa, apl, slerp
from merging.methods.base import METHODS, Group, Method, Profile, Scope, Survey, get_method
# isort: on

__all__ = [
    "METHODS",
    "Group",
    "Method",
    "Profile",
    "Scope",
    "Survey",
    "apl",
    "dare",
    "della",
    "dppa",
    "get_method",
    "linear",
    "magnitude",
    "pcb",
    "slerp",
    "task_arithmetic",
    "ties",
]
