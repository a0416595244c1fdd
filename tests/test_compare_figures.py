"""Figures of scores, trade-offs, grids and searches, beside the numbers they are made of."""

from __future__ import annotations

import json

import pytest

from components.figures.grid import Axis, GridCell, best_cell, grid_chart
from components.figures.pareto import pareto_chart, pareto_front
from components.figures.scores import ScoredModel, TaskScore, scores_chart
from components.figures.tuning import TrialPoint, parameters_chart, tuning_chart

TASKS = ("sums", "<b>words</b>")


def score(value: float, n: int = 100) -> TaskScore:
    return TaskScore(value, value - 0.1, value + 0.05, n)


MODELS = (
    ScoredModel("merge one", (score(0.6), score(0.5))),
    ScoredModel("base", (score(0.3), score(0.2)), parent=True),
    ScoredModel("merge two", (score(0.7), None)),
    ScoredModel("merge one", (score(0.2), score(0.9))),
)


def drawn(chart):
    """The figure as the page gets it; NaN would be no JSON."""
    return json.loads(chart.figure.to_json(), parse_constant=lambda word: pytest.fail(word))


def traces(figure, kind):
    return [trace for trace in figure["data"] if trace["type"] == kind]


def test_bars_carry_their_intervals_and_parents_come_first():
    chart = scores_chart(MODELS, TASKS)
    figure = drawn(chart)
    parents, merges, *_ = traces(figure, "bar")
    assert (parents["name"], parents["x"], parents["y"]) == ("parents", [0.3], [0])
    assert (merges["x"], merges["y"]) == ([0.6, 0.7, 0.2], [1, 2, 3])
    assert merges["error_x"]["array"] == pytest.approx([0.05] * 3)
    assert merges["error_x"]["arrayminus"] == pytest.approx([0.1] * 3)
    assert parents["marker"]["pattern"]["shape"] != merges["marker"]["pattern"]["shape"]
    assert parents["marker"]["color"] != merges["marker"]["color"]
    assert "60.0% correct (60 of 100), 95 % interval 50.0% to 65.0%" in merges["customdata"][0]
    assert figure["layout"]["yaxis"]["ticktext"] == ["base", "merge one", "merge two", "merge one"]
    assert [figure["layout"][axis]["range"][0] for axis in ("xaxis", "xaxis2")] == [0, 0]
    assert figure["layout"]["xaxis"]["range"] == figure["layout"]["xaxis2"]["range"]


def test_every_colour_is_one_string():
    charts = [scores_chart(MODELS, TASKS), pareto_chart(MODELS, TASKS, 0, 1), tuning_chart(TRIALS, TASKS)]
    for chart in charts:
        for trace in drawn(chart)["data"]:
            assert isinstance(trace.get("marker", {}).get("color", ""), str)


def test_numbers_at_the_edge_say_the_best_and_what_was_not_asked():
    first, second = traces(drawn(scores_chart(MODELS, TASKS)), "scatter")
    assert first["text"] == ["30", "60", "<b>70</b>", "20"]
    assert second["text"] == ["20", "50", "–", "<b>90</b>"]


def test_a_task_that_nobody_was_asked_has_no_plot_and_many_rows_stay_apart():
    models = [ScoredModel(f"run {n}", (score(n / 100), None)) for n in range(10, 60)]
    chart = scores_chart(models, TASKS)
    assert "xaxis2" not in drawn(chart)["layout"]
    assert drawn(chart)["layout"]["height"] >= 15 * len(models)
    assert "shapes" not in drawn(chart)["layout"] or not drawn(chart)["layout"]["shapes"]
    assert scores_chart([ScoredModel("run", (None, None))], TASKS) is None
    assert scores_chart([], TASKS) is None


def test_names_from_outside_are_no_markup():
    text = scores_chart([ScoredModel("<img src=x>", (score(0.5), score(0.5)))], TASKS).figure.to_json()
    assert "<img" not in text
    assert "<b>words" not in text


def test_the_front_holds_whom_nobody_beats():
    assert pareto_front([(0.1, 0.9), (0.5, 0.5), (0.5, 0.4), (0.2, 0.2), (0.9, 0.1), (0.5, 0.5)]) == [
        0,
        1,
        5,
        4,
    ]
    assert pareto_front([(0.3, 0.3)]) == [0]


def test_the_trade_off_marks_parents_front_and_intervals():
    chart = pareto_chart(MODELS, TASKS, 0, 1)
    front, parents, merges = drawn(chart)["data"]
    assert front["x"] == [0, 0.2, 0.6, 0.6]
    assert front["y"] == [0.9, 0.9, 0.5, 0]
    assert (parents["x"], parents["y"], parents["marker"]["symbol"]) == ([0.3], [0.2], ["diamond-open"])
    assert (merges["x"], merges["y"]) == ([0.6, 0.2], [0.5, 0.9])
    assert merges["marker"]["symbol"] == ["circle", "circle"]
    assert merges["error_y"]["array"] == pytest.approx([0.05] * 2)
    assert chart.alt.endswith("On the Pareto front: merge one, merge one.")
    assert pareto_chart(MODELS[2:3], TASKS, 0, 1) is None


ACROSS, UP = Axis("lambda", (0.5, 1.0, 1.5)), Axis("density", (0.2, 0.8))
CELLS = [
    [GridCell(0.4, "sums 40 %"), GridCell(0.7), None],
    [GridCell(None, problem="no <room>"), GridCell(0.7), None],
]


def test_the_grid_has_gaps_marks_failures_and_outlines_the_best():
    chart = grid_chart(ACROSS, UP, CELLS, TASKS)
    figure = drawn(chart)
    values, failures = figure["data"]
    assert values["z"] == [[0.4, 0.7, None], [None, 0.7, None]]
    assert values["text"] == [["40", "<b>70</b>", ""], ["", "70", ""]]
    assert failures["z"] == [[None, None, None], [0, None, None]]
    assert failures["customdata"][1][0] == "no &lt;room&gt;"
    assert best_cell(CELLS) == (0, 1)
    assert {(s["x0"], s["x1"], s["y0"], s["y1"]) for s in figure["layout"]["shapes"]} == {
        (0.5, 1.5, -0.5, 0.5)
    }
    assert "4 of 6 pairs measured" in chart.note
    assert "lambda 1 and density 0.2 with 70.0%" in chart.alt
    assert (figure["layout"]["coloraxis"]["cmin"], figure["layout"]["coloraxis"]["cmax"]) == pytest.approx(
        (0.4, 0.7)
    )


def test_an_empty_grid_says_so():
    chart = grid_chart(ACROSS, UP, [[None] * 3] * 2, TASKS)
    assert "No pair has a score yet." in chart.note
    assert best_cell([[None] * 3] * 2) is None
    assert not drawn(chart)["layout"].get("shapes")


TRIALS = (
    TrialPoint(1, 0.5, {"lambda": 1.0, "density": 0.2}),
    TrialPoint(2, None, {"lambda": 9.0, "density": 0.2}, "not <finite>"),
    TrialPoint(3, 0.4, {"lambda": 0.5, "density": 0.2}),
    TrialPoint(4, 0.8, {"lambda": 1.5, "density": 0.4}),
)


def test_the_search_shows_every_trial_the_best_and_the_start():
    dots, best, failed, untuned = drawn(tuning_chart(TRIALS, TASKS, untuned=0.45))["data"]
    assert (dots["x"], dots["y"]) == ([1, 3, 4], [0.5, 0.4, 0.8])
    assert (best["x"], best["y"]) == ([1, 3, 4, 4], [0.5, 0.5, 0.8, 0.8])
    assert (failed["x"], failed["y"]) == ([2], [0.4])
    assert failed["customdata"][0].startswith("not &lt;finite&gt;")
    assert set(untuned["y"]) == {0.45}
    assert (
        "4 trials, 1 failed. Best so far: trial 4 with 80.0%. Untuned: 45.0%."
        in tuning_chart(TRIALS, TASKS, 0.45).alt
    )
    assert tuning_chart((), TASKS) is None
    assert len(drawn(tuning_chart(TRIALS[1:2], TASKS))["data"]) == 2


def test_parallel_coordinates_hold_only_what_was_varied_and_scored():
    figure = drawn(parameters_chart(TRIALS))
    assert figure["layout"]["xaxis"]["ticktext"] == ["lambda", "density", "mean score"]
    others, best = figure["data"]
    assert best["y"] == [1, 1, 1, None]
    assert others["y"][3:] == [None, 0.5, 0, pytest.approx(0.25), None]
    assert others["y"][:3] == [0, 0, 0]
    assert parameters_chart(TRIALS[:3]) is None
    same = [TrialPoint(n, 0.1 * n, {"lambda": n / 10}) for n in range(1, 6)]
    assert parameters_chart(same) is None
