from __future__ import annotations

from typing import Any, ClassVar

from merging.methods.base import register
from merging.methods.combine import Elected
from merging.methods.sparse import Trim


@register
class Ties(Elected, Trim):
    """Trim, elect sign, disjoint mean.

    Differs from mergekit by default: the whole model is ranked together, elections count unweighted changes, and a
    draw goes to the scope's majority sign. `profile: mergekit` restores mergekit's choices. Differs from the authors'
    code, which keeps one element more than asked and fails at density 1.

    Source: TIES-Merging, 2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    when_to_use: ClassVar[str] = (
        "Experts that pull the same weights in different directions; keeps the large changes."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    group: ClassVar[str] = "sign"
    scans: ClassVar[int] = 3
    MERGEKIT: ClassVar[dict[str, Any]] = {
        "density": 1.0,
        "scope": "tensor",
        "elect_on": "weighted",
        "zero_sum": "plus",
        "count": "floor",
        "zero_divisor": "one",
    }
