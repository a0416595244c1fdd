"""Accumulators: numbers gathered over a stream of pieces.

`update` takes a piece, `combine` takes another accumulator of the same kind that saw other pieces, `result` answers.
Results do not depend on how the pieces were dealt out. What a method must know before it merges and what a map shows
are made of the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from merging import ops
from merging.pieces import Piece, PieceKey

COARSE_SHIFT = 15
"""The coarse histogram has a bin for each value of the upper 16 magnitude bits; the lower 15 remain."""
COARSE_BINS = 1 << 16
SMALL_SCOPE = 1 << 16
"""Up to so many elements all distinct magnitudes are collected at once; a coarse histogram would cost more."""
NOTHING = 0x7FFFFFFF
"""Magnitude bits above every number: a threshold that keeps nothing."""
EVERYTHING = -1


class Accumulator(Protocol):
    def update(self, piece: Piece) -> None: ...

    def combine(self, other: Self) -> None: ...

    def result(self) -> Any: ...


@dataclass(frozen=True)
class Attained:
    """What trimming did to each expert: `kept` elements were asked for among `elements`, `nonzero` of them are not
    zero, and `tied` share the threshold's magnitude, so that position decided among them."""

    elements: int
    kept: tuple[int, ...]
    nonzero: tuple[int, ...]
    tied: tuple[int, ...]

    def __add__(self, other: Attained) -> Attained:
        def add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Attained(
            self.elements + other.elements,
            add(self.kept, other.kept),
            add(self.nonzero, other.nonzero),
            add(self.tied, other.tied),
        )


@dataclass(frozen=True)
class Cut:
    """The `kept` largest |δ| of each expert over a scope, exactly.

    An element is kept if its magnitude bits exceed `bits[t]`, or equal them and fewer than `allowance[piece][t]`
    elements with the same magnitude lie before it in its piece.
    """

    bits: torch.Tensor
    allowance: dict[PieceKey, list[int]]
    attained: Attained

    def keep(self, piece: Piece) -> torch.Tensor:
        """Which elements survive: bool [experts, *shape]."""
        magnitude = ops.magnitude_bits(piece.deltas)
        bits = ops.per_expert(self.bits.to(magnitude.device), magnitude)
        keep = magnitude > bits
        for expert, allowed in enumerate(self.allowance.get(piece.key, ())):
            if allowed:
                tied = (magnitude[expert] == bits[expert]).flatten().nonzero()[:allowed, 0]
                keep[expert].view(-1)[tied] = True
        return keep


class MagnitudeHistogram:
    """Counts of |δ| by the upper 16 magnitude bits; its result is an int64 tensor [experts, 65536]."""

    def __init__(self, experts: int):
        self.counts = torch.zeros(experts, COARSE_BINS, dtype=torch.int64)

    def update(self, piece: Piece) -> None:
        bins = ops.magnitude_bits(piece.deltas) >> COARSE_SHIFT
        for expert, row in enumerate(bins):
            self.counts[expert] += torch.bincount(row.flatten(), minlength=COARSE_BINS).cpu()

    def combine(self, other: MagnitudeHistogram) -> None:
        self.counts += other.counts

    def result(self) -> torch.Tensor:
        return self.counts


def largest_cut(kept: Sequence[int], elements: int) -> Generator[Accumulator, Any, Cut]:
    """The scans that find a `Cut` over a scope of `elements`: two, or one where the scope is small."""
    histogram = None
    if elements > SMALL_SCOPE:
        histogram = yield MagnitudeHistogram(len(kept))
    return (yield LargestCut(kept, elements, histogram))


class LargestCut:
    """Finds the exact `Cut` that keeps `kept[t]` elements.

    Given the coarse histogram of the same pieces, it collects only what shares its coarse bin with a threshold.
    Elements are held as distinct magnitudes with their counts a piece: bfloat16 models have few distinct magnitudes
    and many elements at each.
    """

    def __init__(self, kept: Sequence[int], elements: int, histogram: torch.Tensor | None = None):
        self.kept = tuple(kept)
        self.elements = elements
        self.zeros = [0] * len(self.kept)
        self.bins: list[int | None] = [None] * len(self.kept)
        self.inside = list(self.kept)
        self.trivial = [wanted in (0, elements) for wanted in self.kept]
        for expert, wanted in enumerate(self.kept):
            if histogram is None or self.trivial[expert]:
                continue
            position, above = _from_top(histogram[expert], wanted)
            self.bins[expert] = COARSE_BINS - 1 - position
            self.inside[expert] = wanted - above
        self.found: dict[PieceKey, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def update(self, piece: Piece) -> None:
        magnitude = ops.magnitude_bits(piece.deltas)
        found = []
        for expert, chosen in enumerate(self.bins):
            row = magnitude[expert].flatten()
            self.zeros[expert] += row.numel() - int(row.count_nonzero())
            if self.trivial[expert]:
                row = row[:0]
            elif chosen is not None:
                row = row[row >> COARSE_SHIFT == chosen]
            values, counts = row.unique(return_counts=True)
            found.append((values.cpu(), counts.cpu()))
        self.found[piece.key] = found

    def combine(self, other: LargestCut) -> None:
        self.found.update(other.found)
        self.zeros = [ours + theirs for ours, theirs in zip(self.zeros, other.zeros, strict=True)]

    def result(self) -> Cut:
        """Surplus ties are given out by tensor name, then position, whatever the order of the pieces was."""
        keys = sorted(self.found)
        allowance = {key: [0] * len(self.kept) for key in keys}
        thresholds, ties = [], []
        for expert, wanted in enumerate(self.inside):
            if self.trivial[expert]:
                thresholds.append(EVERYTHING if wanted else NOTHING)
                ties.append(0)
                continue
            values = torch.cat([self.found[key][expert][0] for key in keys])
            counts = torch.cat([self.found[key][expert][1] for key in keys])
            distinct, where = values.unique(return_inverse=True)
            totals = torch.zeros(len(distinct), dtype=torch.int64).index_add_(0, where, counts)
            position, above = _from_top(totals, wanted)
            threshold = int(distinct[len(distinct) - 1 - position])
            left = wanted - above
            thresholds.append(threshold)
            ties.append(int(totals[len(distinct) - 1 - position]))
            for key in keys:
                values, counts = self.found[key][expert]
                here = int(counts[values == threshold].sum())
                allowance[key][expert] = min(left, here)
                left -= allowance[key][expert]
        nonzero = tuple(min(k, self.elements - zeros) for k, zeros in zip(self.kept, self.zeros, strict=True))
        attained = Attained(self.elements, self.kept, nonzero, tuple(ties))
        return Cut(torch.tensor(thresholds, dtype=torch.int32), allowance, attained)


def _from_top(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """How many bins from the top the `wanted`-th largest lies, and how many elements lie in the bins above."""
    totals = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(totals, wanted))
    return position, int(totals[position - 1]) if position else 0


class InnerProducts:
    """Σ θ_a·θ_b over base and experts, in float64, summed by tensor and position: [1 + experts, 1 + experts]."""

    def __init__(self) -> None:
        self.products: dict[PieceKey, torch.Tensor] = {}

    def update(self, piece: Piece) -> None:
        vectors = torch.cat(
            [piece.base_or_zero.reshape(1, -1), piece.models.reshape(piece.experts, -1)]
        ).double()
        self.products[piece.key] = (vectors @ vectors.T).cpu()

    def combine(self, other: InnerProducts) -> None:
        self.products.update(other.products)

    def result(self) -> torch.Tensor:
        return torch.stack([self.products[key] for key in sorted(self.products)]).sum(0)


class SignBalance:
    """Σ_i sign(Σ_t vote_ti): how many more elements the experts' votes push up than down."""

    def __init__(self, votes: Callable[[Piece], torch.Tensor]):
        self.votes = votes
        self.balance = 0

    def update(self, piece: Piece) -> None:
        self.balance += int(ops.sum_experts(self.votes(piece)).sign().sum(dtype=torch.float64))

    def combine(self, other: SignBalance) -> None:
        self.balance += other.balance

    def result(self) -> int:
        return self.balance
