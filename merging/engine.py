"""The only loop over weights: plan in, pieces through, events out."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol, TypeVar

import torch

from merging import ops
from merging.cuts import KeySample
from merging.devices import (
    device_with_room,
    out_of_memory_in_words,
    settle,
    to_host,
)
from merging.errors import MergingError
from merging.events import Event, Finished, Progress, TensorResult
from merging.executors import Executor, Inline, Streams, executor_for
from merging.folders.header import MERGEABLE, TensorInfo
from merging.inspecting.relations import Products, Relations
from merging.methods import Group, Method, Survey
from merging.pieces import Outcome, Piece, StoredPiece
from merging.plan import KEEP_BYTES, Plan
from merging.reading import Pieces, Reader, Spot, Thin, input_bytes
from merging.statistics import Accumulator, Attained
from merging.tensor_plan import GroupKey, TensorPlan

T = TypeVar("T")
Work = Callable[[Executor], Iterator[Progress]]
"""Work that an executor does, piece by piece."""


class Sink(Protocol):
    """Where merged rows go, maybe from several threads at once; a `CheckpointWriter` or tensors in memory."""

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None: ...


class NoSink:
    """Takes the result and forgets it: for looking at a merge without making it."""

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        pass


class Watch(Protocol):
    """Looks at every merged piece as it is made, maybe from several threads at once."""

    def update(self, outcome: Outcome) -> None: ...


class MemorySink:
    """Collects the result as a dictionary of tensors."""

    def __init__(self, tensors: Sequence[TensorInfo]):
        self.tensors = {info.name: torch.empty(info.shape, dtype=info.torch_dtype) for info in tensors}

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        if rows.ndim:
            self.tensors[name][start : start + rows.shape[0]] = to_host(rows)
        else:
            self.tensors[name].copy_(to_host(rows))


def run_plan(
    plan: Plan, sink: Sink, *, device: str = "auto", watches: Sequence[Watch] = ()
) -> Iterator[Event]:
    """Merge: yields `Progress` after every piece and `Finished` (without a path) at the end.

    Closing the generator stops between two pieces, or between tensors that are small. `watches` look at every piece that is
    merged.

    Raises:
        MergingError: a result is not finite, integer tensors that have to be copied differ, or the device has no room.
    """
    chosen, remarks = device_with_room(device, plan.gpu_memory)
    run = _Run(plan, chosen, watches=watches)
    with out_of_memory_in_words():
        yield from run.merge_all(sink)
    finished = run.finished()
    yield replace(finished, warnings=(*remarks, *finished.warnings))


def watch(plan: Plan, accumulator: Accumulator, *, device: str = "auto") -> Iterator[Progress]:
    """Show every merged piece of the plan to an accumulator, without merging or writing anything."""
    tensors = [tensor for tensor in plan.tensors if tensor.method is not None]
    run = _Run(plan, device_with_room(device, plan.gpu_memory)[0], only_read=True)
    with out_of_memory_in_words():
        for spot in run.scan(accumulator, run.reader.pieces(tensors, again=False), run.executor):
            yield run.advance("reading", spot, len(tensors))


@dataclass
class _Run:
    """The state of one run over a plan: counters, results, and the device pieces are sent to."""

    plan: Plan
    device: torch.device
    only_read: bool = False
    watches: Sequence[Watch] = ()
    started: float = field(default_factory=time.perf_counter)
    bytes_written: int = 0
    work_done: int = 0
    made: dict[GroupKey, list[_Made]] = field(default_factory=dict)
    """Of every group its parts, in the order of the plan."""
    tensors_done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        def passes(tensor: TensorPlan) -> int:
            return 1 if tensor.method is None or self.only_read else 1 + tensor.method.scans

        self.reader = Reader(self.plan, self.device)
        inputs = sum(tensor.info.elements * len(tensor.experts) for tensor in self.plan.tensors)
        gpu = self.device.type == "cuda"
        self.executor: Executor = (
            Streams(self.device, self.plan.gpu_workers) if gpu else executor_for(self.device, inputs)
        )
        self.work = sum(tensor.info.elements * passes(tensor) for tensor in self.plan.tensors)
        self.lock = Lock()

    def merge_all(self, sink: Sink) -> Iterator[Progress]:
        """Copy or merge every group of tensors that are looked at together."""
        groups: list[tuple[list[TensorPlan], Work]] = []
        for key, tensors in self.plan.groups.items():
            self.made[key] = []
            if not any(tensor.info.elements for tensor in tensors):
                continue
            if tensors[0].method is None:
                yield from self.copy(tensors, sink)
            else:
                groups.append((tensors, partial(self.merge, tensors, sink)))
        yield from self.side_by_side(groups, self.executor)

    def side_by_side(
        self, works: Iterable[tuple[Sequence[TensorPlan], Work]], executor: Executor
    ) -> Iterator[Progress]:
        """What is to be done for some tensors at a time. Where they are large it has all workers, one after another; of small
        ones every worker has one, for all wait for the last piece of a scan."""
        small = []
        for tensors, work in works:
            if input_bytes(tensors) * executor.workers <= self.plan.keep(KEEP_BYTES):
                small.append(work)
            else:
                yield from work(executor)
        if len(small) == 1 or executor.workers == 1:
            for work in small:
                yield from work(executor)
            return

        def alone(work: Work) -> None:
            for _ in work(Inline()):
                pass

        for _ in executor.map(alone, small):
            yield self._progress("merging", len(self.plan.tensors))

    def merge(self, tensors: Sequence[TensorPlan], sink: Sink, executor: Executor) -> Iterator[Progress]:
        """Survey a group of tensors that are looked at together, refine its parts, then merge and write them."""
        method = tensors[0].method
        assert method is not None
        pieces = self.reader.pieces(tensors, again=method.scans > 0)
        known, scans = yield from self._survey(method.survey(self._group(tensors)), tensors, pieces, executor)
        if not scans:  # so nothing was read yet, and all of it is read once
            pieces = self.reader.pieces(tensors, again=False)
        parts: dict[str | None, list[TensorPlan]] = {}
        for tensor in tensors:
            parts.setdefault(method.part_of(tensor.info.name, known), []).append(tensor)

        def merge_part(
            name: str | None, part: Sequence[TensorPlan], made: _Made, executor: Executor
        ) -> Iterator[Progress]:
            some = pieces if len(parts) == 1 else pieces.of(part)
            found, more = known, 0
            if name is not None:
                found, more = yield from self._survey(
                    method.refine(self._group(part), known), part, some, executor
                )
            with self.lock:
                spared = max(0, method.scans - scans - more)  # a rescale or a wrong bracket takes more
                self.work_done += spared * sum(tensor.info.elements for tensor in part)
            yield from self._write(some, found, sink, executor, made)

        works: list[tuple[list[TensorPlan], Work]] = []
        for name, part in parts.items():
            made = _Made({one: Relations(len(one)) for one in {tensor.models for tensor in part}})
            self.made[tensors[0].group].append(made)
            works.append((part, partial(merge_part, name, part, made)))
        yield from self.side_by_side(works, executor)

    def _write(
        self, pieces: Pieces, known: Any, sink: Sink, executor: Executor, made: _Made
    ) -> Iterator[Progress]:
        method, models, totals = pieces.tensors[0].method, pieces.tensors[0].models, _Totals()
        assert method is not None
        if (attained := method.attained(known)) is not None and models == self.plan.names:
            made.attained.append(attained)
        made.remarks += method.remarks(known, models)

        def merge(spot: Spot) -> tuple[Spot, _Merged]:
            return spot, self._merged(spot.tensor, pieces.load(spot), known, sink)

        for spot, merged in executor.map(merge, pieces):
            tensor = spot.tensor
            made.relations[tensor.models].add(merged.products)
            totals.add(merged.totals)
            with self.lock:
                self.bytes_written += merged.nbytes
            if spot.stop == tensor.info.rows:
                made.results.append(totals.result(tensor.info, has_base=tensor.base is not None))
                totals = _Totals()
            yield self.advance("merging", spot, len(self.plan.tensors))

    def _group(self, tensors: Sequence[TensorPlan]) -> Group:
        shapes = {tensor.info.name: tensor.info.shape for tensor in tensors}
        return Group(shapes, len(tensors[0].experts), self.plan.scores)

    def _survey(
        self, survey: Survey, tensors: Sequence[TensorPlan], pieces: Pieces, executor: Executor
    ) -> Generator[Progress, None, tuple[Any, int]]:
        """Run the accumulators a method asks for; what it then knows, and how many scans that took."""
        answer, scans = None, 0
        while True:
            try:
                accumulator = survey.send(answer)
            except StopIteration as stop:
                return stop.value, scans
            if isinstance(
                accumulator, KeySample
            ):  # which saves a scan of the files; one of memory costs less than a sample
                answer = None if pieces.kept else self.look_at_sample(accumulator, pieces, executor)
                continue
            scans += 1
            stage = f"scan {scans}"
            with self.lock:
                self.tensors_done[stage] = 0
            for spot in self.scan(accumulator, pieces, executor):
                progress = self.advance(stage, spot, len(tensors))
                yield progress if len(tensors) > 1 else self._progress("merging", len(self.plan.tensors))
            answer = accumulator.result()

    def scan(self, accumulator: Accumulator, pieces: Pieces, executor: Executor) -> Iterator[Spot]:
        """Show all pieces to an accumulator; every spot once it was seen."""

        def load(spot: Spot) -> tuple[Spot, Piece]:
            return spot, pieces.load(spot)

        return self._show(accumulator, pieces, load, executor)

    def look_at_sample(self, sample: KeySample, pieces: Pieces, executor: Executor) -> torch.Tensor:
        """The keys of a sample of all pieces."""

        def load(thin: Thin) -> tuple[Spot, Piece]:
            return thin.spot, pieces.load_thin(thin)

        for _ in self._show(sample, pieces.sample(), load, executor):
            pass
        return sample.result()

    def _show(
        self,
        accumulator: Accumulator,
        places: Iterable[T],
        load: Callable[[T], tuple[Spot, Piece]],
        executor: Executor,
    ) -> Iterator[Spot]:
        """Show what lies at some places to an accumulator, one of its like for each worker."""
        idle: SimpleQueue[Accumulator] = SimpleQueue()
        others = [copy.deepcopy(accumulator) for _ in range(1, executor.workers)]
        for one in (accumulator, *others):
            idle.put(one)

        def look(place: T) -> Spot:
            (spot, piece), mine = load(place), idle.get()
            try:
                mine.update(piece)
                settle(self.device)
            finally:
                idle.put(mine)
            return spot

        yield from executor.map(look, places)
        for other in others:
            accumulator.combine(other)

    def copy(self, tensors: Sequence[TensorPlan], sink: Sink) -> Iterator[Progress]:
        """Write the reference's values."""
        for tensor in tensors:
            for start, stop in tensor.row_blocks:
                rows = copied(tensor, self.reader.rows(tensor.reference, start, stop), start)
                sink.write(tensor.info.name, rows, start)
                self.bytes_written += rows.nbytes
                self.work_done += rows.numel()
                self.tensors_done["merging"] += stop == tensor.info.rows
                yield self._progress("merging", len(self.plan.tensors))

    def advance(self, stage: str, spot: Spot, tensors: int) -> Progress:
        with self.lock:
            self.work_done += spot.elements
            self.tensors_done[stage] += spot.stop == spot.tensor.info.rows
        return self._progress(stage, tensors)

    def finished(self) -> Finished:
        """What came of all groups, in the order of the plan."""
        made = [*self._parts_made()]
        attained = [one for part in made for one in part.attained]
        remarks = [one for part in made for one in part.remarks]
        return Finished(
            path=None,
            tensors=tuple(result for part in made for result in part.results),
            attained=reduce(add, attained) if attained else None,
            bytes_read=self.reader.bytes_read,
            bytes_written=self.bytes_written,
            seconds=time.perf_counter() - self.started,
            warnings=tuple(dict.fromkeys((*self.plan.warnings, *remarks, *self._cautions()))),
        )

    def _parts_made(self) -> Iterator[_Made]:
        return (part for group in self.made.values() for part in group)

    def _cautions(self) -> Iterator[str]:
        """What the experts' whole task vectors say against them or against this method; there is one set of models, unless
        slices have different ones."""
        relations: dict[tuple[str, ...], Relations] = {}
        for models, found in (one for part in self._parts_made() for one in part.relations.items()):
            relations.setdefault(models, Relations(len(models))).combine(found)
        for models, found in relations.items():
            yield from found.remarks(models)
            methods = [t.method for t in self.plan.tensors if t.method is not None and t.models == models]
            for method in dict.fromkeys(methods):
                yield from method.cautions(found.changes, models)

    def _progress(self, stage: str, tensors: int) -> Progress:
        return Progress(
            stage=stage,
            tensors_done=self.tensors_done[stage],
            tensors=tensors,
            bytes_done=self.reader.bytes_read + self.bytes_written,
            share=min(1.0, self.work_done / self.work) if self.work else 1.0,
            seconds=time.perf_counter() - self.started,
        )

    def _merged(self, tensor: TensorPlan, piece: Piece, known: Any, sink: Sink) -> _Merged:
        """Merge one piece, show it to the watches and write it."""
        swept = None if self.watches else _swept_rows(tensor, piece, known)  # which gives the products, too
        products = Products.of(piece)
        if not products.finite:
            require_finite(self.plan, tensor, piece)
        if self.watches:
            outcome, tally = outcome_of(tensor, piece, known)
            rows = outcome.rows
        else:
            rows, tally = swept or rows_of(tensor, piece, known)
        require_finite_rows(self.plan, tensor, piece, rows, tally)
        for watch in self.watches:
            watch.update(outcome)
        sink.write(tensor.info.name, rows, piece.start)
        return _Merged(rows.nbytes, products, _Totals.of(piece, tally))


@dataclass
class _Made:
    """What came of a part of a group of tensors that were looked at together, apart from what was written. What the pieces
    leave is added up in arrays that were there before them: see `shelf`."""

    relations: dict[tuple[str, ...], Relations]
    attained: list[Attained] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    results: list[TensorResult] = field(default_factory=list)


def copied(tensor: TensorPlan, rows: torch.Tensor, start: int) -> torch.Tensor:
    """The reference's rows from row `start` on, as the output has them.

    Raises:
        MergingError: the result is not finite, or integers that differ between the models.
    """
    name = tensor.info.name
    if tensor.info.dtype not in MERGEABLE and not tensor.excluded:
        _require_equal(tensor, rows, start)
    cast = rows.to(tensor.info.torch_dtype)
    if cast.is_floating_point() and not ops.all_finite(cast):
        raise MergingError(
            f"'{name}': copied from {tensor.reference.source.label}, and not finite as {tensor.info.dtype}. Set "
            "out_dtype: float32, or use an intact model."
        )
    return cast


def _require_equal(tensor: TensorPlan, rows: torch.Tensor, start: int) -> None:
    stop = start + (len(rows) if rows.ndim else 1)
    for expert in tensor.experts:
        if not torch.equal(expert.source.read(expert.name, start, stop), rows):
            raise MergingError(
                f"{expert.model}: '{expert.name}' is {tensor.info.dtype} and differs from the base's; such tensors can "
                "only be copied. Exclude it to keep the base's."
            )


def outcome_of(tensor: TensorPlan, piece: Piece, known: Any) -> tuple[Outcome, ops.Tally]:
    """One piece merged and cast, with its explanation if the method has one; and its sums."""
    method, dtype = tensor.method, tensor.info.torch_dtype
    assert method is not None
    if not method.elementwise:
        merged, rows, tally = _merged_whole(method, piece, known, dtype)
        return Outcome(piece, merged, rows), tally
    explained = method.explain(piece, known)
    change = method.change(explained.coefficients, piece)
    found, rows, tally = ops.finish(piece.base, change, dtype)
    assert found is not None
    return Outcome(piece, found, rows, change, explained), tally


def rows_of(tensor: TensorPlan, piece: Piece, known: Any) -> tuple[torch.Tensor, ops.Tally]:
    """The rows of `outcome_of`, bit by bit, and their sums, where nobody asks how they came about."""
    method, dtype = tensor.method, tensor.info.torch_dtype
    assert method is not None
    if not method.elementwise:
        return _merged_whole(method, piece, known, dtype)[1:]
    sweep = method.sweep(piece, known)
    assert sweep is not None
    return ops.finish(piece.base, ops.summed(sweep, piece.deltas), dtype, in_float32=False)[1:]


def _swept_rows(tensor: TensorPlan, piece: Piece, known: Any) -> tuple[torch.Tensor, ops.Tally] | None:
    """The same in one sweep, where the method and the values allow it."""
    method, dtype = tensor.method, tensor.info.torch_dtype
    assert method is not None
    if not isinstance(piece, StoredPiece) or not piece.sweepable(dtype):
        return None
    sweep = method.sweep(piece, known)
    return None if sweep is None else piece.add_up(sweep, dtype)


def _merged_whole(
    method: Method, piece: Piece, known: Any, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, ops.Tally]:
    """What a method merges that is no sum of scaled changes: in float32, as it is written, and its sums."""
    merged, rows, tally = ops.finish(None, method.merge(piece, known), dtype)
    assert merged is not None
    if piece.base is not None:
        tally = ops.tally(piece.base, merged, rows)
    return merged, rows, tally


@dataclass
class _Totals:
    """Sums over the pieces of one tensor, for its `TensorResult`."""

    base: float = 0.0
    change: float = 0.0
    error: float = 0.0
    changed: int = 0
    lost: int = 0

    @classmethod
    def of(cls, piece: Piece, tally: ops.Tally) -> _Totals:
        return cls(piece.base_square, tally.change, tally.error, tally.changed, tally.lost)

    def add(self, other: _Totals) -> None:
        self.base += other.base
        self.change += other.change
        self.error += other.error
        self.changed += other.changed
        self.lost += other.lost

    def result(self, info: TensorInfo, *, has_base: bool) -> TensorResult:
        return TensorResult(
            name=info.name,
            elements=info.elements,
            base_norm=self.base**0.5 if has_base else None,
            change_norm=self.change**0.5 if has_base else None,
            changed=self.changed,
            lost=self.lost,
            cast_error=self.error**0.5,
        )


@dataclass(frozen=True)
class _Merged:
    """What is left of a piece once it is written."""

    nbytes: int
    products: Products
    totals: _Totals


def require_finite(plan: Plan, tensor: TensorPlan, piece: Piece) -> None:
    """Raise if base or an expert holds NaN or infinite values in a piece; squares may also be just too large."""
    if not bool(piece.models.isfinite().all() and piece.base_or_zero.isfinite().all()):
        raise MergingError(f"'{tensor.info.name}': {_damage(plan, tensor, piece.start, piece.stop)}")


def require_finite_rows(
    plan: Plan, tensor: TensorPlan, piece: Piece, rows: torch.Tensor, tally: ops.Tally
) -> None:
    if not tally.finite:
        raise MergingError(_not_finite(plan, tensor, piece, rows))


def _not_finite(plan: Plan, tensor: TensorPlan, piece: Piece, rows: torch.Tensor) -> str:
    bad = int((~torch.isfinite(rows)).sum())
    text = f"'{tensor.info.name}': {bad:,} of {rows.numel():,} merged values are not finite"
    if damage := _damage(plan, tensor, piece.start, piece.stop):
        return f"{text}, because {damage}"
    for other in plan.groups[tensor.group]:  # what a method knows of its scope spoils all of it
        for start, stop in other.row_blocks:
            if damage := _damage(plan, other, start, stop, f"in '{other.info.name}'"):
                return f"{text}, because {damage}"
    return f"{text}: too large for {tensor.info.dtype}. Lower λ or the weights, or set out_dtype: float32."


def _damage(plan: Plan, tensor: TensorPlan, start: int, stop: int, where: str = "there") -> str | None:
    """Which input is not finite in some rows, and what to do; None: they all are."""
    for one in tensor.inputs:
        label = "the base" if one is tensor.base else one.model
        stored = one.source.read(one.name, start, stop)
        if count := int((~torch.isfinite(stored)).sum()):
            return f"{label} holds {count:,} NaN or infinite values {where}. Use an intact model."
        if plan.work_dtype is not None and not bool(torch.isfinite(stored.to(plan.work_dtype)).all()):
            return f"{label} does not fit {plan.recipe.dtype} {where}. Set dtype: float32."
    return None
