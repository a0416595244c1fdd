"""The unit of work: one tensor, or a block of its rows, across base and experts."""

from __future__ import annotations

import math
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
        return self.start + (self.shape[1] if len(self.shape) > 1 else 1)

    @property
    def shape(self) -> torch.Size:
        """[experts, *shape]."""
        return self.models.shape

    @property
    def device(self) -> torch.device:
        return self.models.device

    @property
    def experts(self) -> int:
        return self.shape[0]

    @property
    def one_each(self) -> torch.Size:
        """[experts, 1, ...]: the shape of one number for each expert."""
        return torch.Size((self.experts, *[1] * (len(self.shape) - 1)))

    @property
    def elements(self) -> int:
        """Of one model."""
        return math.prod(self.shape[1:])

    @property
    def base_or_zero(self) -> torch.Tensor:
        return torch.zeros_like(self.models[0]) if self.base is None else self.base

    @cached_property
    def deltas(self) -> torch.Tensor:
        def make() -> torch.Tensor:
            return self.models if self.base is None else self.models - self.base

        return self.remember("deltas", None, make)

    @property
    def changes(self) -> ops.Changes:
        """The task vectors for operations that only look at them, in whatever form they are there."""
        return ops.Changes(self.deltas)

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

    def over(self, base: torch.Tensor, memory: Memory | None = None) -> Piece:
        """The same models as changes from a base [*shape]."""
        return Piece(self.name, self.start, base, self.models, self.weight, self.saliency, memory)

    def apply(self, change: torch.Tensor) -> torch.Tensor:
        """base + change in float32; where the change is exactly 0 the base's own bits (−0 included)."""
        return ops.apply(self.base, change)

    def remember(self, kind: str, variant: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the piece's values; `variant` names all else that it depends on."""
        return make() if self.memory is None else self.memory.recall(kind, variant, make)


class StoredPiece(Piece):
    """A piece whose values are there as they are stored [models, *shape], the base first if there is one: they are widened
    when somebody first asks for them, base and task vectors in one sweep. Compiled loops need nobody to."""

    stored: torch.Tensor
    has_base: bool

    def __init__(
        self,
        name: str,
        start: int,
        stored: torch.Tensor,
        has_base: bool,
        weight: torch.Tensor,
        saliency: torch.Tensor | None = None,
        memory: Memory | None = None,
    ):
        vars(self).update(
            name=name,
            start=start,
            stored=stored,
            has_base=has_base,
            weight=weight,
            saliency=saliency,
            memory=memory,
        )

    @property
    def shape(self) -> torch.Size:
        return ops.Changes(self.stored, self.has_base).shape

    @property
    def device(self) -> torch.device:
        return self.stored.device

    @cached_property
    def base(self) -> torch.Tensor | None:
        return self._vectors[0] if self.has_base else None

    @cached_property
    def models(self) -> torch.Tensor:
        return self.stored[int(self.has_base) :].to(torch.float32)

    @cached_property
    def deltas(self) -> torch.Tensor:
        return self._vectors[1] if self.has_base else self.models

    @property
    def changes(self) -> ops.Changes:
        if "_vectors" in vars(self) or not ops.sweepable(self.stored):
            return super().changes
        return ops.Changes(self.stored, self.has_base)

    @cached_property
    def products(self) -> torch.Tensor:
        if not self.has_base:
            return ops.products(None, self.models)
        if "_vectors" not in vars(self):
            vars(self)["_vectors"] = ops.task_vectors(self.stored, with_products=True)
        found = self._vectors[2]
        return ops.products(self.base, self.deltas) if found is None else found

    def sweepable(self, dtype: torch.dtype) -> bool:
        """Whether `add_up` gives rows of a dtype."""
        return dtype in ops.BITS and ops.sweepable(self.stored)

    def add_up(self, sweep: ops.Sweep, dtype: torch.dtype) -> tuple[torch.Tensor, ops.Tally]:
        """The rows of a merge in one sweep, and what came of it; the piece then knows its products."""
        rows, tally, found = ops.add_up(self.stored, sweep, dtype, has_base=self.has_base)
        vars(self)["products"] = found
        return rows, tally

    def thinned(self, stride: int) -> StoredPiece:
        """Every so many-th of its elements, as one row."""
        rows, saliency = (
            None if values is None else ops.flat(values)[:, ::stride].contiguous()
            for values in (self.stored, self.saliency)
        )
        assert rows is not None
        return StoredPiece(self.name, self.start, rows, self.has_base, self.weight, saliency)

    @cached_property
    def _vectors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Base, task vectors and, of a piece that is kept and so will be merged, their products: a scan needs none."""
        return ops.task_vectors(self.stored, with_products=self.memory is not None)


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
