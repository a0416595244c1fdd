"""Every method, the grid and the search as the page runs them: real merges of a tiny family, asked a few questions."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import gradio as gr
import pytest

from components.compare import grid as compare_grid
from components.compare import methods as compare_methods
from components.compare import runner as compare_runner
from components.compare import tune_events as compare_tune
from components.compare import tune_job as compare_tune_job
from components.compare.axes import axis, ends, find, labels
from components.compare.methods_job import Request, _Every, board_of, work
from components.compare.questions import ITEMS, first, suites_of
from components.compare.runner import Work
from components.compare.suites import Ruler
from components.compare.tune_views import strategies_for
from components.family import Family
from components.merge.recipe import default_recipe
from components.server import zero_gpu
from components.server.backend import job_store, run_history
from components.server.settings import Settings
from merging import METHODS, MergingError, Recipe
from merging.judging.history import History
from merging.judging.suites import Item, Suite

EXPERTS = ("one", "two", "three")
SUITE = Suite("letters", tuple(Item(prompt, answer) for prompt, answer in ("ab", "cd", "ef", "gh", "xy")))
OWN = Ruler((SUITE,))
WHAT = [SUITE.fingerprint]
ADA, BOB, EVE = "a" * 32, "b" * 32, "e" * 32


@pytest.fixture(scope="module")
def settings(family, tmp_path_factory):
    return Settings(
        demo=family,
        runs=tmp_path_factory.mktemp("runs"),
        device="cpu",
        single_owner=False,
        local_folders=True,
    )


@pytest.fixture(scope="module")
def chosen(family):
    return Family.demo(family, EXPERTS)


@pytest.fixture(scope="module")
def recipe(chosen):
    return default_recipe(chosen, "task_arithmetic")


def ended(settings, id, owner=ADA):
    job = job_store(settings).wait(owner, id, 280)
    assert job.state == "done", job.error
    return job


@pytest.fixture(scope="module")
def all_methods(settings, chosen):
    return ended(settings, compare_methods.start(settings, ADA, chosen, (SUITE,)))


@pytest.fixture(scope="module")
def searched(settings, chosen, recipe):
    values = (recipe, OWN, "tpe", "trials", 4, WHAT, "all")
    return ended(settings, compare_tune.begin(settings, EVE, chosen, *values), EVE)


def grid_values(recipe, *axes, items="first 20"):
    return (recipe, OWN, WHAT, "validation", items, *axes)


@pytest.fixture(scope="module")
def measured_grid(settings, chosen, recipe):
    axes = ("lambda", 0.5, 1.0, 2, "weight of one", 0.0, 1.0, 3)
    return ended(settings, compare_grid.begin(settings, ADA, chosen, *grid_values(recipe, *axes)))


def test_every_method_has_a_row_or_a_reason(all_methods, settings, chosen):
    board = board_of(all_methods.result)
    assert [row.kind for row in board.rows[:4]] == ["base", "expert", "expert", "expert"]
    merged = {
        Recipe.from_yaml(row["recipe"]).merge_method for row in all_methods.result["rows"] if row["recipe"]
    }
    left_out = {title for title, _ in all_methods.result["unfit"]}
    assert merged | {name for name, method in METHODS.items() if method.title in left_out} == set(METHODS)
    assert all(reason for _, reason in all_methods.result["unfit"])
    means = [board.mean(row) for row in board.runs]
    assert means == sorted(means, reverse=True)
    runs = run_history(settings).list(ADA)
    assert {row.key for row in board.runs} <= {run.subject for run in runs}
    assert len(runs) == len({run.subject for run in runs})
    known = run_history(settings).totals(ADA, [row.key for row in board.rows])
    assert len(known) == len(board.rows)


def test_a_second_run_measures_nothing_again_and_adds_no_run(all_methods, settings, chosen):
    before = len(run_history(settings).list(ADA))
    again = ended(settings, compare_methods.start(settings, ADA, chosen, (SUITE,)))
    assert {row["seconds"] for row in again.result["rows"]} == {None}
    assert len(run_history(settings).list(ADA)) == before
    assert [row["scores"] for row in again.result["rows"]] == [
        row["scores"] for row in all_methods.result["rows"]
    ]


def test_the_table_of_methods_is_shown_with_what_can_be_loaded(all_methods, settings, chosen):
    table, unfit, taking, choice, figures, bars = compare_methods.show(ADA, chosen, all_methods)
    assert "cm-board" in table
    assert table.index(">base<") < table.index("TIES")
    assert "APL" in unfit
    assert taking["visible"]
    assert figures["visible"]
    assert bars["data"]
    keys = [key for _, key in choice["choices"]]
    assert choice["value"] in keys
    assert "merge_method:" in compare_methods.recipe_of(settings, ADA, chosen, keys[0])
    assert not compare_methods._fits("merge_method: ties\nkey_of_an_older_version: 1", chosen)
    with pytest.raises(MergingError, match="no longer in the table"):
        compare_methods.recipe_of(settings, BOB, chosen, keys[0])


def test_an_empty_part_says_what_to_do(chosen, settings):
    table, unfit, taking, *_ = compare_methods.show(ADA, chosen, None)
    assert "Not run yet" in table
    assert (unfit, taking["visible"]) == ("", False)
    assert compare_grid.show(ADA, chosen, None)[0] is None
    assert compare_tune.show(settings, BOB, chosen, None)[1] == gr.update(visible=False)


def test_without_a_task_or_an_expert_nothing_starts(settings, chosen, recipe):
    with pytest.raises(MergingError, match="Choose at least one task"):
        suites_of(settings, chosen, Ruler(), [], "test", "all")
    with pytest.raises(MergingError, match="There is no expert yet"):
        compare_methods.start(settings, ADA, Family(chosen.base, ()), (SUITE,))


def test_fewer_items_are_said_in_the_suite_s_name():
    assert first(SUITE, ITEMS["all"]) is SUITE
    assert first(SUITE, 20) is SUITE
    short = first(SUITE, 2)
    assert (short.name, len(short)) == ("letters (first 2)", 2)
    assert short.fingerprint != SUITE.fingerprint


def test_a_grid_is_measured_row_by_row_and_a_cell_has_its_recipe(measured_grid, chosen):
    result = measured_grid.result
    assert result["across"] == ["lambda", [0.5, 1.0]]
    assert result["up"] == ["weight of one", [0.0, 0.5, 1.0]]
    assert all(cell["scores"][0][1] == len(SUITE) for line in result["cells"] for cell in line)
    chart, line, taking, at = compare_grid.show(ADA, chosen, measured_grid)
    assert chart["data"][0]["z"][0][0] is not None
    assert line.startswith('<p class="cm-cell"><strong>Best cell')
    assert taking["visible"]
    assert len(at) == 2
    chart, line, _, at = compare_grid.show(ADA, chosen, measured_grid, (2, 0))
    assert (chart["picked"], at) == ([2, 0], [2, 0])
    assert "This cell: lambda 0.5, weight of one 1" in line
    recipe = Recipe.from_yaml(compare_grid.recipe_at(measured_grid, 2, 0))
    assert recipe.parameters["lambda"] == 0.5
    assert recipe.models[0].parameters["weight"] == 1
    for row, column in ((3, 0), (-1, 0), ("0", 0), (None, None)):
        with pytest.raises(MergingError, match="no recipe"):
            compare_grid.recipe_at(measured_grid, row, column)


def test_cells_that_were_not_measured_cannot_be_chosen(measured_grid, chosen):
    best = compare_grid.show(ADA, chosen, measured_grid)
    assert compare_grid.show(ADA, chosen, measured_grid, (9, 9))[3] == best[3]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (("lambda", 0, 1, 3, "lambda", 0, 1, 3), "set the same number"),
        (("weight", 0, 1, 3, "weight of two", 0, 1, 3), "set the same number"),
        (("lambda", 1, 0, 3, "weight", 0, 1, 3), "must be below"),
        (("lambda", None, 1, 3, "weight", 0, 1, 3), "give two numbers"),
        (("lambda", 0, float("nan"), 3, "weight", 0, 1, 3), "give two numbers"),
        (("lambda", 0, 10**400, 3, "weight", 0, 1, 3), "give two numbers"),
        (("lambda", 0, 1, 40, "weight", 0, 1, 3), "choose 2 to 9"),
        (("nothing", 0, 1, 3, "weight", 0, 1, 3), "Choose two numbers"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_a_sentence(settings, chosen, recipe, axes, words):
    with pytest.raises(MergingError, match=words):
        compare_grid.begin(settings, ADA, chosen, *grid_values(recipe, *axes))
    assert words in compare_grid.plan_html(settings, chosen, *grid_values(recipe, *axes))


def test_a_range_beyond_the_limits_is_refused(settings, chosen):
    ties = default_recipe(chosen, "ties")
    with pytest.raises(MergingError, match=r"beyond 0 to 1"):
        compare_grid.begin(settings, ADA, chosen, *grid_values(ties, "density", 0.5, 2, 3, "lambda", 0, 1, 3))
    assert "9 merges × 5 questions" in compare_grid.plan_html(
        settings, chosen, *grid_values(ties, "density", 0.5, 1, 3, "lambda", 0, 1, 3)
    )


def test_the_numbers_of_a_method_are_offered_with_those_of_single_experts(chosen):
    ties = default_recipe(chosen, "ties")
    names = labels(ties)
    assert {"lambda", "density", "weight of one", "density of three"} <= set(names)
    assert "seed" not in names
    assert ends(find(ties, "density")) == (0.1, 1)
    assert axis(ties, "weight of two", 0, 1, 3).expert == ties.models[1].model
    about, across, *_ = compare_grid.offer(ties, chosen, None, None)
    assert "TIES" in about
    assert across["value"] == "lambda"


def test_a_search_begins_with_the_recipe_and_keeps_the_best(searched, settings, chosen, recipe):
    result = searched.result
    assert [trial["number"] for trial in result["trials"]] == [1, 2, 3, 4]
    best = result["best"]
    assert best["score"] == max(trial["score"] for trial in result["trials"])
    plot, column, told, yaml, save, _, test, said, _, _ = compare_tune.show(settings, EVE, chosen, searched)
    assert "4 trials" in plot["note"]
    assert column["visible"]
    assert "Best trial" in told
    assert yaml == best["recipe"]
    assert save["interactive"]
    assert not test["interactive"]
    assert "no test files" in said
    assert Recipe.from_yaml(yaml).merge_method == recipe.merge_method


def test_the_best_is_saved_once_with_its_scores(searched, settings, chosen):
    search = Work(settings, compare_tune.KIND, compare_tune.begin, compare_tune.show)
    said, button = compare_tune.save(search, chosen, EVE)
    assert "Saved" in said
    assert not button["interactive"]
    run = run_history(settings).list(EVE)[0]
    assert run.title.endswith("tuned")
    assert run_history(settings).totals(EVE, [run.subject])
    assert not compare_tune.show(settings, EVE, chosen, searched)[4]["interactive"]


@pytest.mark.parametrize("budget", [0, None, True, 10_000, "many"])
def test_a_budget_that_is_none_is_refused(settings, chosen, recipe, budget):
    with pytest.raises(MergingError, match="budget: give a number"):
        compare_tune.begin(settings, ADA, chosen, recipe, OWN, "tpe", "trials", budget, WHAT, "all")


def test_a_search_goes_on_while_the_history_is_held(settings, chosen, recipe, tmp_path, monkeypatch):
    owner, history = "c" * 32, History(tmp_path / "history.sqlite", patience=0.01)
    assert history.list(owner) == ()
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        for module in (compare_tune_job, compare_tune):
            monkeypatch.setattr(module, "run_history", lambda _: history)
        values = (recipe, OWN, "tpe", "trials", 2, WHAT, "all")
        job = ended(settings, compare_tune.begin(settings, owner, chosen, *values), owner)
        assert len(job.result["trials"]) == 2
        assert job.result["best"]
        assert "Not all scores are in the history" in job.result["remarks"][0]
        assert compare_tune.show(settings, owner, chosen, job)[4]["interactive"]


def test_a_search_ends_before_a_lent_gpu_is_taken_back_and_says_so(
    chosen, recipe, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(zero_gpu, "LENT", True)
    monkeypatch.setattr(zero_gpu, "WORTH_LENDING", 0)
    request = compare_tune_job.Request(EVE, recipe, (SUITE,), "tpe", 500, None)
    asked = compare_tune_job.work(settings, request).args[-1]
    assert 0 < 60 * asked.minutes <= zero_gpu.MOST_SECONDS - zero_gpu.TO_FORK
    *_, table = compare_tune_job._search(settings, replace(asked, minutes=1e-4), tmp_path / "model")
    assert table["best"] is not None
    assert "the GPU is lent for no longer" in table["remarks"][-1]
    *_, table = compare_tune_job._search(settings, replace(asked, minutes=1e-4, trials=1), tmp_path / "model")
    assert table["remarks"] == [], "it was over anyway"
    own = compare_tune_job.work(settings, replace(request, trials=None, minutes=0.5)).args[-1]
    assert (own.minutes, own.lent) == (0.5, False)


def test_strategies_of_papers_are_offered_where_they_apply(chosen):
    def keys(method):
        return [key for _, key in strategies_for(default_recipe(chosen, method))]

    assert keys("task_arithmetic") == ["tpe", "cma-es", "pcb-es"]
    assert "dppa" in keys("dppa")


def test_a_visitor_sees_no_job_of_another(all_methods, settings, chosen):
    work = Work(settings, compare_methods.KIND, compare_methods.start, compare_methods.show)
    assert compare_runner.newest(work, ADA, chosen).result
    assert compare_runner.newest(work, BOB, chosen) is None
    assert "Not run yet" in compare_runner.attach(work, chosen, BOB)[7]


def test_a_start_is_watched_cancelled_and_found_again(settings, chosen, recipe):
    work = Work(
        settings,
        compare_tune.KIND,
        lambda owner, family: compare_tune.begin(
            settings, owner, family, recipe, OWN, "tpe", "trials", 500, WHAT, "all"
        ),
        lambda owner, family, job: [(job.result or {}).get("best") if job else None],
        outputs=[None],
        endings={"cancelled": "Cancelled."},
    )
    watched = compare_runner.start(work, chosen, BOB)[0]
    deadline = 200
    while not (job_store(settings).get(BOB, watched).result or {}).get("best") and deadline:
        job_store(settings).wait(BOB, watched, 0.1)
        deadline -= 1
    again = compare_runner.attach(work, chosen, BOB)
    assert again[0] == watched
    assert again[4]["visible"]
    assert compare_runner.cancel(work, watched, BOB)["value"] == "Cancelling"
    ended = job_store(settings).wait(BOB, watched, 10)
    assert ended.state == "cancelled"
    after = compare_runner.tick(work, watched, "", chosen, BOB)
    assert after[0] == ""
    assert "Cancelled." in after[5]
    assert after[7] is not None


def test_without_an_identity_nothing_starts(settings, chosen):
    work = Work(settings, compare_methods.KIND, compare_methods.start, compare_methods.show)
    with pytest.raises(gr.Error, match="no identity"):
        compare_runner.start(work, chosen, None)


def test_the_demo_measures_importance_so_that_apl_takes_part(tmp_path):
    settings = Settings(runs=tmp_path / "runs", device="cpu")
    demo = Family.demo(settings.demo)
    suite = Suite.load(settings.demo / "data" / "math" / "validation.jsonl")
    suites = (Suite(suite.name, suite.items[:2], suite.scoring),)
    request = Request(ADA, demo, default_recipe(demo, "task_arithmetic"), suites)
    every = _Every(suites, settings=settings, request=request, scratch=tmp_path)
    with closing(every.steps()) as steps:
        next(one for one in steps if "models" in every.doing)
    assert "APL" not in [title for title, _ in every.unfit]
    [kept] = (settings.runs / ".importance").glob("*.safetensors")
    measured = request.recipe.model_copy(update={"importance": str(kept)})
    assert work(settings, replace(request, recipe=measured)), (
        "what was measured before is no reason to refuse"
    )
