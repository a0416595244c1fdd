"""The table of runs × tasks: who was asked what, what came of it, and what a merge kept of each task's own expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from components.figures.scores import ScoredModel, TaskScore
from components.tables import Table
from merging.judging.intervals import retention

Kind = Literal["base", "expert", "run"]


@dataclass(frozen=True)
class TextScore:
    """A model's perplexity of a text of `tokens` tokens, with its 95 % interval where there is one."""

    value: float
    low: float | None
    high: float | None
    tokens: int


Result = TaskScore | TextScore


@dataclass(frozen=True)
class Column:
    """Something that was measured: a suite, or the perplexity of a text (`scoring` is empty); `kept` from an earlier visit,
    so that nobody else can be measured by it."""

    key: str
    name: str
    scoring: str = ""
    n: int = 0
    kept: bool = False

    @property
    def is_text(self) -> bool:
        return not self.scoring

    @property
    def task(self) -> str:
        """The name without the file's: `math` of `math/test`."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Row:
    """A model with what it scored, by the keys of columns; `detail` says more of a run than its name does."""

    key: str
    name: str
    kind: Kind
    results: Mapping[str, Result] = field(default_factory=dict)
    detail: str = ""

    def score(self, column: Column) -> float | None:
        """The share of right replies on a suite; None where it was not asked."""
        found = self.results.get(column.key)
        return found.value if isinstance(found, TaskScore) else None


@dataclass(frozen=True)
class Board:
    """Parents first, then runs."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def tasks(self) -> tuple[Column, ...]:
        """The columns that are suites."""
        return tuple(column for column in self.columns if not column.is_text)

    @property
    def counted(self) -> tuple[Column, ...]:
        """The tasks over which means are taken: those that everybody can be asked, where there are any."""
        return tuple(column for column in self.tasks if not column.kept) or self.tasks

    @property
    def runs(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.kind == "run")

    @property
    def empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not any(column.key in row.results for row in self.rows for column in self.columns)

    def row(self, key: object) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def column(self, key: object) -> Column | None:
        return next((column for column in self.columns if column.key == key), None)

    def own(self, column: Column) -> Row | None:
        """A task's own expert: the one that is called like it, else the one that scores best."""
        experts = [row for row in self.rows if row.kind == "expert"]
        named = next((row for row in experts if row.name == column.task), None)
        scored = [row for row in experts if row.score(column) is not None]
        best = max(scored, key=lambda row: row.score(column) or 0.0, default=None)
        return named or best

    def is_named(self, column: Column) -> bool:
        """Whether the own expert is known by its name."""
        own = self.own(column)
        return own is not None and own.name == column.task

    def retention(self, row: Row, column: Column) -> float | None:
        """A run's score over that of the task's own expert."""
        own = self.own(column)
        mine, theirs = row.score(column), own.score(column) if own is not None else None
        if row.kind != "run" or mine is None or theirs is None:
            return None
        return retention(mine, theirs)

    def mean(self, row: Row) -> float | None:
        """The mean over all tasks that count; None where one is missing."""
        scores = [score for column in self.counted if (score := row.score(column)) is not None]
        return sum(scores) / len(scores) if scores and len(scores) == len(self.counted) else None

    def mean_retention(self, row: Row) -> float | None:
        """The mean retention over all tasks that count; None where one is missing."""
        kept = [share for column in self.counted if (share := self.retention(row, column)) is not None]
        return sum(kept) / len(kept) if kept and len(kept) == len(self.counted) else None


def score_models(board: Board) -> tuple[list[ScoredModel], list[str]]:
    """The board as its figures take it: models that were asked something, and the names of the tasks."""

    def told(row: Row, column: Column) -> TaskScore | None:
        found = row.results.get(column.key)
        return found if isinstance(found, TaskScore) else None

    models = [
        ScoredModel(row.name, tuple(told(row, column) for column in board.tasks), parent=row.kind != "run")
        for row in board.rows
    ]
    asked = [model for model in models if any(score is not None for score in model.scores)]
    return asked, short_names(board.tasks)


def short_names(columns: Sequence[Column]) -> list[str]:
    """The columns' tasks, with the file where one task stands twice."""
    tasks = [column.task for column in columns]
    return [
        column.task if tasks.count(column.task) == 1 else column.name.replace("/", " ") for column in columns
    ]


def board_table(board: Board) -> Table:
    """Every number of the board, for a spreadsheet: shares from 0 to 1."""
    headers = ["model", "kind", "recipe"]
    for column, name in zip(board.columns, _unique(board.columns), strict=True):
        if column.is_text:
            headers += [f"{name} perplexity", f"{name} low", f"{name} high", f"{name} tokens"]
        else:
            headers += [f"{name} score", f"{name} low", f"{name} high", f"{name} n", f"{name} retention"]
    headers += ["mean score", "mean retention"]
    rows = []
    for row in board.rows:
        cells: list[str | int | float | None] = [row.name, row.kind, row.detail]
        for column in board.columns:
            cells += _numbers(board, row, column)
        rows.append([*cells, board.mean(row), board.mean_retention(row)])
    return Table(headers, rows)


def _unique(columns: Sequence[Column]) -> list[str]:
    """Names in which no two columns agree: two uploads may be called alike."""
    names = [column.name for column in columns]
    return [
        column.name if names.count(column.name) == 1 else f"{column.name} ({column.key})"
        for column in columns
    ]


def _numbers(board: Board, row: Row, column: Column) -> list[str | int | float | None]:
    found = row.results.get(column.key)
    if column.is_text:
        return (
            [found.value, found.low, found.high, found.tokens] if isinstance(found, TextScore) else [None] * 4
        )
    if not isinstance(found, TaskScore):
        return [None] * 5
    return [found.value, found.low, found.high, found.n, board.retention(row, column)]
