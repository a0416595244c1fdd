"""What the experts did to one tensor: how far they moved it, and where their changes fight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations

import torch

from merging import noise, ops
from merging.pieces import Piece, PieceKey
from merging.sums import Record, by_tensor

HISTOGRAM_SHIFT = 22
"""|δ| is counted in half-octave bins: the exponent and the first mantissa bit of its float32."""
FIRST_BIN = 2 * 70
LAST_BIN = 2 * 140
"""Bins kept: magnitudes from 2**-57 to 2**13; what lies outside is counted in the first or last one."""
FLIP_SEED = 0
"""Seed of the sign flips that give the chance level of the mass conflict."""
EXACT = 1 << 24
"""Counts up to this are exact in float32."""


def bin_edges() -> list[float]:
    """Lower edges of the histogram bins, one more at the end."""
    bits = torch.arange(FIRST_BIN, LAST_BIN + 1, dtype=torch.int32) << HISTOGRAM_SHIFT
    return bits.view(torch.float32).double().tolist()


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
    largest: list[float] = field(metadata={"combine": max})
    histogram: list[list[int]]
    dot: list[float]
    broken: list[int]
    signs: Conflict

    @property
    def experts(self) -> int:
        return len(self.change)

    def relative_change(self, expert: int) -> float | None:
        """‖δ‖ / ‖θ0‖ (Frobenius); None where the base is all zero."""
        return _known((self.change[expert] / self.base) ** 0.5) if self.base > 0 else None

    def changed_share(self, expert: int) -> float | None:
        """Share of elements that the expert changed at all."""
        return self.nonzero[expert] / self.elements if self.elements else None

    def cosine(self, pair: int) -> float | None:
        """Cosine between two task vectors; None where one of them is zero."""
        first, second = pairs_of(self.experts)[pair]
        norms = (self.change[first] * self.change[second]) ** 0.5
        return _known(self.dot[pair] / norms) if norms > 0 else None

    def pearson(self, pair: int) -> float | None:
        """Correlation of two task vectors over the elements; None where one of them is constant."""
        first, second = pairs_of(self.experts)[pair]
        if not self.elements:
            return None
        spread = [self.change[t] - self.total[t] ** 2 / self.elements for t in (first, second)]
        together = self.dot[pair] - self.total[first] * self.total[second] / self.elements
        scale = (max(0.0, spread[0]) * max(0.0, spread[1])) ** 0.5
        return _known(together / scale) if scale > 0 else None

    def distance(self, pair: int) -> float | None:
        """Euclidean distance between two task vectors."""
        first, second = pairs_of(self.experts)[pair]
        square = self.change[first] + self.change[second] - 2 * self.dot[pair]
        return _known(max(0.0, square) ** 0.5)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
    inner = (deltas @ deltas.T).double().cpu()
    broken = [0] * (1 + piece.experts)
    if not bool(inner.isfinite().all()):
        broken = [int((~values.isfinite()).sum()) for values in (piece.base_or_zero, *piece.models)]
    finite = [not broken[0] and not count for count in broken[1:]]
    if not all(finite):
        deltas = deltas * torch.tensor(finite, device=deltas.device)[:, None]
        deltas = deltas.nan_to_num(0.0, 0.0, 0.0)
    magnitudes = deltas.abs()
    nonzero = magnitudes.count_nonzero(1).tolist()
    empty = not deltas.shape[1]
    return TensorStatistics(
        elements=deltas.shape[1],
        base=float(torch.linalg.vector_norm(piece.base_or_zero)) ** 2,
        change=_only(finite, inner.diagonal().tolist()),
        total=_only(finite, deltas.sum(1).tolist()),
        mass=_only(finite, magnitudes.sum(1).tolist()),
        nonzero=nonzero,
        largest=_only(finite, [0.0] * piece.experts if empty else magnitudes.amax(1).tolist()),
        histogram=[_histogram(delta, count) for delta, count in zip(deltas, nonzero, strict=True)],
        dot=[float(inner[pair]) for pair in pairs_of(piece.experts)],
        broken=broken,
        signs=sign_conflict(piece, deltas),
    )


def _only(finite: list[bool], values: list[float]) -> list[float]:
    return [value if good else math.nan for good, value in zip(finite, values, strict=True)]


def sign_conflict(piece: Piece, deltas: torch.Tensor) -> Conflict:
    """How the signs of changes [experts, n] of a piece agree; `deltas` are its task vectors, or what a trim left of
    them."""
    exact = torch.float32 if deltas.shape[1] < EXACT else torch.float64
    signs = deltas.sign().to(exact)
    changed = signs.abs()
    count = changed.sum(0)
    shared, agreement = (changed @ changed.T).long().cpu(), (signs @ signs.T).long().cpu()
    opposite = (shared - agreement) // 2
    covered = count.int().bincount(minlength=len(deltas) + 1)[2:].tolist()
    magnitudes = deltas.abs() * (count >= 2)
    flips = noise.coin_flips(piece, len(deltas), FLIP_SEED)
    pairs = pairs_of(len(deltas))
    return Conflict(
        elements=deltas.shape[1],
        covered=covered,
        split=int((signs.sum(0).abs() < count).count_nonzero()),
        shared=[int(shared[pair]) for pair in pairs],
        opposite=[int(opposite[pair]) for pair in pairs],
        gross=float(magnitudes.sum()),
        net=float((deltas.sum(0).abs() * (count >= 2)).sum()),
        chance=float((magnitudes * flips).sum(0).abs().sum()),
    )


def _histogram(delta: torch.Tensor, nonzero: int) -> list[int]:
    bins = ops.magnitude_bits(delta) >> HISTOGRAM_SHIFT
    counts = torch.bincount(bins, minlength=LAST_BIN).cpu()
    counts[0] -= delta.numel() - nonzero
    inner = counts[FIRST_BIN:LAST_BIN]
    inner[0] += counts[:FIRST_BIN].sum()
    inner[-1] += counts[LAST_BIN:].sum()
    return inner.tolist()
