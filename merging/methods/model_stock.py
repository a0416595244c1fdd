from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from merging import geometry
from merging.methods.base import Group, Method, Profile, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import products


@register
class ModelStock(Method):
    """Between the base and the average of the experts, nearer the average the more their changes point the same way.

    For each tensor θ = t·mean + (1 − t)·base with t = N·cosθ / (1 + (N − 1)·cosθ), cosθ the mean cosine over all pairs
    of the N experts' changes.

    Differs from mergekit: a negative mean cosine counts as 0 and gives the base, where mergekit steps away from the
    average, without bound as cosθ nears −1/(N − 1); and cosines of tiny changes are exact. `profile: mergekit` restores
    both.

    Source: Model Stock, 2403.19522.
    """

    name: ClassVar[str] = "model_stock"
    title: ClassVar[str] = "Model Stock"
    when_to_use: ClassVar[str] = (
        "Two or more runs of one task: close to the best average without choosing any weight."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.19522"
    group: ClassVar[str] = "average"
    caveat: ClassVar[str] = (
        "Experts of different tasks hardly change the same way, so the result stays near the base."
    )
    scans: ClassVar[int] = 1
    reduces: ClassVar[bool] = False
    MERGEKIT: ClassVar[dict[str, Any]] = {"clamp": False, "floor": 1e-6}

    filter_wise: bool = parameter(
        False,
        "",
        "Choose how far to go towards the average for each row of a tensor, not once for the whole.",
    )
    clamp: bool = parameter(
        True,
        "",
        "Where the experts' changes point apart on average, keep the base; off steps away from the average, as mergekit.",
        rare=True,
    )
    floor: Annotated[float, Field(ge=0, le=1, strict=True)] = parameter(
        0.0,
        "",
        "Changes whose norms multiply to less than this count as less alike than they are; mergekit's guard against 0.",
        rare=True,
    )

    def problems(self, experts: int, profile: Profile) -> list[str]:
        if experts > 1:
            return []
        return ["it needs at least two models beside the base, to measure the angle between their changes"]

    def survey(self, group: Group) -> Survey:
        """t of each tensor; none where every row has its own, unless a row is the whole tensor."""
        (shape,) = group.shapes.values()
        if self.filter_wise and len(shape) > 1:
            return None
        (inner,) = (yield products(lambda piece: piece.deltas)).values()
        return geometry.stock_ratio(inner, self.clamp, self.floor)

    def remarks(self, known: torch.Tensor | None, names: Sequence[str]) -> list[str]:
        if not self.clamp or known is None or float(known) != 0:
            return []
        return [
            "model_stock: where the experts' changes do not point the same way on average, the base is kept."
        ]

    def coefficients(self, piece: Piece, known: torch.Tensor | None) -> torch.Tensor:
        if known is None:
            rows = piece.deltas.double()
            inner = torch.einsum("a...m,b...m->ab...", rows, rows)
            known = geometry.stock_ratio(inner, self.clamp, self.floor)[..., None]
        share = (known / piece.experts).to(piece.deltas)
        return share.expand_as(piece.deltas)
