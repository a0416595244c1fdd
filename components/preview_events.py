"""What happens around the preview of a merge: plain functions from values to values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from components import preview_views as views
from components.clickable_plot import clicked_cell
from components.figures.metrics import explanation_html
from components.inspect_views import error_status, progress_status
from components.merge_events import judge
from components.merge_form import MergeForm
from components.merge_recipe import check, expert_names, to_recipe
from components.preview_store import AT_ONCE, Previews, preview_key
from components.preview_views import Choice
from components.settings import Settings
from merging import METHODS, MergingError, Plan, Progress, Recipe
from merging.report import Cell, Preview

REST = 0.35
"""Seconds for which a recipe over large models must rest before they are read."""
TOLD = 0.3
"""Seconds between two reports of progress."""
CHANGED = "The models changed on disk while they were read. Move a slider to look again."
ALL = 13
"""Outputs of `follow`."""


def choice_of(number: Any, which: Any, everything: Any, cell: Any) -> Choice:
    """What a visitor chose, as the browser sent it."""
    chosen = cell if isinstance(cell, tuple | list) and len(cell) == 2 else None
    return Choice(
        number if isinstance(number, str) else views.FIRST,
        which if isinstance(which, str) else None,
        bool(everything),
        (chosen[0], chosen[1]) if chosen is not None else None,
    )


def edit(
    previews: Previews,
    settings: Settings,
    form: MergeForm,
    drawn: int,
    recipe: Recipe,
    family: Any,
    watched: str,
    shown: str,
    visited: bool,
    *values: Any,
) -> list[Any]:
    """A number or switch of the form changed: what `judge` says of the recipe, then `drawn` outputs of the preview."""
    changed = to_recipe(recipe, family, form.read(values[4:], recipe))
    checked = check(changed)
    judged = judge(form, changed, family, watched, checked)
    if not visited:
        return [*judged, *skipped(drawn)]
    return [*judged, *draw(previews, settings, checked.plan, changed, shown, choice_of(*values[:4]))]


def draw(
    previews: Previews, settings: Settings, plan: Plan | None, recipe: Recipe, shown: str, choice: Choice
) -> list[Any]:
    """Key, status, map, bars and figures of a plan over small models; for large ones nothing changes yet."""
    if plan is None:
        return unplanned(recipe)
    try:
        key = preview_key(plan)
        if key == shown:
            return skipped(5)
        preview = previews.at_once(plan, key, settings.device)
    except (MergingError, OSError) as error:
        return failed(error)
    return skipped(5) if preview is None else pictured(preview, key, recipe, views.settle(preview, choice))


def follow(
    previews: Previews,
    over: Callable[[], bool],
    settings: Settings,
    recipe: Recipe,
    shown: str,
    visited: bool,
    listed: bool,
    *choice: Any,
) -> Iterator[list[Any]]:
    """Everything about the recipe's preview, step by step; nothing more once `over()` says that a newer one is wanted."""
    if not visited:
        yield skipped(ALL)
        return
    plan = check(recipe).plan
    if plan is None:
        yield [*unplanned(recipe), None, gr.update(visible=False), *skipped(ALL - 7)]
        return
    try:
        key = preview_key(plan)
        if plan.bytes_to_read > AT_ONCE and previews.get(key) is None:
            time.sleep(REST)
            if over():
                return
        with closing(previews.steps(plan, key, settings.device)) as steps:
            yield from _tell(steps, over, key, recipe, shown, listed, choice_of(*choice))
    except (MergingError, OSError) as error:
        yield [*failed(error), None, gr.update(visible=False), *skipped(ALL - 7)]


def _tell(
    steps: Iterator[Progress | Preview],
    over: Callable[[], bool],
    key: str,
    recipe: Recipe,
    shown: str,
    listed: bool,
    choice: Choice,
) -> Iterator[list[Any]]:
    told = time.monotonic()
    for event in steps:
        if over():
            return
        if isinstance(event, Preview):
            settled = views.settle(event, choice)
            seen = skipped(5) if key == shown else pictured(event, key, recipe, settled)
            yield [*seen, *around(event, recipe, settled, listed=listed)]
        elif time.monotonic() - told > TOLD:
            told = time.monotonic()
            yield [gr.skip(), progress_status(event), *skipped(ALL - 2)]


def pictured(preview: Preview, key: str, recipe: Recipe, choice: Choice) -> list[Any]:
    """Key, status, map, bars and figures."""
    names = expert_names(recipe)
    return [
        key,
        "",
        views.map_value(preview, names, choice),
        views.bars_value(preview, names, choice),
        views.figures_html(preview, names, choice),
    ]


def around(preview: Preview, recipe: Recipe, choice: Choice, *, listed: bool) -> list[Any]:
    """What stands around the picture: cell, its button, both choices, facts, explanation, table, CSV."""
    names = expert_names(recipe)
    return [
        choice.cell,
        gr.update(visible=choice.cell is not None),
        gr.update(choices=views.numbers(preview), value=choice.number),
        views.which_update(preview, choice),
        views.facts_html(preview, choice),
        explanation_html(views.words(preview, choice)),
        views.table_value(preview, names, choice) if listed else gr.skip(),
        views.csv_html(preview, names) if listed else gr.skip(),
    ]


def pick(previews: Previews, event: gr.EventData, recipe: Recipe, shown: str, *choice: Any) -> list[Any]:
    """Cell, bars, figures and the way back to the whole model, for a clicked cell of the map."""
    preview, place = previews.get(shown), clicked_cell(event)
    chosen = choice_of(*choice)
    cell: Cell | None = None
    if preview is not None and place is not None:
        cell = views.cell_at(preview, chosen.everything, *place)
    if preview is None or cell is None:
        return skipped(4)
    names = expert_names(recipe)
    seen = Choice(chosen.number, chosen.which, chosen.everything, cell)
    return [
        cell,
        views.bars_value(preview, names, seen),
        views.figures_html(preview, names, seen),
        gr.update(visible=True),
    ]


def unplanned(recipe: Recipe) -> list[Any]:
    """Nothing to see while the recipe cannot run: key, status, map, bars and figures."""
    missing = METHODS[recipe.merge_method].needs_importance and recipe.importance is None
    said = {"empty": views.NEEDS_IMPORTANCE if missing else views.BROKEN}
    return ["", "", said, None, ""]


def failed(error: Exception) -> list[Any]:
    """Why there is no preview: key, status, map, bars and figures."""
    said = str(error) if isinstance(error, MergingError) else CHANGED
    return ["", error_status(said), {"empty": views.BROKEN}, None, ""]


def skipped(count: int) -> list[Any]:
    """Updates that change nothing."""
    return [gr.skip() for _ in range(count)]
