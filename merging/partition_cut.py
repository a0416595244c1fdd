"""The exact cut inside every partition of some tensors at once: a radix descent over the magnitude bits."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from merging import ops
from merging.cuts import NOTHING, Keys
from merging.inspecting.shelf import Shelf, Strip
from merging.pieces import Piece, PieceKey
from merging.statistics import Accumulator

SHIFTS = (24, 16, 8, 0)
"""Four digits of 8 bits, the highest first."""
DIGITS = 256


@dataclass(frozen=True)
class Labels:
    """Tensor name -> partition numbers (0 to `count` − 1) of its elements, int64 that broadcasts to the tensor."""

    index: Mapping[str, torch.Tensor]
    count: int

    def of(self, piece: Piece) -> torch.Tensor:
        """The partition of every element of a piece: int64 [elements]."""
        index = ops.broadcast_rows(self.index[piece.name], piece.start, piece.stop)
        return index.to(piece.device).expand(piece.shape[1:]).flatten()


@dataclass(frozen=True)
class PartitionCut:
    """The largest keys of each partition: those above `bits` [experts, P], and of the equal ones the first few.

    `allowance[piece]` [experts, P] says how many of the equal ones a piece keeps.
    """

    labels: Labels
    keys: Keys
    bits: torch.Tensor
    allowance: dict[PieceKey, torch.Tensor]

    def keep(self, piece: Piece) -> torch.Tensor:
        """Which elements survive: bool [experts, *shape]."""
        keys, labels = self.keys(piece), self.labels.of(piece)
        rows = []
        for row, bits, allowed in zip(keys, self.bits, self.allowance[piece.key], strict=True):
            flat, limit = row.flatten(), bits.to(labels.device)[labels]
            keep = flat > limit
            tied = ops.positions(flat == limit)
            tied = tied[labels[tied].sort(stable=True).indices]
            place = torch.arange(len(tied), device=tied.device)
            first = torch.searchsorted(labels[tied], labels[tied])
            keep[tied[place - first < allowed.to(labels.device)[labels[tied]]]] = True
            rows.append(keep.view_as(row))
        return torch.stack(rows)


def partition_cut(
    labels: Labels, kept: torch.Tensor, keys: Keys
) -> Generator[Accumulator, Any, PartitionCut]:
    """Five scans that find the `kept` [experts, P] largest keys of every partition; keys are not negative."""
    prefix = torch.zeros_like(kept)
    wanted = kept.clone()
    for shift in SHIFTS:
        counts = yield _DigitCounts(labels, keys, prefix, shift)
        from_top = counts.flip(-1).cumsum(-1)
        position = (from_top < wanted[..., None]).sum(-1).clamp(max=DIGITS - 1)
        above = torch.where(
            position > 0, from_top.gather(-1, (position - 1).clamp(min=0)[..., None])[..., 0], 0
        )
        wanted = wanted - above
        prefix = (prefix << 8) + DIGITS - 1 - position
    bits = torch.where(kept > 0, prefix, NOTHING).to(torch.int32)
    ties = yield _Ties(labels, keys, bits)
    allowance = {}
    for key in sorted(ties):
        allowance[key] = torch.minimum(wanted.clamp(min=0), ties[key])
        wanted = wanted - allowance[key]
    return PartitionCut(labels, keys, bits, allowance)


class _DigitCounts:
    """Of the keys that begin with their partition's prefix: how many have each next digit; [experts, P, 256]."""

    def __init__(self, labels: Labels, keys: Keys, prefix: torch.Tensor, shift: int):
        self.labels, self.keys, self.prefix, self.shift = labels, keys, prefix, shift
        self.counts = torch.zeros(*prefix.shape, DIGITS, dtype=torch.int64)

    def update(self, piece: Piece) -> None:
        labels = self.labels.of(piece)
        for counts, row, prefix in zip(self.counts, self.keys(piece), self.prefix, strict=True):
            digits = row.flatten() >> self.shift
            inside = digits >> 8 == prefix.to(labels.device)[labels]
            cells = labels[inside] * DIGITS + (digits[inside] & (DIGITS - 1))
            counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts).cpu()

    def combine(self, other: _DigitCounts) -> None:
        self.counts += other.counts

    def result(self) -> torch.Tensor:
        return self.counts


class _Ties:
    """How many keys of each piece equal their partition's threshold: piece -> [experts, P]."""

    def __init__(self, labels: Labels, keys: Keys, bits: torch.Tensor):
        self.labels, self.keys, self.bits = labels, keys, bits
        self.shelf = Shelf(torch.int64)
        self.found: dict[PieceKey, Strip] = {}

    def update(self, piece: Piece) -> None:
        labels = self.labels.of(piece)
        found = [
            torch.bincount(
                labels[row.flatten() == bits.to(labels.device)[labels]], minlength=self.labels.count
            )
            for row, bits in zip(self.keys(piece), self.bits, strict=True)
        ]
        self.found[piece.key] = self.shelf.put(torch.stack(found))

    def combine(self, other: _Ties) -> None:
        self.found.update(other.found)

    def result(self) -> dict[PieceKey, torch.Tensor]:
        return {key: strip.tensor() for key, strip in self.found.items()}
