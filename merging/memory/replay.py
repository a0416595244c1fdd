"""Merging a family that is in memory: what its methods find out and what becomes of every piece, without the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from merging.cuts import KeyHistogram, KeySample, LargestCut
from merging.engine import Sink, copied, outcome_of, require_finite, require_finite_rows, rows_of
from merging.events import Progress
from merging.memory.resident import Family, Pieces
from merging.methods import Group, Survey
from merging.pieces import Outcome, Piece
from merging.plan import Plan
from merging.reports.report import Sample
from merging.statistics import Accumulator, Sums
from merging.tensor_plan import TensorPlan


class RecordWatch(Protocol):
    """Looks at merged pieces and has a record for every tensor in the end."""

    pieces: dict[tuple[str, int], Any]

    def update(self, outcome: Outcome) -> None: ...

    def result(self) -> dict[str, Any]: ...


def replay(
    plan: Plan, family: Family, make: Callable[[], RecordWatch]
) -> tuple[dict[str, Any], Sample | None]:
    """Merge a family in memory under a watch: its record of every tensor, and how it was estimated from a sample.

    Raises:
        MergingError: the merge itself would fail.
    """
    watch = family.watch(make)
    for _ in merged(plan, family, watch):
        pass
    found: tuple[dict[str, Any], Sample | None] = watch.result()
    return found


def merged(plan: Plan, family: Family, watch: RecordWatch) -> Iterator[Progress]:
    """Merge a family in memory under a watch: progress after every piece that is looked at or merged.

    Raises:
        MergingError: the merge itself would fail.
    """
    count = sum(tensor.method is not None and tensor.info.elements > 0 for tensor in plan.tensors)
    started, read, done = time.perf_counter(), 0, set()
    for step in _surveyed(plan, family):
        if step is not None:
            tensor, piece, known = step
            outcome, tally = outcome_of(tensor, piece, known)
            require_finite_rows(plan, tensor, piece, outcome.rows, tally)
            if plan.base is None:
                outcome = replace(outcome, piece=family.under(piece))
            watch.update(outcome)
            done.add(tensor.info.name)
            read += piece.models.nbytes + (0 if piece.base is None else piece.base.nbytes)
        share = len(done) / max(1, count)
        yield Progress("merging", len(done), count, read, share, time.perf_counter() - started)


def write(plan: Plan, family: Family, sink: Sink) -> None:
    """Merge a family in memory into a sink: the bits that `engine.run_plan` writes.

    Raises:
        MergingError: the merge itself would fail.
    """
    for step in _surveyed(plan, family):
        if step is not None:
            tensor, piece, known = step
            rows, tally = rows_of(tensor, piece, known)
            require_finite_rows(plan, tensor, piece, rows, tally)
            sink.write(tensor.info.name, rows, piece.start)
    for tensor in plan.tensors:
        if tensor.method is None and tensor.info.elements:
            source, name = tensor.reference.source, tensor.reference.name
            for start, stop in tensor.row_blocks:
                sink.write(tensor.info.name, copied(tensor, source.read(name, start, stop), start), start)


def show(plan: Plan, family: Family, watch: RecordWatch) -> Iterator[Progress]:
    """Show a watch every piece of a family, as of a merge that leaves the base as it is; progress after every tensor."""
    tensors = [tensor for tensor in plan.tensors if tensor.method is not None]
    started, read = time.perf_counter(), 0
    for number, tensor in enumerate(tensors, 1):
        for _, piece in family.pieces(plan, [tensor]):
            known = piece if plan.base is not None else family.under(piece)
            watch.update(Outcome(known, known.base_or_zero, known.base_or_zero))
            read += known.models.nbytes + known.base_or_zero.nbytes
        yield Progress(
            "reading", number, len(tensors), read, number / len(tensors), time.perf_counter() - started
        )


def _surveyed(plan: Plan, family: Family) -> Iterator[tuple[TensorPlan, Piece, Any] | None]:
    """Every piece that is merged, and what its method knows by then; None after every step until it knows."""
    for tensors in plan.groups.values():
        method = tensors[0].method
        if method is None or not any(tensor.info.elements for tensor in tensors):
            continue
        pieces = family.pieces(plan, tensors)
        known = yield from _known(method.survey(_group(plan, family, tensors)), pieces, family)
        parts: dict[str | None, list[TensorPlan]] = {}
        for tensor in tensors:
            parts.setdefault(method.part_of(tensor.info.name, known), []).append(tensor)
        for name, part in parts.items():
            some = pieces if len(parts) == 1 else family.pieces(plan, part)
            found = known
            if name is not None:
                found = yield from _known(method.refine(_group(plan, family, part), known), some, family)
            for tensor, piece in some:
                if not family.finite(tensor):
                    require_finite(plan, tensor, piece)
                yield tensor, piece, found


def _group(plan: Plan, family: Family, tensors: Sequence[TensorPlan]) -> Group:
    shapes = {tensor.info.name: tensor.info.shape for tensor in tensors}
    return Group(shapes, len(tensors[0].experts), family.scores(plan))


def _known(survey: Survey, pieces: Pieces, family: Family) -> Generator[None, None, Any]:
    """What a method knows after its scans."""
    answer: Any = None
    while True:
        try:
            accumulator = survey.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = yield from _answer(accumulator, pieces, family)


def _answer(accumulator: Accumulator, pieces: Pieces, family: Family) -> Generator[None, None, Any]:
    """The result of an accumulator; a cut is looked up where the family has its keys in order."""
    if isinstance(accumulator, KeySample):
        return None  # a family in memory is looked at whole, or was sampled already
    if isinstance(accumulator, KeyHistogram) and family.keeps(accumulator.ranking.keys):
        return None  # only a cut asks for it, which then needs none
    if isinstance(accumulator, LargestCut) and family.keeps(accumulator.ranking.keys):
        found = family.sorted(accumulator.ranking.keys, pieces).cut(accumulator)
        yield
        return found
    for _, piece in pieces:
        accumulator.update(piece)
        yield
    answer = accumulator.result()
    if isinstance(accumulator, Sums):
        return {name: sums * family.weight(name) for name, sums in answer.items()}
    return answer
