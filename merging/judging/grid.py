"""The mean score over two parameters of a recipe: every pair of values is merged, asked and forgotten."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from merging.errors import MergingError
from merging.evaluation import SuiteResult
from merging.events import Progress
from merging.judging.search_space import Dimension, dimension, with_values
from merging.judging.suites import Suite
from merging.judging.trials import Job, Stop, Trials, mean_score, sentence
from merging.plan import make_plan
from merging.recipe import Recipe

MOST_CELLS = 400


@dataclass(frozen=True)
class Axis:
    """A parameter by its YAML name, and `steps` values of it from `low` to `high`, evenly spaced.

    `expert`: whose it is, as the recipe names it or by the last part of that; `place`: which of a list, from 0.
    """

    name: str
    low: float
    high: float
    steps: int
    expert: str | None = None
    place: int | None = None


@dataclass(frozen=True)
class Cell:
    """The merge with one value on each axis: its results, one for each suite; without results, why."""

    x: float
    y: float
    results: tuple[SuiteResult, ...]
    seconds: float
    problem: str = ""

    @property
    def score(self) -> float | None:
        """The mean over the suites, 0 to 1; None without results."""
        return mean_score(self.results) if self.results else None


def axis_values(recipe: Recipe, axis: Axis) -> tuple[float, ...]:
    """The values of an axis in order, as the recipes will have them.

    Raises:
        MergingError: the recipe has no such number, or not all of the range can be used.
    """
    return _values(axis, dimension(recipe, axis.name, axis.expert, axis.place))


def grid(
    recipe: Recipe, x: Axis, y: Axis, suites: Sequence[Suite], trials: Trials
) -> Iterator[Progress | Cell]:
    """Every cell as soon as it is scored, row by row from the lowest `y`; closing the iterator stops within a second.

    Raises:
        MergingError: an axis cannot be used, both are the same, there are more than 400 cells, or the recipe cannot run.
            What goes wrong in one cell is told there.
    """
    dimensions = [dimension(recipe, axis.name, axis.expert, axis.place) for axis in (x, y)]
    if dimensions[0] == dimensions[1]:
        raise MergingError(f"Both axes are {dimensions[0].label}; choose two different ones.")
    across, up = (_values(axis, one) for axis, one in zip((x, y), dimensions, strict=True))
    count = len(across) * len(up)
    if count > MOST_CELLS:
        raise MergingError(
            f"{len(across)} × {len(up)} are {count} cells, and at most {MOST_CELLS} are measured; take fewer steps."
        )
    at_once = trials.side_by_side(make_plan(recipe))
    jobs: list[Job[Cell]] = [
        partial(_cell, recipe, dimensions, (one, other), suites, trials) for other in up for one in across
    ]
    started, done = time.perf_counter(), 0
    with closing(trials.each(jobs, at_once)) as steps:  # type: ignore[type-var]
        for step in steps:
            if step is not None:
                done += 1
                yield step
            stage = f"cell {min(done + 1, count)} of {count}"
            yield Progress(stage, done, count, 0, done / count, time.perf_counter() - started)


def _cell(
    recipe: Recipe,
    dimensions: Sequence[Dimension],
    at: tuple[float, float],
    suites: Sequence[Suite],
    trials: Trials,
    stopped: Stop,
) -> Cell:
    started = time.perf_counter()
    try:
        found = trials.score(with_values(recipe, dict(zip(dimensions, at, strict=True))), suites, stopped)
    except MergingError as error:
        return Cell(*at, (), time.perf_counter() - started, sentence(error))
    return Cell(*at, found, time.perf_counter() - started)


def _values(axis: Axis, one: Dimension) -> tuple[float, ...]:
    if not 1 <= axis.steps <= MOST_CELLS:
        raise MergingError(f"{one.label}: {axis.steps} steps; give from 1 to {MOST_CELLS}.")
    if math.inf in (abs(axis.low), abs(axis.high), axis.high - axis.low):
        raise MergingError(
            f"{one.label}: the range from {axis.low:g} to {axis.high:g} has no end; give two numbers."
        )
    if not axis.low <= axis.high:
        raise MergingError(
            f"{one.label}: the range from {axis.low:g} to {axis.high:g} has its ends reversed."
        )
    if not (one.least <= axis.low and axis.high <= one.most):
        raise MergingError(
            f"{one.label}: the range from {axis.low:g} to {axis.high:g} goes beyond {one.least:g} to {one.most:g}."
        )
    apart = (axis.high - axis.low) / max(1, axis.steps - 1)
    tidied = [float(one.tidy(axis.low + number * apart)) for number in range(axis.steps)]
    if len(set(tidied)) < len(tidied):
        raise MergingError(
            f"{one.label}: {axis.steps} steps from {axis.low:g} to {axis.high:g} give some values twice; take fewer."
        )
    return tuple(tidied)
