"""Tab 2: where the experts changed the base, and where they fight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.clickable_plot import EVERY, clickable_plot
from components.family import Family
from components.importance.tab import (
    ImportanceSection,
    ImportanceStory,
    build_importance,
    build_importance_story,
    wire_importance,
)
from components.inspect import views
from components.inspect.detail import Detail, build_detail, wire_detail
from components.inspect.events import (
    choose_block,
    choose_module,
    measure,
    open_importance,
    pick_cell,
    show_advice,
    show_csv,
    show_importance,
    show_metric,
    show_report,
)
from components.inspect.maps import GROUPS, MapChoice, Shown, build_choice, wire_choice
from components.inspect.reports import Stops, shared_reports
from components.inspect.trim import TrimmedReports
from components.inspect.views import Cell
from components.late_choice import LateDropdown
from components.preview.store import shared_previews
from components.server.settings import Settings
from components.shared import Shared

FIRST_METRIC = "change"


@dataclass(frozen=True)
class InspectTab:
    """The components of the tab; `report` holds the key of the report that is shown, with its trim once there is one,
    `metric` the key of the map, `cell` the chosen cell, `token` what stops a running measurement; `next` leads to Merge."""

    report: gr.State
    cell: gr.State
    token: gr.State
    metric: gr.State
    status: gr.HTML
    measure: gr.Button
    stop: gr.Button
    totals: gr.HTML
    trim_status: gr.HTML
    advice: gr.HTML
    kinship: gr.HTML
    choice: MapChoice
    everything: gr.Checkbox
    map: gr.HTML
    explanation: gr.HTML
    block: gr.Dropdown
    module: gr.Dropdown
    story: gr.HTML
    figures: gr.HTML
    histogram: gr.HTML
    agreement: gr.HTML
    pairs: gr.HTML
    detail: Detail
    table: gr.Dataframe
    csv: gr.HTML
    importance: ImportanceSection
    cell_importance: ImportanceStory
    next: gr.Button


def build_inspect_tab() -> InspectTab:
    """Build the tab; it fills itself once the page has loaded."""
    parts: dict[str, Any] = {"report": gr.State(""), "cell": gr.State(None), "token": gr.State("")}
    parts["metric"] = gr.State(FIRST_METRIC)
    with gr.Row(elem_classes="section-head"):
        gr.HTML(
            "<h2>Where did the experts change, and where do they fight?</h2>"
            "<p>Every square is one weight matrix, in one block of the model: click it for its story. Nothing is merged yet.</p>"
        )
        parts["measure"] = gr.Button("Measure now", variant="primary", scale=0, min_width=140, visible=False)
        parts["stop"] = gr.Button("Stop", scale=0, min_width=100, visible=False)
        parts["next"] = gr.Button("Merge these models", variant="primary", size="md", scale=0, min_width=220)
    parts["status"] = gr.HTML(elem_classes="status")
    parts["totals"] = gr.HTML(elem_id="totals")
    _build_map(parts)
    parts["trim_status"] = gr.HTML(elem_classes="status")
    parts["advice"] = gr.HTML(elem_id="advice")
    parts["kinship"] = gr.HTML(elem_id="kinship")
    parts["importance"] = build_importance()
    _build_story(parts)
    parts["detail"] = build_detail()
    parts["cell_importance"] = build_importance_story()
    return InspectTab(**parts)


def _build_map(parts: dict[str, Any]) -> None:
    """What to show, the map, its explanation, its table."""
    with gr.Row(elem_classes="controls"):
        group = gr.Radio(
            GROUPS, value="change", label="What to show", elem_classes="segments", scale=5, min_width=300
        )
        parts["everything"] = gr.Checkbox(label="Norms and embeddings", scale=0, min_width=210)
    parts["choice"] = build_choice(group)
    parts["map"] = clickable_plot(empty=views.NO_MAP, name="mergescope-map", elem_id="map")
    with gr.Accordion("What am I looking at?", open=False, elem_classes="explain"):
        parts["explanation"] = gr.HTML()
    with gr.Accordion("The map as a table", open=False, elem_classes="explain"):
        parts["table"] = gr.Dataframe(
            headers=["block", "module"], interactive=False, show_search="filter", elem_id="map-table"
        )
    parts["csv"] = gr.HTML(elem_id="csv")


def _build_story(parts: dict[str, Any]) -> None:
    """One cell: its name, the two dropdowns that choose it, its figures and charts."""
    empty = views.NO_CELL
    with gr.Row(elem_classes="section-head story-head"):
        parts["story"] = gr.HTML(f"<h2>One cell</h2><p>{empty}</p>", elem_id="story")
        parts["block"] = LateDropdown([], label="Block", scale=0, min_width=150, filterable=False)
        parts["module"] = LateDropdown([], label="Module", scale=0, min_width=150, filterable=False)
    parts["figures"] = gr.HTML(elem_id="cell-figures")
    with gr.Row(elem_classes="pair"):
        with gr.Column(min_width=320):
            parts["histogram"] = clickable_plot(empty=empty, name="mergescope-changes", elem_id="histogram")
        with gr.Column(min_width=320):
            parts["agreement"] = clickable_plot(empty=empty, name="mergescope-signs", elem_id="agreement")
    parts["pairs"] = gr.HTML(elem_id="cell-pairs")


def can_merge(family: Family) -> dict[str, Any]:
    """The way on to Merge is open once there are experts."""
    return gr.update(interactive=bool(family.experts))


def wire_inspect_tab(tab: InspectTab, settings: Settings, shared: Shared) -> None:
    """Connect the tab's events: a family is measured, its report shown, a cell of it chosen."""
    reports, stops = TrimmedReports(shared_reports(settings), shared_previews().residents), Stops()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    measured = [tab.status, tab.measure, tab.stop, tab.token, tab.report]
    found = shared.importance
    choice = [tab.report, tab.metric, tab.everything, tab.cell, found]
    cell = [tab.cell, tab.block, tab.module, tab.story, tab.figures, tab.histogram, tab.agreement, tab.pairs]
    map_views = [tab.map, tab.explanation, tab.table]

    latest: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
    # one at a time: what is drawn for the cell of before must not end after, and over, what a click asked for
    view = {"concurrency_id": "inspect view", "concurrency_limit": 1}
    look = partial(measure, reports.plain, stops, settings)
    known = [shared.opened.change, shared.family.change]
    gr.on(known, look, shared.family, measured, **latest)
    tab.measure.click(partial(look, asked=True), shared.family, measured, **quiet)
    tab.stop.click(stops.stop, tab.token, None, **quiet)
    shared.family.change(stops.stop_unless, [tab.token, shared.family], None, **quiet)
    gr.on(known, can_merge, shared.family, tab.next, **quiet)

    def pick(event: gr.EventData, key: str, everything: bool, metric: str, cell: Cell | None) -> list[Any]:
        return pick_cell(reports, event, key, everything, metric, cell)

    whole = [tab.totals, tab.kinship, tab.csv, *map_views, *cell]
    tab.report.change(partial(show_report, reports), choice, whole, **quiet, **view)
    tab.everything.input(partial(show_report, reports), choice, whole, **latest, **view)
    advised = [shared.family, tab.report]
    tab.report.change(partial(show_advice, reports), advised, tab.advice, **quiet)
    trimmed = [tab.trim_status, tab.stop, tab.token]
    wire_choice(tab.choice, Shown(tab.metric, tab.report, trimmed), settings, shared, reports, stops)
    tab.metric.change(partial(show_metric, reports), choice, map_views, **latest)
    tab.map.select(pick, [tab.report, tab.everything, tab.metric, tab.cell], cell, **quiet, **EVERY, **view)
    # each dropdown goes without the other's value: that may be off its list by the time it arrives
    for field, choose in ((tab.block, choose_block), (tab.module, choose_module)):
        named = [tab.report, tab.metric, tab.everything, field, tab.cell, found]
        field.input(partial(choose, reports), named, [tab.map, *cell], **latest, **view)
    wire_detail(tab.detail, tab.report, tab.cell, settings, shared, reports)
    wire_importance(tab.importance, settings, shared)
    found.change(partial(show_metric, reports), choice, map_views, **latest)
    found.change(partial(show_csv, reports), [tab.report, tab.everything, found], tab.csv, **latest)
    tab.metric.change(open_importance, [tab.metric, found], tab.importance.accordion, **quiet)
    gr.on(
        [tab.cell.change, found.change],
        partial(show_importance, reports),
        [tab.report, tab.cell, found],
        tab.cell_importance.outputs,
        **latest,
    )
