from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from merging import ops
from merging.cuts import Cut, largest_cut
from merging.methods.base import Group, Method, Share, Survey, parameter, register
from merging.methods.sparse import COUNT
from merging.pieces import Explained, Piece
from merging.statistics import Sums

LEAST_SHARE = 1e-6
"""Experts that agree on an element are divided by at least this much of the weights, as in the authors' code."""


@dataclass(frozen=True)
class Selection:
    """The elements that are merged (None: all), and every expert's share of the squares there, float64 [experts]."""

    cut: Cut | None
    shares: torch.Tensor


@register
class Sce(Method):
    """Select where the experts differ most, calculate their weights, erase who disagrees.

    For each tensor: keep the elements with the largest variance over the experts; an expert's weight is its share of
    the squared changes there; experts whose sign is not that of the summed changes are left out of an element's
    weighted mean.

    Differs from mergekit: weights follow the squares however small they are. mergekit gives all experts the same weight
    where the mean squares add up to less than 1e-6, which is the rule for lightly tuned models; `profile: mergekit`
    restores it. Equal variances: the lower position wins.

    Source: FuseChat, 2408.07990 and its authors' code in mergekit.
    """

    name: ClassVar[str] = "sce"
    title: ClassVar[str] = "SCE"
    when_to_use: ClassVar[str] = (
        "Experts of unequal strength: weights come from how much each changed, tensor by tensor."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2408.07990"
    group: ClassVar[str] = "sign"
    caveat: ClassVar[str] = (
        "An expert counts by the square of its change, so the most strongly tuned one rules."
    )
    scans: ClassVar[int] = 4
    MERGEKIT: ClassVar[dict[str, Any]] = {"floor": 1e-6, "count": "floor"}

    select_topk: Share = parameter(
        1.0,
        "τ",
        "Share of the elements that is merged, those first on which the experts differ most; the rest stays the base's.",
    )
    count: ops.Counting = parameter("nearest", "", COUNT.format("select_topk"), rare=True)
    floor: Annotated[float, Field(ge=0, le=1, strict=True)] = parameter(
        0.0,
        "",
        "Changes so small that their mean squares add up to less than this give every expert the same weight.",
        rare=True,
    )

    def survey(self, group: Group) -> Survey:
        cut = None
        if self.select_topk < 1:
            differing = yield Sums(lambda piece: _variance(piece).count_nonzero())
            kept = self._kept(int(sum(differing.values())))
            cut = yield from largest_cut([kept], group.elements, keys=_variance_keys)
        sums = yield Sums(lambda piece: _squares(_selected(piece, cut)))
        squares = sum(sums.values()) / group.elements
        total = float(squares.sum())
        equal = total == 0 or total < self.floor
        return Selection(cut, torch.full_like(squares, 1 / len(squares)) if equal else squares / total)

    def coefficients(self, piece: Piece, known: Selection) -> torch.Tensor:
        return self.explain(piece, known).coefficients

    def explain(self, piece: Piece, known: Selection) -> Explained:
        """The erasure is the election; what is not selected, or of an expert whose share is 0, is dropped."""
        changes = _selected(piece, known.cut)
        agree = ops.agreement(changes, ops.elect_sign(changes, "total", 1.0))
        share = ops.per_expert(known.shares.to(changes), changes)
        shares = agree * share
        return Explained(shares / ops.sum_experts(shares).clamp(min=LEAST_SHARE), changes * share.sign())

    def _kept(self, differing: int) -> int:
        """`floor` multiplies in float32, as mergekit's tensors do."""
        if self.count == "floor":
            return int(torch.tensor(differing) * self.select_topk)
        return round(self.select_topk * differing)


def _variance(piece: Piece) -> torch.Tensor:
    """The variance of each element over the experts, float32 [*shape]; exactly 0 where all agree."""
    changes = piece.deltas.double()
    return _mean((changes - _mean(changes)).square()).to(torch.float32)


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Over the experts, in their order and without a division by a number, which a GPU would round in another way."""
    return ops.sum_experts(values) * (1 / len(values))


def _variance_keys(piece: Piece) -> torch.Tensor:
    return ops.magnitude_bits(_variance(piece)[None])


def _selected(piece: Piece, cut: Cut | None) -> torch.Tensor:
    return piece.deltas if cut is None else piece.deltas * ops.factor(cut.keep(piece))


def _squares(changes: torch.Tensor) -> torch.Tensor:
    return changes.double().square().reshape(len(changes), -1).sum(1)
