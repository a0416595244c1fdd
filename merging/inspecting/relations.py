"""How base and experts relate over a whole merge: lengths and angles of the task vectors, and what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
import torch

from merging.pieces import Piece

FAR = 0.7
"""A relative change ‖δ‖/‖θ0‖ far above that of fine-tunes, which is usually below 0.1."""
UNRELATED = 0.3
"""Task vectors with a smaller |cosine| have nothing in common."""
SIMILAR_WEIGHTS = 0.5
"""A cosine of weights below this is not that of a model and its fine-tune."""


@dataclass(frozen=True)
class Products:
    """Inner products of θ0 and the task vectors of one piece, float64 [1 + experts, 1 + experts], and which pairs of
    experts are equal there."""

    values: np.ndarray
    equal: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, piece: Piece) -> Products:
        pairs = combinations(range(piece.experts), 2)
        return cls(piece.products.numpy(), frozenset(pair for pair in pairs if _equal(piece, *pair)))

    @property
    def finite(self) -> bool:
        """Where they are not, the piece's values are to be looked at."""
        return bool(np.isfinite(self.values).all())


class Relations:
    """`Products`, summed over all pieces that were merged."""

    def __init__(self, experts: int):
        self.products = np.zeros((1 + experts, 1 + experts))
        self.equal = set(combinations(range(experts), 2))

    def add(self, found: Products) -> None:
        self.products += np.where(np.isfinite(found.values), found.values, 0.0)
        self.equal &= found.equal

    def combine(self, other: Relations) -> None:
        """Add what other pieces gave."""
        self.products += other.products
        self.equal &= other.equal

    @property
    def changes(self) -> list[float]:
        """‖δ‖/‖θ0‖ of each expert; 0 without a base."""
        base, *experts = np.sqrt(self.products.diagonal().clip(min=0)).tolist()
        return [norm / base if base else 0.0 for norm in experts]

    def remarks(self, names: Sequence[str]) -> list[str]:
        """What a user should look at before trusting the result, a sentence each."""
        if not float(self.products[0, 0]):
            return [f"{names[a]} and {names[b]} are the same model." for a, b in sorted(self.equal)]
        changes = self.changes
        found = [
            f"{name}: equals the base in all merged tensors, so it adds nothing. Is it the right model?"
            for name, change in zip(names, changes, strict=True)
            if change == 0
        ]
        found += [
            f"{names[a]} and {names[b]} are the same model, so its change counts twice. Remove one of them."
            for a, b in sorted(self.equal)
            if changes[a]
        ]
        found += [
            self._foreign(expert, name) for expert, name in enumerate(names) if self._is_foreign(expert)
        ]
        return found

    def _foreign(self, expert: int, name: str) -> str:
        return (
            f"{name}: its change is {self.changes[expert]:.0%} of the base's norm, far more than a fine-tune's, and has "
            "nothing in common with the other changes. Was it really tuned from this base?"
        )

    def _is_foreign(self, expert: int) -> bool:
        if self.changes[expert] < FAR:
            return False
        others = [
            self._cosine(1 + expert, 1 + other) for other in range(len(self.changes)) if other != expert
        ]
        related = any(abs(cosine) >= UNRELATED for cosine in others)
        return not related or self._weights_cosine(expert) < SIMILAR_WEIGHTS

    def _cosine(self, a: int, b: int) -> float:
        scale = sqrt(float(self.products[a, a] * self.products[b, b]))
        return float(self.products[a, b]) / scale if scale else 0.0

    def _weights_cosine(self, expert: int) -> float:
        """cos(θ0, θ0 + δ)."""
        base, mixed, change = (
            float(self.products[i, j]) for i, j in ((0, 0), (0, 1 + expert), (1 + expert, 1 + expert))
        )
        length = sqrt(max(0.0, base + 2 * mixed + change))
        return (base + mixed) / (sqrt(base) * length) if base and length else 0.0


def _equal(piece: Piece, a: int, b: int) -> bool:
    """Whether two experts are the same in a piece: only looked at where their changes are of the same length."""
    if float(piece.gram[a, a]) != float(piece.gram[b, b]):
        return False
    return torch.equal(piece.models[a], piece.models[b])
