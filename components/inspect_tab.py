"""Tab 2: where the experts changed the base, and where they fight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

import merging
from components import inspect_views as views
from components.clickable_plot import clickable_plot, clicked_cell
from components.family import Family
from components.figures.importance_maps import MAPS
from components.figures.metrics import METRICS, row_name
from components.importance_job import Found
from components.importance_tab import (
    ImportanceSection,
    ImportanceStory,
    build_importance,
    build_importance_story,
    wire_importance,
)
from components.importance_views import show_importance_story
from components.inspect_views import Cell
from components.reports import Reports, Stops, report_key, shared_reports
from components.settings import Settings
from components.shared import Shared
from merging import MergingError

FIRST_METRIC = "change"
MOST_UNASKED = 1 << 30
"""Bytes up to which a family is measured without being asked to."""


@dataclass(frozen=True)
class InspectTab:
    """The components of the tab; `report` holds the key of the report that is shown, `cell` the chosen cell of its map,
    `token` what stops a running measurement; `next` leads to Merge."""

    report: gr.State
    cell: gr.State
    token: gr.State
    status: gr.HTML
    measure: gr.Button
    stop: gr.Button
    totals: gr.HTML
    metric: gr.Radio
    everything: gr.Checkbox
    map: gr.HTML
    explanation: gr.HTML
    block: gr.Dropdown
    module: gr.Dropdown
    story: gr.HTML
    figures: gr.HTML
    histogram: gr.HTML
    agreement: gr.HTML
    table: gr.Dataframe
    csv: gr.HTML
    importance: ImportanceSection
    cell_importance: ImportanceStory
    next: gr.Button


def build_inspect_tab() -> InspectTab:
    """Build the tab; it fills itself once the page has loaded."""
    parts: dict[str, Any] = {"report": gr.State(""), "cell": gr.State(None), "token": gr.State("")}
    with gr.Row(elem_classes="section-head"):
        gr.HTML(
            "<h2>Where did the experts change, and where do they fight?</h2>"
            "<p>Every weight of base and experts is read once. Nothing is merged yet.</p>"
        )
        parts["measure"] = gr.Button("Measure now", variant="primary", scale=0, min_width=140, visible=False)
        parts["stop"] = gr.Button("Stop", scale=0, min_width=100, visible=False)
    parts["status"] = gr.HTML(elem_classes="status")
    parts["totals"] = gr.HTML()
    _build_map(parts)
    parts["importance"] = build_importance()
    _build_story(parts)
    parts["cell_importance"] = build_importance_story()
    with gr.Row(elem_classes="actions"):
        parts["next"] = gr.Button("Merge these models", variant="primary", size="md", scale=0, min_width=220)
    return InspectTab(**parts)


def _build_map(parts: dict[str, Any]) -> None:
    """What to show, the map, its explanation, its table."""
    with gr.Row(elem_classes="controls"):
        parts["metric"] = gr.Radio(
            [(entry.label, entry.key) for entry in (*METRICS.values(), *MAPS.values())],
            value=FIRST_METRIC,
            label="What to show",
            elem_classes="segments",
            scale=5,
            min_width=300,
        )
        parts["everything"] = gr.Checkbox(label="Norms and embeddings", scale=0, min_width=210)
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
        parts["block"] = gr.Dropdown([], label="Block", scale=0, min_width=150, filterable=False)
        parts["module"] = gr.Dropdown([], label="Module", scale=0, min_width=150, filterable=False)
    parts["figures"] = gr.HTML(elem_id="cell-figures")
    with gr.Row(elem_classes="pair"):
        with gr.Column(min_width=320):
            parts["histogram"] = clickable_plot(empty=empty, name="mergescope-changes", elem_id="histogram")
        with gr.Column(min_width=320):
            parts["agreement"] = clickable_plot(empty=empty, name="mergescope-signs", elem_id="agreement")


def can_merge(family: Family) -> dict[str, Any]:
    """The way on to Merge is open once there are experts."""
    return gr.update(interactive=bool(family.experts))


def wire_inspect_tab(app: gr.Blocks, tab: InspectTab, settings: Settings, shared: Shared) -> None:
    """Connect the tab's events: a family is measured, its report shown, a cell of it chosen."""
    reports, stops = shared_reports(), Stops()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    measured = [tab.status, tab.measure, tab.stop, tab.token, tab.report]
    found = shared.importance
    choice = [tab.report, tab.metric, tab.everything, tab.cell, found]
    named = [tab.report, tab.metric, tab.everything, tab.block, tab.module, found]
    cell = [tab.cell, tab.block, tab.module, tab.story, tab.figures, tab.histogram, tab.agreement]
    map_views = [tab.map, tab.explanation, tab.table]

    latest: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
    look = partial(measure, reports, stops, settings)
    gr.on([app.load, shared.family.change], look, shared.family, measured, **latest)
    tab.measure.click(partial(look, asked=True), shared.family, measured, **quiet)
    tab.stop.click(stops.stop, tab.token, None, **quiet)
    gr.on([app.load, shared.family.change], can_merge, shared.family, tab.next, **quiet)

    def pick(event: gr.EventData, key: str, everything: bool) -> list[Any]:
        return pick_cell(reports, event, key, everything)

    whole = [tab.totals, tab.csv, *map_views, *cell]
    tab.report.change(partial(show_report, reports), choice, whole, **quiet)
    tab.everything.input(partial(show_report, reports), choice, whole, **quiet)
    tab.metric.input(partial(show_metric, reports), choice, map_views, **latest)
    tab.map.select(pick, [tab.report, tab.everything], cell, **latest)
    gr.on(
        [tab.block.input, tab.module.input], partial(choose_cell, reports), named, [tab.map, *cell], **quiet
    )
    wire_importance(app, tab.importance, settings, shared)
    found.change(partial(show_metric, reports), choice, map_views, **latest)
    found.change(partial(show_csv, reports), [tab.report, tab.everything, found], tab.csv, **latest)
    tab.metric.input(open_importance, [tab.metric, found], tab.importance.accordion, **quiet)
    gr.on(
        [tab.cell.change, found.change],
        partial(show_importance, reports),
        [tab.report, tab.cell, found],
        tab.cell_importance.outputs,
        **latest,
    )


def measure(
    reports: Reports, stops: Stops, settings: Settings, family: Family, asked: bool = False
) -> Iterator[list[Any]]:
    """Status line, which of the buttons Measure and Stop is there, the token that stops this measurement, and in the
    end the key of the report."""
    shown, hidden = gr.update(visible=True), gr.update(visible=False)
    if not isinstance(family, Family) or not family.experts:
        yield ["", hidden, hidden, "", ""]
        return
    try:
        plan = merging.check(family.recipe())
        key = report_key(plan)
        if reports.get(key) is None and plan.bytes_to_read > MOST_UNASKED and not asked:
            yield [views.ask_status(plan.bytes_to_read), shown, hidden, "", ""]
            return
        told = 0.0
        with stops.running() as (token, stop), closing(reports.measure(plan, key, settings.device)) as steps:
            for progress in steps:
                if stop.is_set():
                    yield [views.STOPPED, shown, hidden, "", ""]
                    return
                if progress.seconds - told > 0.3:
                    told = progress.seconds
                    yield [views.progress_status(progress), hidden, shown, token, gr.skip()]
        yield ["", hidden, hidden, "", key]
    except MergingError as error:
        yield [views.error_status(str(error)), hidden, hidden, "", ""]
    except OSError as error:
        yield [views.error_status(f"The models could not be read: {error.strerror}."), shown, hidden, "", ""]


def show_report(
    reports: Reports, key: str, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """Everything under the status line."""
    report, everything = reports.get(key), bool(everything)
    cell = views.settle(report, metric, everything, *_names(cell))
    return [
        views.show_totals(report),
        views.show_csv(report, everything, found),
        *views.show_map(report, metric, everything, cell, found),
        *views.show_cell(report, everything, cell),
    ]


def show_metric(
    reports: Reports, key: str, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """Another metric of the same report, with the same cell outlined."""
    report, everything = reports.get(key), bool(everything)
    settled = views.settle(report, metric, everything, *_names(cell))
    return views.show_map(report, metric, everything, settled, found)


def show_csv(reports: Reports, key: str, everything: bool, found: Found | None) -> str:
    """The link to all numbers, once there is more of them."""
    return views.show_csv(reports.get(key), bool(everything), found)


def open_importance(metric: str, found: Found | None) -> dict[str, Any]:
    """The section that computes importance opens when somebody asks for a map of it and there is none."""
    return gr.update(open=True) if metric in MAPS and found is None else gr.skip()


def show_importance(reports: Reports, key: str, cell: Cell | None, found: Found | None) -> list[Any]:
    """The story of the chosen cell, as far as it is about importance."""
    return show_importance_story(reports.get(key), cell, found)


def pick_cell(reports: Reports, event: gr.EventData, key: str, everything: bool) -> list[Any]:
    """The story of a clicked cell; nothing changes for a click that is not on a cell of this map."""
    report = reports.get(key)
    place = clicked_cell(event)
    cell = views.cell_at(report, bool(everything), *place) if report is not None and place else None
    return views.show_cell(report, bool(everything), cell) if cell else [gr.skip()] * 7


def choose_cell(
    reports: Reports,
    key: str,
    metric: str,
    everything: bool,
    block: str | None,
    module: str | None,
    found: Found | None = None,
) -> list[Any]:
    """The story of the cell two dropdowns name, and the map with it outlined."""
    report, everything = reports.get(key), bool(everything)
    cell = views.settle(report, metric, everything, block, module)
    return [
        views.show_map(report, metric, everything, cell, found)[0],
        *views.show_cell(report, everything, cell),
    ]


def _names(cell: Cell | None) -> tuple[str | None, str | None]:
    return (row_name(cell[0]), cell[1]) if cell is not None else (None, None)
