from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from merging import geometry
from merging.methods.base import Group, Method, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import products


@register
class Karcher(Method):
    """The Karcher mean: the point of the sphere with the least squared angles to all models, at their mean length.

    It needs no base and no weights. Each tensor is one point; the mean is found by stepping along the logarithm map.

    Differs from mergekit: tensors of which all are shorter than `tol` give their plain mean, not zeros, and a model
    opposite to the mean is passed over. Angles are measured in float64.

    Source: H. Karcher 1977; for models 2603.04972.
    """

    name: ClassVar[str] = "karcher"
    title: ClassVar[str] = "Karcher mean"
    when_to_use: ClassVar[str] = (
        "Several whole models of equal rank: an average that keeps their length, as SLERP does for two."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2603.04972"
    group: ClassVar[str] = "average"
    caveat: ClassVar[str] = "For models tuned from one base it is almost the plain average."
    elementwise: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = False
    scans: ClassVar[int] = 1

    max_iter: Annotated[int, Field(ge=0, le=1000)] = parameter(
        10, "", "Steps towards the exact mean, at most; 0 takes the plain average of the directions."
    )
    tol: Annotated[float, Field(gt=0, le=1, strict=True)] = parameter(
        1e-5,
        "",
        "Stop when a step is smaller than this; a tensor with a smaller norm counts as none.",
        rare=True,
    )

    def survey(self, group: Group) -> Survey:
        if group.experts == 1:
            return torch.ones(1, dtype=torch.float64)
        (inner,) = (yield products(lambda piece: piece.models)).values()
        return geometry.karcher_mean(inner, self.max_iter, self.tol)

    def merge(self, piece: Piece, known: torch.Tensor) -> torch.Tensor:
        return geometry.blend(known, piece.models)
