"""Tables: the twin of a map, and everything measured as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from components.figures.metrics import Metric, Panel, expert_names, pair_names, panels, row_name
from merging import Report
from merging.changes import TensorStatistics

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Column names and rows; None is an empty cell."""

    headers: list[str]
    rows: list[list[str | int | float | None]]


def map_table(report: Report, metric: Metric, *, everything: bool = False) -> Table:
    """The numbers of a map: one row a cell, one column a small map."""
    return panels_table(panels(report, metric, everything=everything))


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
                rows.append([place, kind, *(None if v is None else float(f"{v:.4g}") for v in values)])
    return Table(["block", "module", *(panel.name for panel in shown)], rows)


def full_table(report: Report, *, everything: bool = False) -> Table:
    """Every number of every cell at full precision."""
    headers = ["block", "module", "tensors", "elements"]
    for name in expert_names(report):
        headers += [
            f"{name} {column}" for column in ("relative change", "changed share", "mean |δ|", "max |δ|")
        ]
    for name in pair_names(report):
        headers += [f"{name} {column}" for column in ("opposite signs", "cosine")]
    rows: list[list[str | int | float | None]] = []
    for (block, kind), statistics in report.cells(everything=everything).items():
        tensors = " ".join(report.names_at(block, kind))
        rows.append([row_name(block), kind, tensors, statistics.elements, *_numbers(statistics)])
    return Table(headers, rows)


def _numbers(statistics: TensorStatistics) -> list[float | None]:
    numbers: list[float | None] = []
    for expert in range(len(statistics.change)):
        mean = statistics.mass[expert] / statistics.elements if statistics.elements else None
        numbers += [
            statistics.relative_change(expert),
            statistics.changed_share(expert),
            mean,
            statistics.largest[expert],
        ]
    for pair in range(len(statistics.dot)):
        numbers += [statistics.signs.opposite_share(pair), statistics.cosine(pair)]
    return numbers


def csv_text(table: Table) -> str:
    """The table as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""

    def safe(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([safe(header) for header in table.headers])
    writer.writerows([[safe(value) for value in row] for row in table.rows])
    return buffer.getvalue()


def csv_link(table: Table, file: str) -> str:
    """A link that saves the table; the file travels in the page, so nothing is kept on the server."""
    content = quote(csv_text(table))
    return (
        f'<a class="save" download="{html.escape(file, quote=True)}" '
        f'href="data:text/csv;charset=utf-8,{content}">Save all numbers as CSV</a>'
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
