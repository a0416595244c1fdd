"""What the Inspect tab shows of a report: plain functions from a report and a choice to values of components."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from components.clickable_plot import payload
from components.figures.importance_maps import MAPS
from components.figures.maps import map_chart, strongest_cell
from components.figures.metrics import (
    METRICS,
    cell_name,
    expert_names,
    explanation_html,
    row_name,
)
from components.figures.story import change_histogram, sign_agreement
from components.importance_job import Found
from components.importance_views import show_importance_map, with_importance
from components.numbers import clock, count, size
from components.tables import csv_link, full_table, html_table, map_table
from merging import Progress, Report
from merging.changes import TensorStatistics

NO_MAP = "Nothing measured yet. Once the Models tab holds a base and an expert that fits it, their map appears here."
NO_PAIRS = "This map compares experts with each other. Add a second expert on the Models tab."
NO_CELL = "Click a cell of the map, or choose a block and a module."
NO_CHANGE = "No expert changed these weights."
STOPPED = '<p class="quiet">Stopped. Nothing was kept of this measurement.</p>'
NO_COMMON = "No weight here was changed by two experts."

Cell = tuple[int | None, str]


def ask_status(nbytes: int) -> str:
    """Before a large family is read."""
    return f"<p>These models hold {size(nbytes)}. Measuring reads all of it once.</p>"


def progress_status(progress: Progress) -> str:
    """A progress bar with its units."""
    left = progress.seconds_left
    facts = [
        f"{progress.tensors_done} / {progress.tensors} tensors",
        f"{size(progress.bytes_per_second)}/s",
        *([f"{clock(left)} left"] if left is not None else []),
    ]
    return (
        f'<div class="progress"><progress max="1" value="{progress.share:.4f}" aria-label="measuring"></progress>'
        f"<span>{' · '.join(facts)}</span></div>"
    )


def error_status(message: str) -> str:
    """Why nothing could be measured."""
    return f'<p class="problem" role="alert">{html.escape(message)}</p>'


def show_totals(report: Report | None) -> str:
    """Key figures of the whole model."""
    if report is None:
        return ""
    total = report.total
    cells = [
        (f"{name} moved by", _number(total.relative_change(index), 3), "of the base's length")
        for index, name in enumerate(expert_names(report))
    ]
    if report.pairs:
        cells.append(("sign conflict", _number(total.signs.opposite_share(), 2), "0.5 by chance"))
    cells.append(("measured", count(total.elements), f"weights in {len(report.tensors)} tensors"))
    body = "".join(
        f'<div><dt>{html.escape(name)}</dt><dd>{value}</dd><dd class="unit">{html.escape(unit)}</dd></div>'
        for name, value, unit in cells
    )
    return f'<dl class="tiles">{body}</dl>'


def show_map(
    report: Report | None, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """The map with its outlined cell, its explanation, and its table; `found` is the importance that is known."""
    chosen = METRICS.get(metric, METRICS["change"])
    words = MAPS.get(metric, chosen)
    if report is None:
        return [None, explanation_html(words), {"headers": ["block", "module"], "data": []}]
    if metric in MAPS:
        place = _position(report, everything, cell) if cell else None
        drawn, numbers = show_importance_map(report, metric, everything, place, found)
        return [drawn, explanation_html(words), {"headers": numbers.headers, "data": numbers.rows}]
    chart = map_chart(report, chosen, everything=everything)
    table = map_table(report, chosen, everything=everything)
    picked = _position(report, everything, cell) if cell else None
    return [
        payload(chart, picked, empty=NO_PAIRS),
        explanation_html(chosen),
        {"headers": table.headers, "data": table.rows},
    ]


def show_cell(report: Report | None, everything: bool, cell: Cell | None) -> list[Any]:
    """The cell itself, its two dropdowns, and its story: heading, key figures, histogram, sign agreement."""
    if report is None or cell is None:
        empty = gr.update(choices=[], value=None)
        return [None, empty, empty, f"<h2>One cell</h2><p>{NO_CELL}</p>", "", None, None]
    cells = report.cells(everything=everything)
    block, kind = cell
    statistics, names, where = cells[cell], expert_names(report), cell_name(block, kind)
    grid = report.grid(lambda s: s.elements, everything=everything)
    blocks = [(f"block {row}" if row is not None else "outside", row_name(row)) for row in grid.rows]
    kinds = [column for column in grid.columns if (block, column) in cells]
    return [
        cell,
        gr.update(choices=blocks, value=row_name(block)),
        gr.update(choices=kinds, value=kind),
        _heading(report, cell, statistics),
        _figures(statistics, names),
        payload(change_histogram(statistics, names, where), empty=NO_CHANGE),
        payload(sign_agreement(statistics, names, where), empty=NO_COMMON if len(names) > 1 else NO_PAIRS),
    ]


def show_csv(report: Report | None, everything: bool, found: Found | None = None) -> str:
    """A link to everything measured, importance too where it is known, as CSV."""
    if report is None:
        return ""
    table = full_table(report, everything=everything)
    return csv_link(with_importance(table, report, everything, found), "mergescope.csv")


def settle(
    report: Report | None, metric: str, everything: bool, block: str | None, module: str | None
) -> Cell | None:
    """The cell two dropdown values mean; where there is none, another of that block, else the strongest one."""
    if report is None:
        return None
    cells = report.cells(everything=everything)
    for cell in cells:
        if row_name(cell[0]) == block and cell[1] == module:
            return cell
    grid = report.grid(lambda s: s.elements, everything=everything)
    for row in grid.rows:
        if row_name(row) == block:
            return next((row, column) for column in grid.columns if (row, column) in cells)
    chosen = METRICS.get(metric, METRICS["change"])
    strongest = strongest_cell(report, chosen, everything=everything)
    strongest = strongest or strongest_cell(report, METRICS["change"], everything=everything)
    return cell_at(report, everything, *strongest) if strongest else next(iter(cells), None)


def cell_at(report: Report, everything: bool, row: int, column: int) -> Cell | None:
    """The cell at a row and a column of the map; None for a gap."""
    grid = report.grid(lambda s: s.elements, everything=everything)
    if not (0 <= row < len(grid.rows) and 0 <= column < len(grid.columns)):
        return None
    return (grid.rows[row], grid.columns[column]) if grid.values[row][column] is not None else None


def _position(report: Report, everything: bool, cell: Cell) -> tuple[int, int]:
    grid = report.grid(lambda s: s.elements, everything=everything)
    return grid.rows.index(cell[0]), grid.columns.index(cell[1])


def _heading(report: Report, cell: Cell, statistics: TensorStatistics) -> str:
    tensors = report.names_at(*cell)
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    name = cell_name(*cell)
    return (
        f"<h2>{html.escape(name[:1].upper() + name[1:])}</h2>"
        f"<p><code>{html.escape(tensors[0])}</code>{more}, {statistics.elements:,} weights</p>"
    )


def _figures(statistics: TensorStatistics, names: Sequence[str]) -> str:
    rows = []
    for index, name in enumerate(names):
        mean = statistics.mass[index] / statistics.elements if statistics.elements else None
        rows.append(
            [
                name,
                _number(statistics.relative_change(index), 4),
                _number(statistics.changed_share(index), 3),
                _scientific(mean),
                _scientific(statistics.largest[index]),
            ]
        )
    headers = ["expert", "change, ‖δ‖ / ‖θ₀‖", "share changed", "mean |δ|", "largest |δ|"]
    return html_table("Each expert's change in this cell", headers, rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
