"""The keys of a scope in order: every exact cut is then a look-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from merging import ops
from merging.cuts import Cut, Keys, LargestCut
from merging.pieces import Piece, PieceKey
from merging.statistics import Attained

MOST_NARROW = (1 << 31) - 1
"""Elements of a scope up to which positions are int32."""


@dataclass(frozen=True)
class SortedKeys:
    """Rows of keys over the pieces of a scope, ascending; among equals by position.

    `values` int32 and `positions` [rows, n], on the CPU; piece p holds the positions `bounds[p]` up to `bounds[p + 1]`, and
    so many keys of each row are `zeros`.
    `heavier` float64 [rows, n + 1], for a sample only: how many elements of the whole the i largest stand for.
    """

    values: torch.Tensor
    positions: torch.Tensor
    pieces: tuple[PieceKey, ...]
    bounds: torch.Tensor
    zeros: tuple[int, ...]
    weights: torch.Tensor | None = None
    heavier: torch.Tensor | None = None

    @property
    def elements(self) -> int:
        return self.values.numel()

    def cut(self, wanted: LargestCut) -> Cut:
        """What `wanted` would find by looking at all pieces."""
        allowance = {key: [0] * len(wanted.kept) for key in self.pieces}
        thresholds, nonzero, ties = [], [], []
        for number, (kept, row) in enumerate(zip(wanted.kept, wanted.ranking.rows, strict=True)):
            nonzero.append(min(kept, wanted.elements - self.zeros[row]))
            if kept in wanted.trivial:
                thresholds.append(wanted.trivial[kept])
                ties.append(0)
                continue
            threshold, tied, allowed = self._at(row, kept)
            thresholds.append(threshold)
            ties.append(tied)
            for piece, count in zip(self.pieces, allowed, strict=True):
                allowance[piece][number] = count
        attained = Attained(wanted.elements, wanted.kept, tuple(nonzero), tuple(ties))
        kind = Cut if self.weights is None else SpreadCut
        return kind(torch.tensor(thresholds, dtype=torch.int32), allowance, attained, wanted.ranking)

    def _at(self, row: int, kept: int) -> tuple[int, int, list[int]]:
        """The threshold that keeps so many, how many keys equal it, and how many of these each piece may keep."""
        values, heavier = self.values[row].numpy(), None if self.heavier is None else self.heavier[row]
        if heavier is None:
            index = len(values) - kept
        else:  # the largest index from which on enough are kept
            index = len(values) - int(torch.searchsorted(heavier, float(kept)))
            index = min(max(index, 0), len(values) - 1)
        threshold = int(values[index])
        first, last = _range(values, threshold)
        tied = self.positions[row, first:last]
        if heavier is None:
            return threshold, last - first, self._count(tied[: kept - (len(values) - last)])
        assert self.weights is not None
        left, allowed = kept - float(heavier[len(values) - last]), []
        for here, weight in zip(self._count(tied), self.weights.tolist(), strict=True):
            taken = min(max(left, 0.0), here * weight)
            allowed.append(round(taken / weight))
            left -= taken
        return threshold, last - first, allowed

    def _count(self, positions: torch.Tensor) -> list[int]:
        """How many positions lie in each piece."""
        if len(self.pieces) == 1:
            return [len(positions)]
        piece = torch.searchsorted(self.bounds, positions.long(), right=True) - 1
        return piece.bincount(minlength=len(self.pieces)).tolist()


def _range(values: np.ndarray, key: int) -> tuple[int, int]:
    """Where those equal to a key begin and end in ascending int32 [n]. By NumPy: torch takes five times as long to begin."""
    return int(values.searchsorted(np.int32(key))), int(values.searchsorted(np.int32(key), "right"))


class SpreadCut(Cut):
    """A cut of a sample: of equal keys those that stay are spread over a piece, so that all its groups share them."""

    def _chosen(self, ranked: ops.Changes, bits: Sequence[int], allowed: Sequence[int]) -> torch.Tensor:
        rows = self.ranking.rows
        keep = ops.above(ranked, rows, bits, [0] * len(rows))
        with_tied = ops.above(ranked, rows, bits, [keep[0].numel()] * len(rows))
        for mine, either, some in zip(keep, with_tied, allowed, strict=True):
            if some:
                tied = ops.positions(either & ~mine)
                count = min(some, len(tied))
                mine.view(-1)[tied[torch.arange(count) * len(tied) // count]] = True
        return keep


def sort_keys(keys: Keys, pieces: Sequence[Piece], weights: Sequence[float] | None = None) -> SortedKeys:
    """Sort the keys of all pieces of a scope; `weights` say how many elements one of each piece stands for."""
    order = sorted(range(len(pieces)), key=lambda number: pieces[number].key)
    rows = torch.cat([ops.flat(keys(pieces[number])) for number in order], 1)
    bounds = torch.tensor([0, *(pieces[number].elements for number in order)]).cumsum(0)
    positions = torch.empty(rows.shape, dtype=torch.int32 if rows.shape[1] <= MOST_NARROW else torch.int64)
    each = heavier = None
    if weights is not None:
        each = torch.tensor([weights[number] for number in order], dtype=torch.float64)
        heavier = torch.zeros(len(rows), rows.shape[1] + 1, dtype=torch.float64)
    for number, row in enumerate(rows):  # one by one, for their int64 positions are large
        values, places = row.sort(stable=True)
        row.copy_(values)
        positions[number] = places
        if each is not None and heavier is not None:
            heavier[number, 1:] = each.repeat_interleave(bounds.diff())[places.flip(0)]
            heavier[number].cumsum_(0)
    names = tuple(pieces[number].key for number in order)
    zeros = tuple(last - first for first, last in (_range(row.numpy(), 0) for row in rows))
    return SortedKeys(rows, positions, names, bounds, zeros, each, heavier)
