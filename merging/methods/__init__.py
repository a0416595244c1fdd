"""The merge methods: one file each. Importing this package fills METHODS."""

from merging.methods import linear, slerp, task_arithmetic, ties
from merging.methods.base import METHODS, Group, Method, Profile, Scope, get_method

METHODS.update({name: METHODS.pop(name) for name in ("linear", "task_arithmetic", "ties", "slerp")})

__all__ = [
    "METHODS",
    "Group",
    "Method",
    "Profile",
    "Scope",
    "get_method",
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
]
