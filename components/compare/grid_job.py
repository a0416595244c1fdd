"""A grid over two parameters as a job, and its table as cells, sentences and recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.compare.search import Search, counted, follow, mean, task_names, task_score, told
from components.figures.grid import Axis as FigureAxis
from components.figures.grid import GridCell
from components.merge.recipe import at_root
from components.preview.store import shared_previews
from components.server.settings import Settings
from components.server.zero_gpu import on_gpu, size_of
from merging import MergingError, Recipe
from merging.job_records import Job
from merging.judging.grid import Axis, Cell, axis_values, grid
from merging.judging.search_space import Dimension, dimension, with_values
from merging.judging.suites import Suite
from merging.judging.trials import Trials
from merging.plan import make_plan

KIND = "grid"


@dataclass(frozen=True)
class Request:
    """The recipe, the two axes over it, and what each merge is asked."""

    recipe: Recipe
    across: Axis
    up: Axis
    suites: tuple[Suite, ...]

    @property
    def values(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The values across and up.

        Raises:
            MergingError: an axis cannot be used.
        """
        return axis_values(self.recipe, self.across), axis_values(self.recipe, self.up)

    @property
    def dimensions(self) -> tuple[Dimension, Dimension]:
        across, up = (
            dimension(self.recipe, one.name, one.expert, one.place) for one in (self.across, self.up)
        )
        return across, up


def work(settings: Settings, request: Request) -> Callable[[Path], Iterator[Any]]:
    """The job: progress, the map so far whenever a cell is done, in the end the whole map."""
    columns, rows = request.values
    merges = len(columns) * len(rows)
    size = size_of(make_plan(at_root(request.recipe)), merges, merges * sum(map(len, request.suites)))
    return on_gpu(size, _follow, settings, request)


def _follow(settings: Settings, request: Request, out: Path) -> Iterator[Any]:
    return follow(_Grid(request.suites, settings=settings, request=request, scratch=out.parent))


@dataclass(kw_only=True)
class _Grid(Search):
    settings: Settings
    request: Request
    scratch: Path
    cells: list[list[dict[str, Any] | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns, rows = self.request.values
        self.cells = [[None] * len(columns) for _ in rows]
        self.total = len(columns) * len(rows)

    def steps(self) -> Iterator[None]:
        """Merge and ask every cell; what goes wrong in one is told there."""
        request = self.request
        trials = Trials(shared_previews().residents, self.settings.device, self.scratch)
        with closing(grid(request.recipe, request.across, request.up, self.suites, trials)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Cell):
                    self._take(event)
                else:
                    self.doing = event.stage
                yield

    def _take(self, cell: Cell) -> None:
        """Cells come row by row."""
        row, column = divmod(self.found, len(self.cells[0]))
        values = dict(zip(self.request.dimensions, (cell.x, cell.y), strict=True))
        recipe = at_root(with_values(self.request.recipe, values))
        kept = {"scores": counted(cell.results), "problem": cell.problem, "recipe": recipe.to_yaml()}
        self.cells[row][column] = kept
        self.found += 1
        self.done = self.found

    def results(self) -> dict[str, Any]:
        sides = zip(("across", "up"), self.request.dimensions, self.request.values, strict=True)
        named = {side: [one.label, list(values)] for side, one, values in sides}
        return {**named, "cells": [list(line) for line in self.cells]}


def cells_of(
    result: Mapping[str, Any],
) -> tuple[FigureAxis, FigureAxis, list[list[GridCell | None]], list[str]]:
    """Both axes, the cells and the tasks of a table, as the figure takes them."""
    across, up = (FigureAxis(name, tuple(values)) for name, values in (result["across"], result["up"]))

    def cell(kept: Mapping[str, Any] | None) -> GridCell | None:
        if kept is None:
            return None
        if kept["problem"]:
            return GridCell(None, problem=kept["problem"])
        return GridCell(mean(kept["scores"]), told(result, kept["scores"]))

    return across, up, [[cell(kept) for kept in line] for line in result["cells"]], task_names(result)


def line_of(result: Mapping[str, Any], at: Sequence[int]) -> tuple[str, str]:
    """The values of a cell, and in words what it scores or why it has no score."""
    row, column = at
    (across, columns), (up, rows) = result["across"], result["up"]
    values = f"{across} {columns[column]:g}, {up} {rows[row]:g}"
    kept = result["cells"][row][column]
    if kept["problem"]:
        return values, f"Not merged: {kept['problem']}"
    each = [
        f"{name}: {task_score(correct, n)}"
        for name, (correct, n) in zip(task_names(result), kept["scores"], strict=True)
    ]
    return values, f"Mean {mean(kept['scores']):.1%}. {'; '.join(each)}."


def recipe_at(job: Job, row: Any, column: Any) -> str:
    """The recipe of a cell as YAML.

    Raises:
        MergingError: there is no such cell, or it could not be merged.
    """
    cells = (job.result or {}).get("cells", [])
    if type(row) is int and type(column) is int and 0 <= row < len(cells) and 0 <= column < len(cells[row]):
        kept = cells[row][column]
        if kept is not None and kept["recipe"]:
            return str(kept["recipe"])
    raise MergingError("This cell has no recipe. Choose one that was measured.")
