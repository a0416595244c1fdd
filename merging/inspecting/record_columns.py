"""Records as columns: every field of some records is one tensor, and the records come back from such tensors."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch

from merging.checkpoint import TensorSource
from merging.errors import CheckpointError
from merging.inspecting.sums import Record

R = TypeVar("R", bound=Record)


def columns_of(kind: type[Record], records: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Path of a field -> its values in all records [records, ...]; a field that is None has no column."""
    for name, (leaf, depth, table) in _layout(kind).items():
        values = [getattr(record, name) for record in records]
        if any(value is None for value in values):
            continue
        parts = {f".{key}": [value[key] for value in values] for key in values[0]} if table else {"": values}
        for suffix, some in parts.items():
            if issubclass(leaf, Record):
                yield from ((f"{name}{suffix}.{path}", column) for path, column in columns_of(leaf, some))
            else:
                column = torch.tensor(some)
                if leaf is not int or column.is_floating_point():  # an estimated count is no whole number
                    column = torch.tensor(some, dtype=torch.float64)
                yield f"{name}{suffix}", column.reshape(*column.shape, *[0] * (1 + depth - column.ndim))


def _layout(kind: type[Record]) -> dict[str, tuple[type, int, bool]]:
    """Of every field: the type of its numbers, how deep they lie in lists, and whether it is a table by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: _leaf(hints[field.name]) for field in fields(kind)}


def _leaf(hint: Any, depth: int = 0) -> tuple[type, int, bool]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return _leaf(inner[0], depth + 1)
    if origin is dict:
        return _leaf(inner[1], depth)[0], 0, True
    if origin is not None:  # an optional
        return _leaf(next(one for one in inner if one is not type(None)), depth)
    return hint, depth, False


@dataclass(frozen=True)
class Columns:
    """Columns that were stored, named `prefix` + their path, for so many `rows`.

    `paths` are in the order of the fields. `lengths` are those of the lists in each field of a kind of record, where
    they are known; None is any length. `unsigned` names the fields that are never below 0; counts never are.
    """

    stored: TensorSource
    prefix: str
    paths: Sequence[str]
    rows: int
    lengths: Mapping[type, Mapping[str, Sequence[int | None]]]
    unsigned: Mapping[type, frozenset[str]] = field(default_factory=dict)

    def records(self, kind: type[R], path: str = "") -> list[R]:
        """The records; `path` leads to an inner one.

        Raises:
            CheckpointError: a column is missing, or is no such column.
        """
        values: dict[str, list[Any]] = {}
        for name, (leaf, depth, by_name) in _layout(kind).items():
            here = path + name
            if by_name:
                inner: dict[str, list[Any]] = {
                    key: self.records(leaf, f"{here}.{key}.") for key in self._keys(here)
                }
                values[name] = [{key: inner[key][row] for key in inner} for row in range(self.rows)]
            elif issubclass(leaf, Record):
                values[name] = self.records(leaf, here + ".")
            elif here not in self.paths and _optional(kind, name):
                values[name] = [None] * self.rows
            else:
                lengths = self.lengths.get(kind, {}).get(name, (None,) * depth)
                values[name] = self._column(here, leaf, lengths, name in self.unsigned.get(kind, ()))
        return [kind(**dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]

    def _keys(self, path: str) -> list[str]:
        """The names in a table by name."""
        below = [column[len(path) + 1 :] for column in self.paths if column.startswith(path + ".")]
        return list(dict.fromkeys(rest.split(".")[0] for rest in below))

    def _column(self, path: str, leaf: type, lengths: Sequence[int | None], unsigned: bool) -> list[Any]:
        name, dtypes = self.prefix + path, {"F64", "I64"} if leaf is int else {"F64"}
        info = self.stored.tensors.get(name)
        if info is None:
            raise CheckpointError(f"'{name}' is missing")
        fits = len(info.shape) == 1 + len(lengths) and all(
            length in {None, found} for length, found in zip((self.rows, *lengths), info.shape, strict=True)
        )
        if not fits or info.dtype not in dtypes:
            raise CheckpointError(f"'{name}' is {info.dtype} {list(info.shape)}, which does not fit")
        values = self.stored.read(name)
        if (unsigned or leaf is int) and bool((values < 0).any()):
            raise CheckpointError(f"'{name}' is below 0")
        return values.tolist()


def _optional(kind: type[Record], name: str) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(kind)[name])
