from __future__ import annotations

from typing import Any, ClassVar

import torch

from merging import ops
from merging.methods.base import Method, Number, ZeroDivisor, mean_problem, parameter, register, zero_divisor
from merging.pieces import Piece


@register
class TaskArithmetic(Method):
    """Adds the experts' task vectors to the base: θ0 + λ·Σ w·δ_t.

    Source: Editing Models with Task Arithmetic, 2212.04089.
    """

    name: ClassVar[str] = "task_arithmetic"
    title: ClassVar[str] = "Task arithmetic"
    when_to_use: ClassVar[str] = (
        "Experts whose changes hardly overlap; the simplest way to keep all of every change."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    MERGEKIT: ClassVar[dict[str, Any]] = {"lambda": 1.0, "zero_divisor": "one"}

    weight: Number | tuple[Number, ...] = parameter(
        1.0, "w", "How much of this expert's change is added.", per_model=True
    )
    lambda_: Number = parameter(0.4, "λ", "Scale of the whole merged change.", alias="lambda")
    normalize: bool = parameter(
        False, "", "Divide by the sum of the weights: an average of changes, not a sum."
    )

    zero_divisor: ZeroDivisor = zero_divisor()

    def problems(self, experts: int) -> list[str]:
        divides = self.normalize and self.zero_divisor == "error"
        return mean_problem(self.for_experts("weight", experts)) if divides else []

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        return ops.shares(piece.weight, self.normalize, piece.deltas)
