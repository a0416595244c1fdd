from __future__ import annotations

from typing import Any, ClassVar

from merging.methods.base import register
from merging.methods.combine import Added
from merging.methods.sparse import Trim


@register
class Magnitude(Added, Trim):
    """Keep the largest changes of every expert, then add them up.

    Source: the magnitude baseline of TIES-Merging, 2306.01708; mergekit has it only as the trim of its TIES.
    """

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "Magnitude pruning"
    when_to_use: ClassVar[str] = "To see what the largest changes alone are worth, without an election."
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    group: ClassVar[str] = "sign"
    scans: ClassVar[int] = 2
    MERGEKIT: ClassVar[dict[str, Any]] = {
        "density": 1.0,
        "scope": "tensor",
        "count": "floor",
        "zero_divisor": "one",
    }
