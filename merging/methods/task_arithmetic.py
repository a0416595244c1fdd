from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from merging.methods.base import Number, parameter, register
from merging.methods.combine import LAMBDA, Added

FAR = 3
"""A sum of the factors from which on whole changes that agree go far beyond any one of them."""


@register
class TaskArithmetic(Added):
    """Adds the experts' task vectors to the base: θ0 + λ·Σ w·δ_t.

    Source: Editing Models with Task Arithmetic, 2212.04089.
    """

    name: ClassVar[str] = "task_arithmetic"
    title: ClassVar[str] = "Task arithmetic"
    when_to_use: ClassVar[str] = (
        "Experts whose changes hardly overlap; the simplest way to keep all of every change."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    group: ClassVar[str] = "baseline"
    MERGEKIT: ClassVar[dict[str, Any]] = {"lambda": 1.0, "zero_divisor": "one"}

    lambda_: Number = parameter(0.4, "λ", LAMBDA, alias="lambda")

    def cautions(self, changes: Sequence[float], names: Sequence[str]) -> list[str]:
        found = super().cautions(changes, names)
        total = self.lambda_ * sum(self.for_experts("weight", len(names)))
        if not found and not self.normalize and total >= FAR:
            found.append(
                f"lambda times the sum of the weights is {total:g}: where the experts agree, the merge goes {total:g} times "
                "as far as one of them. Lower lambda or the weights, or set normalize: true."
            )
        return found
