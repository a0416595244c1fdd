"""DELLA: drop changes at random, small ones likelier than large ones."""

from __future__ import annotations

from typing import Any, ClassVar

from merging.methods.base import Number, parameter, register
from merging.methods.combine import ELECT_ON, LAMBDA, ZERO_SUM, Added, Elected, ElectOn, ZeroSum
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
    group: ClassVar[str] = "random"
    scans: ClassVar[int] = 2
    MERGEKIT: ClassVar[dict[str, Any]] = MERGEKIT

    lambda_: Number = parameter(1.1, "λ", LAMBDA, alias="lambda")
    elect_on: ElectOn = parameter("weighted", "", ELECT_ON, rare=True)
    zero_sum: ZeroSum = parameter("plus", "", ZERO_SUM, rare=True)


@register
class DellaLinear(Added, MagPrune):
    """MAGPRUNE, then add the changes up, without an election.

    Source: DELLA-Merging, 2406.11617, its ablation without elect.
    """

    name: ClassVar[str] = "della_linear"
    title: ClassVar[str] = "DELLA without election"
    when_to_use: ClassVar[str] = "As DELLA, for experts whose changes hardly fight."
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11617"
    group: ClassVar[str] = "random"
    scans: ClassVar[int] = 1
    MERGEKIT: ClassVar[dict[str, Any]] = MERGEKIT

    lambda_: Number = parameter(1.1, "λ", LAMBDA, alias="lambda")
