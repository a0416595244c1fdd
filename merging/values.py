"""Parameter values that differ from tensor to tensor: gradients and filters, with mergekit's meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

LARGEST = 10**18
Scalar = float | int | bool | str
ParameterValue = Any
"""A scalar, a list of scalars (gradient), or a list of `{filter, value}`; `value_problem` says if it is none of these."""


def value_problem(value: Any) -> str | None:
    """What is wrong with the shape of a parameter's value; None if it can be resolved."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, Scalar):
        too_large = isinstance(value, int) and abs(value) > LARGEST
        return "a number too large for any parameter" if too_large else None
    if not isinstance(value, list) or not value:
        return f"{value!r} is neither a value, a list of values, nor a list of filter and value"
    if all(isinstance(item, dict) for item in value):
        for item in value:
            if not set(item) <= {"filter", "value"} or "value" not in item:
                return f"{item!r} must have 'value' and may have 'filter'"
            if not isinstance(item.get("filter"), str | None):
                return f"the filter {item['filter']!r} is no text; write a part of the tensors' names, one filter for each"
            nested = item["value"]
            if isinstance(nested, list) and any(isinstance(part, dict) for part in nested):
                return "a filter's value cannot hold filters"
            if problem := value_problem(nested):
                return problem
        return None
    if all(isinstance(item, Scalar) for item in value):
        return next(filter(None, map(value_problem, value)), None)
    return f"{value!r} mixes values and filters, or nests lists"


def resolve(value: ParameterValue, tensor: str, position: float, *, steps: bool = False) -> Scalar | None:
    """The value that holds for one tensor, or None where no filter matches it.

    `position` runs from 0 at the first block to 1 at the last; tensors outside the blocks have 0. A list is a
    gradient: numbers are interpolated linearly, bools and strings, and all values of a parameter that `steps`, taken at
    int(position·(length − 1)). Filters are substrings of the tensor's name, `*` or none matches all, the first match
    wins.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    if isinstance(value[0], dict):
        for item in value:
            wanted = item.get("filter")
            if wanted in (None, "*") or str(wanted) in tensor:
                return resolve(item["value"], tensor, position, steps=steps)
        return None
    if steps or any(isinstance(item, bool | str) for item in value):
        return value[int(position * (len(value) - 1))]
    where = position * (len(value) - 1)
    lower = min(int(where), len(value) - 1)
    upper = min(lower + 1, len(value) - 1)
    share = where - lower
    if value[lower] == value[upper]:
        return value[lower]
    return (1 - share) * value[lower] + share * value[upper]


def leaves(value: ParameterValue) -> Iterator[Scalar]:
    """Every scalar in a value: those of its gradients and filters."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            yield from leaves(part["value"])
        else:
            yield part


def with_leaves(value: ParameterValue, change: Callable[[Scalar], Scalar]) -> ParameterValue:
    """The same gradients and filters with every scalar changed."""
    if isinstance(value, list):
        return [with_leaves(part, change) for part in value]
    if isinstance(value, dict):
        return {**value, "value": with_leaves(value["value"], change)}
    return change(value)


def covers(value: ParameterValue) -> bool:
    """Whether a value holds for every tensor: it has no filters, or one that all names match."""
    filtered = [value] if isinstance(value, dict) else value
    if not isinstance(filtered, list) or not isinstance(filtered[0], dict):
        return True
    return any(part.get("filter") in (None, "", "*") for part in filtered)
