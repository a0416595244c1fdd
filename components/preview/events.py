"""What happens around the preview of a merge: plain functions from values to values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gradio as gr

from components.clickable_plot import now, picked
from components.family import Family
from components.figures.metrics import explanation_html
from components.inspect.views import error_status, progress_status
from components.merge.recipe import expert_names, to_form, to_recipe
from components.preview import views
from components.preview.brush_bar import read_names
from components.preview.brush_choice import BrushSource, brush_source, of_names
from components.preview.store import LOOK, Desk, Pages, Previews, Shown, asked_for, shown_key
from components.preview.unmoved import unmoved_html
from components.preview.views import Choice
from components.server.settings import Settings
from components.server.strangers import LARGEST
from merging import METHODS, MergingError, Progress, Recipe
from merging.reports.report import Cell, Preview

REST = 0.35
"""Seconds for which a recipe must rest before large models are read, or an older picture replaces a moved slider's."""
TOLD = 0.3
"""Seconds between two reports of progress."""
CHANGED = "The models changed on disk while they were read. Move a slider to look again."
PICTURE, AROUND, PICKED = 3, 10, 5
"""How many outputs `pictured`, `around` and `pick` fill."""
FACTS = 4
"""Where the facts stand in `around`."""
Place = tuple[int, int] | None
"""Row and column of a cell on the map."""


def choice_of(number: Any, which: Any, everything: Any, cell: Any) -> Choice:
    """What a visitor chose, as the browser sent it."""
    chosen = cell if isinstance(cell, tuple | list) and len(cell) == 2 else None
    return Choice(
        number if isinstance(number, str) else views.FIRST,
        which if isinstance(which, str) else None,
        bool(everything),
        (chosen[0], chosen[1]) if chosen is not None else None,
    )


def chosen_at(pages: Pages, token: str, choice: tuple[Any, ...]) -> Choice:
    """What a page's visitor chose. A number that stands in for another one, which the method before did not have, makes
    room for it again."""
    chosen, desk = choice_of(*choice), pages.desk(token)
    stands_in = desk is not None and desk.choice.number == chosen.number
    return replace(chosen, wanted=desk.choice.wanted) if desk is not None and stands_in else chosen


def move(previews: Previews, pages: Pages, asked: Any) -> dict[str, Any] | None:
    """The numbers of map and bars for a slider on its way, from the browser's {token, key, value}, an empty field's value
    being None; None where there is nothing to draw: large models, a recipe that cannot run, a page nobody knows."""
    if not isinstance(asked, dict) or (desk := pages.desk(asked.get("token"))) is None:
        return None
    key, value = asked.get("key"), asked.get("value")
    form, fixed = to_form(desk.recipe, desk.family)
    if not isinstance(key, str) or key not in form or key in fixed:
        return None
    if value is not None and not _is_number(value):
        return None
    recipe = to_recipe(desk.recipe, desk.family, {**form, key: value})
    try:
        wanted = asked_for(recipe, desk.family)
        if wanted is None:
            return None
        pages.move(asked["token"], wanted.key)
        preview = previews.at_once(wanted, casts=desk.choice.number == views.ROUNDING)
    except (MergingError, OSError):
        return None
    if preview is None or not preview.tensors:
        return None
    names, choice = expert_names(recipe), views.settle(preview, desk.choice)
    pages.draw_over(asked["token"])
    return {
        "map": views.live_map(preview, names, choice),
        "bars": views.live_bars(preview, names, choice),
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def follow(
    previews: Previews,
    pages: Pages,
    token: str,
    settings: Settings,
    recipe: Recipe,
    family: Family,
    visited: bool,
    listed: bool,
    *choice: Any,
) -> Iterator[list[Any]]:
    """Everything about the recipe's preview, step by step; a newer request of the same page ends it.

    Args:
        visited: whether anybody has come to look.
        listed: whether the table is open.
    """
    if not visited:
        return
    over, chosen, told = pages.begin(token), chosen_at(pages, token, choice), ""
    pages.look(token, Desk(recipe, family, chosen))
    with pages.turn(token, over) as mine:
        if not mine:
            return
        shown = pages.shown(token)
        before = previews.get(shown.key) if shown is not None else None
        try:
            wanted = asked_for(recipe, family)
            if wanted is None:
                yield unplanned(pages, recipe, token)
                return
            key = wanted.key
            if not previews.quick(wanted):
                _rest(over)
            with closing(previews.steps(wanted, settings.device)) as steps:
                for event in _paced(steps, lambda: pages.moving(token, key, REST), over):
                    if isinstance(event, Progress):
                        yield [told + progress_status(event), *skipped(PICTURE + AROUND)]
                        continue
                    desk = pages.desk(token)  # a cell may have been chosen while this was made
                    settled = views.settle(event, desk.choice if desk is not None else chosen)
                    pages.choose(token, settled)
                    told, picture = views.sample_html(event, settled), Shown(shown_key(key, event), settled)
                    drawn = picture == pages.shown(token)
                    seen = skipped(PICTURE) if drawn else pictured(event, recipe, settled)
                    rest = around(event, recipe, settled, token, listed=listed)
                    rest[FACTS] = gr.skip() if drawn else _facts(before, event, recipe, settled)
                    pages.show(token, picture)
                    yield [told, *seen, *rest]
        except (MergingError, OSError) as error:
            yield failed(pages, error, token)
        except BaseException:
            pages.show(token, None)  # what was on its way may not have come
            raise


def _rest(over: Callable[[], bool]) -> None:
    """Wait for `REST`, or until it is over."""
    until = time.monotonic() + REST
    while time.monotonic() < until and not over():
        time.sleep(LOOK)


def _paced(
    steps: Iterator[Progress | Preview], later: Callable[[], bool], over: Callable[[], bool]
) -> Iterator[Progress | Preview]:
    """Previews, and progress now and then, until it is over; a preview waits while it is to come later."""
    told = time.monotonic()
    for event in steps:
        while not over() and isinstance(event, Preview) and later():
            time.sleep(LOOK)
        if over():
            return
        if isinstance(event, Preview):
            yield event
        elif time.monotonic() - told > TOLD:
            told = time.monotonic()
            yield event


def pictured(preview: Preview, recipe: Recipe, choice: Choice) -> list[Any]:
    """Map, bars and figures."""
    names = expert_names(recipe)
    return [
        # drawn even if only a click's outline goes
        views.map_value(preview, names, choice, brush=True, at=now()),
        views.bars_value(preview, names, choice),
        views.figures_html(preview, names, choice),
    ]


def around(preview: Preview, recipe: Recipe, choice: Choice, token: str, *, listed: bool) -> list[Any]:
    """What stands around the picture: cell, its button, both choices, facts, explanation, table, CSV, what a brush
    means, and what a slider on its way starts from."""
    names = expert_names(recipe)
    rows, columns = views.frame(preview, choice)
    return [
        choice.cell,
        gr.update(visible=choice.cell is not None),
        gr.update(choices=views.numbers(preview), value=choice.number),
        views.which_update(preview, choice),
        views.facts_html(preview, choice),
        explanation_html(views.words(preview, choice)),
        views.table_value(preview, names, choice) if listed else gr.skip(),
        views.csv_html(preview, names) if listed else gr.skip(),
        brush_source(recipe, rows, columns, views.tensor_names(preview)),
        live_value(token),
    ]


def _facts(before: Preview | None, preview: Preview, recipe: Recipe, choice: Choice) -> str:
    """The facts above the map, and why it is as it was before, where that can be said."""
    return views.facts_html(preview, choice) + unmoved_html(before, preview, expert_names(recipe), choice)


def live_value(token: str) -> dict[str, Any]:
    """The page's token, and when its picture was brought up to date: until then the page marks it as an older one."""
    return {"token": token, "at": now()}


def pick(
    previews: Previews, pages: Pages, token: str, place: Place, recipe: Recipe, *choice: Any
) -> list[Any]:
    """Cell, bars, figures, the way back to the whole model, and the map's outline, for one cell of the map."""
    shown, chosen = pages.shown(token), chosen_at(pages, token, choice)
    preview = previews.get(shown.key) if shown is not None else None
    cell: Cell | None = None
    if shown is not None and preview is not None and place is not None:
        cell = views.cell_at(preview, shown.choice.everything, *place)
    if preview is None or place is None or cell is None:
        return skipped(PICKED)
    names, seen = expert_names(recipe), replace(chosen, cell=cell)
    pages.choose(token, seen)
    picked_cell = [
        cell,
        views.bars_value(preview, names, seen),
        views.figures_html(preview, names, seen),
        gr.update(visible=True),
        picked(*place),
    ]
    pages.draw_over(token)
    return picked_cell


def place_of(source: BrushSource | None, blocks: Any, kinds: Any) -> Place:
    """Row and column of the map where the names of blocks and modules leave one cell; else None."""
    chosen = of_names(source, *read_names(source, blocks, kinds))
    if source is None or len(chosen.blocks) != 1 or len(chosen.kinds) != 1:
        return None
    return source.rows.index(chosen.blocks[0]), source.columns.index(chosen.kinds[0])


def unplanned(pages: Pages, recipe: Recipe, token: str) -> list[Any]:
    """Nothing to see while the recipe cannot run."""
    missing = METHODS[recipe.merge_method].needs_importance and recipe.importance is None
    return _nothing(pages, "", views.NEEDS_IMPORTANCE if missing else views.BROKEN, token)


def failed(pages: Pages, error: Exception, token: str) -> list[Any]:
    """Why there is no preview."""
    said = str(error) if isinstance(error, MergingError) else CHANGED
    return _nothing(pages, error_status(said), views.FAILED, token)


def _nothing(pages: Pages, status: str, empty: str, token: str) -> list[Any]:
    """The outputs of `follow` where there is no picture."""
    pages.show(token, None)
    nothing = [status, {"empty": empty}, {"empty": views.NO_BARS}, ""]
    cell = [None, gr.update(visible=False)]
    return [*nothing, *cell, *skipped(AROUND - 4), None, live_value(token)]


def skipped(count: int) -> list[Any]:
    """Updates that change nothing."""
    return [gr.skip() for _ in range(count)]
