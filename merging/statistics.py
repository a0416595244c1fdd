"""Accumulators: numbers gathered over a stream of pieces.

`update` takes a piece, `combine` takes another accumulator of the same kind that saw other pieces, `result` answers.
Results do not depend on how the pieces were dealt out. What a method must know before it merges and what a map shows
are made of the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from merging import ops
from merging.pieces import Piece, PieceKey

COARSE_SHIFT = 15
"""The coarse histogram has a bin for each value of the upper 16 magnitude bits; the lower 15 remain."""
COARSE_BINS = 1 << 16
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
                tied = magnitude[expert] == bits[expert]
                order = tied.flatten().cumsum(0, dtype=torch.int32).reshape(tied.shape)
                keep[expert] |= tied & (order <= allowed)
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


class LargestCut:
    """Finds the exact `Cut` that keeps `kept[t]` elements, given the coarse histogram of the same pieces.

    It collects only what shares its coarse bin with a threshold, as distinct magnitudes with their counts a piece:
    bfloat16 models have few distinct magnitudes and many elements at each.
    """

    def __init__(self, kept: Sequence[int], histogram: torch.Tensor):
        self.kept = tuple(kept)
        self.elements = int(histogram[0].sum())
        self.zeros = [0] * len(self.kept)
        self.bins: list[int | None] = []
        self.inside: list[int] = []
        for wanted, counts in zip(self.kept, histogram, strict=True):
            if wanted == 0 or wanted >= int(counts.sum()):
                self.bins.append(None)
                self.inside.append(wanted)
                continue
            from_top = counts.flip(0).cumsum(0)
            position = int(torch.searchsorted(from_top, wanted))
            self.bins.append(COARSE_BINS - 1 - position)
            self.inside.append(wanted - (int(from_top[position - 1]) if position else 0))
        self.found: dict[PieceKey, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def update(self, piece: Piece) -> None:
        magnitude = ops.magnitude_bits(piece.deltas)
        found = []
        for expert, chosen in enumerate(self.bins):
            row = magnitude[expert].flatten()
            self.zeros[expert] += int((row == 0).sum())
            row = row[:0] if chosen is None else row[row >> COARSE_SHIFT == chosen]
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
            if self.bins[expert] is None:
                thresholds.append(EVERYTHING if wanted else NOTHING)
                ties.append(0)
                continue
            values = torch.cat([self.found[key][expert][0] for key in keys])
            counts = torch.cat([self.found[key][expert][1] for key in keys])
            distinct, where = values.unique(return_inverse=True)
            totals = torch.zeros(len(distinct), dtype=torch.int64).index_add_(0, where, counts)
            from_top = totals.flip(0).cumsum(0)
            position = int(torch.searchsorted(from_top, wanted))
            threshold = int(distinct[len(distinct) - 1 - position])
            left = wanted - (int(from_top[position - 1]) if position else 0)
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


class InnerProducts:
    """Σ θ_a·θ_b over base and experts, in float64, summed by tensor and position: [1 + experts, 1 + experts]."""

    def __init__(self) -> None:
        self.products: dict[PieceKey, torch.Tensor] = {}

    def update(self, piece: Piece) -> None:
        vectors = torch.cat([piece.base_or_zero.reshape(1, -1), piece.models.flatten(1)]).double()
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
