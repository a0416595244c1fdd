from __future__ import annotations

from typing import Any, ClassVar

import torch

from merging import ops
from merging.methods.base import Method, Number, parameter, register
from merging.pieces import Piece


@register
class Linear(Method):
    """Weighted average of the models themselves: θ = Σ w·θ_t / Σ w. It needs no base.

    Source: Model soups, 2203.05482.
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "Linear (model soup)"
    when_to_use: ClassVar[str] = "Models tuned from one base for similar tasks; the baseline to beat."
    paper: ClassVar[str] = "https://arxiv.org/abs/2203.05482"
    needs_base: ClassVar[bool] = False

    weight: Number | tuple[Number, ...] = parameter(
        1.0, "w", "Share of this model in the average.", per_model=True
    )
    normalize: bool = parameter(True, "", "Divide by the sum of the weights.")

    def problems(self, experts: int) -> list[str]:
        if self.normalize and sum(self.for_experts("weight", experts)) == 0:
            return [
                "the weights add up to 0, so their average does not exist; change one or set normalize: false"
            ]
        return []

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        return ops.shares(piece.weight, self.normalize, piece.deltas)

    def merge(self, piece: Piece, known: Any) -> torch.Tensor:
        """An average is taken from the first model on, θ_1 + Σ share·(θ_t − θ_1): equal models come out unchanged."""
        if not self.normalize:
            return super().merge(piece, known)
        first, others = piece.models[0], piece.models[1:]
        if len(others) == 0:
            return first
        change = ops.weighted_sum(self.coefficients(piece, known)[1:], others - first)
        return torch.where(change == 0, first, first + change)
