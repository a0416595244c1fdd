"""The parameters that every tensor really gets, once gradients, filters and overrides are resolved."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import Chart
from components.figures.fate import LOW_CELL, fix_scale, names_at, preview_grid
from components.figures.maps import panels_chart
from components.figures.metrics import MapWords, Panel
from merging import METHODS
from merging.reports.report import Cell, Preview, placed

BASE = "base"
"""What stands in a cell whose tensors are copied from the base."""
NOT_MAPPED = ("seed",)


def parameters(preview: Preview) -> list[str]:
    """The parameters with numbers to map: those that vary over the tensors first, then each expert's own."""
    found = [name for name in _fields(preview) if name not in NOT_MAPPED and _numeric(preview, name)]
    per_model = METHODS[preview.method].per_model()
    return sorted(found, key=lambda name: (not varies(preview, name), name not in per_model))


def varies(preview: Preview, name: str) -> bool:
    """Whether a parameter is not the same in all merged tensors."""
    values = [given[name] for given in _merged(preview).values() if name in given]
    return any(value != values[0] for value in values)


def words_for(preview: Preview, name: str) -> MapWords:
    """What the map of one parameter says of itself."""
    field = METHODS[preview.method].parameters()[name]
    same = (
        "It varies over the model."
        if varies(preview, name)
        else "It is the same everywhere; brush cells to vary it."
    )
    return MapWords(
        key=f"parameter {name}",
        label="Parameters",
        title=f"The {name} that every tensor gets",
        note=f"{same} Cells marked “{BASE}” are copied from the base.",
        hover=f"is the {name} here",
        explanation=f"{field.description or ''} This is what the recipe comes to once its gradients over the blocks, filters "
        "and overrides are resolved for each tensor, so a mistake in a filter shows here before anything is merged.".strip(),
        scale="robust",
        significant=True,
    )


def parameter_panels(
    preview: Preview, names: Sequence[str], name: str, *, everything: bool = False
) -> list[Panel]:
    """One small map, or one an expert for a parameter of the experts; the mean where a cell's tensors differ."""
    cells = _cells(preview, name, everything=everything)
    each = any(isinstance(value, tuple) for values in cells.values() for value in values)
    if not each:
        grid = preview_grid(preview, lambda cell: _mean(cells.get(cell)), everything=everything)
        return [Panel("the whole merge", grid)]
    return [
        Panel(
            expert,
            preview_grid(preview, lambda cell, n=number: _mean(cells.get(cell), n), everything=everything),
        )
        for number, expert in enumerate(names)
    ]


def parameter_chart(
    preview: Preview, names: Sequence[str], name: str, *, everything: bool = False
) -> Chart | None:
    """The map of one parameter, from 0 or its smallest value to 1 or its largest; None where nothing is merged."""
    if name not in _fields(preview):
        return None
    words, shown = words_for(preview, name), parameter_panels(preview, names, name, everything=everything)
    chart = panels_chart(words, shown, everything=everything, low_cell=LOW_CELL)
    if chart is None:
        return None
    known = [value for panel in shown for line in panel.grid.values for value in line if value is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    step = (high - low) / 4
    fix_scale(chart.figure, low, high, "Cividis", "~g", [low + step * number for number in range(5)])
    _mark_copied(chart.figure, preview, shown)
    return chart


def _mark_copied(figure: go.Figure, preview: Preview, shown: Sequence[Panel]) -> None:
    """Write what is copied into the gaps that are copied tensors."""
    copied = set(preview.copied)
    for trace, panel in zip(list(figure.data), shown, strict=True):
        grid = panel.grid
        marks = [
            [
                0.0 if value is None and copied & set(names_at(preview, (row, column))) else None
                for column, value in zip(grid.columns, line, strict=True)
            ]
            for row, line in zip(grid.rows, grid.values, strict=True)
        ]
        if not any(mark is not None for line in marks for mark in line):
            continue
        figure.add_trace(
            go.Heatmap(
                z=marks,
                x=trace.x,
                y=trace.y,
                xaxis=trace.xaxis,
                yaxis=trace.yaxis,
                colorscale=[[0, "#d5d9e2"], [1, "#d5d9e2"]],
                showscale=False,
                xgap=1,
                ygap=1,
                hoverongaps=False,
                customdata=trace.customdata,
                # a plain template would be written over the other trace's numbers, too
                text=[["" if mark is None else BASE for mark in line] for line in marks],
                texttemplate="%{text}" if trace.texttemplate else None,
                textfont=trace.textfont,
                hovertemplate="%{customdata}<br><b>copied from the base</b><extra></extra>",
            )
        )


def _fields(preview: Preview) -> Mapping[str, Any]:
    """The parameters of the preview's method that its tensors have."""
    given = next(iter(_merged(preview).values()), {})
    return {name: field for name, field in METHODS[preview.method].parameters().items() if name in given}


def _merged(preview: Preview) -> dict[str, dict[str, Any]]:
    return {name: given for name, given in preview.effective.items() if name in preview.tensors}


def _numeric(preview: Preview, name: str) -> bool:
    values = next(iter(_merged(preview).values()))[name]
    return all(_is_number(value) for value in (values if isinstance(values, tuple) else (values,)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cells(preview: Preview, name: str, *, everything: bool) -> dict[Cell, list[Any]]:
    cells: dict[Cell, list[Any]] = {}
    merged = _merged(preview)
    for tensor, place in placed([*preview.tensors, *preview.copied], everything=everything).items():
        if tensor in merged and name in merged[tensor]:
            cells.setdefault((place.block, place.kind), []).append(merged[tensor][name])
    return cells


def _mean(values: Sequence[Any] | None, expert: int = 0) -> float | None:
    numbers = [value[expert] if isinstance(value, tuple) else value for value in values or ()]
    known = [number for number in numbers if _is_number(number)]
    return sum(known) / len(known) if known else None


def caption(preview: Preview) -> str:
    """How many tensors are merged and copied, in a sentence."""
    return html.escape(f"{len(preview.tensors)} tensors are merged, {len(preview.copied)} copied.")
