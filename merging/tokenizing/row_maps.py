"""Which row of which model every row of the output's vocabulary is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from merging.anatomy import locate
from merging.checkpoint import Checkpoint
from merging.recipe import RowSource, TokenRow
from merging.tokenizing.view import Donors, Lender, Rows

PADDED_TO = 128
"""The largest power of two that a padded vocabulary is taken to be padded to."""


@dataclass(frozen=True, eq=False)
class Owner:
    """A model's vocabulary: token to id. `rows`: of its embedding; `name`: in the recipe."""

    name: str
    vocabulary: Mapping[str, int]
    rows: int

    @property
    def tokens(self) -> int:
        """Ids up to the last token's."""
        return max(self.vocabulary.values(), default=-1) + 1

    def row(self, token: str) -> int | None:
        """The row of a token; None where the model has no such token, or no row for it."""
        number = self.vocabulary.get(token)
        return number if number is not None and number < self.rows else None


@dataclass(frozen=True)
class RowCounts:
    """How the tokens of the output get their rows in one model: `own` ones, one of another model (`copied`), the mean of
    several (`averaged`), zeros (`zeroed`). `padding`: rows that stand for no token."""

    name: str
    own: int
    copied: int
    averaged: int
    zeroed: int
    padding: int


@dataclass(frozen=True, eq=False)
class RowMap:
    """The rows of the output's vocabulary over some models, `base` the number of the base among them.

    `tokens`: token to id in the output. `rows`: of the output. `wanted`: what the recipe says of single tokens.
    """

    owners: Sequence[Owner]
    base: int | None
    tokens: Mapping[str, int]
    rows: int
    wanted: Mapping[str, TokenRow]
    mean_padding: bool = False
    """Whether all rows behind the tokens are their mean, as mergekit's pad_to_multiple_of makes them."""

    @property
    def size(self) -> int:
        """Rows up to the last token."""
        return max(self.tokens.values(), default=-1) + 1

    def problems(self) -> Iterator[str]:
        """What the recipe says of single tokens and cannot be done."""
        names = [owner.name for owner in self.owners]
        for token, row in self.wanted.items():
            where = f"tokenizer.tokens.{token}"
            source = row.source
            model = source.model if isinstance(source, RowSource) else source
            if isinstance(source, RowSource) and not source.complete:
                yield f"{where}: model_token needs a model, and either token or token_id."
                continue
            if model is not None and model not in names:
                yield f"{where}: the model {model} is none of {', '.join(names)}; name one of them."
            elif isinstance(source, str) and self._named(source).row(token) is None:
                yield f"{where}: {source} has no row for this token; name a model that has it, or kind: zero."
            elif isinstance(source, RowSource) and model is not None and self._row_of(source) is None:
                asked = source.token if source.token is not None else source.token_id
                yield f"{where}: {model} has no row for {asked!r}; name a token it has."

    def _number(self, name: str) -> int:
        return next(number for number, owner in enumerate(self.owners) if owner.name == name)

    def _named(self, name: str) -> Owner:
        return self.owners[self._number(name)]

    def _row_of(self, source: RowSource) -> int | None:
        owner = self._named(source.model or "")
        if source.token is not None:
            return owner.row(source.token)
        return source.token_id if source.token_id is not None and source.token_id < owner.rows else None

    def maps(self, lenders: Sequence[Lender]) -> list[Rows]:
        """The rows of every owner, who lends as the lender in its place says."""
        own = torch.stack([self._own(owner) for owner in self.owners])
        texts = {number: token for token, number in self.tokens.items()}
        forced = [self.tokens[token] for token, row in self.wanted.items() if row.force and row.source]
        donors: dict[int, Donors] = {}
        for row in {*(own < 0).any(0).nonzero().flatten().tolist(), *forced}:
            found = self._donors(row, texts.get(row), own[:, row].tolist())
            if found is not None:
                donors[row] = tuple((lenders[number], place) for number, place in found)
        own[:, forced] = -1
        missing = [(one < 0).nonzero().flatten().tolist() for one in own]
        return [
            Rows(one, {row: donors[row] for row in lacks if row in donors}, self.size)
            for one, lacks in zip(own, missing, strict=True)
        ]

    def _own(self, owner: Owner) -> torch.Tensor:
        """Row of the owner for each row of the output, -1 where it has none. A row that stands for no token in the output
        and in the owner is its own."""
        own = torch.full((self.rows,), -1, dtype=torch.int64)
        places = torch.tensor(list(self.tokens.values()), dtype=torch.int64)
        numbers = torch.tensor([owner.vocabulary.get(token, -1) for token in self.tokens], dtype=torch.int64)
        has = (numbers >= 0) & (numbers < owner.rows)
        own[places[has]] = numbers[has]
        unused = torch.ones(self.rows, dtype=torch.bool)
        for vocabulary in (self.tokens, owner.vocabulary):
            used = torch.tensor(list(vocabulary.values()), dtype=torch.int64)
            unused[used[used < self.rows]] = False
        unused[owner.rows :] = False
        if self.mean_padding:
            unused[self.size :] = False
        rows = unused.nonzero().flatten()
        own[rows] = rows
        return own

    def _donors(self, row: int, token: str | None, own: Sequence[int]) -> list[tuple[int, int]] | None:
        """What a row is made of where a model lacks it, as numbers of owners and their rows; None: the mean of all
        tokens' rows."""
        source = self.wanted[token].source if token is not None and token in self.wanted else None
        if isinstance(source, RowSource):
            place = self._row_of(source) if source.kind == "model_token" else None
            return [] if place is None else [(self._number(source.model or ""), place)]
        having = [(number, place) for number, place in enumerate(own) if place >= 0]
        first = self._number(source) if source is not None else self.base
        if source is not None or any(number == first for number, _ in having):
            having = [(number, place) for number, place in having if number == first]
        if not having and row >= self.size:
            return None
        return having

    def counts(self, owner: Owner, rows: Rows) -> RowCounts:
        """How many tokens of the output get their rows in which way."""
        ids = set(self.tokens.values())
        made = [len(rows.donors[row]) for row in (rows.own < 0).nonzero().flatten().tolist() if row in ids]
        return RowCounts(
            owner.name,
            own=len(ids) - len(made),
            copied=sum(number == 1 for number in made),
            averaged=sum(number > 1 for number in made),
            zeroed=sum(number == 0 for number in made),
            padding=self.rows - len(ids),
        )


def row_count(tokens: int, giver: Owner, multiple: int | None) -> int:
    """Rows of the output for so many tokens: a multiple if one is asked for; else as many as the model that gives the
    tokenizer has, and where these are too few, as many as keep its padding."""
    if multiple is not None:
        return -(-tokens // multiple) * multiple
    if tokens <= giver.rows:
        return giver.rows
    step = min(PADDED_TO, giver.rows & -giver.rows) if giver.rows > giver.tokens else 1
    return -(-tokens // step) * step


def vocabulary_tensors(source: Checkpoint, roles: Collection[str] = ("embedding", "head")) -> list[str]:
    """The tensors with a row for every token: embedding and head, with their biases."""
    embedding = source.embedding
    if embedding is None:
        return []
    rows = source.tensors[embedding].rows
    places = {name: locate(name) for name in source.tensors}
    return [
        name
        for name, place in places.items()
        if place.has_token_rows and place.role in roles and source.tensors[name].shape[:1] == (rows,)
    ]
