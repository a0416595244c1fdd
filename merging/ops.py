"""Pure tensor operations that the methods are made of. Task vectors are float32 of shape [experts, *shape]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

TINY_SUM = 1e-8
CANCELLED = 1e-6
"""A sum of weights smaller than this share of their magnitudes is float32 rounding, not a divisor."""
EXPONENTS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""The integers that have the bits of floating-point values, and the bits of the exponent."""
INNER_CHUNK = 1 << 10
"""Inner products are added up in float32 over so many elements, from there on in float64."""
SUM_CHUNK = 1 << 8
"""The same for sums of magnitudes."""
EXACT_CHUNK = 1 << 14
Counting = Literal["nearest", "floor"]


def kept_count(density: float, elements: int, count: Counting) -> int:
    """How many of `elements` a density keeps.

    `nearest`: round(density·n), at least 1 where density > 0 and n > 0. `floor` (mergekit): everything from density 1
    up, nothing from 0 down, else max(1, int(density·n)).
    """
    if elements == 0 or density <= 0:
        return 0
    if density >= 1:
        return elements
    kept = int(density * elements) if count == "floor" else round(density * elements)
    return max(1, kept)


def window(density: float, gamma: float, elements: int, count: Counting) -> tuple[int, int]:
    """How many of the largest of `elements` are dropped, and how many of the next are kept.

    Never fewer than asked are kept: a gamma above 1 − density counts as 1 − density. `floor` (mergekit) keeps
    int(density·n), which may be none.
    """
    kept = kept_count(density, elements, count)
    if count == "floor" and density < 1:
        kept = int(density * elements)
    dropped = int(gamma * elements) if count == "floor" else round(gamma * elements)
    return min(dropped, elements - kept), kept


def magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    """|x| of float32 values as int32 that order exactly as the magnitudes do."""
    return values.contiguous().view(torch.int32) & 0x7FFFFFFF


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is true, in row-major order: int64. On the CPU by NumPy, in a quarter of torch's time."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def select(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The values [n] where a mask [n] is true. On the CPU by NumPy, in half of torch's time."""
    if values.device.type != "cpu":
        return values[mask]
    return torch.from_numpy(values.numpy()[mask.numpy()])


def distinct(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct of integers [n] in ascending order, and how often each is there. On the CPU by NumPy, in a fifth of
    torch's time."""
    if values.device.type != "cpu":
        found: tuple[torch.Tensor, torch.Tensor] = values.unique(return_counts=True)
        return found
    one, counts = np.unique(values.numpy(), return_counts=True)
    return torch.from_numpy(one), torch.from_numpy(counts)


def broadcast_rows(values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of what broadcasts to a tensor: all of it where it has one value for every row."""
    return values[start:stop] if values.ndim and values.shape[0] > 1 else values


def order_bits(values: torch.Tensor) -> torch.Tensor:
    """float32 values as int32 that order exactly as the values do; −0 and 0 are equal."""
    bits = (values + 0.0).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def from_order_bits(bits: torch.Tensor) -> torch.Tensor:
    """The inverse of `order_bits`."""
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def factor(mask: torch.Tensor) -> torch.Tensor:
    """A bool mask as float32 of 0 and 1. By way of bytes, which torch widens several times as fast as bool."""
    return mask.view(torch.uint8).to(torch.float32)


def choose(mask: torch.Tensor, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` where the mask is set, `other` elsewhere, float32, bit by bit: without a branch for every element, which a
    random mask makes several times as slow."""
    picked = mask.view(torch.uint8).to(torch.int32).neg_()
    bits = other.contiguous().view(torch.int32)
    return (bits ^ ((bits ^ value.contiguous().view(torch.int32)) & picked)).view(torch.float32)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: no exponent is the largest. Several times as fast as `isfinite`."""
    if values.dtype not in EXPONENTS or not values.numel():
        return bool(values.isfinite().all())
    integer, exponent = EXPONENTS[values.dtype]
    return int((values.contiguous().view(integer) & exponent).amax()) < exponent


def differ(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Where two tensors of a dtype differ: bool [n]. Of 16 bits, several times as fast as comparing the numbers."""
    if one.dtype.itemsize != 2:
        return one != two
    first, second = one.view(torch.int16), two.view(torch.int16)
    return (first ^ second).bool() & ((first | second) << 1).bool()  # 0 and −0 are equal


def per_expert(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers [experts] shaped [experts, 1, ...] to broadcast against `like` [experts, *shape]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def sum_experts(values: torch.Tensor) -> torch.Tensor:
    """Σ_t over [experts, *shape] in expert order, one addition at a time, so that every device rounds alike."""
    total = values[0].clone()
    for term in values[1:]:
        total += term
    return total


def flat(values: torch.Tensor, leading: int = 1) -> torch.Tensor:
    """The dims after the first `leading` as one, which a scalar tensor's values then have, too."""
    return values.reshape(*values.shape[:leading], math.prod(values.shape[leading:]))


def inner(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Σ x·y of each row of one [p, n] with each of the other [q, n]: float64 [p, q] on the CPU."""
    whole = one.shape[1] // INNER_CHUNK * INNER_CHUNK
    rest = (one[:, whole:] @ two[:, whole:].T).double()
    if whole:
        left, right = (values[:, :whole].reshape(len(values), -1, INNER_CHUNK) for values in (one, two))
        rest += torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0)).sum(0, dtype=torch.float64)
    return rest.cpu()


def exact_inner(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """`inner` in float64 throughout, of as much at once as stays in the cache."""
    count = one.shape[1]
    total = torch.zeros(len(one), len(two), dtype=torch.float64, device=one.device)
    left, right = (total.new_empty(len(values), min(count, EXACT_CHUNK)) for values in (one, two))
    for start in range(0, count, EXACT_CHUNK):
        part, size = slice(start, start + EXACT_CHUNK), count - start
        first = left[:, :size].copy_(one[:, part])
        total += first @ (first if one is two else right[:, :size].copy_(two[:, part])).T
    return total.cpu()


def l1_norms(values: torch.Tensor) -> torch.Tensor:
    """Σ|x| of each expert: float64 [experts], of float32 sums over `SUM_CHUNK` elements, right to 1e-8."""
    sizes = flat(values.abs())
    whole = sizes.shape[1] // SUM_CHUNK * SUM_CHUNK
    found = sizes[:, whole:].sum(1, dtype=torch.float64)
    if whole:
        found += sizes[:, :whole].reshape(len(sizes), -1, SUM_CHUNK).sum(-1).sum(-1, dtype=torch.float64)
    return found


def weighted_sum(coefficients: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """Σ_t coefficient_t·δ_t in expert order; product and sum are rounded separately (no fused multiply-add)."""
    total = coefficients[0] * deltas[0]
    for coefficient, delta in zip(coefficients[1:], deltas[1:], strict=True):
        total += coefficient * delta
    return total


def shares(weight: torch.Tensor, normalize: bool, like: torch.Tensor) -> torch.Tensor:
    """The experts' weights, divided by their sum if `normalize`, shaped to broadcast against `like`.

    A sum that cancels to nothing divides by 1.
    """
    total = sum_experts(weight)
    divide = normalize and float(total.abs()) >= TINY_SUM
    return per_expert(weight / total if divide else weight, like)


def cancel(weights: Sequence[float]) -> bool:
    """Whether weights add up to nothing in float32, though they are not all zero or though they are."""
    values = torch.tensor(weights, dtype=torch.float32)
    return float(sum_experts(values).abs()) <= max(TINY_SUM, CANCELLED * float(values.abs().sum()))


def elect_sign(votes: torch.Tensor, how: Literal["total", "frequency"], if_zero: float) -> torch.Tensor:
    """One sign (+1 or −1) an element from the experts' votes [experts, *shape] -> [*shape].

    `total`: the sign of the sum (TIES, eq. 2: the side with more mass). `frequency`: the sign of the summed signs
    (the side with more experts). Where that is exactly 0 the sign is `if_zero`.

    Source: TIES-Merging, 2306.01708, step 2.
    """
    signs = sum_experts(votes.sign() if how == "frequency" else votes).sign_()
    return signs.add_(1 - signs.abs(), alpha=if_zero)


def agreement(votes: torch.Tensor, elected: torch.Tensor) -> torch.Tensor:
    """1 where a vote [experts, *shape] has the elected sign (+1 or −1), else 0; what is 0 has no vote."""
    return votes.sign().mul_(elected).clamp_(min=0)


def disjoint_coefficients(agree: torch.Tensor, weight: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Coefficients of the disjoint mean: the weights of the experts that agree, divided by their sum if `normalize`.

    A sum of exactly 0 divides by 1. Shapes: agree [experts, *shape] of 0 and 1, weight [experts] -> [experts, *shape].

    Source: TIES-Merging, 2306.01708, step 3.
    """
    coefficients = agree * per_expert(weight, agree)
    if normalize:
        divisor = sum_experts(coefficients)
        coefficients /= divisor.add_(1 - divisor.sign().abs_())
    return coefficients


def minmax(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Each expert's values [experts, *shape] from its range [low, high] onto [0, 1]; 0 where the range is one point."""
    low, span = (per_expert(bound.to(values.device), values) for bound in (low, high - low))
    return torch.where(span > 0, (values - low) / span, 0.0)


def as_rows(deltas: torch.Tensor) -> torch.Tensor:
    """[experts, *shape] as [experts, rows, m]: a 1-D tensor is one row, dims beyond the second count into the row."""
    experts, *shape = deltas.shape
    rows = shape[0] if len(shape) > 1 else 1
    return deltas.reshape(experts, rows, math.prod(shape) // rows if rows else 0)


def order_in_rows(rows: torch.Tensor) -> torch.Tensor:
    """Where in its row [experts, rows, m] the element of each rank by |δ| is, the largest first: int64.

    Among equals the lower index ranks first. On the CPU it is the lower half of sorted keys, whose upper half is the
    inverted magnitude: a quarter of the time of a stable sort that brings indices along.
    """
    bits = magnitude_bits(rows)
    if rows.device.type != "cpu":
        return bits.sort(dim=-1, descending=True, stable=True).indices
    order = torch.empty(bits.shape, dtype=torch.int64)
    for keys, magnitudes in zip(order.numpy().view(np.uint64), bits.numpy(), strict=True):
        keys[...] = np.invert(magnitudes).view(np.uint32)
        keys <<= np.uint64(32)
        keys |= np.arange(rows.shape[-1], dtype=np.uint64)
        keys.sort(axis=-1)
    return order.bitwise_and_(0xFFFFFFFF)


def rank_probabilities(elements: int, density: float, epsilon: float) -> torch.Tensor:
    """MAGPRUNE's chance to stay for each rank of a row of m elements: float64 [m], mean exactly `density`.

    Source: DELLA-Merging, 2406.11617.
    """
    if density <= 0 or density >= 1 or elements == 1:
        return torch.full((elements,), min(max(density, 0.0), 1.0), dtype=torch.float64)
    ranks = torch.arange(elements, dtype=torch.float64)
    return (density + epsilon) - 2 * epsilon * ranks / (elements - 1)
