from __future__ import annotations

from typing import ClassVar

import torch

from merging import geometry
from merging.methods.base import Group, Method, Number, Profile, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import Sums

NO_WEIGHT = 1e-6
"""Two weights that add up to less than this mean the middle."""


@register
class NuSlerp(Method):
    """Spherical interpolation between two models by their weights, or between their changes where a base is named.

    The second model's position on the arc is its share of the weights, t = w2/(w1 + w2); 0.5 where the weights cancel.
    A negative weight goes beyond the ends. It is symmetric, unlike SLERP, which counts from the base.

    Differs from mergekit: angles are measured in float64, so that nearly parallel tensors have one, and opposite ones
    are interpolated on a line, where rounding sends mergekit's anywhere. Nearly opposite vectors swell in both.

    Source: Shoemake 1985, as used for models by mergekit.
    """

    name: ClassVar[str] = "nuslerp"
    title: ClassVar[str] = "NuSLERP"
    when_to_use: ClassVar[str] = (
        "Exactly two models and their weights: a smooth path that keeps the norm, of weights or of changes."
    )
    paper: ClassVar[str] = (
        "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md#nuslerp-nuslerp"
    )
    group: ClassVar[str] = "two"
    caveat: ClassVar[str] = (
        "Nearly opposite models or changes swell, for the arc between them has no shortest way."
    )
    elementwise: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    experts_wanted: ClassVar[int | None] = 2
    scans: ClassVar[int] = 1
    reduces: ClassVar[bool] = False

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "w",
        "How near the result comes to this model: with weights 3 and 1 it lies at a quarter of the way to the other.",
        per_model=True,
    )
    nuslerp_flatten: bool = parameter(
        True, "", "Turn a whole tensor by one angle; off, every row (or column) by its own.", rare=True
    )
    nuslerp_row_wise: bool = parameter(
        False,
        "",
        "With nuslerp_flatten off: an angle for each column of a matrix, not each row; the name is mergekit's.",
        rare=True,
    )

    def problems(self, experts: int, profile: Profile) -> list[str]:
        return [] if experts == 2 else [f"it goes from one model to another, so it needs two, not {experts}"]

    def survey(self, group: Group) -> Survey:
        """The factors of both models for the whole tensor or its columns; None where each row has its own."""
        (shape,) = group.shapes.values()
        parts = not self.nuslerp_flatten and len(shape) > 1
        columns = parts and self.nuslerp_row_wise
        if parts and not columns:
            return None
        (inner,) = (yield Sums(_by_column if columns else _altogether)).values()
        return geometry.arc(inner, self._t(group.experts))

    def merge(self, piece: Piece, known: torch.Tensor | None) -> torch.Tensor:
        if known is None:
            known = geometry.arc(_products(piece).sum(-1, keepdim=True), self._t(piece.experts))
        elif known.ndim > 1:
            known = known[:, None]
        return piece.apply(geometry.blend(known, piece.deltas))

    def _t(self, experts: int) -> float:
        first, second = self.for_experts("weight", experts)
        total = first + second
        return second / total if abs(total) >= NO_WEIGHT else 0.5


def _products(piece: Piece) -> torch.Tensor:
    """a², a·b and b² of both models at every element: float64 [3, *shape]."""
    first, second = piece.deltas.double()
    return torch.stack([first * first, first * second, second * second])


def _altogether(piece: Piece) -> torch.Tensor:
    return _products(piece).reshape(3, -1).sum(1)


def _by_column(piece: Piece) -> torch.Tensor:
    return _products(piece).sum(1)
