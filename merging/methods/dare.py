"""DARE: drop changes at random, rescale what is left."""

from __future__ import annotations

from typing import Any, ClassVar

from merging.methods.base import Scope, parameter, register
from merging.methods.combine import NORMALIZE, Added, Elected
from merging.methods.sparse import Drop

CAVEAT = (
    "Made for lightly tuned models: dropping more than half of a change that exceeds a tenth of the base's norm is known "
    "to fail."
)


@register
class DareLinear(Added, Drop):
    """Drop at random, rescale, average.

    Differs from mergekit by default: changes are averaged, not added up, and each survivor is divided by its chance to
    stay instead of keeping each tensor's Σ|δ|. `profile: mergekit` restores mergekit's choices.

    Source: DARE, 2311.03099, eq. 1 to 3.
    """

    name: ClassVar[str] = "dare_linear"
    title: ClassVar[str] = "DARE, averaged"
    when_to_use: ClassVar[str] = (
        "Lightly tuned experts: most of a small change can be dropped at random without loss."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.03099"
    group: ClassVar[str] = "random"
    caveat: ClassVar[str] = CAVEAT
    scans: ClassVar[int] = 1
    MERGEKIT: ClassVar[dict[str, Any]] = {
        "density": 1.0,
        "normalize": False,
        "rescale": "l1",
        "zero_divisor": "one",
    }

    normalize: bool = parameter(True, "", NORMALIZE)


@register
class DareTies(Elected, Drop):
    """Drop at random, rescale, elect sign, combine. There is no second trim.

    Differs from mergekit by default in rescale, election, draws and normalisation; `profile: mergekit` restores its
    choices.

    Source: DARE, 2311.03099, with TIES-Merging, 2306.01708.
    """

    name: ClassVar[str] = "dare_ties"
    title: ClassVar[str] = "DARE with TIES"
    when_to_use: ClassVar[str] = "Lightly tuned experts whose changes also pull in different directions."
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.03099"
    group: ClassVar[str] = "random"
    caveat: ClassVar[str] = CAVEAT
    scans: ClassVar[int] = 2
    MERGEKIT: ClassVar[dict[str, Any]] = {
        "density": 1.0,
        "scope": "tensor",
        "normalize": False,
        "rescale": "l1",
        "elect_on": "weighted",
        "zero_sum": "plus",
        "zero_divisor": "one",
    }

    scope: Scope = parameter(
        "model",
        "",
        "Whose majority decides a draw (see zero_sum): the tensor's, the block's, or the model's.",
        rare=True,
    )

    @property
    def ranked_within(self) -> Scope:
        return self.scope if self.zero_sum == "majority" else "tensor"
