"""One click: the family merged by every method at its paper's values, a row of the table as each is done."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.clickable_plot import clickable_plot, payload
from components.compare.board import score_models
from components.compare.loading import Loader
from components.compare.methods_job import KIND, Request, board_of, work
from components.compare.questions import Questions, build_questions, suites_of, wire_questions
from components.compare.runner import Runner, Work, build_runner, wire_runner
from components.compare.scores import SORTING
from components.compare.suites import Ruler
from components.compare.views import board_html
from components.family import Family
from components.figures.scores import scores_chart
from components.importance.job import find
from components.late_choice import LateDropdown
from components.merge.cards import fits
from components.merge.recipe import at_root, default_recipe, is_of, reference
from components.server.backend import job_store
from components.server.settings import Settings
from components.shared import Shared
from merging import MergingError, Recipe
from merging.job_records import Job
from merging.judging.suites import Suite

NOTHING_YET = (
    '<div class="mg-empty"><strong>Not run yet</strong><p>One click merges these experts by every method that fits them, in '
    "memory and at the values of each paper, and asks every merge and its parents the same questions. Rows come as they "
    "are done; you may close the page meanwhile.</p></div>"
)
PLAIN = "task_arithmetic"
"""The method of the recipe whose models all methods merge."""
INFO = "Choose a merge by validation, report it by test."
ENDINGS = {
    "cancelled": "Cancelled. What was measured until then is kept.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. Run it again; what was measured is kept.",
}


@dataclass(frozen=True)
class MethodsPart:
    """The components; `choice` names a merge of the table, `load` takes its recipe to the Merge tab."""

    questions: Questions
    runner: Runner
    table: gr.HTML
    unfit: gr.HTML
    taking: gr.Row
    choice: gr.Dropdown
    load: gr.Button
    figures: gr.Column
    bars: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.table, self.unfit, self.taking, self.choice, self.figures, self.bars]


def build_methods(settings: Settings) -> MethodsPart:
    """Build the part over the demo family."""
    gr.HTML(
        '<div class="section-head"><h2>Which method suits these experts?</h2><p>Every merge method at its paper\'s values, '
        "on the same questions as the parents.</p></div>"
    )
    questions = build_questions(settings, "methods", "test", INFO)
    runner = build_runner("Run every method", "methods", width=200)
    table = gr.HTML(NOTHING_YET, elem_id="methods-board", js_on_load=SORTING, apply_default_css=False)
    unfit = gr.HTML(elem_id="methods-unfit")
    with gr.Row(visible=False, elem_classes="cm-take") as taking:
        choice = LateDropdown(
            [], label="Go on with", filterable=False, min_width=260, elem_id="methods-choice"
        )
        load = gr.Button("Load into Merge", scale=0, min_width=160, elem_id="methods-load")
    with gr.Column(visible=False, elem_classes="cm-figures") as figures:
        bars = clickable_plot(
            empty="Run the methods to see their scores.", name="mergescope-methods", elem_id="methods-bars"
        )
    return MethodsPart(questions, runner, table, unfit, taking, choice, load, figures, bars)


def wire_methods(
    part: MethodsPart,
    settings: Settings,
    shared: Shared,
    own: gr.State,
    loader: Loader,
    came: Sequence[Any],
) -> None:
    """Connect the part's events.

    Args:
        own: what the visitor uploaded, a `Ruler`.
        came: the events of a visitor coming to this part.
    """
    questions = part.questions
    wire_questions(questions, settings, shared.family, own, came)

    def begin(owner: str, family: Family, uploads: Ruler, what: Any, split: Any, items: Any) -> str:
        return start(settings, owner, family, suites_of(settings, family, uploads, what, split, items))

    methods = Work(
        settings,
        KIND,
        begin,
        show,
        inputs=[own, *questions.inputs],
        outputs=part.outputs,
        endings=ENDINGS,
        failure="The methods were not run",
    )
    wire_runner(part.runner, methods, shared, came)
    loader.wire(part.load, partial(recipe_of, settings), [part.choice])


def start(settings: Settings, owner: str, family: Family, suites: tuple[Suite, ...]) -> str:
    """Queue the run of all methods over a family.

    Raises:
        MergingError: there is no expert, or too many jobs.
    """
    if not family.experts:
        raise MergingError("There is no expert yet. Choose a base and its experts on the Models tab.")
    recipe = default_recipe(family, PLAIN)
    measured = find(settings, owner, family)
    if measured is not None:
        recipe = at_root(recipe.model_copy(update={"importance": reference(str(measured.path))}))
    request = Request(owner, family, recipe, suites)
    title = f"Every method · {len(suites)} task{'s' if len(suites) != 1 else ''}"
    return job_store(settings).start(
        owner, KIND, work(settings, request), title=title, recipe=default_recipe(family, PLAIN).to_yaml()
    )


def show(owner: str, family: Family, job: Job | None) -> list[Any]:
    """Table, methods left out, what can be loaded, and bars of a job."""
    result = (job.result if job is not None else None) or None
    board = board_of(result)
    if not board.rows:
        hidden = gr.update(visible=False)
        return [NOTHING_YET, "", hidden, gr.update(choices=[], value=None), hidden, None]
    usable = {row["key"] for row in (result or {})["rows"] if row["recipe"] and _fits(row["recipe"], family)}
    runs = [(row.name, row.key) for row in board.runs if row.key in usable]
    models, tasks = score_models(board)
    ended = job is not None and not job.active
    return [
        board_html(board),
        unfit_html(result["unfit"] if result else []),
        gr.update(visible=bool(runs)),
        gr.update(choices=runs, value=runs[0][1] if runs else None),
        gr.update(visible=ended),
        payload(scores_chart(models, tasks)) if ended else gr.skip(),
    ]


def _fits(recipe: str, family: Family) -> bool:
    """Whether the form can show a recipe: some methods took an expert for the base."""
    try:
        return is_of(at_root(Recipe.from_yaml(recipe)), family)
    except MergingError:
        return False


def unfit_html(unfit: Sequence[Sequence[str]]) -> str:
    """The methods that could not run, with the reason of each."""
    if not unfit:
        return ""
    lines = "".join(
        f"<li><strong>{html.escape(name)}</strong> {html.escape(reason)}</li>" for name, reason in unfit
    )
    return f'<div class="cm-unfit"><h3>Left out</h3><ul>{lines}</ul></div>'


def recipe_of(settings: Settings, owner: str, family: Family, key: Any) -> str:
    """The recipe of a merge in the newest table, as YAML.

    Raises:
        MergingError: it is not there.
    """
    jobs = [job for job in job_store(settings).list(owner) if job.kind == KIND and fits(job, family)]
    for job in jobs:
        for row in (job.result or {}).get("rows", []):
            if row["key"] == key and row["recipe"]:
                return str(row["recipe"])
    raise MergingError("This merge is no longer in the table. Choose another.")
