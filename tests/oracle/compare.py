"""How far two merges of one recipe may lie apart, derived from the inputs and from what mergekit resolved.

Both programs round to float32 (unit u = 2⁻²⁴) in another order. With T inputs, a merged change is a sum of T products
with a divisor that is a sum of T weights, scaled once: at most 2T + 3 roundings of terms whose sizes add up to at most
gain·size, where size is the largest |δ| (the largest |θ| for methods on the models themselves) and gain the largest
Σ|coefficient|. Adding the base rounds once more, by at most u·|merged|. Two programs differ by at most
u·(2·max|merged| + 2(2T + 3)·gain·size).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

UNIT = 2.0**-24
ELECTED = {"ties", "dare_ties", "della"}
ON_CHANGES = {*ELECTED, "task_arithmetic", "dare_linear", "della_linear"}
SLERP_GAIN = 2.0**0.5
"""(sin (1−t)θ + sin tθ) / sin θ = 1/cos(θ/2) at its largest, for angles up to a right one."""


@dataclass(frozen=True)
class Inputs:
    """One output tensor's inputs in float32 and its parameters as mergekit resolved them. deltas: [experts, *shape]."""

    models: torch.Tensor
    base: torch.Tensor | None
    own: list[dict[str, Any]]
    shared: dict[str, Any]

    @classmethod
    def of(cls, resolved: dict[str, Any], method: str, read) -> Inputs:
        base = resolved["base"] if method in ON_CHANGES else None
        models = [model for model in resolved["models"] if model != base]
        values = torch.stack([read(model, resolved["names"][model]).float() for model in models])
        return cls(
            models=values,
            base=None if base is None else read(base, resolved["names"][base]).float(),
            own=[resolved["own"][model] for model in models],
            shared=resolved["shared"],
        )

    @property
    def deltas(self) -> torch.Tensor:
        return self.models - self.base if self.base is not None else self.models

    @property
    def weights(self) -> list[float]:
        return [own.get("weight", 1.0) for own in self.own]

    def gain(self, method: str) -> float:
        """The largest Σ|coefficient| an element can get."""
        if method == "slerp":
            return SLERP_GAIN
        if method == "passthrough":
            return max(abs(own["scale"] or 1) for own in self.own)
        weights = self.weights
        chosen = [weights]
        if method in ELECTED:
            chosen = [
                [w for w, used in zip(weights, uses, strict=True) if used]
                for uses in product((0, 1), repeat=len(weights))
            ]
        gains = [0.0]
        for some in chosen:
            divisor = abs(sum(some)) if self.shared.get("normalize") else 1.0
            gains.append(sum(map(abs, some)) / (divisor if divisor > 1e-8 else 1.0))
        return max(gains) * abs(self.shared.get("lambda", 1.0))

    def bound(self, method: str) -> float:
        """The largest difference that rounding alone can make in this tensor."""
        change = self.gain(method) * float(self.deltas.abs().max())
        merged = change + (0.0 if self.base is None else float(self.base.abs().max()))
        return UNIT * (2 * merged + 2 * (2 * len(self.models) + 3) * change)


def kept_count(density: float, elements: int) -> int:
    """How many elements mergekit's trim keeps."""
    return elements if density >= 1 else 0 if density <= 0 else max(1, int(density * elements))


@dataclass
class Undecided:
    """Elements that the promise leaves out: |δ| equal to a threshold that cuts through equals, and elections whose sum
    is zero but for rounding."""

    tied: torch.Tensor
    drawn: torch.Tensor

    @classmethod
    def of(cls, inputs: Inputs, method: str) -> Undecided:
        deltas = inputs.deltas
        tied = torch.zeros(deltas.shape[1:], dtype=torch.bool)
        drawn = tied.clone()
        if method != "ties":
            return cls(tied, drawn)
        trimmed = deltas.double().clone()
        for change, kept, own in zip(deltas, trimmed, inputs.own, strict=True):
            size = change.abs()
            count = kept_count(own["density"], size.numel())
            ordered = size.flatten().sort(descending=True).values
            if count == 0:
                kept.zero_()
            elif count < len(ordered):
                threshold = ordered[count - 1]
                kept *= size >= threshold
                if ordered[count] == threshold:
                    tied |= size == threshold
        votes = trimmed * torch.tensor(inputs.weights).double().reshape(-1, *[1] * (trimmed.ndim - 1))
        mass = votes.abs().sum(0)
        drawn = (mass > 0) & (votes.sum(0).abs() <= len(votes) * UNIT * mass)
        return cls(tied, drawn & ~tied)

    @property
    def decided(self) -> torch.Tensor:
        return ~(self.tied | self.drawn)


@dataclass
class Tally:
    """What a comparison of two models came to, to be printed."""

    elements: int = 0
    tied: int = 0
    tied_unequal: int = 0
    drawn: int = 0
    drawn_unequal: int = 0
    worst: float = 0.0
    """Largest difference as a share of its bound."""
    relative: float = 0.0
    """Largest difference as a share of its tensor's largest value."""
    beyond: list[str] = field(default_factory=list)

    def add(self, name: str, difference: torch.Tensor, bound: float, largest: float, left: Undecided) -> None:
        inside = difference[left.decided]
        self.elements += difference.numel()
        self.tied += int(left.tied.sum())
        self.drawn += int(left.drawn.sum())
        self.tied_unequal += int((difference[left.tied] > bound).sum())
        self.drawn_unequal += int((difference[left.drawn] > bound).sum())
        if inside.numel():
            worst = float(inside.max())
            self.worst = max(self.worst, worst / bound)
            self.relative = max(self.relative, worst / largest)
            if worst > bound:
                self.beyond.append(
                    f"{name}: {int((inside > bound).sum())} of {inside.numel()} elements differ by up to {worst:.3g}, "
                    f"allowed {bound:.3g}"
                )

    def __str__(self) -> str:
        return (
            f"{self.elements} elements; left out: {self.tied} tied at a threshold ({self.tied_unequal} unequal), "
            f"{self.drawn} drawn ({self.drawn_unequal} unequal); largest difference {self.relative:.2g} of the largest "
            f"value, {self.worst:.2g} of the bound"
        )
