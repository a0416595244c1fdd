"""The elements that no promise covers, because mergekit's own choice there is undefined or hangs on float32 rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

UNIT = 2.0**-24
"""The unit roundoff of float32."""
NEAR = {"sce": 1e-5, "arcee_fusion": 0.02}
"""How near a threshold, relative to it, an element's score cannot be told from it: sce's float32 variance; the float32
divergence of softmaxes in arcee_fusion, whose terms cancel to a hundredth of their last digits."""


def kept_count(density: float, elements: int) -> int:
    """How many elements mergekit's trim keeps."""
    return elements if density >= 1 else 0 if density <= 0 else max(1, int(density * elements))


def kept_window(method: str, own: dict[str, Any], elements: int) -> tuple[int, int]:
    """Which ranks stay, |δ| ascending: from the first up to, without, the second."""
    if not method.startswith("breadcrumbs"):
        return elements - kept_count(own["density"], elements), elements
    if own["density"] >= 1:
        return 0, elements
    kept, top = int(own["density"] * elements), int(own["gamma"] * elements)
    below = max(0, elements - kept - top)
    return below, below + kept


def cut_through(size: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What of |δ| has the ranks low to high, and what equals a value that the cut at either end goes through."""
    ordered = size.flatten().sort().values
    tied = torch.zeros_like(size, dtype=torch.bool)
    if low == high:
        return tied, tied
    for end in (low, high):
        if 0 < end < len(ordered) and ordered[end - 1] == ordered[end]:
            tied |= size == ordered[end]
    return (size >= ordered[low]) & (size <= ordered[high - 1]), tied


@dataclass
class Undecided:
    """`tied`: the score equals a threshold that cuts through equals (or cannot be told from it). `drawn`: an election
    whose sum is zero but for rounding. Both bool of the tensor's shape."""

    tied: torch.Tensor
    drawn: torch.Tensor

    @classmethod
    def of(cls, inputs, method: str) -> Undecided:
        nothing = torch.zeros(inputs.models.shape[1:], dtype=torch.bool)
        if method in {"ties", "breadcrumbs", "breadcrumbs_ties"}:
            return cls._of_trimmed(inputs, method)
        if method == "sce" and inputs.shared["select_topk"] < 1:
            return cls._of_selected(inputs)
        if method == "arcee_fusion":
            return cls(_near_importance(*inputs.models.double()), nothing)
        return cls(nothing, nothing)

    @classmethod
    def _of_trimmed(cls, inputs, method: str) -> Undecided:
        tied = torch.zeros(inputs.deltas.shape[1:], dtype=torch.bool)
        votes = []
        for delta, own in zip(inputs.deltas, inputs.own, strict=True):
            kept, cut = cut_through(delta.abs(), *kept_window(method, own, delta.numel()))
            tied |= cut
            votes.append(delta.double() * kept * own["weight"])
        if method == "breadcrumbs":
            return cls(tied, torch.zeros_like(tied))
        return cls(tied, _draws(torch.stack(votes)) & ~tied)

    @classmethod
    def _of_selected(cls, inputs) -> Undecided:
        """Where equals are cut through, the experts' weights hang on which of them stay: the whole tensor is tied."""
        deltas = inputs.deltas.double()
        spread = deltas.var(0, unbiased=False)
        count = int(int((spread != 0).sum()) * inputs.shared["select_topk"])
        ordered = spread.flatten().sort(descending=True).values
        cut = 0 < count < len(ordered) and ordered[count] >= (1 - NEAR["sce"]) * ordered[count - 1]
        tied = torch.full(spread.shape, bool(cut))
        return cls(tied, _draws(deltas) & ~tied)

    @property
    def decided(self) -> torch.Tensor:
        return ~(self.tied | self.drawn)


def _draws(votes: torch.Tensor) -> torch.Tensor:
    mass = votes.abs().sum(0)
    return (mass > 0) & (votes.sum(0).abs() <= len(votes) * UNIT * mass)


def _near_importance(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Elements whose |θ1 − θ0|·KL(softmax θ1, softmax θ0) is near arcee_fusion's threshold, median + 1.5·(q3 − q1)."""
    after, before = (values.softmax(-1) + 1e-8 for values in (other, base))
    score = (other - base).abs() * (after * (after / before).log()).sum(-1, keepdim=True)
    ordered = score.flatten().sort().values
    low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    return (score - threshold).abs() <= NEAR["arcee_fusion"] * threshold.abs()
