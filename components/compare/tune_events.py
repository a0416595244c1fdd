"""What happens in the Tune part: plain functions from values to values."""

from __future__ import annotations

from typing import Any

import gradio as gr

from components.chat.recipe import summary
from components.clickable_plot import payload
from components.compare.questions import suites_of
from components.compare.runner import Work, newest
from components.compare.search import task_names
from components.compare.suites import demo_suite, demo_tasks
from components.compare.tune_job import FINAL, KIND, Request, final_work, points_of, work
from components.compare.tune_views import about_html, best_html, final_html, measure_of, strategies_for
from components.family import Family
from components.figures.tuning import parameters_chart, tuning_chart
from components.merge.recipe import at_root, check
from components.server.backend import job_store, run_history
from components.server.settings import Settings
from components.shared import owner_id
from components.toasts import toast
from merging import MergingError, Recipe
from merging.job_records import Job
from merging.judging.history import Draft, subject_of_plan
from merging.judging.strategies import space_of
from merging.judging.suites import Suite

MOST_TRIALS, MOST_MINUTES = 500, 120


def offer(recipe: Recipe, family: Family, strategy: Any) -> list[Any]:
    """What is searched, and the strategies that the recipe's method allows."""
    choices = strategies_for(recipe)
    kept = strategy if strategy in [key for _, key in choices] else next((key for _, key in choices), None)
    about = about_html(summary(recipe, family)) if family.experts else about_html("")
    return [about, gr.update(choices=choices, value=kept)]


def most_minutes(settings: Settings) -> int:
    """Minutes that a search may be given, so that it ends by itself before the server ends its job."""
    return (
        MOST_MINUTES
        if settings.longest_job is None
        else max(1, min(MOST_MINUTES, settings.longest_job // 60 - 1))
    )


def budget_of(settings: Settings, unit: Any) -> Any:
    """The budget to begin with in trials or minutes."""
    return (
        gr.update(value=min(5, most_minutes(settings)), maximum=most_minutes(settings))
        if unit == "minutes"
        else gr.update(value=30, maximum=MOST_TRIALS)
    )


def begin(settings: Settings, owner: str, family: Family, *values: Any) -> str:
    """Queue a search.

    Raises:
        MergingError: what is wrong with it, in a sentence.
    """
    recipe, uploads, strategy, unit, budget, what, items = values
    suites = suites_of(settings, family, uploads, what, "validation", items)
    checked = check(recipe)
    if checked.plan is None:
        raise MergingError(f"The recipe under Merge cannot run: {' '.join(checked.problems)}")
    if strategy not in (known := [key for _, key in strategies_for(recipe)]):
        raise MergingError(
            f"This method is not searched by that strategy. Choose one of: {', '.join(known)}."
        )
    space_of(strategy, recipe)
    most = most_minutes(settings) if unit == "minutes" else MOST_TRIALS
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 1 <= budget <= most:
        raise MergingError(f"budget: give a number from 1 to {most} {unit}.")
    limits = (None, float(budget)) if unit == "minutes" else (int(budget), None)
    request = Request(owner, recipe, suites, str(strategy), *limits)
    title = f"Tune · {summary(recipe, family)}"
    return job_store(settings).start(
        owner, KIND, work(settings, request), title=title, recipe=recipe.to_yaml()
    )


def show(settings: Settings, owner: str, family: Family, job: Job | None) -> list[Any]:
    """Plot, result, best trial, YAML, save button and its words, test button, test result, and parallel coordinates."""
    result = job.result if job is not None else None
    if job is None or not result or not result["trials"]:
        hidden = gr.update(visible=False)
        return [None, hidden, "", "", gr.skip(), "", gr.skip(), "", hidden, None]
    points, best = points_of(result), result["best"]
    parallel = parameters_chart(points)
    kept = best is not None and is_saved(settings, owner, best["recipe"])
    return [
        payload(tuning_chart(points, task_names(result), points[0].score, measure_of(result["strategy"]))),
        gr.update(visible=best is not None),
        best_html(result) if best is not None else "",
        best["recipe"] if best is not None else "",
        gr.update(interactive=best is not None and not kept),
        '<p class="quiet" role="status">It is in the history.</p>' if kept else "",
        gr.update(interactive=can_final(settings, owner, family, None)),
        show_final(settings, owner, family, None)[0],
        gr.update(visible=parallel is not None),
        payload(parallel),
    ]


def search_of(settings: Settings, owner: str, family: Family) -> Job | None:
    """The search that is shown."""
    return newest(Work(settings, KIND, begin, show), owner, family)


def final_of(settings: Settings, owner: str, search: Job) -> Job | None:
    """The comparison on the test files that belongs to a search, if it was made or is under way."""
    jobs = [job for job in job_store(settings).list(owner) if job.kind == FINAL]
    mine = [job for job in jobs if job.active or (job.result or {}).get("tuned") == search.id]
    return next((job for job in mine if job.active or (job.state == "done" and job.result)), None)


def can_final(settings: Settings, owner: str, family: Family, job: Job | None) -> bool:
    """Whether the search that is shown has ended with a best trial, has test files, and was not tested yet."""
    search = search_of(settings, owner, family)
    if search is None or search.active or not (search.result or {}).get("best"):
        return False
    return final_of(settings, owner, search) is None and bool(final_suites(settings, family, search))


def final_suites(settings: Settings, family: Family, search: Job) -> tuple[Suite, ...]:
    """The test files of the tasks that a search was judged by."""
    asked = {
        name.partition("/")[0]
        for name, *_ in (search.result or {}).get("suites", [])
        if "/validation" in name
    }
    return tuple(demo_suite(settings, task, "test") for task in demo_tasks(settings, family) if task in asked)


def begin_final(settings: Settings, owner: str, family: Family) -> str:
    """Queue the one comparison on the test files.

    Raises:
        MergingError: there is nothing to compare, or it was done already.
    """
    search = search_of(settings, owner, family)
    if search is None or not can_final(settings, owner, family, None):
        raise MergingError("This search has nothing left to compare on the test files.")
    assert search.result is not None
    both = {"job": search.id, "before": search.recipe or "", "after": search.result["best"]["recipe"]}
    suites = final_suites(settings, family, search)
    return job_store(settings).start(
        owner,
        FINAL,
        final_work(settings, owner, both, suites),
        title="Tuned and untuned",
        recipe=search.recipe,
    )


def show_final(settings: Settings, owner: str, family: Family, job: Job | None) -> list[Any]:
    """What the comparison of the shown search came to, or why there can be none."""
    search = search_of(settings, owner, family)
    if search is None or not (search.result or {}).get("best"):
        return [""]
    done = final_of(settings, owner, search)
    if done is not None:
        return [final_html(done.result or {})]
    if search.active:
        return ['<p class="quiet">Possible once the search has ended.</p>']
    if not final_suites(settings, family, search):
        return [
            '<p class="quiet">Your own suites have no test files here. Load the recipe into Merge and score it under Scores '
            "on questions that the search did not see.</p>"
        ]
    return ['<p class="quiet">Once only: a second choice by the test files would spoil them.</p>']


def best_recipe(search: Work, owner: str, family: Family) -> str:
    """The best trial's recipe as YAML.

    Raises:
        MergingError: there is none.
    """
    job = newest(search, owner, family)
    best = (job.result or {}).get("best") if job is not None else None
    if not best:
        raise MergingError("This search has no best trial yet.")
    return str(best["recipe"])


def is_saved(settings: Settings, owner: str, recipe: str) -> bool:
    """Whether the history has a run that gives the same weights."""
    try:
        plan = check(at_root(Recipe.from_yaml(recipe))).plan
        subject = subject_of_plan(plan) if plan is not None else None
        return any(run.subject == subject for run in run_history(settings).list(owner))
    except MergingError:
        return False  # saving then says what is wrong


def save(search: Work, family: Family, stored: Any) -> list[Any]:
    """Make the best trial a run of the history; its scores are there already."""
    settings, owner = search.settings, owner_id(search.settings, stored)
    try:
        recipe = at_root(Recipe.from_yaml(best_recipe(search, owner, family)))
        checked = check(recipe)
        if checked.plan is None:
            raise MergingError(" ".join(checked.problems))
        run_history(settings).add(owner, Draft.of(checked.plan, title=f"{summary(recipe, family)} · tuned"))
    except MergingError as error:
        raise toast(str(error), "It was not saved") from None
    return [
        '<p class="quiet" role="status">Saved: it is under History and in the table of Scores.</p>',
        gr.update(interactive=False),
    ]
