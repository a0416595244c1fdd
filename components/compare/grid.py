"""A grid: the mean score over two parameters of the recipe under Merge, as a map that fills while it is measured."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.chat.recipe import summary
from components.clickable_plot import EVERY, clickable_plot, clicked_cell, payload
from components.compare.axes import MOST_STEPS, axis, ends, find, labels, usual
from components.compare.grid_job import KIND, Request, cells_of, line_of, recipe_at, work
from components.compare.loading import Loader
from components.compare.questions import Questions, build_questions, suites_of, wire_questions
from components.compare.runner import PRIVATE, Runner, Work, build_runner, newest, wire_runner
from components.family import Family
from components.figures.grid import best_cell, grid_chart
from components.late_choice import LateDropdown
from components.merge.recipe import check
from components.server.backend import job_store
from components.server.settings import Settings
from components.shared import Shared, owner_id
from merging import METHODS, MergingError, Recipe
from merging.job_records import Job
from merging.judging.grid import axis_values

INFO = "A grid chooses values: keep the test files for the end."
EMPTY = "No grid yet. Choose two parameters above and press Measure; cells appear as they are done, and a click on one shows its scores."
ENDINGS = {
    "cancelled": "Cancelled. The cells that were measured stay.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. The cells that were measured stay.",
}
FEW = "This method has fewer than two numbers to vary. Choose another under Merge."


@dataclass(frozen=True)
class AxisRow:
    """One parameter of the grid, its two ends and how many values between them."""

    parameter: gr.Dropdown
    low: gr.Number
    high: gr.Number
    steps: gr.Slider

    @property
    def all(self) -> list[Any]:
        return [self.parameter, self.low, self.high, self.steps]


@dataclass(frozen=True)
class GridPart:
    """The components; `at` is the cell that was clicked, as [row, column], or None for the best one."""

    about: gr.HTML
    axes: tuple[AxisRow, AxisRow]
    questions: Questions
    plan: gr.HTML
    runner: Runner
    map: gr.HTML
    line: gr.HTML
    taking: gr.Row
    load: gr.Button
    best: gr.Button
    at: gr.State

    @property
    def outputs(self) -> list[Any]:
        return [self.map, self.line, self.taking, self.at]

    @property
    def offered(self) -> list[Any]:
        return [self.about, *self.axes[0].all, *self.axes[1].all]


def build_grid(settings: Settings) -> GridPart:
    """Build the part over the demo family's default recipe."""
    gr.HTML(
        '<div class="section-head"><h2>How much does each value matter?</h2><p>The recipe under Merge, with two of its '
        "numbers varied; everything else stays as it is there.</p></div>"
    )
    about = gr.HTML(elem_id="grid-about")
    with gr.Row(elem_classes="cm-axes"):
        axes = (_build_axis("across"), _build_axis("up"))
    questions = build_questions(settings, "grid", "validation", INFO, items="first 100")
    plan = gr.HTML(elem_id="grid-plan")
    runner = build_runner("Measure the grid", "grid")
    plot = clickable_plot(empty=EMPTY, name="mergescope-grid", elem_id="grid-map")
    line = gr.HTML(elem_id="grid-line")
    with gr.Row(visible=False, elem_classes="actions") as taking:
        load = gr.Button("Load this cell into Merge", size="sm", scale=0, min_width=200, elem_id="grid-load")
        best = gr.Button("Back to the best cell", size="sm", scale=0, min_width=170, elem_id="grid-best")
    return GridPart(about, axes, questions, plan, runner, plot, line, taking, load, best, gr.State(None))


def _build_axis(side: str) -> AxisRow:
    with gr.Row(elem_classes="cm-axis"):
        parameter = LateDropdown(
            [], label=f"Parameter {side}", filterable=False, min_width=190, elem_id=f"grid-{side}"
        )
        low = gr.Number(label="from", min_width=90, elem_id=f"grid-{side}-low")
        high = gr.Number(label="to", min_width=90, elem_id=f"grid-{side}-high")
        steps = gr.Slider(
            2,
            MOST_STEPS,
            value=5,
            step=1,
            label="values",
            min_width=150,
            buttons=[],
            elem_id=f"grid-{side}-steps",
        )
    return AxisRow(parameter, low, high, steps)


def wire_grid(
    part: GridPart,
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
    recipe, questions = loader.merge.recipe, part.questions
    wire_questions(questions, settings, shared.family, own, came)
    gr.on(
        came,
        offer,
        [recipe, shared.family, *(side.parameter for side in part.axes)],
        part.offered,
        **PRIVATE,
    )
    for side in part.axes:
        side.parameter.input(ends_of, [recipe, side.parameter], [side.low, side.high], **PRIVATE)
    numbers = [*part.axes[0].all, *part.axes[1].all]
    said = [recipe, own, *questions.inputs, *numbers]
    gr.on(
        [one.change for one in (*questions.inputs, *numbers)],
        partial(plan_html, settings),
        [shared.family, *said],
        part.plan,
        trigger_mode="always_last",
        **PRIVATE,
    )
    grid = Work(
        settings,
        KIND,
        partial(begin, settings),
        show,
        inputs=said,
        outputs=part.outputs,
        ready=lambda owner, family, job: bool(family.experts),
        endings=ENDINGS,
        failure="The grid was not started",
    )
    wire_runner(part.runner, grid, shared, came)
    who = [shared.family, shared.owner]

    def pick(family: Family, stored: Any, event: gr.EventData) -> list[Any]:
        return picked(grid, family, stored, clicked_cell(event))

    def back(family: Family, stored: Any) -> list[Any]:
        return picked(grid, family, stored, None)

    part.map.select(pick, who, part.outputs, concurrency_limit=1, **PRIVATE, **EVERY)
    part.best.click(back, who, part.outputs, **PRIVATE)
    loader.wire(part.load, partial(_recipe, grid), [part.at])


def offer(recipe: Recipe, family: Family, across: Any, up: Any) -> list[Any]:
    """What the recipe is, and the numbers that it offers for both axes; what was chosen stays where it can."""
    names = labels(recipe)
    first = across if across in names else usual(names)
    others = [name for name in names if name != first]
    second = up if up in others else usual(others)
    updates: list[Any] = [_about(recipe, family, names)]
    for name, before in ((first, across), (second, up)):
        low, high = (
            ends(find(recipe, name)) if name is not None and name != before else (gr.skip(), gr.skip())
        )
        updates += [gr.update(choices=names, value=name), low, high, gr.skip()]
    return updates


def _about(recipe: Recipe, family: Family, names: Sequence[str]) -> str:
    if not family.experts:
        return '<p class="quiet">Choose a base and its experts on the Models tab first.</p>'
    if len(names) < 2:
        return f'<p class="quiet">{html.escape(METHODS[recipe.merge_method].title)}: {FEW}</p>'
    return f'<p class="quiet">Now under Merge: {html.escape(summary(recipe, family))}.</p>'


def ends_of(recipe: Recipe, label: Any) -> list[Any]:
    """The range to begin with of a number that was chosen."""
    try:
        return list(ends(find(recipe, label)))
    except MergingError:
        return [gr.skip(), gr.skip()]


def request_of(settings: Settings, family: Family, *values: Any) -> Request:
    """The grid that the page asks for. `values`: recipe, uploads, tasks, files, items, then both axes.

    Raises:
        MergingError: what is wrong with it, in a sentence.
    """
    recipe, uploads, what, split, items, *numbers = values
    suites = suites_of(settings, family, uploads, what, split, items)
    if len(labels(recipe)) < 2:
        raise MergingError(FEW)
    across, up = axis(recipe, *numbers[:4]), axis(recipe, *numbers[4:])
    if (
        across.name == up.name
        and (across.expert is None or up.expert in (None, across.expert))
        and (across.place == up.place)
    ):
        raise MergingError(f"{numbers[0]} and {numbers[4]} set the same number. Choose two that differ.")
    request = Request(recipe, across, up, suites)
    axis_values(recipe, across)
    axis_values(recipe, up)
    return request


def begin(settings: Settings, owner: str, family: Family, *values: Any) -> str:
    """Queue a grid.

    Raises:
        MergingError: what is wrong with it, in a sentence.
    """
    request = request_of(settings, family, *values)
    checked = check(request.recipe)
    if checked.plan is None:
        raise MergingError(f"The recipe under Merge cannot run: {' '.join(checked.problems)}")
    across, up = request.dimensions
    title = f"Grid · {across.label} × {up.label}"
    return job_store(settings).start(
        owner, KIND, work(settings, request), title=title, recipe=request.recipe.to_yaml()
    )


def plan_html(settings: Settings, family: Family, *values: Any) -> str:
    """How much there is to do, or what is wrong with what was chosen."""
    try:
        request = request_of(settings, family, *values)
    except MergingError as error:
        return f'<p class="mg-plan">{html.escape(str(error))}</p>'
    columns, rows = request.values
    merges = len(columns) * len(rows)
    questions = sum(map(len, request.suites))
    return f'<p class="mg-plan">{merges} merges × {questions:,} questions</p>'


def show(owner: str, family: Family, job: Job | None, at: tuple[int, int] | None = None) -> list[Any]:
    """The map of a job, what its chosen or best cell scores, and the buttons."""
    result = job.result if job is not None else None
    if not result:
        return [None, "", gr.update(visible=False), None]
    across, up, cells, tasks = cells_of(result)
    best = best_cell(cells)
    chosen = at if at is not None and _measured(cells, at) else None
    return [
        payload(grid_chart(across, up, cells, tasks), picked=chosen),
        line_html(line_of(result, chosen or best), chosen is None) if chosen or best else "",
        gr.update(visible=(chosen or best) is not None),
        list(chosen or best) if chosen or best else None,
    ]


def _measured(cells: Sequence[Sequence[Any]], at: tuple[int, int]) -> bool:
    row, column = at
    return row < len(cells) and column < len(cells[row]) and cells[row][column] is not None


def line_html(told: tuple[str, str], best: bool) -> str:
    """What one cell is and what it scores."""
    values, scores = told
    which = "Best cell" if best else "This cell"
    return f'<p class="cm-cell"><strong>{which}: {html.escape(values)}</strong><br>{html.escape(scores)}</p>'


def picked(grid: Work, family: Family, stored: Any, at: tuple[int, int] | None) -> list[Any]:
    """A cell was clicked; None goes back to the best one."""
    owner = owner_id(grid.settings, stored)
    return show(owner, family, newest(grid, owner, family), at)


def _recipe(grid: Work, owner: str, family: Family, at: Any) -> str:
    """The recipe of a cell as YAML.

    Raises:
        MergingError: there is no such cell.
    """
    job = newest(grid, owner, family)
    if job is None or not job.result or not isinstance(at, list) or len(at) != 2:
        raise MergingError("This grid is no longer there. Measure it again.")
    return recipe_at(job, family, at[0], at[1])
