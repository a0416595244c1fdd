"""Interpolation between vectors, from their inner products alone: factors in float64, never a whole tensor at once."""

from __future__ import annotations

import math
from itertools import combinations

import torch

from merging import ops

SHORT = 1e-7
"""NuSLERP measures no angle at a vector shorter than this."""
PARALLEL = 1e-16
"""Squared sine up to which two vectors are one line."""
STRAIGHT = 1e-7
"""1 + cosθ up to which opposite vectors are one line: below, an arc's factors 1/sin θ make rounding the answer."""
OPPOSITE = 1e-3
"""An angle this near π has no direction to go in."""
CANCELLED = 1e-6
"""A sum of unit vectors shorter than this share of its weights is rounding, not a direction."""


def blend(factors: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Σ_t k_t·v_t in float32, as (Σ k)·v_a + Σ k_t·(v_t − v_a) with the vector a of the largest factor.

    So equal vectors come out as they are where Σ k = 1, and so does one vector whose factor is 1.
    Shapes: factors float64 [vectors] or broadcastable to `vectors` [vectors, *shape].
    """
    factors = factors.to(vectors.device)
    if factors.ndim == 1:
        factors = ops.per_expert(factors, vectors)
    anchor = int(factors.abs().reshape(len(factors), -1).sum(1).argmax())
    merged = factors.sum(0).to(torch.float32) * vectors[anchor]
    for number, factor in enumerate(factors.to(torch.float32)):
        if number != anchor:
            step = factor * (vectors[number] - vectors[anchor])
            merged = torch.where(step == 0, merged, merged + step)
    return merged


def arc(products: torch.Tensor, t: float) -> torch.Tensor:
    """Factors of two vectors at `t` of the arc from the first to the second.

    Shapes: products (a·a, a·b, b·b) float64 [3, *shape] -> [2, *shape]. On one line it is (1 − t, t); a zero vector is
    at a right angle to every other.

    Source: Shoemake 1985; thresholds as in mergekit's nuslerp.
    """
    first, both, second = products
    lengths = first.clamp(min=0).sqrt().clamp(min=SHORT) * second.clamp(min=0).sqrt().clamp(min=SHORT)
    cosine = (both / lengths).clamp(-1, 1)
    line = (1 - cosine.square() <= PARALLEL) | (1 + cosine <= STRAIGHT)
    angle = torch.where(line, 0.0, cosine).acos()
    curved = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()]) / angle.sin()
    straight = torch.stack([torch.full_like(angle, 1 - t), torch.full_like(angle, t)])
    return torch.where(line, straight, curved)


def weighted_direction(products: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Factors of the vector along Σ w·v/(‖v‖ + eps) with length Σ w·‖v‖; where that sum vanishes, the weights.

    Shapes: products float64 [vectors, vectors], weight [vectors] -> [vectors].

    Source: mergekit's multislerp. Its step in the tangent space at that direction is exactly 0.
    """
    weight = weight.double()
    norms = products.diagonal().clamp(min=0).sqrt()
    factors = weight / (norms + eps)
    length = _norm(factors, products)
    if length < max(eps, CANCELLED * float(weight.abs().sum())):
        return weight
    return factors * (weight * norms).sum() / length


def karcher_mean(products: torch.Tensor, max_iter: int, tol: float) -> torch.Tensor:
    """Factors of the mean direction on the sphere, times the mean length.

    Vectors no longer than `tol` count for the length alone; if there is no other, it is their plain mean. A vector
    opposite to the mean gives no direction and is passed over.
    Shapes: products float64 [vectors, vectors] -> [vectors].

    Source: the Karcher (Riemannian) mean by fixed-point iteration of the logarithm map.
    """
    norms = products.diagonal().clamp(min=0).sqrt()
    valid = norms > tol
    if len(norms) == 1 or not bool(valid.any()):
        return torch.full_like(norms, 1 / len(norms))
    cosines = (products / torch.outer(norms, norms))[valid][:, valid].clamp(-1, 1)
    share = 1 / len(cosines)
    mean = torch.full((len(cosines),), share, dtype=torch.float64)
    length = _norm(mean, cosines)
    mean = _first(mean) if length < max(tol, CANCELLED) else mean / length
    for _ in range(max_iter):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = dots.acos()
        used = (angles >= tol) & (angles <= math.pi - OPPOSITE)
        step = torch.where(used, share * angles / angles.sin(), 0.0)
        step = step - (step * dots).sum() * mean
        length = _norm(step, cosines)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean = mean / _norm(mean, cosines)
    factors = torch.zeros_like(norms)
    factors[valid] = mean * norms.mean() / norms[valid]
    return factors


def stock_ratio(products: torch.Tensor, clamp: bool, floor: float) -> torch.Tensor:
    """Model Stock's t = N·cosθ / (1 + (N − 1)·cosθ), cosθ the mean cosine over all pairs of changes.

    Shapes: products float64 [experts, experts, *rows] -> [*rows]. A zero change has the cosine 0 to every other. `clamp`
    takes a negative mean cosine for 0; products of two norms count as at least `floor`.

    Source: Model Stock, 2403.19522.
    """
    count = len(products)
    norms = torch.stack([products[number, number].clamp(min=0).sqrt() for number in range(count)])
    cosines = []
    for one, other in combinations(range(count), 2):
        lengths = (norms[one] * norms[other]).clamp(min=floor)
        cosines.append(torch.where(lengths > 0, products[one, other] / lengths, 0.0).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(0)
    if clamp:
        cosine = cosine.clamp(min=0)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < CANCELLED
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, divisor))


def _norm(factors: torch.Tensor, products: torch.Tensor) -> float:
    """‖Σ k_t·v_t‖ from the vectors' inner products."""
    return math.sqrt(max(0.0, float(factors @ products @ factors)))


def _first(like: torch.Tensor) -> torch.Tensor:
    unit = torch.zeros_like(like)
    unit[0] = 1.0
    return unit
