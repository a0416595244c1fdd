"""What happens on the Inspect tab: measuring, and from a report and a choice to what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol

import gradio as gr

import merging
from components.clickable_plot import clicked_cell
from components.family import Family
from components.figures.importance_maps import MAPS
from components.figures.metrics import row_name
from components.importance.job import Found
from components.importance.views import show_importance_story
from components.inspect import views
from components.inspect import whole as whole_model
from components.inspect.reports import Reports, Stops, report_key
from components.inspect.views import Cell
from components.models.opening import explained
from components.server.settings import Settings
from merging import MergingError, Plan, Report

MOST_UNASKED = 1 << 30
"""Bytes up to which a family is measured without being asked to."""


class Kept(Protocol):
    """Where reports are found by their keys."""

    def get(self, key: object) -> Report | None: ...


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
        with (
            stops.running(family) as (token, stop),
            closing(reports.measure(plan, key, settings.device)) as steps,
        ):
            for progress in steps:
                if stop.is_set():
                    yield [views.STOPPED, shown, hidden, "", ""]
                    return
                if progress.seconds - told > 0.3:
                    told = progress.seconds
                    yield [views.progress_status(progress), hidden, shown, token, gr.skip()]
        yield ["", hidden, hidden, "", key]
    except (MergingError, OSError) as error:
        again = shown if isinstance(error, OSError) else hidden
        yield [views.error_status(explained(family, error)), again, hidden, "", ""]


def show_report(
    reports: Kept, key: str, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """Everything under the status line."""
    report, everything = reports.get(key), bool(everything)
    cell = views.settle(report, metric, everything, *_names(cell))
    return [
        whole_model.show_totals(report),
        whole_model.show_pairs(report),
        views.show_csv(report, everything, found),
        *views.show_map(report, metric, everything, cell, found),
        *views.show_cell(report, everything, cell),
    ]


def show_metric(
    reports: Kept, key: str, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """Another metric of the same report, with the same cell outlined."""
    report, everything = reports.get(key), bool(everything)
    settled = views.settle(report, metric, everything, *_names(cell))
    return views.show_map(report, metric, everything, settled, found)


def show_csv(reports: Kept, key: str, everything: bool, found: Found | None) -> str:
    """The link to all numbers, once there is more of them."""
    return views.show_csv(reports.get(key), bool(everything), found)


def open_importance(metric: str, found: Found | None) -> dict[str, Any]:
    """The section that computes importance opens when somebody asks for a map of it and there is none."""
    return gr.update(open=True) if metric in MAPS and found is None else gr.skip()


def show_importance(reports: Kept, key: str, cell: Cell | None, found: Found | None) -> list[Any]:
    """The story of the chosen cell, as far as it is about importance."""
    return show_importance_story(reports.get(key), cell, found)


def pick_cell(
    reports: Kept, event: gr.EventData, key: str, everything: bool, metric: str, cell: Cell | None
) -> list[Any]:
    """The story of a clicked cell; nothing changes for a click that is not on a cell of this map.

    On the map of whole blocks a click chooses the block, and the module stays.
    """
    report, everything = reports.get(key), bool(everything)
    place = clicked_cell(event)
    chosen = None
    if report is not None and place is not None:
        chosen = (
            _block_at(report, metric, everything, place[0], cell)
            if views.asked_for(metric)[0].over == "blocks"
            else views.cell_at(report, everything, *place)
        )
    return views.show_cell(report, everything, chosen) if chosen else [gr.skip()] * 8


def _block_at(report: Report, metric: str, everything: bool, row: int, cell: Cell | None) -> Cell | None:
    rows, _ = report.frame(everything=everything)
    if row >= len(rows):
        return None
    return views.settle(report, metric, everything, row_name(rows[row]), _names(cell)[1])


def show_advice(reports: Kept, family: Family, key: str) -> str:
    """What the report suggests, with what the models' headers show."""

    def plan() -> Plan | None:
        try:
            return merging.check(family.recipe())
        except (MergingError, OSError):
            return None

    return whole_model.show_advice(reports.get(key), plan)


def choose_cell(
    reports: Kept,
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


def choose_block(
    reports: Kept,
    key: str,
    metric: str,
    everything: bool,
    block: str | None,
    cell: Cell | None,
    found: Found | None = None,
) -> list[Any]:
    """The cell of another block, of the same module where there is one."""
    return choose_cell(reports, key, metric, everything, block, _names(cell)[1], found)


def choose_module(
    reports: Kept,
    key: str,
    metric: str,
    everything: bool,
    module: str | None,
    cell: Cell | None,
    found: Found | None = None,
) -> list[Any]:
    """Another module of the same block."""
    return choose_cell(reports, key, metric, everything, _names(cell)[0], module, found)


def _names(cell: Cell | None) -> tuple[str | None, str | None]:
    return (row_name(cell[0]), cell[1]) if cell is not None else (None, None)
