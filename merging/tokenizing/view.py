"""A checkpoint with the rows of its vocabulary in another order, as one output needs them; read by rows, never whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from merging.checkpoint import Checkpoint, bytes_of
from merging.folders.header import DTYPE_NAMES, TensorInfo

MEAN_ROWS = 4096
"""Rows that are in memory at once while the mean of all is taken."""
Donors = tuple[tuple["Lender", int], ...]
"""Rows of models, whose mean a row becomes; none: zeros."""


@dataclass(frozen=True, eq=False)
class Lender:
    """A model that gives rows, and what it calls the tensors of the output that it has by another name (a head that
    its embedding stands for)."""

    source: Checkpoint
    names: Mapping[str, str]

    def own(self, name: str) -> str:
        """Its tensor that stands for one of the output."""
        return self.names.get(name, name)

    def row(self, name: str, row: int) -> torch.Tensor:
        return self.source.read(self.own(name), row, row + 1)[0]


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the rows of a vocabulary tensor of one model are from.

    `own` int64 [rows]: a row of the model itself, or -1. `donors`: for a row that is not its own, rows of other models;
    a row without an entry is the mean of the first `tokens` rows.
    """

    own: torch.Tensor
    donors: Mapping[int, Donors]
    tokens: int

    @property
    def count(self) -> int:
        return len(self.own)

    @cached_property
    def averages(self) -> bool:
        """Whether some row is a mean, which the models' own dtype may not hold."""
        missing = int((self.own < 0).sum())
        return missing > len(self.donors) or any(len(donors) > 1 for donors in self.donors.values())

    def changes_nothing(self, rows: int) -> bool:
        """Whether they are the rows of a tensor that has so many, each at its place."""
        return self.count == rows and bool((self.own == torch.arange(rows)).all())

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Rows of the model itself that lie there in one piece: (first, one after the last, the model's first)."""
        own = self.own[start:stop]
        breaks = (own[1:] != own[:-1] + 1) | (own[:-1] < 0)
        edges = [0, *(breaks.nonzero().flatten() + 1).tolist(), len(own)]
        for begin, end in pairwise(edges):
            if begin < end and (first := int(own[begin])) >= 0:
                yield start + begin, start + end, first


class View(Checkpoint):
    """A model whose vocabulary tensors have the rows of the output, some of them borrowed from other models, and which
    has a head of its own where its embedding stands for one."""

    def __init__(self, lender: Lender, rows: Mapping[str, Rows]):
        self._lender, self._rows, self._means = lender, rows, dict[str, torch.Tensor]()
        self.model = lender.source
        self.path, self.label, self.metadata = self.model.path, self.model.label, self.model.metadata
        self.remarks = self.model.remarks
        tensors = dict(self.model.tensors)
        for name in [*rows, *lender.names]:
            tensors[name] = self._info(name)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def _info(self, name: str) -> TensorInfo:
        stored = self.model.tensors[self._lender.own(name)]
        rows = self._rows.get(name)
        if rows is None:
            return replace(stored, name=name)
        dtype = torch.float32 if rows.averages else stored.torch_dtype
        for source in {id(one.source): one for donors in rows.donors.values() for one, _ in donors}.values():
            dtype = torch.promote_types(dtype, source.source.tensors[source.own(name)].torch_dtype)
        return TensorInfo(name, DTYPE_NAMES[dtype], (rows.count, *stored.shape[1:]))

    @property
    def folder(self) -> Path:
        return self.model.folder

    @property
    def tokenizer_folder(self) -> Path:
        return self.model.tokenizer_folder

    @property
    def licences(self) -> tuple[str, ...]:
        return self.model.licences

    def kept_as(self, name: str) -> str:
        return self.model.kept_as(self._lender.own(name))

    @property
    def origin(self) -> Checkpoint:
        return self.model.origin

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.model.config

    @property
    def tied(self) -> bool:
        return self.model.tied and not self._lender.names

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        return self.model.vocabulary

    @cached_property
    def chat_template(self) -> str | None:
        return self.model.chat_template

    @property
    def made_of(self) -> tuple[Checkpoint, ...]:
        return (self.model, *self._donors)

    @cached_property
    def _donors(self) -> tuple[Checkpoint, ...]:
        """The other models that rows are borrowed from, in order of appearance."""
        found = {
            id(lender.source): lender.source
            for rows in self._rows.values()
            for donors in rows.donors.values()
            for lender, _ in donors
        }
        return tuple(found.values())

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16, person=b"view")
        digest.update(repr(sorted(self._lender.names.items())).encode())
        numbers = {id(source): number for number, source in enumerate(self._donors)}
        for name, rows in sorted(self._rows.items()):
            borrowed = [
                (row, [(numbers[id(one.source)], one.own(name), place) for one, place in donors])
                for row, donors in sorted(rows.donors.items())
            ]
            digest.update(repr((name, rows.tokens, borrowed)).encode())
            digest.update(rows.own.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.digest.encode(), digest_size=16)
        for model in self.made_of:
            digest.update(model.fingerprint.encode())
        return digest.hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        rows, own = self._rows.get(name), self._lender.own(name)
        if rows is None:
            return self.model.read(own, start, stop)
        info = self.tensors[name]
        stop = info.rows if stop is None else min(stop, info.rows)
        values = torch.zeros((stop - start, *info.shape[1:]), dtype=info.torch_dtype)
        for begin, end, first in rows.runs(start, stop):
            values[begin - start : end - start] = self.model.read(own, first, first + end - begin)
        for row in ((rows.own[start:stop] < 0).nonzero().flatten() + start).tolist():
            values[row - start] = self._borrowed(name, rows, row)
        return values

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        info = self.tensors[name]
        count = len(buffer) // max(1, info.row_elements * info.torch_dtype.itemsize)
        buffer[:] = bytes_of(self.read(name, start, start + count).contiguous())

    def _borrowed(self, name: str, rows: Rows, row: int) -> torch.Tensor | float:
        if row not in rows.donors:
            return self._mean(name, rows)
        donors = rows.donors[row]
        if len(donors) == 1:
            lender, place = donors[0]
            return lender.row(name, place)
        return (
            torch.stack([one.row(name, place).to(torch.float32) for one, place in donors]).mean(0)
            if donors
            else 0.0
        )

    def _mean(self, name: str, rows: Rows) -> torch.Tensor:
        """The mean of all rows that stand for tokens. Source: Hewitt 2021, "Initializing new word embeddings"."""
        if name not in self._means:
            starts = range(0, rows.tokens, MEAN_ROWS)
            sums = [
                self.read(name, start, min(start + MEAN_ROWS, rows.tokens)).double().sum(0)
                for start in starts
            ]
            self._means[name] = (torch.stack(sums).sum(0) / max(1, rows.tokens)).to(torch.float32)
        return self._means[name]

    def close(self) -> None:
        for model in self.made_of:
            model.close()

    def __del__(self) -> None:
        pass  # the files are the models', which others may read
