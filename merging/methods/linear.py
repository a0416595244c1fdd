from __future__ import annotations

from typing import Any, ClassVar

import torch

from merging import ops
from merging.methods.base import Method, Number, Profile, parameter, register
from merging.methods.combine import mean_problem
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
    group: ClassVar[str] = "baseline"
    caveat: ClassVar[str] = "An average means something only for models that come from one ancestor."
    elementwise: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = False

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "w",
        "Share of this model in the average, beside the others' weights; 0 leaves it out.",
        per_model=True,
    )
    normalize: bool = parameter(
        True,
        "",
        "Divide by the sum of the weights. Off, weights that do not add up to 1 scale the whole model.",
    )

    def problems(self, experts: int, profile: Profile) -> list[str]:
        return mean_problem(self.for_experts("weight", experts)) if self.normalize else []

    def sweep(self, piece: Piece, known: Any) -> ops.Sweep | None:
        if not bool(piece.weight.all()):
            return None
        shares = ops.shares(piece.weight, self.normalize)
        return ops.Sweep(shares.view(piece.one_each), keeps_common=self.normalize)

    def merge(self, piece: Piece, known: Any) -> torch.Tensor:
        """Models of weight 0 take no part; where all others are equal, an average is exactly their value."""
        models, weight = piece.models, piece.weight
        if not bool(weight.all()):
            models, weight = models[weight != 0], weight[weight != 0]
        if len(models) == 0:
            return torch.zeros_like(piece.models[0])
        merged = ops.weighted_sum(ops.per_expert(ops.shares(weight, self.normalize), models), models)
        return ops.keep_common(models, merged) if self.normalize else merged
