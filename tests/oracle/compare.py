"""How far two merges of one recipe may lie apart, derived from the inputs and from what mergekit resolved.

Both programs round to float32 (unit u = 2⁻²⁴) in another order. With T inputs, a merged change is a sum of T products
with a divisor that is a sum of T weights, scaled once: at most 2T + 3 roundings of terms whose sizes add up to at most
gain·size, where size is the largest |δ| (the largest |θ| for methods on the models themselves) and gain the largest
Σ|coefficient|. Adding the base rounds once more, by at most u·|merged|. Two programs differ by at most
u·(2·max|merged| + 2(2T + 3)·gain·size). Methods that measure an angle get `ANGLE` units more: mergekit takes the inner
product, the arc and its sines in float32, so its coefficients are off by some tens of units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from oracle.undecided import UNIT, Undecided

Tensors = dict[str, torch.Tensor]
Read = Callable[[str, str], torch.Tensor]
"""A model's folder and a tensor's name -> the tensor."""
ANGLE = 64
ANGULAR = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}
ELECTED = {"ties", "dare_ties", "della", "breadcrumbs_ties"}
WEIGHTED = {"task_arithmetic", "dare_linear", "della_linear", "breadcrumbs", "linear"}
ON_CHANGES = (ELECTED | WEIGHTED | {"sce", "ram", "ramplus_tl", "multislerp", "nuslerp"}) - {"linear"}


@dataclass(frozen=True)
class Inputs:
    """One output tensor's inputs in float32 and its parameters as mergekit resolved them. deltas: [experts, *shape]."""

    models: torch.Tensor
    base: torch.Tensor | None
    own: list[dict[str, Any]]
    shared: dict[str, Any]

    @classmethod
    def of(cls, resolved: dict[str, Any], method: str, read: Read) -> Inputs:
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
        if method == "passthrough":
            return max(abs(own["scale"] or 1) for own in self.own)
        if method == "ramplus_tl":
            return 1 + self.shared["r"] * self.shared["alpha"]
        if method in ANGULAR:
            # vectors at right angles: the direction of a mean of T has coefficients that add up to √T of the length
            return len(self.models) ** 0.5
        if method not in ELECTED | WEIGHTED:
            return 1.0
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
        roundings = 2 * (2 * len(self.models) + 3) + (ANGLE if method in ANGULAR else 0)
        return UNIT * (2 * merged + roundings * change)


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

    @classmethod
    def of(
        cls, ours: Tensors, theirs: Tensors, resolved: dict[str, Any], method: str, read: Read, exact: Tensors
    ) -> Tally:
        """Compare two merged models; `exact` is ours in float32. Where the output is rounded further, what rounds to
        their value within the bound of our float32 value is no difference."""
        tally = cls()
        for name, entry in resolved.items():
            inputs = Inputs.of(entry, method, read)
            bound = inputs.bound(method)
            difference = (ours[name].float() - theirs[name].float()).abs()
            if theirs[name].dtype != torch.float32:
                low, high = ((exact[name] + way * bound).to(theirs[name].dtype) for way in (-1, 1))
                difference = torch.where((low <= theirs[name]) & (theirs[name] <= high), 0.0, difference)
            largest = float(theirs[name].abs().max())
            tally.add(name, difference, bound, largest, Undecided.of(inputs, method))
        return tally

    def add(self, name: str, difference: torch.Tensor, bound: float, largest: float, left: Undecided) -> None:
        inside = difference[left.decided]
        self.elements += difference.numel()
        self.tied += int(left.tied.sum())
        self.drawn += int(left.drawn.sum())
        self.tied_unequal += int((difference[left.tied] > bound).sum())
        self.drawn_unequal += int((difference[left.drawn] > bound).sum())
        if inside.numel():
            worst = float(inside.max())
            self.worst = max(self.worst, worst / (bound or 1))
            self.relative = max(self.relative, worst / (largest or 1))
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
