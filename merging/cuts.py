"""Exact cuts: which elements are the largest of a scope. A sample says between which keys a threshold lies, one scan counts
what is above and collects what is between; where the sample was wrong, a histogram of all keys takes its place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from merging import ops
from merging.inspecting.shelf import Shelf, Strip
from merging.pieces import Piece, PieceKey
from merging.statistics import Accumulator, Attained

COARSE_SHIFT = 15
"""The coarse histogram has a bin for each value of the upper 16 magnitude bits; the lower 15 remain."""
COARSE_BINS = 1 << 16
SIGN_BINS = COARSE_BINS
"""Keys of signed scores fill as many bins again below those of the magnitudes."""
SMALL_SCOPE = 1 << 16
"""Up to so many elements all distinct magnitudes are collected at once; a sample would cost more."""
STRIP = 1 << 11
"""Neighbours in a sample that are alike, such as those of one row: they count as one draw."""
GROUPS = 16
"""Groups that strips are dealt out to; their spread tells the error of a sample's shares."""
ERRORS = 5.0
"""Standard errors on either side of a threshold's share that a bracket allows."""
MOST_INSIDE = 1 << 24
"""Distinct keys of all brackets that are collected at once, 16 bytes each; of more the histogram leaves far fewer, and what
layers of very different size make of a bracket grows with the model."""
NOTHING = 0x7FFFFFFF
"""Magnitude bits above every number: a threshold that keeps nothing."""
EVERYTHING = -(1 << 31)
"""A threshold below every number: it keeps all."""
Bracket = tuple[int, int]
"""The least and the largest key a threshold may be."""
NONE: Bracket = (NOTHING, NOTHING)
"""A bracket that no number lies in."""
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

    def of(self, piece: Piece) -> ops.Changes:
        """What is ranked: keys or, where these are magnitudes, the changes, which `ops` reads as such."""
        return piece.changes if self.keys is magnitudes else ops.Changes(self.keys(piece))


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

    def _chosen(self, ranked: ops.Changes, bits: Sequence[int], allowed: Sequence[int]) -> torch.Tensor:
        """Of those that equal a threshold the first are kept."""
        return ops.above(ranked, self.ranking.rows, bits, allowed)


class KeySample:
    """The keys of a sample of a scope; its result is int32 [rows, m]. The engine shows it `Pieces.sample` only."""

    def __init__(self, ranking: Ranking):
        self.keys = ranking.keys
        self.rows = max(ranking.rows) + 1
        self.shelf = Shelf(torch.int32)
        self.found: dict[PieceKey, Strip] = {}

    def update(self, piece: Piece) -> None:
        self.found[piece.key] = self.shelf.put(self.keys(piece)[: self.rows])

    def combine(self, other: KeySample) -> None:
        self.found.update(other.found)

    def result(self) -> torch.Tensor:
        return torch.cat([self.found[key].tensor() for key in sorted(self.found)], 1)


def bracket(sample: torch.Tensor, share: float) -> Bracket:
    """Between which keys the one lies that a share of all is not below, from a sample of keys [m]."""
    keys, count = sample.numpy(), len(sample)
    ordered = np.sort(keys)
    middle = ordered[max(0, count - 1 - int(share * count))]
    strips = (keys[: count // STRIP * STRIP] >= middle).reshape(-1, STRIP).mean(1)
    error = (share * (1 - share) / count) ** 0.5
    if len(strips) >= GROUPS:
        groups = strips[: len(strips) // GROUPS * GROUPS].reshape(-1, GROUPS).mean(0)
        error = max(error, groups.std(ddof=1) / GROUPS**0.5)
    far = ERRORS * error + 2 / count
    low, high = int((1 - share - far) * count) - 2, int((1 - share + far) * count) + 1
    return (
        EVERYTHING if low < 0 else int(ordered[low]),
        NOTHING if high >= count else int(ordered[high]),
    )


def _inside(sample: torch.Tensor, one: Bracket) -> float:
    """About how many distinct keys lie in a bracket, as a share of all; fewer are distinct where many are equal."""
    low, high = one
    return len(sample[(sample >= low) & (sample <= high)].unique()) / len(sample)


class KeyHistogram:
    """Counts of the upper 16 bits of keys; its result is an int64 tensor [rows, 65536], twice as wide if `signed`."""

    def __init__(self, ranking: Ranking, signed: bool = False):
        self.ranking = ranking
        self.below = SIGN_BINS if signed else 0
        self.counts = torch.zeros(max(ranking.rows) + 1, COARSE_BINS + self.below, dtype=torch.int64)

    def update(self, piece: Piece) -> None:
        self.counts = self.counts.to(piece.device)
        ops.count_bins(self.ranking.of(piece), COARSE_SHIFT, self.below, self.counts)

    def combine(self, other: KeyHistogram) -> None:
        self.counts = self.result() + other.result()

    def result(self) -> torch.Tensor:
        return self.counts.cpu()


def _bin(histogram: torch.Tensor, kept: int) -> Bracket:
    """The keys that share their bin with the `kept`-th largest."""
    low = (COARSE_BINS - 1 - _from_top(histogram, kept)[0]) << COARSE_SHIFT
    return low, low + (1 << COARSE_SHIFT) - 1


def largest_cut(
    kept: Sequence[int],
    elements: int,
    *,
    keys: Keys = magnitudes,
    signed: bool = False,
    rows: Sequence[int] | None = None,
) -> Generator[Accumulator, Any, Cut]:
    """The scans that find a `Cut` over a scope of `elements`.

    Args:
        kept: how many elements each cut keeps.
        keys: what is ranked; `signed` where keys can be negative.
        rows: the row of the keys that each cut ranks; by default cut c ranks row c.
    """
    rows = tuple(range(len(kept))) if rows is None else tuple(rows)
    wanted = LargestCut(Ranking(rows, keys), kept, elements)
    return (yield from _found(wanted, signed=signed))


def order_statistics(
    ranks: Sequence[tuple[int, int]], elements: int, keys: Keys, *, signed: bool = False, sampled: bool = True
) -> Generator[Accumulator, Any, list[float]]:
    """The scores at (row of the keys, 0-based rank in ascending order) over a scope; keys must be `ops.order_bits`.

    Args:
        sampled: whether the keys of some elements can be had without their neighbours.
    """
    kept = [elements - rank for _, rank in ranks]
    rows = tuple(row for row, _ in ranks)
    wanted = LargestCut(Ranking(rows, keys), kept, elements, values=True)
    cut = yield from _found(wanted, signed=signed, sampled=sampled)
    return ops.from_order_bits(cut.bits).tolist()


def _found(wanted: LargestCut, *, signed: bool, sampled: bool = True) -> Generator[Accumulator, Any, Cut]:
    """The scans that find a cut: one between brackets that a sample gives; where there is no sample, or a wrong one, two."""
    ranking, elements = wanted.ranking, wanted.elements
    if elements <= SMALL_SCOPE:
        return (yield wanted)
    sample = (yield KeySample(ranking)) if sampled else None
    if sample is not None:
        shares = [kept / elements for kept in wanted.kept]
        brackets = [bracket(sample[row], share) for row, share in zip(ranking.rows, shares, strict=True)]
        inside = sum(_inside(sample[row], one) for row, one in zip(ranking.rows, brackets, strict=True))
        if inside * elements <= MOST_INSIDE:
            cut = yield wanted.between(brackets)
            if cut is not None:
                return cut
    histogram = yield KeyHistogram(ranking, signed)
    if histogram is not None:
        brackets = [_bin(histogram[row], kept) for row, kept in zip(ranking.rows, wanted.kept, strict=True)]
        wanted = wanted.between(brackets)
    return (yield wanted)


class LargestCut:
    """Finds the exact `Cut` that keeps `kept[c]` elements.

    It collects the keys inside `brackets`, by default all, and counts those above; its result is None where a threshold lies
    outside. Elements are held as distinct keys with their counts a piece: bfloat16 models have few distinct magnitudes and
    many elements at each. With `values` even a cut that keeps all has a threshold among the keys.
    """

    def __init__(
        self,
        ranking: Ranking,
        kept: Sequence[int],
        elements: int,
        brackets: Sequence[Bracket] | None = None,
        *,
        values: bool = False,
    ):
        self.ranking = ranking
        self.kept = tuple(kept)
        self.elements = elements
        self.values = values
        self.trivial = {0: NOTHING} if values else {0: NOTHING, elements: EVERYTHING}
        self.brackets = [(EVERYTHING, NOTHING)] * len(self.kept) if brackets is None else list(brackets)
        self.zeros = [0] * len(self.kept)
        self.above = [0] * len(self.kept)
        self.shelf = Shelf(torch.int64)
        self.found: dict[PieceKey, list[tuple[Strip, Strip]]] = {}

    def between(self, brackets: Sequence[Bracket]) -> LargestCut:
        """The same, which has seen nothing yet, for thresholds inside brackets."""
        return LargestCut(self.ranking, self.kept, self.elements, brackets, values=self.values)

    def update(self, piece: Piece) -> None:
        asked = [
            NONE if kept in self.trivial else one for kept, one in zip(self.kept, self.brackets, strict=True)
        ]
        zeros = [not self.values and low <= 0 for low, _ in self.brackets]  # else nothing that is kept is 0
        every = ops.within(self.ranking.of(piece), self.ranking.rows, asked, zeros)
        self.found[piece.key] = [(self.shelf.put(one.keys), self.shelf.put(one.counts)) for one in every]
        self.zeros = [before + one.zeros for before, one in zip(self.zeros, every, strict=True)]
        self.above = [before + one.above for before, one in zip(self.above, every, strict=True)]

    def combine(self, other: LargestCut) -> None:
        self.found.update(other.found)
        self.zeros = [ours + theirs for ours, theirs in zip(self.zeros, other.zeros, strict=True)]
        self.above = [ours + theirs for ours, theirs in zip(self.above, other.above, strict=True)]

    def result(self) -> Cut | None:
        """Surplus ties are given out by tensor name, then position, whatever the order of the pieces was."""
        names = sorted(self.found)
        allowance = {name: [0] * len(self.kept) for name in names}
        thresholds, ties = [], []
        for cut, kept in enumerate(self.kept):
            if kept in self.trivial:
                thresholds.append(self.trivial[kept])
                ties.append(0)
                continue
            values = torch.cat([self.found[name][cut][0].tensor() for name in names])
            counts = torch.cat([self.found[name][cut][1].tensor() for name in names])
            distinct, where = values.unique(return_inverse=True)
            totals = torch.zeros(len(distinct), dtype=torch.int64).index_add_(0, where, counts)
            wanted = kept - self.above[cut]
            if not 0 < wanted <= int(totals.sum()):
                return None
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
