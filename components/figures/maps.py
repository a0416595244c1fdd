"""Maps of a whole model: blocks downwards, modules across, one small map for each expert or pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from components.figures.cells import TALLEST, cell_height, centre, nan_trace, value_trace
from components.figures.chart import Chart, decimals, heading, new_figure, shortened
from components.figures.metrics import cell_name, panels, worded
from components.figures.words import MapWords, Metric, Panel
from merging import Report
from merging.cards.colours import percentile
from merging.reports.report import Grid

MOST_ACROSS = 4
LETTERS = (44, 72, 46, 32)
"""Letters of a small map's name that have room above it, where one, two, three or four stand side by side."""
MOST_NUMBERED = 28
"""Cells side by side that are still wide enough for their number."""
CHANCE_LIMITS = (0.4, 0.6)
"""Fixed colour limits of the sign conflict; values beyond them keep the last colour and their number."""
LEAST_LIMIT = 0.02
"""The colours around a cell's own chance level reach at least this far."""
TITLE, TICKS, BAR = 26, 26, 44
"""Pixels above a small map for its name, below it for its modules, and below all for the colour scale."""


def map_chart(
    report: Report, metric: Metric, *, everything: bool = False, trimmed: bool = False
) -> Chart | None:
    """The map of one metric; None where it has nothing to show (a conflict needs two experts)."""
    shown = panels(report, metric, everything=everything, trimmed=trimmed)
    return panels_chart(worded(report, metric, trimmed), shown, everything=everything)


def panels_chart(
    metric: MapWords, shown: Sequence[Panel], *, everything: bool = False, low_cell: int = TALLEST
) -> Chart | None:
    """Small maps side by side on one scale; None where there are none, or none with a number.

    Args:
        low_cell: most pixels of a cell's height where the maps stand below each other.
    """
    if not shown or not shown[0].grid.rows:
        return None
    across = math.ceil(len(shown) / math.ceil(len(shown) / MOST_ACROSS))
    figure = new_figure(
        coloraxis=_coloraxis(metric, shown),
        uirevision=f"{metric.key} {everything}",
        **_arrange(shown, across),
    )
    digits = decimals(_values(shown)) + 1
    formats = (".2r", ".3r") if metric.significant else (f".{digits}f", f".{digits}f")
    numbered = len(shown[0].grid.columns) * across <= MOST_NUMBERED and len(shown[0].grid.rows) <= 16
    for number, panel in enumerate(shown, 1):
        trace = value_trace(panel, number, metric.hover, formats, numbered=numbered)
        if metric.scale == "own chance":
            centre(trace, panel, metric.hover, digits, numbered=numbered)
        figure.add_trace(trace)
    for number, panel in enumerate(shown, 1):
        if panel.broken is not None:
            figure.add_trace(nan_trace(panel, number))
    return Chart(
        figure=figure,
        title=metric.title,
        note=metric.note,
        alt=f"{metric.title}. {_summary(shown)} The table below holds all numbers.",
        narrow=_arrange(shown, 1, low_cell),
    )


def strongest_cell(report: Report, metric: Metric, *, everything: bool = False) -> tuple[int, int] | None:
    """Row and column of the largest value in the first small map that has one."""
    for panel in panels(report, metric, everything=everything):
        cells = [
            (value, row, column)
            for row, line in enumerate(panel.grid.values)
            for column, value in enumerate(line)
            if value is not None
        ]
        if cells:
            _, row, column = max(cells, key=lambda cell: cell[0])
            return row, column
    return None


def _arrange(shown: Sequence[Panel], across: int, tallest: int = TALLEST) -> dict[str, Any]:
    """Layout keys that place the small maps in rows of `across`: axes, names and the height of the whole."""
    grid = shown[0].grid
    cell = cell_height(grid, tallest)
    ticks = TICKS if max(map(len, grid.columns)) <= 5 else 3 * TICKS
    step = TITLE + cell * len(grid.rows) + ticks
    lines = math.ceil(len(shown) / across)
    margin = {"l": 44 if None not in grid.rows else 72, "r": 8, "t": 4, "b": BAR}
    plot = lines * step
    gap = 0.03
    width = (1 - gap * (across - 1)) / across
    layout: dict[str, Any] = {"height": plot + margin["t"] + margin["b"], "margin": margin, "annotations": []}
    for index, panel in enumerate(shown):
        line, column = divmod(index, across)
        suffix = "" if index == 0 else str(index + 1)
        left, top = column * (width + gap), 1 - (line * step + TITLE) / plot
        bottom = top - cell * len(grid.rows) / plot
        layout[f"xaxis{suffix}"] = _axis(
            [left, left + width], f"y{suffix}", tickangle=0 if ticks == TICKS else -50
        )
        layout[f"yaxis{suffix}"] = _axis(
            [bottom, top],
            f"x{suffix}",
            autorange="reversed",
            showticklabels=column == 0,
            **_labels(grid, first=column == 0),
        )
        layout["annotations"].append(heading(shortened(panel.name, LETTERS[across - 1]), left, top))
    return layout


def _axis(domain: list[float], anchor: str, **more: Any) -> dict[str, Any]:
    return {
        "domain": domain,
        "anchor": anchor,
        "type": "category",
        "fixedrange": True,
        "showgrid": False,
        "ticks": "",
        "zeroline": False,
        **more,
    }


def _labels(grid: Grid, *, first: bool) -> dict[str, Any]:
    """Block numbers that do not overlap in tall maps; the axis is named once in a row of small maps."""
    title = {"title": {"text": "block", "standoff": 6, "font": {"size": 11}}} if first else {}
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50) if step * cell_height(grid) >= 14 or step == 50)
    return {"dtick": step, **title}


def _coloraxis(metric: MapWords, shown: Sequence[Panel]) -> dict[str, Any]:
    bar = {
        "orientation": "h",
        "thickness": 8,
        "len": 1,
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yref": "container",
        "yanchor": "bottom",
        "ypad": 4,
        "outlinewidth": 0,
        "ticks": "",
        "nticks": 7,
    }
    values = sorted(_values(shown))
    low, high = percentile(values, 0.02), percentile(values, 0.98)
    digits = max(decimals(values), decimals([high - low]) if metric.scale == "robust" and high > low else 0)
    bar["tickformat"] = "~g" if metric.significant else f".{digits}f"
    if metric.scale == "chance":
        low, high = CHANCE_LIMITS
        ticks = [low, 0.45, 0.5, 0.55, high]
        labels = [f"≤ {low}", "0.45", "0.5 (chance)", "0.55", f"≥ {high}"]
        return {
            "colorscale": "RdBu_r",
            "cmin": low,
            "cmax": high,
            "colorbar": {**bar, "tickvals": ticks, "ticktext": labels},
        }
    if metric.scale == "own chance":
        return {"colorscale": "RdBu_r", **_around_chance(shown, bar)}
    if metric.scale == "share":
        return {"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": bar}
    if metric.scale == "signed":
        limit = max(0.1, abs(low), abs(high))
        return {"colorscale": "RdBu_r", "cmin": -limit, "cmax": limit, "colorbar": bar}
    return {"colorscale": "Cividis", "cmin": low, "cmax": high if high > low else low + 1e-9, "colorbar": bar}


def _around_chance(shown: Sequence[Panel], bar: dict[str, Any]) -> dict[str, Any]:
    """Colour limits as far above each cell's chance level as below, and the words beside them."""
    distances = [
        abs(value - chance)
        for panel in shown
        if panel.chance is not None
        for lines in zip(panel.grid.values, panel.chance.values, strict=True)
        for value, chance in zip(*lines, strict=True)
        if value is not None and chance is not None
    ]
    limit = max(LEAST_LIMIT, percentile(sorted(distances), 0.98))
    step = 0.9 * limit
    ticks, labels = [-step, 0, step], [f"−{step:.2f}", "chance", f"+{step:.2f}"]
    return {"cmin": -limit, "cmax": limit, "colorbar": {**bar, "tickvals": ticks, "ticktext": labels}}


def _values(shown: Sequence[Panel]) -> list[float]:
    return [value for panel in shown for line in panel.grid.values for value in line if value is not None]


def _summary(shown: Sequence[Panel]) -> str:
    sentences = []
    for panel in shown:
        cells = [
            (value, cell_name(block, kind))
            for block, line in zip(panel.grid.rows, panel.grid.values, strict=True)
            for kind, value in zip(panel.grid.columns, line, strict=True)
            if value is not None
        ]
        if cells:
            (low, where_low), (high, where_high) = min(cells), max(cells)
            sentences.append(f"{panel.name}: {low:.3g} ({where_low}) to {high:.3g} ({where_high}).")
    return " ".join(sentences)
