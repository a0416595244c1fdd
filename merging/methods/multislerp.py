from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from merging import geometry, ops
from merging.methods.base import Group, Method, Number, Profile, Survey, parameter, register
from merging.methods.combine import mean_problem
from merging.pieces import Piece
from merging.statistics import products


@register
class MultiSlerp(Method):
    """The weighted mean direction of any number of models, or of their changes, at their weighted mean length.

    For each tensor: Σ w·‖v‖ along the direction of Σ w·v/‖v‖. One model alone comes out as it is.

    Differs from mergekit: where that sum vanishes (no model changed the tensor, or changes are opposite) it is Σ w·v,
    where mergekit stops for three or more models.

    Source: C. Goddard, Multi-SLERP, and mergekit.
    """

    name: ClassVar[str] = "multislerp"
    title: ClassVar[str] = "Multi-SLERP"
    when_to_use: ClassVar[str] = (
        "Several models whose average would be too short: keeps the length of weights, or of changes."
    )
    paper: ClassVar[str] = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    group: ClassVar[str] = "average"
    elementwise: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    scans: ClassVar[int] = 1

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "w",
        "Share of this model in the mean direction and length, beside the others' weights.",
        per_model=True,
    )
    normalize_weights: bool = parameter(
        True, "", "Divide the weights by their sum, so that only their proportion counts."
    )
    eps: Annotated[float, Field(gt=0, le=1, strict=True)] = parameter(
        1e-8,
        "ε",
        "A norm, or a sum of directions, this small counts as none; a guard against division by 0.",
        rare=True,
    )

    def problems(self, experts: int, profile: Profile) -> list[str]:
        return mean_problem(self.for_experts("weight", experts)) if self.normalize_weights else []

    def survey(self, group: Group) -> Survey:
        if group.experts == 1:
            return torch.ones(1, dtype=torch.float64)
        (inner,) = (yield products(lambda piece: piece.deltas)).values()
        weight = torch.tensor(self.for_experts("weight", group.experts), dtype=torch.float64)
        if self.normalize_weights:
            weight = weight / ops.sum_experts(weight)
        return geometry.weighted_direction(inner, weight, self.eps)

    def merge(self, piece: Piece, known: torch.Tensor) -> torch.Tensor:
        if piece.experts == 1:
            return piece.models[0]
        return piece.apply(geometry.blend(known, piece.deltas))
