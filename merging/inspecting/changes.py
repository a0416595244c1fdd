"""What the experts did to one tensor: how far they moved it, and where their changes fight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from merging import ops
from merging.inspecting.sign_conflict import Conflict, Patterns, pairs_of, sign_conflict
from merging.inspecting.sums import Record, by_tensor
from merging.pieces import Piece, PieceKey

HISTOGRAM_SHIFT = 22
"""|δ| is counted in half-octave bins: the exponent and the first mantissa bit of its float32."""
FIRST_BIN = 2 * 70
LAST_BIN = 2 * 140
"""Bins kept: magnitudes from 2**-57 to 2**13; what lies outside is counted in the first or last one."""
ALL_BINS = 1 << 31 - HISTOGRAM_SHIFT
NOISE = 1e-5
"""A spread smaller than this share of Σδ² is float32 rounding."""


def bin_edges() -> list[float]:
    """Lower edges of the histogram bins, one more at the end."""
    bits = torch.arange(FIRST_BIN, LAST_BIN + 1, dtype=torch.int32) << HISTOGRAM_SHIFT
    return bits.view(torch.float32).double().tolist()


@dataclass(frozen=True)
class TensorStatistics(Record):
    """Sums over one tensor, or over several once added up; every shown number follows from these.

    Per expert: `change` = Σδ², `total` = Σδ, `mass` = Σ|δ|, `nonzero`, `largest` = max|δ|, `histogram` of |δ| ≠ 0 in
    `bin_edges`. Per pair of experts (in the order of `pairs_of`): `dot` = Σδ_a·δ_b. `base` = Σθ0². `broken` counts NaN
    and infinite values of the base, then of each expert; the sums of what they touch are NaN.
    """

    elements: int
    base: float
    change: list[float]
    total: list[float]
    mass: list[float]
    nonzero: list[int]
    largest: list[float] = field(metadata={"combine": "largest"})
    histogram: list[list[int]]
    dot: list[float]
    broken: list[int]
    signs: Conflict

    @classmethod
    def nothing(cls, experts: int) -> TensorStatistics:
        """The sums over no element at all."""
        return measure(Piece("", 0, torch.zeros(0), torch.zeros(experts, 0), torch.ones(experts)))

    @property
    def experts(self) -> int:
        return len(self.change)

    def relative_change(self, expert: int) -> float | None:
        """‖δ‖ / ‖θ0‖ (Frobenius); None where the base is all zero."""
        return _known((self.change[expert] / self.base) ** 0.5) if self.base > 0 else None

    def changed_share(self, expert: int) -> float | None:
        """Share of elements that the expert changed at all; None where some of them are NaN or infinite."""
        if not self.elements or self.broken[0] or self.broken[1 + expert]:
            return None
        return self.nonzero[expert] / self.elements

    def cosine(self, pair: int) -> float | None:
        """Cosine between two task vectors; None where one of them is zero."""
        first, second = pairs_of(self.experts)[pair]
        norms = (self.change[first] * self.change[second]) ** 0.5
        return _correlation(self.dot[pair] / norms) if norms > 0 else None

    def pearson(self, pair: int) -> float | None:
        """Correlation of two task vectors over the elements; None where one of them is constant."""
        first, second = pairs_of(self.experts)[pair]
        if not self.elements:
            return None
        spread = [self.change[t] - self.total[t] ** 2 / self.elements for t in (first, second)]
        if any(s <= NOISE * self.change[t] for s, t in zip(spread, (first, second), strict=True)):
            return None
        together = self.dot[pair] - self.total[first] * self.total[second] / self.elements
        return _correlation(together / (spread[0] * spread[1]) ** 0.5)

    def distance(self, pair: int) -> float | None:
        """Euclidean distance between two task vectors."""
        first, second = pairs_of(self.experts)[pair]
        square = self.change[first] + self.change[second] - 2 * self.dot[pair]
        return max(0.0, square) ** 0.5 if math.isfinite(square) else None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _correlation(value: float) -> float | None:
    """Rounding may lead a little beyond 1."""
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else None


class ChangeWatch:
    """Accumulates `TensorStatistics` for every tensor it sees."""

    def __init__(self) -> None:
        self.pieces: dict[PieceKey, TensorStatistics] = {}

    def update(self, piece: Piece) -> None:
        self.pieces[piece.key] = measure(piece)

    def combine(self, other: ChangeWatch) -> None:
        self.pieces.update(other.pieces)

    def result(self) -> dict[str, TensorStatistics]:
        return by_tensor(self.pieces)


def measure(piece: Piece) -> TensorStatistics:
    """The statistics of one piece."""
    deltas = ops.flat(piece.deltas)
    inner = piece.gram
    broken = [0] * (1 + piece.experts)
    if not bool(inner.isfinite().all() and math.isfinite(piece.base_square)):
        broken = _broken(piece)
        intact = [not broken[0] and not count for count in broken[1:]]
        deltas = torch.where(torch.tensor(intact, device=deltas.device)[:, None], deltas, 0.0)
        inner = ops.inner(deltas, deltas)
        inner[~torch.tensor(intact)], inner[:, ~torch.tensor(intact)] = math.nan, math.nan
    patterns, spoilt = Patterns.of(deltas), inner.diagonal() * 0
    spread, nonzero = _Spread.of(deltas), patterns.nonzero()
    return TensorStatistics(
        elements=deltas.shape[1],
        base=math.nan if broken[0] else piece.base_square,
        change=inner.diagonal().tolist(),
        total=(spread.total + spoilt).tolist(),
        mass=(spread.mass + spoilt).tolist(),
        nonzero=nonzero,
        largest=(spread.largest + spoilt).tolist(),
        histogram=[
            _inside(counts, deltas.shape[1] - changed)
            for counts, changed in zip(spread.counts, nonzero, strict=True)
        ],
        dot=[float(inner[pair]) for pair in pairs_of(piece.experts)],
        broken=broken,
        signs=sign_conflict(piece, deltas, patterns),
    )


class _Spread(NamedTuple):
    """Σδ, Σ|δ| and max|δ| of each expert, [experts], and how many |δ| have which upper bits, [experts, bins]."""

    total: torch.Tensor
    mass: torch.Tensor
    largest: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, deltas: torch.Tensor) -> _Spread:
        experts = len(deltas)
        counts = torch.zeros(experts, ALL_BINS, dtype=torch.int64)
        if ops.compiled(deltas):
            total, mass, largest = np.zeros(experts), np.zeros(experts), np.zeros(experts, np.uint32)
            shift = np.uint32(HISTOGRAM_SHIFT)
            ops.loops().spread(ops.array(deltas, 2), shift, total, mass, largest, counts.numpy())
            top = torch.from_numpy(largest.view(np.float32))
            return cls(torch.from_numpy(total), torch.from_numpy(mass), top, counts)
        sizes = deltas.abs()
        for row, values in zip(counts, sizes, strict=True):
            row += (values.view(torch.int32) >> HISTOGRAM_SHIFT).bincount(minlength=ALL_BINS).cpu()
        top = sizes.amax(1) if deltas.shape[1] else deltas.new_zeros(experts)
        return cls(deltas.sum(1).cpu(), sizes.sum(1).cpu(), top.cpu(), counts)


def _broken(piece: Piece) -> list[int]:
    """How many values of the base, then of each expert are NaN or infinite, or too far from the base for float32."""
    base = ~piece.base_or_zero.isfinite()
    experts = ~piece.models.isfinite() | (~piece.deltas.isfinite() & ~base)
    return [int(base.sum()), *ops.flat(experts).sum(1).tolist()]


def _inside(counts: torch.Tensor, zeros: int) -> list[int]:
    """The counts in `bin_edges` without the zeros, with what lies outside in the first or last of them."""
    inner = counts[FIRST_BIN:LAST_BIN].clone()
    inner[0] += counts[:FIRST_BIN].sum() - zeros
    inner[-1] += counts[LAST_BIN:].sum()
    return inner.tolist()
