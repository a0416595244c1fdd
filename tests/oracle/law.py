"""What DARE and DELLA do by chance in mergekit, written anew in float64: keep probabilities, and draws of a merge."""

from __future__ import annotations

import math

import torch

from oracle.compare import ELECTED, Inputs

UNLIKELY = 1e-9
"""How improbable a deviation must be to count as wrong."""


def keep_probability(delta: torch.Tensor, method: str, own: dict[str, float]) -> torch.Tensor:
    """The chance that each element of one expert's change stays: [*shape] float64."""
    density = own["density"]
    if density >= 1 or density <= 0 or not method.startswith("della"):
        return torch.full(delta.shape, min(1.0, max(0.0, density)), dtype=torch.float64)
    return density - own["epsilon"] + 2 * own["epsilon"] * share_below(delta)


def share_below(delta: torch.Tensor) -> torch.Tensor:
    """The rank of |δ| within its row, from 0 (smallest) to 1 (largest); a 1-D tensor is one row."""
    rows = delta.abs().reshape(1, -1) if delta.ndim < 2 else delta.abs()
    ranks = rows.argsort(1).argsort(1).double()
    return (ranks / (rows.shape[1] - 1)).reshape(delta.shape)


def chances(inputs: Inputs, method: str) -> torch.Tensor:
    """[experts, *shape]"""
    pairs = zip(inputs.deltas, inputs.own, strict=True)
    return torch.stack([keep_probability(delta, method, own) for delta, own in pairs])


def draw(inputs: Inputs, keep: torch.Tensor, method: str, generator: torch.Generator) -> torch.Tensor:
    """One merged change in float64: drop, rescale to the old Σ|δ| of each expert, weigh, elect, combine.

    `keep` are the `chances` of the inputs.
    """
    deltas = inputs.deltas.double()
    kept = deltas * (torch.rand(deltas.shape, generator=generator, dtype=torch.float64) < keep)
    column = (-1, *[1] * (deltas.ndim - 1))
    if inputs.shared["rescale"]:
        before, after = (values.abs().flatten(1).sum(1) for values in (deltas, kept))
        kept *= torch.where((before < 1e-7) | (after < 1e-7), 1.0, before / after).reshape(column)
    weight = torch.tensor(inputs.weights, dtype=torch.float64).reshape(column)
    votes = kept * weight
    used = torch.ones_like(votes)
    if method in ELECTED:
        sign = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
        used = (votes.sign() == sign).double()
    change = (votes * used).sum(0)
    if inputs.shared["normalize"]:
        divisor = (weight * used).sum(0)
        change /= torch.where(divisor == 0, 1.0, divisor)
    return change * inputs.shared["lambda"]


def allowed(variance: float, largest: float) -> float:
    """By how much a sum of independent terms of this total variance, each within ±largest of its mean, may miss its mean
    before the chance is `UNLIKELY`: Bernstein's inequality."""
    rarity = math.log(2 / UNLIKELY)
    linear = rarity * largest / 3
    return linear + math.sqrt(linear**2 + 2 * rarity * variance)
