"""Where the signs of the experts' changes agree and where they fight: exact counts over sign patterns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from merging import noise, ops
from merging.inspecting.sums import Record
from merging.pieces import Piece

FLIP_SEED = 0
"""Seed of the sign flips that give the chance level of the mass conflict."""
COUNTED = 8
"""Up to so many experts all sign patterns have a number; of more, those that occur are sorted out."""


def pairs_of(experts: int) -> list[tuple[int, int]]:
    """The pairs of experts, in the order of all lists by pair."""
    return list(combinations(range(experts), 2))


@dataclass(frozen=True)
class Conflict(Record):
    """How the signs of the experts' changes agree, over the elements that at least two of them changed.

    `covered[k - 2]` counts the elements that exactly k experts changed, `split` those with changes of both signs. For
    each pair, `shared` counts what both changed and `opposite` where their signs differ. `gross` = ΣΣ_t|δ_t|,
    `net` = Σ|Σ_t δ_t|, and `chance` is `net` with every sign drawn at random.
    """

    elements: int
    covered: list[int]
    split: int
    shared: list[int]
    opposite: list[int]
    gross: float
    net: float
    chance: float

    @property
    def coverage(self) -> float | None:
        """Share of all elements that at least two experts changed."""
        return sum(self.covered) / self.elements if self.elements else None

    def opposite_share(self, pair: int | None = None) -> float | None:
        """Share of opposite signs among what both experts of a pair changed, or over all pairs; by chance 0.5."""
        shared = sum(self.shared) if pair is None else self.shared[pair]
        opposite = sum(self.opposite) if pair is None else self.opposite[pair]
        return opposite / shared if shared else None

    def split_share(self) -> float | None:
        """Share of the covered elements on whose direction the experts are not unanimous."""
        return self.split / sum(self.covered) if sum(self.covered) else None

    def split_chance(self) -> float | None:
        """`split_share` of independent signs: 1 − 2^(1−k) where k experts changed an element."""
        if not sum(self.covered):
            return None
        expected = sum(count * (1 - 2.0 ** (1 - k)) for k, count in enumerate(self.covered, 2))
        return expected / sum(self.covered)

    def mass(self) -> float | None:
        """1 − Σ|Σ_t δ_t| / ΣΣ_t|δ_t|: the share of all change that cancels in a sum; 0 = none."""
        return 1 - self.net / self.gross if self.gross > 0 else None

    def mass_chance(self) -> float | None:
        """`mass` of the same magnitudes under random signs."""
        return 1 - self.chance / self.gross if self.gross > 0 else None


def sign_conflict(piece: Piece, deltas: torch.Tensor, patterns: Patterns) -> Conflict:
    """How the signs of changes [experts, n] of a piece agree: its task vectors, or what a trim left of them."""
    signs, changed, pairs = patterns.signs, patterns.signs.abs(), pairs_of(len(deltas))
    count = changed.sum(1)
    covered = count.long().bincount(weights=patterns.counts, minlength=len(deltas) + 1)[2:].long().tolist()
    shared, agreement = patterns.products(changed), patterns.products(signs)
    gross, net, chance = _masses(piece, deltas) if any(covered) else [0.0] * 3
    return Conflict(
        elements=deltas.shape[1],
        covered=covered,
        split=int(patterns.counts[signs.sum(1).abs() < count].sum()),
        shared=[int(shared[pair]) for pair in pairs],
        opposite=[int(shared[pair] - agreement[pair]) // 2 for pair in pairs],
        gross=gross,
        net=net,
        chance=chance,
    )


def _masses(piece: Piece, deltas: torch.Tensor) -> list[float]:
    """Σ Σ_t|δ_t|, Σ|Σ_t δ_t| and the same of random signs, over the elements that at least two experts changed."""
    flips = noise.coin_flips(piece, len(deltas), FLIP_SEED)
    if ops.compiled(deltas):
        sums = np.zeros(3)
        ops.loops().masses(ops.array(deltas, 2), ops.array(flips, 2), sums)
        return sums.tolist()
    magnitudes, shared = deltas.abs(), deltas.count_nonzero(0) > 1
    among = [ops.sum_experts(magnitudes), ops.sum_experts(deltas), ops.sum_experts(flips * magnitudes)]
    return [float((values.abs_() * shared).sum(dtype=torch.float64)) for values in among]


class Patterns(NamedTuple):
    """The sign patterns that occur in some changes [experts, n]: their `signs`, float64 [patterns, experts] of −1, 0
    and 1, and how often each occurs, float64 [patterns]."""

    signs: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, deltas: torch.Tensor) -> Patterns:
        if len(deltas) <= COUNTED:
            counts = _counts(deltas)
            occurring = counts.nonzero()[:, 0]
            return cls(_every_pattern(len(deltas))[occurring], counts[occurring].double())
        signs = deltas.sign()
        number = torch.zeros(signs.shape[1], dtype=torch.int64, device=signs.device)
        for some in signs.split(COUNTED):
            number = (number * 3**COUNTED + _numbers(some)).unique(return_inverse=True)[1]
        counts = number.bincount()
        one = torch.empty_like(counts).scatter_(0, number, torch.arange(len(number), device=number.device))
        return cls(signs[:, one].T.double().cpu(), counts.double().cpu())

    def nonzero(self) -> list[int]:
        """How many elements each expert changed."""
        return (self.signs.abs().T @ self.counts).long().tolist()

    def products(self, values: torch.Tensor) -> torch.Tensor:
        """Σ x_a·x_b over the elements of what each pattern has for every expert: [experts, experts]."""
        return values.T @ (values * self.counts[:, None])


def _counts(deltas: torch.Tensor) -> torch.Tensor:
    """How often each sign pattern of at most `COUNTED` experts occurs, by its number: int64 [3^experts] on the CPU."""
    if not ops.compiled(deltas):
        return _numbers(deltas.sign()).bincount(minlength=3 ** len(deltas)).cpu()
    counts = torch.zeros(3 ** len(deltas), dtype=torch.int64)
    ops.loops().sign_patterns(ops.array(deltas, 2), counts.numpy())
    return counts


def _numbers(signs: torch.Tensor) -> torch.Tensor:
    """Σ_t (sign_t + 1)·3^t of at most `COUNTED` experts, int32 [n]."""
    powers = 3.0 ** torch.arange(len(signs), device=signs.device)
    return (powers @ signs).add_(3 ** len(signs) // 2).int()


@cache
def _every_pattern(experts: int) -> torch.Tensor:
    """All sign patterns by their number: float64 [3^experts, experts]."""
    number = torch.arange(3**experts)[:, None]
    return (number // 3 ** torch.arange(experts) % 3 - 1).double()
