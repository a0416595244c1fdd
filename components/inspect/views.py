"""What the Inspect tab shows of a report: plain functions from a report and a choice to values of components."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import combinations
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
    pair_names,
    percent,
    row_name,
    trim_words,
)
from components.figures.story import Cuts, change_histogram, sign_agreement
from components.figures.words import Metric
from components.importance.job import Found
from components.importance.views import show_importance_map, with_importance
from components.inspect.whole import number
from components.numbers import size
from components.progress import bar_html, left
from components.tables import csv_link, full_table, html_table, map_table
from merging import Progress, Report
from merging.anatomy import block_name
from merging.inspecting.changes import Conflict, TensorStatistics
from merging.inspecting.sums import total
from merging.reports.report import Cell, Trimmed

NO_MAP = "Nothing measured yet. Once the Models tab holds a base and an expert that fits it, their map appears here."
NO_PAIRS = "This map compares experts with each other. Add a second expert on the Models tab."
NO_CELL = "Click a cell of the map, or choose a block and a module."
NO_CHANGE = "No expert changed these weights."
STOPPED = '<p class="quiet">Stopped. Nothing was kept of this measurement.</p>'
NOT_SHOWN = "Not shown: the line under the name of this cell says which model holds NaN or infinite values."
NO_COMMON = "No weight here was changed by two experts."

TRIMMED = "+trimmed"
"""What follows a metric's key where the map after trimming is wanted too."""


def ask_status(nbytes: int) -> str:
    """Before a large family is read."""
    return f"<p>These models hold {size(nbytes)}. Measuring reads all of it once.</p>"


def progress_status(progress: Progress) -> str:
    """A progress bar with its units."""
    facts = [
        f"{progress.tensors_done} / {progress.tensors} tensors",
        f"{size(progress.bytes_per_second)}/s",
        *left(progress),
    ]
    return bar_html(progress.share, " · ".join(facts), "measuring")


def error_status(message: str) -> str:
    """Why nothing could be measured."""
    return f'<p class="problem" role="alert">{html.escape(message)}</p>'


def asked_for(metric: str) -> tuple[Metric, bool]:
    """The metric of a key, the first one for an unknown key, and whether it is wanted after trimming."""
    key = metric.removesuffix(TRIMMED) if isinstance(metric, str) else ""
    return METRICS.get(key, METRICS["change"]), isinstance(metric, str) and metric.endswith(TRIMMED)


def show_map(
    report: Report | None, metric: str, everything: bool, cell: Cell | None, found: Found | None = None
) -> list[Any]:
    """The map with its outlined cell, its explanation, and its table; `found` is the importance that is known."""
    chosen, trimmed = asked_for(metric)
    words = MAPS.get(metric, chosen)
    if report is None:
        return [None, explanation_html(words), {"headers": ["block", "module"], "data": []}]
    picked = _position(report, everything, cell) if cell else None
    if metric in MAPS:
        drawn, numbers = show_importance_map(report, metric, everything, picked, found)
        return [drawn, explanation_html(words), {"headers": numbers.headers, "data": numbers.rows}]
    chart = map_chart(report, chosen, everything=everything, trimmed=trimmed)
    table = map_table(report, chosen, everything=everything, trimmed=trimmed)
    return [
        payload(chart, picked if chosen.over != "blocks" else None, empty=NO_PAIRS),
        explanation_html(chosen),
        {"headers": table.headers, "data": table.rows},
    ]


def show_cell(report: Report | None, everything: bool, cell: Cell | None) -> list[Any]:
    """The cell itself, its two dropdowns, and its story: heading, key figures, histogram, sign agreement, pairs."""
    if report is None or cell is None:
        empty = gr.update(choices=[], value=None)
        return [None, empty, empty, f"<h2>One cell</h2><p>{NO_CELL}</p>", "", None, None, ""]
    cells = report.cells(everything=everything)
    block, kind = cell
    statistics, names, where = cells[cell], expert_names(report), cell_name(block, kind)
    rows, columns = report.frame(everything=everything)
    blocks = [(block_name(row) if row is not None else "outside", row_name(row)) for row in rows]
    kinds = [column for column in columns if (block, column) in cells]
    trimmed = _trimmed(report, cell)
    after = trimmed.signs if trimmed is not None else None
    damaged = _damaged(statistics, names)
    unchanged = NOT_SHOWN if damaged else NO_CHANGE
    nothing = NO_COMMON if len(names) > 1 else NO_PAIRS
    if len(names) - len(damaged) < 2 <= len(names):
        nothing = NOT_SHOWN
    return [
        cell,
        gr.update(choices=blocks, value=row_name(block)),
        gr.update(choices=kinds, value=kind),
        _heading(report, cell, statistics),
        _figures(statistics, names),
        payload(change_histogram(statistics, names, where, cuts=_cuts(report, cell)), empty=unchanged),
        payload(sign_agreement(statistics.signs, names, where, after=after, damaged=damaged), empty=nothing),
        _pairs(report, statistics, after),
    ]


def _trimmed(report: Report, cell: Cell) -> Trimmed | None:
    """What the report's trim left of a cell."""
    if report.trim is None:
        return None
    found = [report.trim.tensors[name] for name in report.names_at(*cell) if name in report.trim.tensors]
    return total(found) if found else None


def _cuts(report: Report, cell: Cell) -> Cuts | None:
    """The smallest change that each expert keeps; a cell of several tensors has no one cut in each tensor."""
    trimmed, tensors = _trimmed(report, cell), report.names_at(*cell)
    if trimmed is None or report.trim is None:
        return None
    if len(tensors) > 1 and report.trim.scope == "tensor":
        return None
    return Cuts(trimmed.threshold, percent(report.trim.density), trim_words(report))


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
    rows, columns = report.frame(everything=everything)
    for cell in cells:
        if row_name(cell[0]) == block and cell[1] == module:
            return cell
    for row in rows:
        if row_name(row) == block:
            return next((row, column) for column in columns if (row, column) in cells)
    chosen, _ = asked_for(metric)
    strongest = None
    if chosen.over != "blocks":
        strongest = strongest_cell(report, chosen, everything=everything)
    strongest = strongest or strongest_cell(report, METRICS["change"], everything=everything)
    return cell_at(report, everything, *strongest) if strongest else next(iter(cells), None)


def cell_at(report: Report, everything: bool, row: int, column: int) -> Cell | None:
    """The cell at a row and a column of the map; None for a gap."""
    rows, columns = report.frame(everything=everything)
    if not (0 <= row < len(rows) and 0 <= column < len(columns)):
        return None
    cell = rows[row], columns[column]
    return cell if cell in report.cells(everything=everything) else None


def _position(report: Report, everything: bool, cell: Cell) -> tuple[int, int]:
    rows, columns = report.frame(everything=everything)
    return rows.index(cell[0]), columns.index(cell[1])


def _heading(report: Report, cell: Cell, statistics: TensorStatistics) -> str:
    tensors = report.names_at(*cell)
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    name = cell_name(*cell)
    return (
        f"<h2>{html.escape(name[:1].upper() + name[1:])}</h2>"
        f"<p><code>{html.escape(tensors[0])}</code>{more}, {statistics.elements:,} weights</p>"
        f"{_damage(report, statistics)}"
    )


def _damage(report: Report, statistics: TensorStatistics) -> str:
    """Which models hold NaN in a cell."""
    models = zip(("the base", *expert_names(report)), statistics.broken, strict=True)
    told = [f"{model} {count:,}" for model, count in models if count]
    if not told:
        return ""
    sentence = f"Values that are NaN or infinite here: {', '.join(told)}. What needs them is left out below."
    return f'<p class="problem">{html.escape(sentence)} Use an intact copy.</p>'


def _damaged(statistics: TensorStatistics, names: Sequence[str]) -> list[str]:
    """The experts whose change is unknown in a cell because of NaN in them or in the base."""
    base, *experts = statistics.broken
    return [name for name, count in zip(names, experts, strict=True) if base or count]


def _figures(statistics: TensorStatistics, names: Sequence[str]) -> str:
    rows = []
    for index, name in enumerate(names):
        mean = statistics.mass[index] / statistics.elements if statistics.elements else None
        rows.append(
            [
                name,
                number(statistics.relative_change(index), 4),
                number(statistics.changed_share(index), 3),
                _scientific(mean),
                _scientific(statistics.largest[index]),
            ]
        )
    headers = ["expert", "change, ‖δ‖ / ‖θ₀‖", "share changed", "mean |δ|", "largest |δ|"]
    return html_table("Each expert's change in this cell", headers, rows)


def _pairs(report: Report, statistics: TensorStatistics, after: Conflict | None) -> str:
    """Every pair's numbers in this cell, before and after a trim."""
    names = pair_names(report)
    if not names:
        return ""
    headers = ["pair", "opposite signs", "cosine", "changed by both"]
    headers += ["opposite signs, trimmed", "kept by both"] if after else []
    signs = statistics.signs
    rows = []
    experts = expert_names(report)
    damaged = _damaged(statistics, experts)
    for (pair, name), members in zip(enumerate(names), combinations(experts, 2), strict=True):
        row = [name, number(signs.opposite_share(pair), 3), number(statistics.cosine(pair), 4)]
        intact = not set(damaged) & set(members)
        row.append(f"{signs.shared[pair]:,}" if intact else "–")
        row += [number(after.opposite_share(pair), 3), f"{after.shared[pair]:,}"] if after else []
        rows.append(row)
    note = f" Trimmed: {trim_words(report)}." if after else ""
    return (
        f'{html_table("Pairs of experts in this cell", headers, rows, wide=True)}<p class="chart-note">{_beyond_pairs(signs, after, damaged)}'
        f"{html.escape(note)}</p>"
    )


def _beyond_pairs(signs: Conflict, after: Conflict | None, damaged: Sequence[str]) -> str:
    """The numbers on all experts together but those that are damaged here, in a sentence each."""

    def told(one: Conflict) -> str:
        coverage = one.coverage
        return (
            f"{'–' if coverage is None else percent(coverage)} of the weights changed by two or more, "
            f"not unanimous {number(one.split_share(), 3)} (chance {number(one.split_chance(), 3)}), "
            f"mass conflict {number(one.mass(), 3)} (chance {number(one.mass_chance(), 3)})"
        )

    but = f" but {html.escape(', '.join(damaged))}" if damaged else ""
    return f"All experts{but}: {told(signs)}." + (f" After trimming: {told(after)}." if after else "")


def _scientific(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2e}"
