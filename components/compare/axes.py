"""The numbers of a recipe that a grid can run over: their names in a list, and the range to begin with."""

from __future__ import annotations

import sys
from typing import Any

from components.forms import tidy
from merging import MergingError, Recipe
from merging.judging.grid import Axis
from merging.judging.search_space import Dimension, labelled, numbers

MOST_STEPS = 9
USUAL = ("lambda", "density", "weight", "t", "ratio")
"""What most people vary first."""


def labels(recipe: Recipe) -> list[str]:
    """The names of a recipe's numbers, such as `density` and `weight of math`."""
    return list(labelled(numbers(recipe)).values())


def usual(known: list[str]) -> str | None:
    """The number that most people vary first."""
    return next((name for name in USUAL if name in known), next(iter(known), None))


def find(recipe: Recipe, label: Any) -> Dimension:
    """The number of a name.

    Raises:
        MergingError: the recipe's method has none of that name.
    """
    for one, known in labelled(numbers(recipe)).items():
        if known == label:
            return one
    raise MergingError("Choose two numbers of the method that the recipe under Merge has.")


def ends(one: Dimension) -> tuple[float, float]:
    """The range to begin with; not from 0 where 0 is the least of a share, for nothing is left of a merge there."""
    share = one.least == 0 and one.most == 1
    return tidy(one.low + 0.1 * share * (one.high - one.low)), tidy(one.high)


def axis(recipe: Recipe, label: Any, low: Any, high: Any, steps: Any) -> Axis:
    """What the page says of one axis.

    Raises:
        MergingError: something is missing, or no number.
    """
    one = find(recipe, label)
    for end in (low, high):
        if not isinstance(end, int | float) or isinstance(end, bool) or not abs(end) <= sys.float_info.max:
            raise MergingError(f"{one.label}: give two numbers to run between.")
    if low >= high:
        raise MergingError(f"{one.label}: the first end, {low:g}, must be below the second, {high:g}.")
    if not isinstance(steps, int | float) or not 2 <= steps <= MOST_STEPS:
        raise MergingError(f"{one.label}: choose 2 to {MOST_STEPS} values.")
    return Axis(one.name, float(low), float(high), int(steps), one.expert, one.place)
