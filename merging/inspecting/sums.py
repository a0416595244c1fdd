"""Numbers that add up: records of sums over one tensor, or over several once added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeVar

import torch

Combine = Literal["sum", "largest", "smallest"]


@dataclass(frozen=True)
class Record:
    """A record whose numbers, lists, tables by name and inner records are sums, so that two of them add up.

    A field that is no sum says how it combines with `field(metadata={"combine": "largest"})`, or "smallest". What is
    None in one record is None in the sum, and NaN stays NaN.
    """

    def __add__(self, other: Self) -> Self:
        return total([self, other])


R = TypeVar("R", bound=Record)


def total(records: Iterable[R]) -> R:
    """The sum of at least one record."""
    some = list(records)
    first = some[0]
    if len(some) == 1:
        return first
    return type(first)(
        **{
            field.name: _total(
                [getattr(one, field.name) for one in some], field.metadata.get("combine", "sum")
            )
            for field in fields(first)
        }
    )


def by_tensor(pieces: Mapping[tuple[str, int], R]) -> dict[str, R]:
    """Records of pieces added up to records of tensors, in the order of the pieces' names and rows."""
    found: dict[str, list[R]] = {}
    for name, start in sorted(pieces):
        found.setdefault(name, []).append(pieces[name, start])
    return {name: total(records) for name, records in found.items()}


def _total(values: Sequence[Any], combine: Combine) -> Any:
    if any(value is None for value in values):
        return None
    first = values[0]
    if isinstance(first, Record):
        return total(values)
    if isinstance(first, dict):
        return {name: _total([value[name] for value in values], combine) for name in first}
    numbers = torch.tensor(values)
    if numbers.is_floating_point():
        numbers = torch.tensor(values, dtype=torch.float64)
    if combine == "sum":
        return numbers.sum(0).tolist()
    return (numbers.amax(0) if combine == "largest" else numbers.amin(0)).tolist()
