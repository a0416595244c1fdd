"""Model Breadcrumbs: of every change drop the largest and the smallest, keep what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from merging import ops
from merging.cuts import Cut, largest_cut
from merging.methods.base import Group, Number, Scope, Share, Survey, parameter, register
from merging.methods.combine import LAMBDA, Added, Elected
from merging.methods.sparse import SCOPE, Trim
from merging.pieces import Piece
from merging.statistics import Attained

MERGEKIT: dict[str, Any] = {
    "density": 1.0,
    "gamma": 0.01,
    "lambda": 1.0,
    "scope": "tensor",
    "normalize": False,
    "count": "floor",
    "zero_divisor": "one",
}


class Band(Cut):
    """What lies between two cuts for each expert: those that drop the largest come first, those of the rest after."""

    def keep(self, piece: Piece) -> torch.Tensor:
        both = super().keep(piece)
        largest, rest = both[: len(both) // 2], both[len(both) // 2 :]
        return rest & ~largest


def band_cut(dropped: Sequence[int], kept: Sequence[int], elements: int) -> Survey:
    """The scans that find, for each expert, the `kept` largest |δ| after its `dropped` largest."""
    experts = len(kept)
    ends = [largest + within for largest, within in zip(dropped, kept, strict=True)]
    cut: Cut = yield from largest_cut([*dropped, *ends], elements, rows=[*range(experts)] * 2)
    nonzero = cut.attained.nonzero
    inside = tuple(end - start for start, end in zip(nonzero[:experts], nonzero[experts:], strict=True))
    attained = Attained(elements, tuple(kept), inside, cut.attained.tied[experts:])
    return Band(cut.bits, cut.allowance, attained, cut.ranking)


class Crumbs(Trim):
    """Drops the gamma largest |δ| of a scope, then keeps `density` of it, the largest first.

    Source: Model Breadcrumbs, 2312.06795.
    """

    density: Share | tuple[Share, ...] = parameter(
        0.15,
        "β",
        "Share of this expert's change that is kept: the largest that are no outliers. The rest goes back to the base.",
        per_model=True,
    )
    gamma: Share | tuple[Share, ...] = parameter(
        0.006,
        "γ",
        "Share of this expert's change that is dropped as outliers, the very largest first; 0 drops none.",
        per_model=True,
    )
    scope: Scope = parameter("tensor", "", SCOPE)

    def select(self, group: Group) -> Survey:
        both = zip(
            self.for_experts("density", group.experts), self.for_experts("gamma", group.experts), strict=True
        )
        windows = [ops.window(density, gamma, group.elements, self.count) for density, gamma in both]
        dropped, kept = zip(*windows, strict=True)
        return (yield from band_cut(dropped, kept, group.elements))


@register
class Breadcrumbs(Added, Crumbs):
    """Drop the outliers and the small changes of every expert, add up what is left.

    A gamma above 1 − density counts as 1 − density, so density 1 keeps all. The defaults are where the authors' search
    begins. Differs from the authors' code, which ranks every row of a tensor by itself, and from mergekit in nothing
    but the defaults; a density that keeps no element of a small tensor keeps one under `profile: paper`.

    Source: Model Breadcrumbs, 2312.06795.
    """

    name: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Model Breadcrumbs"
    when_to_use: ClassVar[str] = (
        "Many experts, where a few outliers of each would swamp the others and small changes are noise."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.06795"
    group: ClassVar[str] = "sign"
    scans: ClassVar[int] = 2
    MERGEKIT: ClassVar[dict[str, Any]] = MERGEKIT

    lambda_: Number = parameter(0.2, "α", LAMBDA, alias="lambda")


@register
class BreadcrumbsTies(Elected, Crumbs):
    """Drop the outliers and the small changes of every expert, then elect signs and combine as TIES does.

    Differs from mergekit by default: elections count unweighted changes, a draw goes to the majority sign, and experts
    that agree are averaged, not added up. `profile: mergekit` restores its choices.

    Source: Model Breadcrumbs, 2312.06795, with TIES-Merging, 2306.01708, as combined by mergekit.
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    title: ClassVar[str] = "Breadcrumbs with TIES"
    when_to_use: ClassVar[str] = "As Model Breadcrumbs, for experts that pull in different directions."
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.06795"
    group: ClassVar[str] = "sign"
    scans: ClassVar[int] = 3
    MERGEKIT: ClassVar[dict[str, Any]] = {**MERGEKIT, "elect_on": "weighted", "zero_sum": "plus"}
