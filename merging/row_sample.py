"""A family of which only some rows of every tensor are read: the same rows in all its models, spread evenly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import torch

from merging.checkpoint import TensorSource
from merging.errors import MergingError
from merging.header import TensorInfo
from merging.layout import Input
from merging.plan import Plan
from merging.sums import Record, total
from merging.tensor_plan import PIECE_BYTES, TensorPlan

GROUPS = 4
"""Independent samples, whose spread gives the error."""
FEWEST_ROWS = 2
"""Rows of a tensor in each group."""
SMALL = 4096
"""A tensor with at most so many elements is read whole."""
R = TypeVar("R", bound=Record)


def checked_share(share: float) -> float:
    """A share of the weights to look at.

    Raises:
        MergingError: it is not between 0 and 1.
    """
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise MergingError(
            f"sample: {share} is not a share between 0 and 1; leave it out to look at every weight."
        )
    return float(share)


@lru_cache(maxsize=1024)
def rows_of(rows: int, row_elements: int, share: float, group: int) -> tuple[int, ...] | None:
    """The rows that a group reads: one at random of each of many equal runs of rows; None: all of them."""
    count = max(FEWEST_ROWS, round(rows * share / GROUPS))
    if rows * row_elements <= SMALL or count * GROUPS >= rows:
        return None
    strata = count * GROUPS
    draw = random.Random(rows)
    found = []
    for stratum in range(strata):
        start, stop = stratum * rows // strata, (stratum + 1) * rows // strata
        found.append(draw.randrange(start, stop))
    return tuple(found[group::GROUPS])


class SampledRows:
    """A model seen through one group of rows of each of its tensors."""

    def __init__(self, source: TensorSource, share: float, group: int):
        self.source, self.share, self.group = source, share, group
        self.label = source.label

    def rows(self, info: TensorInfo) -> tuple[int, ...] | None:
        return rows_of(info.rows, info.row_elements, self.share, self.group) if info.shape else None

    def seen(self, info: TensorInfo) -> TensorInfo:
        """A tensor's name, dtype and shape as it is seen."""
        chosen = self.rows(info)
        return (
            info
            if chosen is None
            else replace(info, shape=(len(chosen), *info.shape[1:]), file=None, start=0)
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: self.seen(info) for name, info in self.source.tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        chosen = self.rows(self.source.tensors[name])
        if chosen is None:
            return self.source.read(name, start, stop)
        return torch.cat([self.source.read(name, row, row + 1) for row in chosen[start:stop]])


def sampled(plan: Plan, share: float, group: int) -> Plan:
    """The plan over one group of rows of each tensor; random masks and cuts are those of these rows."""
    models: dict[int, SampledRows] = {}

    def seen(source: TensorSource) -> SampledRows:
        return models.setdefault(id(source), SampledRows(source, share, group))

    def through(one: Input) -> Input:
        return replace(one, source=seen(one.source))

    def of(tensor: TensorPlan) -> TensorPlan:
        info = seen(tensor.reference.source).seen(tensor.info)
        piece = PIECE_BYTES // (4 * (len(tensor.experts) + 1))
        whole = len(tensor.row_blocks) == 1 and len(info.shape) == 1
        return replace(
            tensor,
            info=info,
            row_blocks=tensor.row_blocks if whole else tuple(info.row_blocks(piece)) or ((0, info.rows),),
            reference=through(tensor.reference),
            base=through(tensor.base) if tensor.base is not None else None,
            experts=tuple(map(through, tensor.experts)),
        )

    return replace(
        plan,
        reference=seen(plan.reference),
        base=seen(plan.base) if plan.base is not None else None,
        experts=tuple(map(seen, plan.experts)),
        tensors=tuple(map(of, plan.tensors)),
        saliency=tuple(map(seen, plan.saliency)),
    )


def estimate(groups: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Records by tensor of all groups together, scaled up to the whole tensors' numbers of elements."""
    found = {}
    for name in groups[0]:
        record = total(group[name] for group in groups)
        size = record.signs.elements if hasattr(record, "kept") else record.elements
        found[name] = scaled(record, sizes[name] / size) if size else groups[0][name]
    return found


def scaled(record: R, factor: float) -> R:
    """A record whose sums are multiplied; what is no sum stays, and counts stay whole."""
    return type(record)(
        **{
            field.name: getattr(record, field.name)
            if field.metadata.get("combine", "sum") != "sum"
            else _times(getattr(record, field.name), factor)
            for field in fields(record)
        }
    )


def _times(value: Any, factor: float) -> Any:
    if value is None:
        return None
    if isinstance(value, Record):
        return scaled(value, factor)
    if isinstance(value, dict):
        return {name: _times(one, factor) for name, one in value.items()}
    if isinstance(value, list):
        return [_times(one, factor) for one in value]
    return round(value * factor) if isinstance(value, int) else value * factor
