"""DELLA: drop changes at random, small ones likelier than large ones."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from merging.methods.base import Number, parameter, register
from merging.methods.combine import Added, Elected
from merging.methods.sparse import MagPrune

MERGEKIT: dict[str, Any] = {
    "density": 1.0,
    "epsilon": 0.15,
    "lambda": 1.0,
    "rescale": "l1",
    "zero_divisor": "one",
}


@register
class Della(Elected, MagPrune):
    """MAGPRUNE, elect sign, combine.

    Source: DELLA-Merging, 2406.11617.
    """

    name: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    when_to_use: ClassVar[str] = (
        "As DARE with TIES, but a large change is likelier to stay: for experts that were tuned more strongly."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11617"
    scans: ClassVar[int] = 2
    MERGEKIT: ClassVar[dict[str, Any]] = MERGEKIT

    lambda_: Number = parameter(1.1, "λ", "Scale of the whole merged change.", alias="lambda")
    elect_on: Literal["delta", "weighted"] = parameter(
        "weighted", "", "Whether the experts' weights count in the election (weighted) or not (delta)."
    )
    zero_sum: Literal["majority", "plus"] = parameter(
        "plus", "", "The sign where both sides are equally strong: that of most other elements, or plus."
    )


@register
class DellaLinear(Added, MagPrune):
    """MAGPRUNE, then add the changes up, without an election.

    Source: DELLA-Merging, 2406.11617, its ablation without elect.
    """

    name: ClassVar[str] = "della_linear"
    title: ClassVar[str] = "DELLA without election"
    when_to_use: ClassVar[str] = "As DELLA, for experts whose changes hardly fight."
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11617"
    scans: ClassVar[int] = 1
    MERGEKIT: ClassVar[dict[str, Any]] = MERGEKIT

    lambda_: Number = parameter(1.1, "λ", "Scale of the whole merged change.", alias="lambda")
