"""A map over two parameters of a method: how well the merge of each pair of values scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import Chart, new_figure, text

FAILED = "#8d8d8d"
ROUND = 0.05
"""The ends of the colours are whole multiples of this, so that they seldom move while cells come in."""
MOST_NUMBERED = 13
"""Values of the horizontal parameter up to which there is room for a number in every cell."""


@dataclass(frozen=True)
class Axis:
    """One of the two parameters: what it is called, and its values in order."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class GridCell:
    """What one pair of values came to: the mean score, 0 to 1, or why there is none; `told` says the score of each task."""

    score: float | None
    told: str = ""
    problem: str = ""


Cells = Sequence[Sequence[GridCell | None]]
"""[rows of the vertical parameter, values of the horizontal one]; None where nothing was measured yet."""


def grid_chart(across: Axis, up: Axis, cells: Cells, tasks: Sequence[str]) -> Chart:
    """The map, also of a grid that is not measured to its end; the best cell is marked."""
    found = best_cell(cells)
    low, high = _limits(cells)
    numbered = len(across.values) <= MOST_NUMBERED
    height = max(30, min(46, 460 // len(up.values)))
    figure = new_figure(
        height=height * len(up.values) + 112,
        margin={"l": 74, "r": 8, "t": 8, "b": 102},
        uirevision=f"{across} {up}",
        xaxis=_axis(across),
        yaxis=_axis(up),
        coloraxis={
            "colorscale": "Cividis",
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yref": "container",
                "yanchor": "bottom",
                "thickness": 10,
                "len": 0.6,
                "tickformat": ".0%",
                "nticks": 4,
            },
        },
        shapes=_box(found) if found else [],
    )
    figure.add_trace(_values(across, up, cells, found, numbered=numbered))
    if any(cell is not None and cell.score is None for line in cells for cell in line):
        figure.add_trace(_failures(across, up, cells))
    done = sum(cell is not None for line in cells for cell in line)
    return Chart(
        figure=figure,
        title=f"Mean score over {across.name} and {up.name}",
        note=f"Mean of {_listed(tasks)}; {done} of {len(across.values) * len(up.values)} pairs measured. {_said(across, up, cells)}"
        " Colours run over what was found, so compare numbers, not colours, between grids.",
        alt=f"Heat map of the mean score over {across.name} and {up.name}. {_said(across, up, cells)}",
        narrow={"margin": {"l": 58, "r": 4, "t": 8, "b": 102}},
    )


def best_cell(cells: Cells) -> tuple[int, int] | None:
    """Row and column of the highest score, the first of equals; None where there is none yet."""
    scored = [
        (cell.score, -row, -column)
        for row, line in enumerate(cells)
        for column, cell in enumerate(line)
        if cell is not None and cell.score is not None
    ]
    if not scored:
        return None
    _, row, column = max(scored)
    return -row, -column


def _values(
    across: Axis, up: Axis, cells: Cells, best: tuple[int, int] | None, *, numbered: bool
) -> go.Heatmap:
    def written(row: int, column: int) -> str:
        cell = cells[row][column]
        if cell is None or cell.score is None:
            return ""
        number = f"{100 * cell.score:.0f}"
        return f"<b>{number}</b>" if (row, column) == best else number

    return go.Heatmap(
        z=[[None if cell is None else cell.score for cell in line] for line in cells],
        x=_labels(across),
        y=_labels(up),
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        text=[[written(row, column) for column in range(len(line))] for row, line in enumerate(cells)],
        texttemplate="%{text}" if numbered else None,
        textfont={"size": 12},
        customdata=[[text(cell.told) if cell is not None else "" for cell in line] for line in cells],
        hovertemplate=f"{text(across.name)} %{{x}}, {text(up.name)} %{{y}}<br><b>%{{z:.1%}}</b> on average<br>"
        "%{customdata}<extra></extra>",
    )


def _failures(across: Axis, up: Axis, cells: Cells) -> go.Heatmap:
    """Marks the pairs that could not be merged, with the reason on hover."""

    def failed(cell: GridCell | None) -> bool:
        return cell is not None and cell.score is None

    return go.Heatmap(
        z=[[0 if failed(cell) else None for cell in line] for line in cells],
        x=_labels(across),
        y=_labels(up),
        colorscale=[[0, FAILED], [1, FAILED]],
        showscale=False,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        text=[["×" if failed(cell) else "" for cell in line] for line in cells],
        texttemplate="%{text}",
        textfont={"size": 14, "color": "#000000"},
        customdata=[[text(cell.problem) if cell is not None else "" for cell in line] for line in cells],
        hovertemplate=f"{text(across.name)} %{{x}}, {text(up.name)} %{{y}}<br>not merged: %{{customdata}}<extra></extra>",
    )


def _limits(cells: Cells) -> tuple[float, float]:
    scores = [cell.score for line in cells for cell in line if cell is not None and cell.score is not None]
    if not scores:
        return 0.0, 1.0
    low = max(0.0, ROUND * math.floor(min(scores) / ROUND))
    high = min(1.0, ROUND * math.ceil(max(scores) / ROUND))
    return (low, high) if high - low >= 2 * ROUND else (max(0.0, high - 2 * ROUND), max(high, 2 * ROUND))


def _box(cell: tuple[int, int]) -> list[dict[str, Any]]:
    """Two lines around a cell, a dark one in a pale one: one of them is seen on any colour."""
    row, column = cell
    lines = (
        {"color": "#ffffff", "width": 5, "dash": "solid"},
        {"color": "#101828", "width": 2, "dash": "solid"},
    )
    return [
        {"type": "rect", "xref": "x", "yref": "y", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5,
         "y1": row + 0.5, "line": line}
        for line in lines
    ]  # fmt: skip


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "type": "category",
        "title": {"text": text(axis.name), "standoff": 8},
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "tickangle": 0,
        "range": [-0.5, len(axis.values) - 0.5],
    }


def _labels(axis: Axis) -> list[str]:
    return [f"{value:.4g}" for value in axis.values]


def _said(across: Axis, up: Axis, cells: Cells) -> str:
    best = best_cell(cells)
    if best is None:
        return "No pair has a score yet."
    row, column = best
    cell = cells[row][column]
    assert cell is not None
    assert cell.score is not None
    return (
        f"Best so far, outlined: {across.name} {across.values[column]:.4g} and {up.name} {up.values[row]:.4g} "
        f"with {cell.score:.1%}."
    )


def _listed(tasks: Sequence[str]) -> str:
    return tasks[0] if len(tasks) == 1 else f"{', '.join(tasks[:-1])} and {tasks[-1]}" if tasks else "no task"
