"""How sparse changes become one: added up (task arithmetic), or elected and averaged where they agree (TIES)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch

from merging import ops
from merging.methods.base import Group, Number, Profile, Survey, parameter
from merging.methods.sparse import Sparse, Sparsity
from merging.pieces import Explained, Piece
from merging.statistics import Attained, Sums

ZeroDivisor = Literal["error", "one"]
ElectOn = Literal["delta", "weighted"]
ZeroSum = Literal["majority", "plus"]
LAMBDA = "Scale of what all experts change together: 0 is the base, 1 adds it as it is, more exaggerates it."
NORMALIZE = "Divide by the sum of the weights: an average of the changes. Off adds them up, so more experts move the base further."
ELECT_ON = (
    "What is summed to elect a direction: the changes as they are (delta), or times the experts' weights (weighted), "
    "which gives a heavier expert more say."
)
ZERO_SUM = (
    "Where up and down are exactly equal: take the direction that most elements of the scope took (majority), or up "
    "(plus) as mergekit does."
)
OVERSHOOT = 2
"""From this scale on, changes are applied far beyond what any expert learned."""
MOST_MIXED = 12
"""Experts up to which every subset of weights of both signs is tried for a sum of 0."""


class Combined(Sparse):
    """What both ways to combine have in common."""

    lambda_: Number = parameter(1.0, "λ", LAMBDA, alias="lambda")
    normalize: bool = parameter(False, "", NORMALIZE)
    zero_divisor: ZeroDivisor = parameter(
        "error",
        "",
        "What to do where the weights to divide by add up to 0: refuse the merge, or divide by 1 as mergekit does.",
        rare=True,
    )

    def cautions(self, changes: Sequence[float], names: Sequence[str]) -> list[str]:
        found = super().cautions(changes, names)
        weights = self.for_experts("weight", len(names))
        scale = self.lambda_ * (1 if self.normalize else sum(weights) / len(weights))
        if scale >= OVERSHOOT:
            what = "lambda" if self.normalize else "lambda times the mean weight"
            found.append(
                f"{what} is {scale:g}, so every change is applied that many times over; values near 1 are usual."
            )
        return found


class Added(Combined):
    """Δ = λ·Σ w_t·δ̂_t, divided by Σ w_t if `normalize`."""

    def problems(self, experts: int, profile: Profile) -> list[str]:
        found = super().problems(experts, profile)
        if self.normalize and self.zero_divisor == "error":
            found += mean_problem(self.for_experts("weight", experts))
        return found

    def survey(self, group: Group) -> Survey:
        return (yield from self.sparsify(group))

    def attained(self, known: Any) -> Attained | None:
        return known.cut.attained if known.cut else None

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        shares = ops.shares(piece.weight, self.normalize)
        return shares.view(piece.one_each) * self.factors(piece, known)


@dataclass(frozen=True)
class Ballot:
    """What an election needs to know of its scope: the sparse changes, and the sign where it is a draw."""

    sparsity: Sparsity
    if_draw: float = 1.0


class Elected(Combined):
    """Elect a sign for every element, then combine the experts that agree with it.

    Source: TIES-Merging, 2306.01708, steps 2 and 3.
    """

    normalize: bool = parameter(
        True, "", "Average the experts that agree on an element, by their weights; off adds them up."
    )
    sign: Literal["total", "frequency"] = parameter(
        "total",
        "γ",
        "Who decides whether an element goes up or down: the larger sum of changes (total), where one large change "
        "outvotes two small ones, or the greater number of experts (frequency).",
        rare=True,
    )
    elect_on: ElectOn = parameter("delta", "", ELECT_ON, rare=True)
    zero_sum: ZeroSum = parameter("majority", "", ZERO_SUM, rare=True)

    def problems(self, experts: int, profile: Profile) -> list[str]:
        found = super().problems(experts, profile)
        if self.normalize and self.zero_divisor == "error":
            found += disjoint_problem(self.for_experts("weight", experts))
        return found

    def survey(self, group: Group) -> Survey:
        sparsity = yield from self.sparsify(group)
        if self.zero_sum == "plus" or group.experts == 1:
            return Ballot(sparsity)
        weighted = self.elect_on == "weighted"
        balance = yield Sums(
            lambda piece: ops.balance(
                self.factors(piece, sparsity), piece.changes, piece.weight, weighted=weighted
            )
        )
        return Ballot(sparsity, -1.0 if sum(float(sign) for sign in balance.values()) < 0 else 1.0)

    def attained(self, known: Ballot) -> Attained | None:
        return known.sparsity.cut.attained if known.sparsity.cut else None

    def coefficients(self, piece: Piece, known: Ballot) -> torch.Tensor:
        return self.explain(piece, known).coefficients

    def explain(self, piece: Piece, known: Ballot) -> Explained:
        """What was trimmed or dropped has no vote; who loses the vote has a sparse factor, but no coefficient."""
        factors = self.factors(piece, known.sparsity)
        return Explained(
            ops.elected_coefficients(factors, piece.deltas, self._election(piece, known)), factors
        )

    def sweep(self, piece: Piece, known: Ballot) -> ops.Sweep:
        factors = self.factors(piece, known.sparsity)
        return ops.Sweep(factors, self.lambda_, election=self._election(piece, known))

    def _election(self, piece: Piece, known: Ballot) -> ops.Election:
        weighted = self.elect_on == "weighted"
        return ops.Election(piece.weight, weighted, self.sign, known.if_draw, self.normalize)


def mean_problem(weights: tuple[float, ...]) -> list[str]:
    """Why there is no mean with these weights: a sentence, or nothing."""
    if not len(weights) or not ops.cancel(weights):  # without a model there is another problem
        return []
    return ["the weights add up to 0, so their average does not exist; change one or set normalize: false"]


def disjoint_problem(weights: tuple[float, ...]) -> list[str]:
    """Why some experts that agree may have no mean: a sentence, or nothing."""
    weights = tuple(weight for weight in weights if weight)
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
