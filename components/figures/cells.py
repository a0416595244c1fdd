"""The cells of one small map: their colours, their numbers, what they say on hover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import text
from components.figures.metrics import cell_name, row_name
from components.figures.words import Panel
from merging.reports.report import Grid

NAN_COLOUR = "#8d8d8d"
TALLEST = 28
"""Most pixels of a cell's height."""


def value_trace(
    panel: Panel, number: int, hover_text: str, formats: tuple[str, str], *, numbered: bool
) -> go.Heatmap:
    """`formats`: how numbers are written in the cells and on hover."""
    grid, suffix = panel.grid, "" if number == 1 else str(number)
    gap = 1 if cell_height(grid) >= 7 else 0
    more = _more(panel)
    return go.Heatmap(
        z=grid.values,
        x=[text(kind) for kind in grid.columns],
        y=[row_name(block) for block in grid.rows],
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        coloraxis="coloraxis",
        xgap=1,
        ygap=gap,
        hoverongaps=False,
        customdata=[[f"{text(panel.name)}: {text(place)}" for place in line] for line in _places(grid)],
        hovertext=more,
        texttemplate=f"%{{z:{formats[0]}}}" if numbered else None,
        textfont={"size": 10.5},
        hovertemplate=f"%{{customdata}}<br><b>%{{z:{formats[1]}}}</b> {hover_text}"
        f"{'%{hovertext}' if more else ''}<extra></extra>",
    )


def centre(trace: go.Heatmap, panel: Panel, hover_text: str, digits: int, *, numbered: bool) -> None:
    """Colour by the distance from each cell's chance level; the cells and the hover still say the value."""
    assert panel.chance is not None

    def apart(value: float | None, chance: float | None) -> float | None:
        return None if value is None or chance is None else value - chance

    pairs = list(zip(panel.grid.values, panel.chance.values, strict=True))
    trace.z = [[apart(v, c) for v, c in zip(*lines, strict=True)] for lines in pairs]
    trace.text = [["" if v is None else f"{v:.{digits}f}" for v in line] for line, _ in pairs]
    trace.texttemplate = "%{text}" if numbered else None
    trace.hovertemplate = (
        f"%{{customdata}}<br><b>%{{text}}</b> {hover_text}"
        f"<br>%{{z:+.{digits}f}} from chance%{{hovertext}}<extra></extra>"
    )


def _more(panel: Panel) -> list[list[str]] | None:
    """What the hover adds to a cell's number: its chance level, what it speaks of, and what was left out."""
    if panel.chance is None and panel.told is None and panel.broken is None:
        return None

    def at(row: int, column: int) -> str:
        chance = panel.chance.values[row][column] if panel.chance else None
        told = panel.told[row][column] if panel.told else ""
        broken = panel.broken[row][column] if panel.broken else 0
        lines = [f"chance level {chance:.3f}"] if chance is not None else []
        lines += [told] if told else []
        lines += [f"{broken:,} values are NaN or infinite; that part is left out"] if broken else []
        return "".join(f"<br>{line}" for line in lines)

    return _cellwise(panel.grid, at)


def nan_trace(panel: Panel, number: int) -> go.Heatmap:
    """Marks the cells that have no number because of NaN or infinite values in the models."""
    grid, broken, suffix = panel.grid, panel.broken or [], "" if number == 1 else str(number)
    places = _places(grid)

    def lost(row: int, column: int) -> bool:
        return bool(broken[row][column]) and grid.values[row][column] is None

    return go.Heatmap(
        z=_cellwise(grid, lambda row, column: 0 if lost(row, column) else None),
        text=_cellwise(grid, lambda row, column: "NaN" if lost(row, column) else ""),
        customdata=_cellwise(
            grid,
            lambda row, column: (
                f"{text(panel.name)}: {text(places[row][column])}<br><b>NaN</b>: "
                f"{broken[row][column]:,} values of these models are NaN or infinite here"
            ),
        ),
        x=[text(kind) for kind in grid.columns],
        y=[row_name(block) for block in grid.rows],
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        colorscale=[[0, NAN_COLOUR], [1, NAN_COLOUR]],
        showscale=False,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        texttemplate="%{text}",
        textfont={"size": 10.5, "color": "#000000"},
        hovertemplate="%{customdata}<extra></extra>",
    )


def _places(grid: Grid) -> list[list[str]]:
    return [[cell_name(block, kind) for kind in grid.columns] for block in grid.rows]


def _cellwise(grid: Grid, value: Callable[[int, int], Any]) -> list[list[Any]]:
    return [[value(row, column) for column in range(len(grid.columns))] for row in range(len(grid.rows))]


def cell_height(grid: Grid, tallest: int = TALLEST) -> int:
    """Pixels of a row: a map of 200 blocks stays below 840 pixels."""
    return max(4, min(tallest, 420 // len(grid.rows)))
