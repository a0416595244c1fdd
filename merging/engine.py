"""The only loop over weights: plan in, pieces through, events out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from merging.errors import MergingError
from merging.events import Event, Finished, Progress, TensorResult
from merging.header import MERGEABLE, TensorInfo
from merging.methods import Group, Method
from merging.pieces import Piece
from merging.plan import Plan, TensorPlan
from merging.statistics import Accumulator, Attained

KEEP_BYTES = 256 << 20
"""A scope whose float32 inputs are smaller than this is read once and kept between its scans."""


class Sink(Protocol):
    """Where merged rows go; a `CheckpointWriter` or tensors in memory."""

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None: ...


class MemorySink:
    """Collects the result as a dictionary of tensors."""

    def __init__(self, tensors: Sequence[TensorInfo]):
        self.tensors = {info.name: torch.empty(info.shape, dtype=info.torch_dtype) for info in tensors}

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        if rows.ndim:
            self.tensors[name][start : start + rows.shape[0]] = rows.cpu()
        else:
            self.tensors[name].copy_(rows)


def resolve_device(device: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        MergingError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MergingError(f"device '{device}': unknown. Use auto, cpu, cuda or cuda:0.") from None
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise MergingError(f"device '{device}': not available on this machine. Use auto or cpu.")
    if chosen.type not in {"cpu", "cuda"}:
        raise MergingError(f"device '{device}': not supported. Use auto, cpu or cuda.")
    return chosen


def run_plan(plan: Plan, sink: Sink, *, device: str = "auto") -> Iterator[Event]:
    """Merge: yields `Progress` after every piece and `Finished` (without a path) at the end.

    Closing the generator stops between two pieces.

    Raises:
        MergingError: a result is not finite, or integer tensors that have to be copied differ.
    """
    run = _Run(plan, resolve_device(device))
    for group, tensors in plan.groups.items():
        method = tensors[0].method
        if not any(tensor.info.elements for tensor in tensors):
            continue
        if method is None:
            yield from run.copy(tensors, sink)
        else:
            yield from run.merge(group, method, tensors, sink)
    yield run.finished()


def watch(plan: Plan, accumulator: Accumulator, *, device: str = "auto") -> Iterator[Progress]:
    """Show every merged piece of the plan to an accumulator, without merging or writing anything."""
    tensors = [tensor for tensor in plan.tensors if tensor.method is not None]
    run = _Run(plan, resolve_device(device), passes=1)
    for tensor, piece in run.read(tensors):
        accumulator.update(piece)
        yield run.advance("reading", tensor, piece, len(tensors))


@dataclass
class _Run:
    """The state of one run over a plan: counters, results, and the device pieces are sent to."""

    plan: Plan
    device: torch.device
    passes: int | None = None
    started: float = field(default_factory=time.perf_counter)
    bytes_read: int = 0
    bytes_written: int = 0
    work_done: int = 0
    attained: Attained | None = None
    results: list[TensorResult] = field(default_factory=list)
    _stage: str = ""
    _finished_tensors: int = 0

    def __post_init__(self) -> None:
        passes = {
            t.info.name: (self.passes or 1 + (t.method.scans if t.method else 0)) for t in self.plan.tensors
        }
        self.work = sum(max(1, t.info.elements) * passes[t.info.name] for t in self.plan.tensors)

    def read(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, Piece]]:
        for tensor in tensors:
            for start, stop in tensor.row_blocks:
                yield tensor, self._piece(tensor, start, stop)

    def merge(
        self, group: str, method: Method, tensors: Sequence[TensorPlan], sink: Sink
    ) -> Iterator[Progress]:
        kept: list[tuple[TensorPlan, Piece]] | None = None
        elements = sum(tensor.info.elements for tensor in tensors)
        experts = len(self.plan.experts)
        small = elements * 4 * (experts + 1) <= KEEP_BYTES
        survey = method.survey(Group(elements, experts))
        known = None
        answer = None
        for number in range(1, 1 + method.scans):
            try:
                accumulator = survey.send(answer)
            except StopIteration as stop:
                known = stop.value
                self.work_done += elements * (1 + method.scans - number)
                break
            if kept is None and small:
                kept = list(self.read(tensors))
            for tensor, piece in kept or self.read(tensors):
                accumulator.update(piece)
                yield self.advance(f"scan {number}", tensor, piece, len(tensors))
            answer = accumulator.result()
        else:
            known = _finish(survey, answer)
        if (attained := method.attained(known)) is not None:
            self.attained = attained if self.attained is None else self.attained + attained
        del answer
        totals = _Totals()
        for tensor, piece in kept or self.read(tensors):
            assert tensor.method is not None
            rows = self._merged(tensor, piece, known, totals)
            sink.write(tensor.info.name, rows, piece.start)
            self.bytes_written += rows.nbytes
            if piece.start + (rows.shape[0] if rows.ndim else 1) >= tensor.info.rows:
                self.results.append(totals.result(tensor.info, has_base=piece.base is not None))
                totals = _Totals()
            yield self.advance("merging", tensor, piece, len(self.plan.tensors))

    def copy(self, tensors: Sequence[TensorPlan], sink: Sink) -> Iterator[Progress]:
        for tensor in tensors:
            for start, stop in tensor.row_blocks:
                name = tensor.info.name
                rows = self.plan.reference.read(name, start, stop)
                self.bytes_read += rows.nbytes
                if tensor.info.dtype not in MERGEABLE:
                    for label, source in zip(self.plan.names, self.plan.experts, strict=True):
                        if not torch.equal(source.read(name, start, stop), rows):
                            raise MergingError(
                                f"{label}: '{name}' is {tensor.info.dtype} and differs from the base's; such tensors can "
                                "only be copied. Exclude it to keep the base's."
                            )
                sink.write(name, rows.to(tensor.info.torch_dtype), start)
                self.bytes_written += rows.nbytes
                self.work_done += max(1, rows.numel())
                yield self._progress("merging", len(self.plan.tensors))
            self._finished_tensors += 1

    def advance(self, stage: str, tensor: TensorPlan, piece: Piece, tensors: int) -> Progress:
        if stage != self._stage:
            if stage != "merging" or self._stage.startswith("scan"):
                self._finished_tensors = len(self.results) - 1 if stage == "merging" else 0
            self._stage = stage
        rows = piece.models.shape[1] if piece.models.ndim > 1 else 1
        self.work_done += max(1, piece.models[0].numel())
        if piece.start + rows >= tensor.info.rows:
            self._finished_tensors += 1
        return self._progress(stage, tensors)

    def finished(self) -> Finished:
        return Finished(
            path=None,
            tensors=tuple(self.results),
            attained=self.attained,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            seconds=time.perf_counter() - self.started,
            warnings=self.plan.warnings,
        )

    def _progress(self, stage: str, tensors: int) -> Progress:
        return Progress(
            stage=stage,
            tensors_done=min(self._finished_tensors, tensors),
            tensors=tensors,
            bytes_done=self.bytes_read + self.bytes_written,
            share=min(1.0, self.work_done / self.work) if self.work else 1.0,
            seconds=time.perf_counter() - self.started,
        )

    def _piece(self, tensor: TensorPlan, start: int, stop: int) -> Piece:
        name = tensor.info.name
        base = self._read(self.plan.base, name, start, stop) if self.plan.base is not None else None
        models = torch.stack([self._read(expert, name, start, stop) for expert in self.plan.experts])
        weight = torch.ones(len(self.plan.experts))
        if tensor.method is not None and "weight" in type(tensor.method).model_fields:
            weight = torch.tensor(
                tensor.method.for_experts("weight", len(self.plan.experts)), dtype=torch.float32
            )
        return Piece(name, start, base, models, weight.to(self.device))

    def _read(self, source: Any, name: str, start: int, stop: int) -> torch.Tensor:
        values = source.read(name, start, stop)
        self.bytes_read += values.nbytes
        values = values.to(self.device)
        if self.plan.work_dtype is not None:
            values = values.to(self.plan.work_dtype)
        return values.to(torch.float32)

    def _merged(self, tensor: TensorPlan, piece: Piece, known: Any, totals: _Totals) -> torch.Tensor:
        assert tensor.method is not None
        merged = tensor.method.merge(piece, known)
        rows = merged.to(tensor.info.torch_dtype)
        if not bool(torch.isfinite(rows).all()):
            raise MergingError(_not_finite(self.plan, tensor.info, piece, rows))
        totals.add(piece, merged, rows)
        return rows


def _finish(survey: Any, answer: Any) -> Any:
    try:
        survey.send(answer)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a survey asked for more scans than its method declares")


@dataclass
class _Totals:
    """Sums over the pieces of one tensor, for its `TensorResult`."""

    base: float = 0.0
    change: float = 0.0
    error: float = 0.0
    changed: int = 0
    lost: int = 0

    def add(self, piece: Piece, merged: torch.Tensor, rows: torch.Tensor) -> None:
        self.error += _square(rows.to(torch.float32) - merged)
        if piece.base is not None:
            changed = merged != piece.base
            self.base += _square(piece.base)
            self.change += _square(merged - piece.base)
            self.changed += int(changed.sum())
            self.lost += int((changed & (rows == piece.base.to(rows.dtype))).sum())

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


def _square(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


def _not_finite(plan: Plan, info: TensorInfo, piece: Piece, rows: torch.Tensor) -> str:
    bad = int((~torch.isfinite(rows)).sum())
    text = f"'{info.name}': {bad:,} of {rows.numel():,} merged values are not finite"
    inputs = [("the base", piece.base), *zip(plan.names, piece.models, strict=True)]
    for label, values in inputs:
        if values is not None and (count := int((~torch.isfinite(values)).sum())):
            return (
                f"{text}, because {label} holds {count:,} NaN or infinite values there. Use an intact model."
            )
    return f"{text}: too large for {info.dtype}. Lower λ or the weights, or set out_dtype: float32."
