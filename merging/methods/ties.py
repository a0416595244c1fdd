from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch

from merging import ops
from merging.methods.base import (
    Group,
    Method,
    Number,
    Scope,
    Share,
    Survey,
    ZeroDivisor,
    parameter,
    register,
    zero_divisor,
)
from merging.pieces import Piece
from merging.statistics import Attained, Cut, SignBalance, largest_cut

MOST_MIXED = 12
"""Experts up to which every subset of weights of both signs is tried for a sum of 0."""


@dataclass(frozen=True)
class Known:
    """What TIES learns of its scope: each expert's exact cut, and the sign where an election is a draw."""

    cut: Cut
    if_draw: float = 1.0


@register
class Ties(Method):
    """Trim, elect sign, disjoint mean.

    Differs from mergekit by default: the whole model is ranked together, elections count unweighted changes, and a
    draw goes to the scope's majority sign. `profile: mergekit` restores mergekit's choices. Differs from the authors'
    code, which keeps one element more than asked and fails at density 1.

    Source: TIES-Merging, 2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    when_to_use: ClassVar[str] = (
        "Experts that pull the same weights in different directions; keeps the large changes."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    scans: ClassVar[int] = 3
    MERGEKIT: ClassVar[dict[str, Any]] = {
        "density": 1.0,
        "scope": "tensor",
        "elect_on": "weighted",
        "zero_sum": "plus",
        "count": "floor",
        "zero_divisor": "one",
    }

    weight: Number | tuple[Number, ...] = parameter(
        1.0, "w", "Weight of this expert among those that agree with the elected sign.", per_model=True
    )
    density: Share | tuple[Share, ...] = parameter(
        0.2, "k", "Share of this expert's change that is kept, the largest first.", per_model=True
    )
    lambda_: Number = parameter(1.0, "λ", "Scale of the whole merged change.", alias="lambda")
    scope: Scope = parameter(
        "model", "", "What is ranked together: each tensor, each block, or the whole model."
    )
    normalize: bool = parameter(
        True, "", "Divide by the weights of the experts that agree (the disjoint mean)."
    )
    sign: Literal["total", "frequency"] = parameter(
        "total", "γ", "Elect by the mass of the changes or by the number of experts."
    )
    elect_on: Literal["delta", "weighted"] = parameter("delta", "", "Whether weights count in the election.")
    zero_sum: Literal["majority", "plus"] = parameter(
        "majority", "", "The sign where the election is a draw."
    )
    count: ops.Counting = parameter("nearest", "", "How density times elements becomes a whole number.")

    zero_divisor: ZeroDivisor = zero_divisor()

    def problems(self, experts: int) -> list[str]:
        if not self.normalize or self.zero_divisor == "one":
            return []
        weights = [weight for weight in self.for_experts("weight", experts) if weight]
        if len({weight > 0 for weight in weights}) < 2:
            return []
        if len(weights) > MOST_MIXED:
            return [f"weights of both signs are only possible for up to {MOST_MIXED} experts"]
        for size in range(2, len(weights) + 1):
            for some in combinations(weights, size):
                if ops.cancel(some):
                    text = " and ".join(f"{weight:g}" for weight in some)
                    return [f"the weights {text} cancel, so the mean over these experts does not exist"]
        return []

    def survey(self, group: Group) -> Survey:
        densities = self.for_experts("density", group.experts)
        kept = [ops.kept_count(density, group.elements, self.count) for density in densities]
        cut = yield from largest_cut(kept, group.elements)
        if self.zero_sum == "plus" or group.experts == 1:
            return Known(cut)
        balance = yield SignBalance(lambda piece: self._votes(piece, cut.keep(piece) * piece.deltas))
        return Known(cut, -1.0 if balance < 0 else 1.0)

    def attained(self, known: Known) -> Attained:
        return known.cut.attained

    def coefficients(self, piece: Piece, known: Known) -> torch.Tensor:
        trimmed = known.cut.keep(piece) * piece.deltas
        votes = self._votes(piece, trimmed)
        elected = ops.elect_sign(votes, self.sign, known.if_draw)
        return ops.disjoint_coefficients(votes.sign() == elected, piece.weight, self.normalize)

    def _votes(self, piece: Piece, trimmed: torch.Tensor) -> torch.Tensor:
        return trimmed if self.elect_on == "delta" else trimmed * ops.per_expert(piece.weight, trimmed)
