"""The mean score over two parameters: its cells, its order, and axes that cannot be used."""

from __future__ import annotations

import time

import pytest

from merging import MergingError, Progress
from merging.judging.grid import Axis, Cell, axis_values, grid
from merging.judging.search_space import dimension, numbers, with_values
from merging.judging.trials import Trials
from merging.memory.whatif import Residents
from tests.test_trials import demo_recipe, few

RECIPE = demo_recipe("ties")


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials(Residents(), "cpu")


def test_cells_come_row_by_row_and_are_the_merges_they_say(trials):
    suites = [few("math")]
    x, y = Axis("lambda", 0, 1, 3), Axis("weight", 0.5, 1, 2, expert="math")
    events = list(grid(RECIPE, x, y, suites, trials))
    cells = [event for event in events if isinstance(event, Cell)]
    assert [(cell.x, cell.y) for cell in cells] == [(x, y) for y in (0.5, 1) for x in (0, 0.5, 1)]
    recipe = demo_recipe("ties", parameters={"lambda": 0.5})
    entry = recipe.models[0].model_copy(update={"parameters": {"weight": 0.5}})
    recipe = recipe.model_copy(update={"models": (entry, *recipe.models[1:])})
    assert trials.score(recipe, suites) == cells[1].results
    assert cells[1].score == cells[1].results[0].score
    base = trials.score_model("examples/demo/base", suites)
    assert cells[0].score == cells[3].score == base[0].score
    assert [event for event in events if isinstance(event, Progress)][-1].share == 1


def test_a_cell_that_fails_says_why(trials):
    x, y = Axis("density", 0.1, 0.5, 2), Axis("epsilon", 0.2, 0.2, 1)
    cells = [
        one for one in grid(demo_recipe("della"), x, y, [few("math", 2)], trials) if isinstance(one, Cell)
    ]
    assert "epsilon" in cells[0].problem
    assert "\n" not in cells[0].problem
    assert cells[0].score is None
    assert cells[1].score is not None


def test_closing_stops_within_a_second(trials):
    cells = grid(RECIPE, Axis("lambda", 0, 1, 20), Axis("density", 0, 1, 20), [few("words", 100)], trials)
    next(cells)
    started = time.perf_counter()
    cells.close()
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (Axis("lamda", 0, 1, 2), Axis("density", 0, 1, 2), "Did you mean 'lambda'"),
        (Axis("density", 0, 1.5, 2), Axis("lambda", 0, 1, 2), "goes beyond 0 to 1"),
        (Axis("density", 1, 0, 2), Axis("lambda", 0, 1, 2), "ends reversed"),
        (Axis("density", 0, 1, 21), Axis("lambda", 0, 1, 20), "420 cells, and at most 400"),
        (Axis("density", 0, 1, 0), Axis("lambda", 0, 1, 20), "0 steps"),
        (Axis("density", 0.5, 0.5, 3), Axis("lambda", 0, 1, 2), "some values twice"),
        (Axis("density", 0, 1, 2), Axis("density", 0, 0.5, 3), "Both axes are density"),
        (Axis("normalize", 0, 1, 2), Axis("density", 0, 1, 2), "is no number"),
        (Axis("weight", 0, 1, 2, expert="maths"), Axis("density", 0, 1, 2), "none of the experts"),
        (Axis("lambda", 0, 1, 2, expert="math"), Axis("density", 0, 1, 2), "one value for the merge"),
        (Axis("lambda", 0, float("nan"), 2), Axis("density", 0, 1, 2), "ends reversed"),
        (Axis("lambda", 0, float("inf"), 2), Axis("density", 0, 1, 2), "no end"),
        (Axis("lambda", -1.5e308, 1.5e308, 3), Axis("density", 0, 1, 2), "no end"),
    ],
)
def test_a_bad_axis_is_one_sentence(trials, x, y, reason):
    with pytest.raises(MergingError) as refused:
        next(grid(RECIPE, x, y, [few("math", 2)], trials))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_experts_own_value_goes_before_that_of_all():
    own, shared = dimension(RECIPE, "weight", "math"), dimension(RECIPE, "weight")
    for values in ({own: 0.5, shared: 0.25}, {shared: 0.25, own: 0.5}):
        changed = with_values(RECIPE, values)
        assert changed.parameters["weight"] == 0.25
        assert [entry.parameters for entry in changed.models] == [{"weight": 0.5}, {}, {}]


def test_a_list_is_an_axis_by_its_place():
    recipe = demo_recipe("dppa")
    assert axis_values(recipe, Axis("amplify", 1, 2, 3, place=1)) == (1, 1.5, 2)
    with pytest.raises(MergingError, match="say which"):
        axis_values(recipe, Axis("amplify", 1, 2, 3))
    changed = with_values(recipe, {one: 2.0 for one in numbers(recipe) if one.label == "amplify 2"})
    assert changed.parameters["amplify"] == [1.0, 2.0]
