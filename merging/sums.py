"""Numbers that add up: records of sums over one tensor, or over several once added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Self, TypeVar


@dataclass(frozen=True)
class Record:
    """A record whose numbers, lists, tables by name and inner records are sums, so that two of them add up.

    A field that is no sum says how it combines with `field(metadata={"combine": max})`.
    """

    def __add__(self, other: Self) -> Self:
        return type(self)(
            **{
                field.name: _joined(
                    getattr(self, field.name), getattr(other, field.name), field.metadata.get("combine")
                )
                for field in fields(self)
            }
        )


R = TypeVar("R", bound=Record)


def _joined(one: Any, two: Any, combine: Any) -> Any:
    if isinstance(one, list):
        return [_joined(a, b, combine) for a, b in zip(one, two, strict=True)]
    if isinstance(one, dict):
        return {name: _joined(value, two[name], combine) for name, value in one.items()}
    if one is None or two is None:
        return None
    return combine(one, two) if combine else one + two


def total(records: Iterable[R]) -> R:
    """The sum of at least one record."""
    return reduce(lambda a, b: a + b, records)


def by_tensor(pieces: Mapping[tuple[str, int], R]) -> dict[str, R]:
    """Records of pieces added up to records of tensors, in the order of the pieces' names and rows."""
    found: dict[str, R] = {}
    for name, start in sorted(pieces):
        record = pieces[name, start]
        found[name] = found[name] + record if name in found else record
    return found
