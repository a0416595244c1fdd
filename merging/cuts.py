"""Exact cuts: which elements are the largest of a scope, found by one or two scans over radix histograms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging import ops
from merging.pieces import Piece, PieceKey
from merging.shelf import Shelf, Strip
from merging.statistics import Accumulator, Attained

COARSE_SHIFT = 15
"""The coarse histogram has a bin for each value of the upper 16 magnitude bits; the lower 15 remain."""
COARSE_BINS = 1 << 16
SIGN_BINS = COARSE_BINS
"""Keys of signed scores fill as many bins again below those of the magnitudes."""
SMALL_SCOPE = 1 << 16
"""Up to so many elements all distinct magnitudes are collected at once; a coarse histogram would cost more."""
NOTHING = 0x7FFFFFFF
"""Magnitude bits above every number: a threshold that keeps nothing."""
EVERYTHING = -(1 << 31)
"""A threshold below every number: it keeps all."""
Keys = Callable[[Piece], torch.Tensor]
"""A piece's elements as int32 that order as their scores do: [rows, *shape]."""


def magnitudes(piece: Piece) -> torch.Tensor:
    """The keys that rank by |δ|."""
    return ops.magnitude_bits(piece.deltas)


@dataclass(frozen=True)
class Ranking:
    """By what each cut ranks: row `rows[c]` of a piece's keys, by default |δ| of expert c."""

    rows: tuple[int, ...]
    keys: Keys = magnitudes

    def of(self, piece: Piece) -> list[torch.Tensor]:
        """What every cut ranks, [*shape] each: a row of keys or, where the keys are magnitudes, an expert's change, which
        `ops` reads as one."""
        values = piece.deltas if self.keys is magnitudes else self.keys(piece)
        return [values[row] for row in self.rows]


@dataclass(frozen=True)
class Cut:
    """The `kept[c]` elements with the largest keys, for every cut c of a scope, exactly.

    An element is kept if its key exceeds `bits[c]`, or equals it and fewer than `allowance[piece][c]` elements with
    the same key lie before it in its piece.
    """

    bits: torch.Tensor
    allowance: dict[PieceKey, list[int]]
    attained: Attained
    ranking: Ranking

    def keep(self, piece: Piece) -> torch.Tensor:
        """Which elements survive: bool [cuts, *shape]."""
        if self.ranking.keys is not magnitudes:
            return self._keep(piece)
        allowed = tuple(self.allowance.get(piece.key, ()))
        variant = (type(self), self.ranking.rows, tuple(self.bits.tolist()), allowed)
        return piece.remember("cut", variant, lambda: self._keep(piece))

    def _keep(self, piece: Piece) -> torch.Tensor:
        return self._chosen(
            self.ranking.of(piece), self.bits.tolist(), self.allowance.get(piece.key, [0] * len(self.bits))
        )

    def _chosen(
        self, rows: Sequence[torch.Tensor], bits: Sequence[int], allowed: Sequence[int]
    ) -> torch.Tensor:
        """Of those that equal a threshold the first are kept."""
        return ops.above(rows, bits, allowed)


class KeyHistogram:
    """Counts of the upper 16 bits of keys; its result is an int64 tensor [rows, 65536], twice as wide if `signed`."""

    def __init__(self, rows: int, keys: Keys = magnitudes, signed: bool = False):
        self.keys = keys
        self.below = SIGN_BINS if signed else 0
        self.counts = torch.zeros(rows, COARSE_BINS + self.below, dtype=torch.int64)

    def update(self, piece: Piece) -> None:
        rows = piece.deltas if self.keys is magnitudes else self.keys(piece)
        self.counts = self.counts.to(rows.device)
        for counts, row in zip(self.counts, rows, strict=True):
            ops.count_bins(row, COARSE_SHIFT, self.below, counts)

    def combine(self, other: KeyHistogram) -> None:
        self.counts = self.result() + other.result()

    def result(self) -> torch.Tensor:
        return self.counts.cpu()


def largest_cut(
    kept: Sequence[int],
    elements: int,
    *,
    keys: Keys = magnitudes,
    signed: bool = False,
    rows: Sequence[int] | None = None,
) -> Generator[Accumulator, Any, Cut]:
    """The scans that find a `Cut` over a scope of `elements`: two, or one where the scope is small.

    Args:
        kept: how many elements each cut keeps.
        keys: what is ranked; `signed` where keys can be negative.
        rows: the row of the keys that each cut ranks; by default cut c ranks row c.
    """
    rows = tuple(range(len(kept))) if rows is None else tuple(rows)
    histogram = None
    if elements > SMALL_SCOPE:
        histogram = yield KeyHistogram(max(rows) + 1, keys, signed)
    return (yield LargestCut(Ranking(rows, keys), kept, elements, histogram))


def order_statistics(
    ranks: Sequence[tuple[int, int]], elements: int, keys: Keys, *, signed: bool = False
) -> Generator[Accumulator, Any, list[float]]:
    """The scores at (row of the keys, 0-based rank in ascending order) over a scope; keys must be `ops.order_bits`."""
    kept = [elements - rank for _, rank in ranks]
    rows = tuple(row for row, _ in ranks)
    histogram = None
    if elements > SMALL_SCOPE:
        histogram = yield KeyHistogram(max(rows) + 1, keys, signed)
    cut = yield LargestCut(Ranking(rows, keys), kept, elements, histogram, values=True)
    return ops.from_order_bits(cut.bits).tolist()


class LargestCut:
    """Finds the exact `Cut` that keeps `kept[c]` elements.

    Given the coarse histogram of the same pieces, it collects only what shares its coarse bin with a threshold.
    Elements are held as distinct keys with their counts a piece: bfloat16 models have few distinct magnitudes and many
    elements at each.
    """

    def __init__(
        self,
        ranking: Ranking,
        kept: Sequence[int],
        elements: int,
        histogram: torch.Tensor | None = None,
        *,
        values: bool = False,
    ):
        self.ranking = ranking
        self.kept = tuple(kept)
        self.elements = elements
        self.counts_zeros = not values
        self.trivial = {0: NOTHING} if values else {0: NOTHING, elements: EVERYTHING}
        self.zeros = [0] * len(self.kept)
        self.bins: list[int | None] = [None] * len(self.kept)
        self.inside = list(self.kept)
        for cut, wanted in enumerate(self.kept):
            if histogram is None or wanted in self.trivial:
                continue
            position, above = _from_top(histogram[ranking.rows[cut]], wanted)
            self.bins[cut] = COARSE_BINS - 1 - position
            self.inside[cut] = wanted - above
        self.shelf = Shelf(torch.int64)
        self.found: dict[PieceKey, list[tuple[Strip, Strip]]] = {}

    def update(self, piece: Piece) -> None:
        found = []
        for cut, (chosen, keys) in enumerate(zip(self.bins, self.ranking.of(piece), strict=True)):
            row = keys.flatten()
            # above the lowest bin nothing that is kept is 0
            if self.counts_zeros and (chosen is None or chosen <= 0):
                self.zeros[cut] += row.numel() - int(row.count_nonzero())
            if self.kept[cut] in self.trivial:
                row = row[:0]
            if chosen is not None:
                values, counts = ops.distinct_in_bin(row, COARSE_SHIFT, chosen)
            else:
                values, counts = ops.distinct(ops.keys_of(row))
            found.append((self.shelf.put(values), self.shelf.put(counts)))
        self.found[piece.key] = found

    def combine(self, other: LargestCut) -> None:
        self.found.update(other.found)
        self.zeros = [ours + theirs for ours, theirs in zip(self.zeros, other.zeros, strict=True)]

    def result(self) -> Cut:
        """Surplus ties are given out by tensor name, then position, whatever the order of the pieces was."""
        names = sorted(self.found)
        allowance = {name: [0] * len(self.kept) for name in names}
        thresholds, ties = [], []
        for cut, wanted in enumerate(self.inside):
            if self.kept[cut] in self.trivial:
                thresholds.append(self.trivial[self.kept[cut]])
                ties.append(0)
                continue
            values = torch.cat([self.found[name][cut][0].tensor() for name in names])
            counts = torch.cat([self.found[name][cut][1].tensor() for name in names])
            distinct, where = values.unique(return_inverse=True)
            totals = torch.zeros(len(distinct), dtype=torch.int64).index_add_(0, where, counts)
            position, above = _from_top(totals, wanted)
            threshold = int(distinct[len(distinct) - 1 - position])
            left = wanted - above
            thresholds.append(threshold)
            ties.append(int(totals[len(distinct) - 1 - position]))
            for name in names:
                values, counts = (strip.tensor() for strip in self.found[name][cut])
                here = int(counts[values == threshold].sum())
                allowance[name][cut] = min(left, here)
                left -= allowance[name][cut]
        nonzero = tuple(min(k, self.elements - zeros) for k, zeros in zip(self.kept, self.zeros, strict=True))
        attained = Attained(self.elements, self.kept, nonzero, tuple(ties))
        return Cut(torch.tensor(thresholds, dtype=torch.int32), allowance, attained, self.ranking)


def _from_top(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """How many bins from the top the `wanted`-th largest lies, and how many elements lie in the bins above."""
    totals = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(totals, wanted))
    return position, int(totals[position - 1]) if position else 0
