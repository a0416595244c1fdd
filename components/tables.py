"""Tables: the twin of a map, and everything measured as CSV."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from components.figures.metrics import (
    block_sums,
    expert_names,
    pair_names,
    panels,
    row_name,
    sign_records,
    trim_scope,
)
from components.figures.words import Metric, Panel
from merging import Report
from merging.inspecting.changes import Conflict, TensorStatistics
from merging.reports.report import Cell

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Column names and rows; None is an empty cell."""

    headers: list[str]
    rows: list[list[str | int | float | None]]


def map_table(report: Report, metric: Metric, *, everything: bool = False, trimmed: bool = False) -> Table:
    """The numbers of a map: one row a cell, one column a small map, and its chance level where each cell has its own."""
    shown = panels(report, metric, everything=everything, trimmed=trimmed)
    if metric.over == "blocks":
        return _block_table(shown)
    if metric.scale == "own chance":
        levels = [Panel(f"{panel.name}: chance", panel.chance) for panel in shown if panel.chance is not None]
        shown = [one for both in zip(shown, levels, strict=True) for one in both]
    return panels_table(shown)


def panels_table(shown: Sequence[Panel]) -> Table:
    """The numbers of small maps over the same cells."""
    if not shown:
        return Table(["block", "module"], [])
    grid = shown[0].grid
    rows: list[list[str | int | float | None]] = []
    for row, block in enumerate(grid.rows):
        for column, kind in enumerate(grid.columns):
            values = [panel.grid.values[row][column] for panel in shown]
            if any(value is not None for value in values):
                place = row_name(block) if block is None else block
                rows.append([place, kind, *map(_short, values)])
    return Table(["block", "module", *(panel.name for panel in shown)], rows)


def _block_table(shown: Sequence[Panel]) -> Table:
    """A row for each block, a column for each pair of experts."""
    if not shown:
        return Table(["block"], [])
    grid = shown[0].grid
    rows: list[list[str | int | float | None]] = [
        [row_name(block) if block is None else block, *map(_short, values)]
        for block, values in zip(grid.rows, grid.values, strict=True)
    ]
    return Table(["block", *grid.columns], rows)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


SIGN_COLUMNS = ("coverage", "opposite signs", "not unanimous", "not unanimous by chance", "mass conflict")
SIGN_COLUMNS += ("mass conflict by chance",)


def full_table(report: Report, *, everything: bool = False) -> Table:
    """Every number of every cell at full precision; signs after trimming too, where the report knows a trim."""
    headers = ["block", "module", "tensors", "elements"]
    for name in expert_names(report):
        columns = ("relative change", "changed share", "mean |δ|", "max |δ|", "NaN or infinite")
        headers += [f"{name} {column}" for column in columns]
    for name in pair_names(report):
        headers += [f"{name} {column}" for column in ("opposite signs", "cosine", "Pearson", "distance")]
    headers += [f"{name} cosine of the whole block" for name in pair_names(report)]
    headers += SIGN_COLUMNS
    trimmed = report.by_cell(sign_records(report, True), everything=everything) if report.trim else {}
    if report.trim:
        kept = f"density {report.trim.density:g} in {trim_scope(report.trim)}"
        headers += [f"{column}, {kept}" for column in SIGN_COLUMNS]
    names: dict[Cell, list[str]] = {}
    for name, place in report.places(everything=True).items():
        names.setdefault((place.block, place.kind), []).append(name)
    blocks = block_sums(report, everything=everything)
    rows: list[list[str | int | float | None]] = []
    for (block, kind), statistics in report.cells(everything=everything).items():
        tensors = " ".join(names[block, kind])
        row = [row_name(block), kind, tensors, statistics.elements, *_numbers(statistics)]
        row += [blocks[block].cosine(pair) for pair in range(len(statistics.dot))]
        row += sign_numbers(statistics.signs)
        if report.trim:
            after = trimmed.get((block, kind))
            row += sign_numbers(after) if after else [None] * len(SIGN_COLUMNS)
        rows.append(row)
    return Table(headers, rows)


def sign_numbers(signs: Conflict) -> list[float | None]:
    """The numbers of `SIGN_COLUMNS`."""
    opposite, split, mass = signs.opposite_share(), signs.split_share(), signs.mass()
    return [signs.coverage, opposite, split, signs.split_chance(), mass, signs.mass_chance()]


def _numbers(statistics: TensorStatistics) -> list[float | None]:
    numbers: list[float | None] = []
    for expert in range(len(statistics.change)):
        mean = statistics.mass[expert] / statistics.elements if statistics.elements else None
        numbers += [
            statistics.relative_change(expert),
            statistics.changed_share(expert),
            _finite(mean),
            _finite(statistics.largest[expert]),
            statistics.broken[1 + expert],
        ]
    for pair in range(len(statistics.dot)):
        numbers += [statistics.signs.opposite_share(pair), statistics.cosine(pair)]
        numbers += [statistics.pearson(pair), statistics.distance(pair)]
    return numbers


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def csv_text(table: Table) -> str:
    """The table as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""

    def safe(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([safe(header) for header in table.headers])
    writer.writerows([[safe(value) for value in row] for row in table.rows])
    return buffer.getvalue()


def csv_link(table: Table, file: str, words: str = "Save all numbers as CSV") -> str:
    """A link that saves the table; the file travels in the page, so nothing is kept on the server."""
    content = quote(csv_text(table))
    return (
        f'<a class="save" download="{html.escape(file, quote=True)}" '
        f'href="data:text/csv;charset=utf-8,{content}">{html.escape(words)}</a>'
    )


def html_table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False
) -> str:
    """A small table whose first column names the row; all texts are escaped here. A wide one scrolls in itself."""
    reachable = f' tabindex="0" role="region" aria-label="{html.escape(caption, quote=True)}"' if wide else ""
    head = "".join(f'<th scope="col">{html.escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(value)}</td>" for value in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="figures"{reachable}><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
