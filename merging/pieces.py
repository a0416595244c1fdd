"""The unit of work: one tensor, or a block of its rows, across base and experts."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch

from merging import ops

PieceKey = tuple[str, int]
"""Tensor name and first row: identifies a piece and orders pieces as ties are given out."""


T = TypeVar("T")


class Memory:
    """What follows from the values of one piece alone: of every kind of thing its latest variant, so that it is bounded.

    Several threads may use it at once: at worst they work out the same thing twice.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def recall(self, kind: str, variant: Hashable, make: Callable[[], T]) -> T:
        known = self._kept.get(kind)
        if known is None or known[0] != variant:
            known = self._kept[kind] = (variant, make())
        found: T = known[1]
        return found


@dataclass(frozen=True)
class Piece:
    """Rows of one tensor across base and experts.

    Shapes: base [*shape] float32, or None for methods without a base; models [experts, *shape] float32; weight
    [experts] float32. `deltas` are the task vectors models − base (the models themselves without a base).
    """

    name: str
    start: int
    base: torch.Tensor | None
    models: torch.Tensor
    weight: torch.Tensor
    saliency: torch.Tensor | None = None
    """δ·g of every element [experts, *shape], where a method asks for it."""
    memory: Memory | None = None
    """What was worked out before, where a piece stays in memory between scans or merges."""

    @property
    def key(self) -> PieceKey:
        return (self.name, self.start)

    @property
    def stop(self) -> int:
        """The row after the piece's last; a scalar has one row."""
        return self.start + (self.models.shape[1] if self.models.ndim > 1 else 1)

    @property
    def experts(self) -> int:
        return self.models.shape[0]

    @property
    def base_or_zero(self) -> torch.Tensor:
        return torch.zeros_like(self.models[0]) if self.base is None else self.base

    @cached_property
    def deltas(self) -> torch.Tensor:
        def make() -> torch.Tensor:
            return self.models if self.base is None else self.models - self.base

        return self.remember("deltas", None, make)

    @cached_property
    def products(self) -> torch.Tensor:
        """Σx·y of θ0 and the task vectors, each with each: float64 [1 + experts, 1 + experts] on the CPU, 0 without a base;
        not finite where a value is not."""

        def make() -> torch.Tensor:
            return ops.products(self.base, self.deltas)

        return self.remember("products", None, make)

    @property
    def gram(self) -> torch.Tensor:
        """Σδ_a·δ_b: float64 [experts, experts] on the CPU."""
        return self.products[1:, 1:]

    @property
    def base_square(self) -> float:
        """Σθ0², 0 without a base."""
        return float(self.products[0, 0])

    def apply(self, change: torch.Tensor) -> torch.Tensor:
        """base + change in float32; where the change is exactly 0 the base's own bits (−0 included)."""
        return ops.apply(self.base, change)

    def remember(self, kind: str, variant: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the piece's values; `variant` names all else that it depends on."""
        return make() if self.memory is None else self.memory.recall(kind, variant, make)


class Explained(NamedTuple):
    """The factors of every expert's change: `coefficients` as they are merged, `sparse` before an election.

    Shapes: [experts, *shape], or broadcastable to it. What has a `sparse` factor but no coefficient was out-voted.
    """

    coefficients: torch.Tensor
    sparse: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of a piece.

    Shapes: merged [*shape] float32, rows the same in the output's dtype. `change` is what was added to the base, and
    `explained` how it came about; None where the method is no sum of scaled changes.
    """

    piece: Piece
    merged: torch.Tensor
    rows: torch.Tensor
    change: torch.Tensor | None = None
    explained: Explained | None = None
