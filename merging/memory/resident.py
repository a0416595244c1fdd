"""Families held in memory between merges, so that a moved slider reads nothing and sorts nothing anew."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging.checkpoint import Checkpoint, TensorSource
from merging.cuts import Keys, magnitudes
from merging.layout import Input
from merging.partitions import Scores
from merging.pieces import Memory, Piece
from merging.plan import Plan
from merging.reading import weights
from merging.reports.report import Sample
from merging.sorted_keys import SortedKeys, sort_keys
from merging.tensor_plan import TensorPlan

Pieces = Sequence[tuple[TensorPlan, Piece]]
BYTES_PER_CHANGE = 88
"""What one element of one expert takes at most, with all temporary values: measured at the peak of previews that follow
one another over 9 M sampled changes, 74 to 83 of PCB, 44 to 52 of TIES, 27 of DELLA, 16 of DARE."""
BYTES_PER_ELEMENT = 24
MOST_TABLES = 2
"""Kinds of sorted tables that a family keeps for every scope."""


@dataclass(frozen=True)
class Held:
    """One tensor in float32: base [*shape] (None for methods without one), models [experts, *shape], and the origin of
    changes where the method has no base."""

    base: torch.Tensor | None
    models: torch.Tensor
    origin: torch.Tensor | None
    finite: bool


class Exactly:
    """A watch whose records are exact."""

    def __init__(self, watch: Any):
        self.update = watch.update
        self._watch = watch

    def result(self) -> tuple[dict[str, Any], Sample | None]:
        return self._watch.result(), None


class Family:
    """The tensors of one base and its experts, read when they are first asked for."""

    def __init__(self, sources: Sequence[TensorSource]):
        self.sources = tuple(sources)
        self._held: dict[str, Held] = {}
        self._memories: dict[tuple[Any, ...], Memory] = {}
        self._tables: OrderedDict[Hashable, SortedKeys] = OrderedDict()
        self._lock = threading.Lock()

    def weight(self, tensor: str) -> float:
        """How many elements of the whole tensor each one here stands for."""
        return 1.0

    def pieces(self, plan: Plan, tensors: Sequence[TensorPlan]) -> Pieces:
        return [
            (tensor, self._piece(plan, tensor, start, stop))
            for tensor in tensors
            for start, stop in tensor.row_blocks
        ]

    def under(self, piece: Piece) -> Piece:
        """A piece without a base as changes from the family's origin."""
        origin = self._held[piece.name].origin
        assert origin is not None
        rows = origin[piece.start : piece.stop] if origin.ndim else origin
        return piece.over(rows, self._memory(("origin", *piece.key, piece.stop)))

    def keeps(self, keys: Keys) -> bool:
        """Whether keys are kept in order: those that depend on the models alone."""
        return _identity(keys) is not None

    def sorted(self, keys: Keys, pieces: Pieces) -> SortedKeys:
        """The keys of all pieces in order, kept for next time."""
        identity = _identity(keys)
        if identity is None:
            return self._sort(keys, pieces)
        key = (identity, tuple(piece.key for _, piece in pieces))
        with self._lock:
            found = self._tables.get(key)
        if found is None:
            found = self._sort(keys, pieces)
            with self._lock:
                self._tables[key] = found
                self._forget()
        return found

    def scores(self, plan: Plan) -> Scores | None:
        """The importance of every partition, its index by the rows that are here."""
        return plan.scores

    def finite(self, tensor: TensorPlan) -> bool:
        """Whether all values of a tensor are finite in base and experts."""
        return self._held[tensor.info.name].finite

    def watch(self, make: Callable[[], Any]) -> Any:
        """What looks at all merged pieces: one watch, whose records are exact."""
        return Exactly(make())

    def _sort(self, keys: Keys, pieces: Pieces) -> SortedKeys:
        return sort_keys(keys, [piece for _, piece in pieces])

    def _forget(self) -> None:
        """Drop the oldest tables once they hold more than a few of every scope would."""
        elements = sum(held.models.numel() for held in self._held.values())
        while (
            len(self._tables) > 1
            and sum(table.elements for table in self._tables.values()) > MOST_TABLES * elements
        ):
            self._tables.popitem(last=False)

    def _piece(self, plan: Plan, tensor: TensorPlan, start: int, stop: int) -> Piece:
        name = tensor.info.name
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = self._read(plan, tensor)

        def rows(values: torch.Tensor | None) -> torch.Tensor | None:
            return values[start:stop] if values is not None and values.ndim else values

        models = held.models[:, start:stop] if held.models.ndim > 1 else held.models
        memory = self._memory((name, start, stop))
        saliency = None
        if tensor.method is not None and tensor.method.needs_saliency:
            saliency = torch.stack([source.read(name, start, stop) for source in plan.saliency])
        return Piece(name, start, rows(held.base), models, weights(tensor), saliency, memory)

    def _memory(self, key: tuple[Any, ...]) -> Memory:
        return self._memories.setdefault(key, Memory())

    def _read(self, plan: Plan, tensor: TensorPlan) -> Held:
        base = self._values(plan, tensor, tensor.base) if tensor.base is not None else None
        models = torch.stack([self._values(plan, tensor, expert) for expert in tensor.experts])
        origin = self._values(plan, tensor, tensor.reference) if base is None else None
        finite = bool(models.isfinite().all()) and (base is None or bool(base.isfinite().all()))
        return Held(base, models, origin, finite)

    def _values(self, plan: Plan, tensor: TensorPlan, one: Input) -> torch.Tensor:
        values = self._stored(tensor, one)
        if plan.work_dtype is not None:
            values = values.to(plan.work_dtype)
        return values.to(torch.float32)

    def _stored(self, tensor: TensorPlan, one: Input) -> torch.Tensor:
        return one.source.read(one.name)


def _identity(keys: Keys) -> Hashable:
    """By what keys are known if they depend on the models alone; else None."""
    return "magnitudes" if keys is magnitudes else getattr(keys, "identity", None)


def family_bytes(plan: Plan, elements: int | None = None) -> int:
    """What a family takes in memory at most, with all that is worked out from it."""
    count = sum(tensor.info.elements for tensor in plan.tensors) if elements is None else elements
    return count * (BYTES_PER_ELEMENT + BYTES_PER_CHANGE * len(plan.experts))


def family_key(plan: Plan) -> Hashable:
    """What the pieces of a plan depend on: the models' contents, their layout, and what they are rounded to."""
    sources = tuple(source_key(source) for source in sources_of(plan))
    numbers = {id(source): number for number, source in enumerate(sources_of(plan))}

    def place(one: Input) -> Hashable:
        number = numbers.get(id(one.source))
        return source_key(one.source) if number is None else number, one.name

    layout = tuple(
        (t.info.name, t.info.shape, place(t.reference), tuple(place(one) for one in t.inputs))
        for t in plan.tensors
    )
    return sources, plan.work_dtype, plan.base is None, layout


def sources_of(plan: Plan) -> Iterator[TensorSource]:
    yield plan.reference
    if plan.base is not None:
        yield plan.base
    yield from plan.experts


def source_key(source: TensorSource) -> Hashable:
    """The files of a model, and of those it is computed from, and when they changed; a model in memory is itself.

    The time of the last change (ctime) counts too: unlike that of the last write (mtime), no program can set it back.
    """
    if isinstance(source, Checkpoint) and source.made_of:
        return (source.digest, *(source_key(one) for one in source.made_of))
    files = sorted({info.file for info in source.tensors.values() if info.file is not None})
    if not files:
        return id(source)
    states = [(str(file), file.stat()) for file in files]
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in states)
