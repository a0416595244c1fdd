"""The merge methods: one file each. Importing this package fills METHODS, in the order they are presented."""

# isort: off
from merging.methods import linear, task_arithmetic, magnitude, ties, dare, della, pcb, dppa, apl, slerp
from merging.methods import (
    breadcrumbs,
    model_stock,
    sce,
    nuslerp,
    multislerp,
    karcher,
    nearswap,
    arcee_fusion,
    ram,
    passthrough,
)
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
    "arcee_fusion",
    "breadcrumbs",
    "dare",
    "della",
    "dppa",
    "get_method",
    "karcher",
    "linear",
    "magnitude",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "pcb",
    "ram",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
]
