"""Accumulators: numbers gathered over a stream of pieces.

`update` takes a piece, `combine` takes another accumulator of the same kind that saw other pieces, `result` answers.
Results do not depend on how the pieces were dealt out. What a method must know before it merges and what a map shows
are made of the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from merging.inspecting.shelf import Shelf, Strip
from merging.pieces import Piece, PieceKey

Values = Callable[[Piece], torch.Tensor]
"""Any numbers that a piece gives."""


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


class Sums:
    """Σ of any numbers a piece gives, in float64: tensor name -> their sum, added up by position."""

    def __init__(self, values: Values):
        self.values = values
        self.shelf = Shelf(torch.float64)
        self.found: dict[PieceKey, Strip] = {}

    def update(self, piece: Piece) -> None:
        self.found[piece.key] = self.shelf.put(self.values(piece))

    def combine(self, other: Sums) -> None:
        self.found.update(other.found)

    def result(self) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        for name, start in sorted(self.found):
            part = self.found[name, start].tensor()
            sums[name] = sums[name] + part if name in sums else part
        return sums


def products(vectors: Values) -> Sums:
    """Σ x_a·x_b over the rows of what a piece gives [rows, *shape], in float64: tensor name -> [rows, rows]."""

    def of(piece: Piece) -> torch.Tensor:
        flat = vectors(piece)
        flat = flat.reshape(len(flat), -1).double()
        return flat @ flat.T

    return Sums(of)


class Maximum:
    """The largest of any numbers a piece gives, elementwise over the pieces; its result is such a tensor."""

    def __init__(self, values: Values):
        self.values = values
        self.largest: torch.Tensor | None = None

    def update(self, piece: Piece) -> None:
        self._take(self.values(piece).double().cpu())

    def combine(self, other: Maximum) -> None:
        if other.largest is not None:
            self._take(other.largest)

    def result(self) -> torch.Tensor:
        assert self.largest is not None
        return self.largest

    def _take(self, values: torch.Tensor) -> None:
        self.largest = values if self.largest is None else torch.maximum(self.largest, values)
