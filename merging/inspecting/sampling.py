"""Estimates from a stratified sample of rows, in independent groups that tell its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from merging import noise
from merging.checkpoint import TensorSource
from merging.cuts import Keys
from merging.folders.header import MERGEABLE, TensorInfo
from merging.inspecting.sums import Record, total
from merging.layout import Input
from merging.memory.resident import Family, Pieces
from merging.partitions import Scores
from merging.pieces import Explained, Outcome, Piece
from merging.plan import Plan
from merging.reports.report import Sample
from merging.sorted_keys import SortedKeys, sort_keys
from merging.tensor_plan import TensorPlan

GROUPS = 8
"""Independent samples of every tensor; their spread gives the standard error."""
SAMPLE_BYTES = 24 << 20
"""Stored bytes of base and experts that a sample reads, or a little more."""
WHOLE = 1 << 16
"""Tensors of up to so many elements are read whole."""
BLOCK_BYTES = 4096
"""Rows shorter than this are read several at a time."""
MOST_OVER = 4
"""How many times `SAMPLE_BYTES` the fewest rows of all tensors may take."""
UNSTEADY = {"dppa", "model_stock"}
"""Methods that hang on a few outliers, or on sums that nearly cancel: their groups would not tell the error."""
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Rows:
    """The rows of each tensor that are looked at, int64, group after group, and how many lie together each time. Tensors
    that are not listed are read whole."""

    of: Mapping[str, torch.Tensor]
    blocks: Mapping[str, int]
    elements: int
    """Elements of one model that are read."""
    whole: int
    """Elements of one whole model."""


def samplable(plan: Plan) -> bool:
    """Whether the preview of a plan is estimated from rows: one that is `steady`, and far fewer rows than all."""
    rows = sample_rows(plan, 0)
    return steady(plan) and 2 * rows.elements <= rows.whole and rows.elements <= MOST_OVER * _budget(plan)


def steady(plan: Plan) -> bool:
    """Whether groups of rows tell what a merge makes of whole models: not where cuts are made inside importance
    partitions, nor where rare elements decide."""
    merged = [tensor.method for tensor in plan.tensors if tensor.method is not None]
    return not any(
        method.name in UNSTEADY or (method.needs_importance and getattr(method, "drop", "") != "random")
        for method in merged
    )


def sample_rows(
    plan: Plan, seed: int, sample_bytes: int | None = None, *, share: float | None = None
) -> Rows:
    """The rows to look at: about the same share of every tensor, at least one block for every group.

    Args:
        sample_bytes: stored bytes of base and experts to read, where no `share` of the weights says it.
    """
    merged = [tensor.info for tensor in plan.tensors if tensor.info.dtype in MERGEABLE]
    whole = sum(info.elements for info in merged)
    share = min(1.0, _budget(plan, sample_bytes) / max(1, whole)) if share is None else share
    of: dict[str, torch.Tensor] = {}
    blocks: dict[str, int] = {}
    elements = 0
    for info in merged:
        length = _block_length(info)
        count = GROUPS * max(1, round(share * info.rows / (GROUPS * length)))
        if info.elements <= WHOLE or 2 * count * length > info.rows:
            elements += info.elements
            continue
        of[info.name] = _drawn(info, count, length, seed)
        blocks[info.name] = length
        elements += count * length * info.row_elements
    return Rows(of, blocks, elements, whole)


def _budget(plan: Plan, sample_bytes: int | None = None) -> float:
    """Elements of one model that a sample has room for."""
    stored = plan.bytes_to_read / max(1, plan.parameters)
    return (sample_bytes or SAMPLE_BYTES) / max(1.0, stored)


def _block_length(info: TensorInfo) -> int:
    """Rows of one block: a divisor of all rows, so that every row is as likely to be drawn."""
    wanted = max(1, BLOCK_BYTES // max(1, info.row_elements * info.torch_dtype.itemsize))
    return max(length for length in range(1, min(wanted, max(1, info.rows)) + 1) if info.rows % length == 0)


def _drawn(info: TensorInfo, count: int, length: int, seed: int) -> torch.Tensor:
    """`count` blocks, one at random in each of as many equal strata; each run of strata gives every group one of them."""
    generator = torch.Generator().manual_seed(noise.key(seed, 0, info.name)[0])
    units = info.rows // length
    places = torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = (places * units / count).long().clamp(max=units - 1).view(-1, GROUPS)
    order = torch.rand(drawn.shape, generator=generator).argsort(1)
    grouped = drawn.gather(1, order).T.flatten()
    return (grouped[:, None] * length + torch.arange(length)).flatten()


class SampledFamily(Family):
    """Some rows of the tensors of a family; one piece a tensor, its rows group after group.

    Random masks are drawn anew for the rows, not those of the whole tensor: as likely, but not the same.
    """

    def __init__(self, sources: Sequence[TensorSource], rows: Rows):
        super().__init__(sources)
        self.rows = rows
        self._lengths: dict[str, int] = {}

    def weight(self, tensor: str) -> float:
        if tensor not in self.rows.of:
            return 1.0
        return self._lengths[tensor] / len(self.rows.of[tensor])

    def pieces(self, plan: Plan, tensors: Sequence[TensorPlan]) -> Pieces:
        self._lengths.update({tensor.info.name: tensor.info.rows for tensor in tensors})
        return [(tensor, self._piece(plan, tensor, 0, tensor.info.rows)) for tensor in tensors]

    def keeps(self, keys: Keys) -> bool:
        """All cuts are made in order, for elements count by what they stand for."""
        return True

    def scores(self, plan: Plan) -> Scores | None:
        if plan.scores is None:
            return None
        index = {
            name: values[self.rows.of[name]]
            if name in self.rows.of and values.ndim and len(values) > 1
            else values
            for name, values in plan.scores.partitions.index.items()
        }
        return Scores(replace(plan.scores.partitions, index=index), plan.scores.values)

    def watch(self, make: Callable[[], Any]) -> Any:
        return Estimating(make, self)

    def _sort(self, keys: Keys, pieces: Pieces) -> SortedKeys:
        return sort_keys(
            keys, [piece for _, piece in pieces], [self.weight(piece.name) for _, piece in pieces]
        )

    def _stored(self, tensor: TensorPlan, one: Input) -> torch.Tensor:
        name = tensor.info.name
        if name not in self.rows.of:
            return super()._stored(tensor, one)
        length = self.rows.blocks[name]
        starts = self.rows.of[name].view(-1, length)[:, 0].tolist()
        return torch.cat([one.source.read(one.name, start, start + length) for start in starts])


class Estimating:
    """A watch of each group of a sample; its records are estimates of those of the whole tensors."""

    def __init__(self, make: Callable[[], Any], family: SampledFamily):
        self.family = family
        self.whole = make()
        self.groups = [make() for _ in range(GROUPS)]

    def update(self, outcome: Outcome) -> None:
        if outcome.piece.name not in self.family.rows.of:
            self.whole.update(outcome)
            return
        for group, watch in enumerate(self.groups):
            watch.update(part_of(outcome, group))

    def result(self) -> tuple[dict[str, Any], Sample]:
        whole = self.whole.result()
        found = [watch.result() for watch in self.groups]
        shown: dict[str, Any] = {}
        for name in (*whole, *found[0]):
            if name in whole:
                shown[name] = whole[name]
                continue
            shown[name] = scaled(total(group[name] for group in found), self.family.weight(name))
        groups = tuple(
            {
                name: whole[name] if name in whole else scaled(group[name], GROUPS * self.family.weight(name))
                for name in shown
            }
            for group in found
        )
        rows = self.family.rows
        return shown, Sample(rows.elements / max(1, rows.whole), groups)


def part_of(outcome: Outcome, group: int) -> Outcome:
    """What became of one group's rows of a piece."""
    piece = outcome.piece
    size = piece.shape[1] // GROUPS
    rows = slice(group * size, (group + 1) * size)

    def of_each(values: torch.Tensor) -> torch.Tensor:
        return values[:, rows] if values.ndim > 1 and values.shape[1] > 1 else values

    part = Piece(
        piece.name,
        rows.start,
        None if piece.base is None else piece.base[rows],
        piece.models[:, rows],
        piece.weight,
    )
    explained = outcome.explained
    return Outcome(
        part,
        outcome.merged[rows],
        outcome.rows[rows],
        None if outcome.change is None else outcome.change[rows],
        None if explained is None else Explained(*(of_each(values) for values in explained)),
    )


def scaled(record: R, factor: float) -> R:
    """A record whose sums are so many times as large."""
    return replace(
        record,
        **{
            field.name: _scaled(getattr(record, field.name), factor)
            for field in fields(record)
            if field.metadata.get("combine", "sum") == "sum"
        },
    )


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, Record):
        return scaled(value, factor)
    if isinstance(value, list):
        return [_scaled(one, factor) for one in value]
    if isinstance(value, dict):
        return {name: _scaled(one, factor) for name, one in value.items()}
    return round(value * factor) if isinstance(value, int) else None if value is None else value * factor
