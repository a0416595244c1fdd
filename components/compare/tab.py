"""Tab 5: what every merge and its parents can still do, measured by the same ruler, and every run so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.compare import events, shown
from components.compare.grid import GridPart, build_grid, wire_grid
from components.compare.history import HistoryPart, build_history, wire_history
from components.compare.loading import Loader
from components.compare.methods import MethodsPart, build_methods, wire_methods
from components.compare.page import Asked
from components.compare.scores import ScoresPart, build_scores
from components.compare.suites import Ruler
from components.compare.tune import TunePart, build_tune, wire_tune
from components.merge.tab import MergeTab
from components.page_parts import CSS as PARTS_CSS
from components.page_parts import FAMILY_CHANGED, build_strip, page_part
from components.server.settings import Settings
from components.shared import Shared

PARTS_ID = "compare-parts"
PARTS = {
    "scores": "Scores",
    "methods": "Every method",
    "grid": "Grid",
    "tune": "Tune",
    "history": "History",
}
CSS = PARTS_CSS + "".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("tab.css", "search.css")
)
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}
IN_TURN: dict[str, Any] = {"concurrency_id": "scores", "concurrency_limit": 1}
"""For what shows the board: answers come in the order in which they were asked for."""

OFFER: dict[str, Any] = {"concurrency_id": "what to measure", "concurrency_limit": 1}
"""The same for what says what can be measured."""


@dataclass(frozen=True)
class CompareTab:
    """The components of the tab: its parts, whose `arrivals` are clicked when they are shown, and what a visitor uploaded
    as `Ruler`."""

    arrivals: dict[str, gr.HTML]
    scores: ScoresPart
    methods: MethodsPart
    grid: GridPart
    tune: TunePart
    history: HistoryPart
    own: gr.State


def build_compare_tab(settings: Settings) -> CompareTab:
    """Build the tab over the demo family; `wire_compare_tab` brings it to life."""
    arrivals: dict[str, gr.HTML] = {}
    build_strip(PARTS_ID, PARTS)
    with page_part(PARTS_ID, "scores") as arrivals["scores"]:
        scores = build_scores(settings)
    with page_part(PARTS_ID, "methods") as arrivals["methods"]:
        methods = build_methods(settings)
    with page_part(PARTS_ID, "grid") as arrivals["grid"]:
        grid = build_grid(settings)
    with page_part(PARTS_ID, "tune") as arrivals["tune"]:
        tune = build_tune(settings)
    with page_part(PARTS_ID, "history") as arrivals["history"]:
        history = build_history()
    return CompareTab(arrivals, scores, methods, grid, tune, history, gr.State(Ruler()))


def wire_compare_tab(
    tab: CompareTab, settings: Settings, shared: Shared, merge: MergeTab, tabs: gr.Tabs
) -> None:
    """Connect the tab's events.

    Args:
        merge: the tab whose recipe is measured, and into whose form a run is loaded again.
        tabs: the page's tabs, one of which is `merge`.
    """
    part = tab.scores
    page = [shared.family, merge.recipe, shared.owner, tab.own, part.what, part.split]

    def of_page(event: Callable[..., Any]) -> Callable[..., Any]:
        def handle(*values: Any) -> Any:
            return event(Asked(settings, *values[: len(page)]), *values[len(page) :])

        return handle

    came = {name: arrival.click for name, arrival in tab.arrivals.items()}
    came["scores"](
        of_page(events.offer),
        [*page, part.who, merge.fresh, part.newest],
        [part.what, part.split, part.who, part.beside, part.newest],
        **LATEST,
        **OFFER,
    ).then(of_page(events.estimate), [*page, part.who], part.plan, **LATEST)
    came["scores"](of_page(events.attach), page, part.running, **PRIVATE)
    shared.family.change(None, None, None, js=FAMILY_CHANGED, api_visibility="private")
    gr.on(
        [part.what.change, part.who.change, part.split.change],
        of_page(events.estimate),
        [*page, part.who],
        part.plan,
        **LATEST,
    )
    gr.on(
        [came["scores"], part.what.input, part.split.input],
        of_page(shown.refresh),
        [*page, *part.picks],
        part.board,
        **LATEST,
        **IN_TURN,
    )
    _wire_uploads(tab, of_page, page)
    _wire_job(tab, settings, shared, of_page, page)
    for axis in part.picks[:2]:
        axis.input(of_page(shown.show_pareto), [*page, *part.picks[:2]], part.pareto, **LATEST)
    for pick in part.picks[2:]:
        pick.input(of_page(shown.show_comparison), [*page, *part.picks[2:]], part.comparison, **LATEST)
    loader = Loader(settings, shared, merge, tabs)
    wire_methods(tab.methods, settings, shared, tab.own, loader, [came["methods"]])
    wire_grid(tab.grid, settings, shared, tab.own, loader, [came["grid"]])
    wire_tune(tab.tune, settings, shared, tab.own, loader, [came["tune"]])
    wire_history(tab.history, settings, shared, merge, tabs, came["history"])


def _wire_uploads(tab: CompareTab, of_page: Callable[..., Any], page: list[Any]) -> None:
    """Suites and texts of the visitor's own."""
    part = tab.scores
    taken = [tab.own, part.what, part.problem]
    turn = {**PRIVATE, **OFFER}
    part.upload.upload(of_page(events.take_suite), [*page, part.upload], taken, **turn)
    part.text_upload.upload(of_page(events.take_text_file), [*page, part.text_upload], taken, **turn)
    part.add_text.click(of_page(events.take_text), [*page, part.text], taken, **turn)


def _wire_job(
    tab: CompareTab, settings: Settings, shared: Shared, of_page: Callable[..., Any], page: list[Any]
) -> None:
    """Starting, watching and cancelling a measurement."""
    part = tab.scores
    part.measure.click(of_page(events.start), [*page, part.who], part.running, **PRIVATE)
    part.cancel.click(partial(events.cancel, settings), [part.watched, shared.owner], part.cancel, **PRIVATE)
    part.timer.tick(
        of_page(events.tick),
        [*page, part.watched, part.seen, *part.picks],
        [*part.running, part.seen, *part.board],
        trigger_mode="once",
        **PRIVATE,
        **IN_TURN,
    )
