"""Importance in detail: heads and rows of one cell, and how removing parts by it hurts an expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import DASHES, SERIES, Chart, new_figure, text
from components.figures.importance_maps import MILLI, Cell
from components.figures.metrics import cell_name
from merging import Importance, Report
from merging.importances.agreement import CHANGE, Agreement

PATTERNS = ("", "/", "x", ".", "\\", "+", "-", "|")
"""A hatching for each expert, so that colour is never the only difference."""
MOST_POINTS = 512
"""Rows drawn one by one; more are summed in equal runs."""
ACROSS = 3
CURVE_HEIGHT = 230


def part_scores(
    report: Report, importance: Importance, places: Sequence[int], cell: Cell
) -> tuple[list[str], list[list[float]]]:
    """Labels of the heads or rows of one cell, and each expert's signed importance of them in nats.

    Empty where the module is not cut there.
    """
    partitions, labels = importance.partitions, []
    numbers: list[int] = []
    for name in report.names_at(*cell):
        index = partitions.index.get(name)
        if index is None or index.numel() < 2 or partitions[int(index.flatten()[0])].tensors[0] != name:
            continue
        numbers += index.unique().tolist()
    kinds = {partitions[number].kind for number in numbers}
    for number in numbers:
        part = partitions[number]
        label = part.key.rpartition("/")[2]
        labels.append(f"{part.kind} {label}" if len(kinds) > 1 else label)
    return labels, importance.signed[list(places)][:, numbers].tolist() if numbers else []


def head_chart(
    labels: Sequence[str], signed: Sequence[Sequence[float]], names: Sequence[str], cell: Cell
) -> Chart | None:
    """A group of bars for each head, a bar an expert; None where there are no heads."""
    if not labels:
        return None
    figure = new_figure(
        height=300,
        margin={"l": 56, "r": 8, "t": 36, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        barmode="group",
        uirevision=cell_name(*cell),
        xaxis={"type": "category", "fixedrange": True, "showgrid": False},
        yaxis={"title": {"text": "importance (mnat)"}, "rangemode": "tozero", "fixedrange": True},
    )
    for expert, values in enumerate(signed):
        figure.add_trace(
            go.Bar(
                x=list(labels),
                y=[MILLI * abs(value) for value in values],
                name=text(names[expert]),
                customdata=[_direction(value) for value in values],
                marker={
                    "color": SERIES[expert % len(SERIES)],
                    "pattern": {
                        "shape": PATTERNS[expert % len(PATTERNS)],
                        "fgcolor": "#ffffff",
                        "bgcolor": SERIES[expert % len(SERIES)],
                        "fgopacity": 0.6,
                    },
                },
                hovertemplate=f"{text(names[expert])}, %{{x}}: <b>%{{y:.3r}}</b> mnat, %{{customdata}}<extra></extra>",
            )
        )
    return Chart(
        figure=figure,
        title="Importance of each attention head",
        note="Rows of q, k and v that belong to a head; columns of o. By gradients, in thousandths of a nat.",
        alt=f"Importance of the heads of {cell_name(*cell)}: {_peaks(labels, signed, names)}",
    )


def row_chart(
    labels: Sequence[str], signed: Sequence[Sequence[float]], names: Sequence[str], cell: Cell
) -> Chart | None:
    """A line over the rows for each expert; None where the module has no rows of its own."""
    if not labels:
        return None
    run = math.ceil(len(labels) / MOST_POINTS)
    figure = new_figure(
        height=300,
        margin={"l": 56, "r": 8, "t": 36, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
        uirevision=cell_name(*cell),
        xaxis={
            "title": {"text": "row (output) of the matrix", "standoff": 8},
            "fixedrange": True,
            "showgrid": False,
        },
        yaxis={"title": {"text": "importance (mnat)"}, "rangemode": "tozero", "fixedrange": True},
    )
    for expert, values in enumerate(signed):
        heights = [MILLI * sum(map(abs, values[start : start + run])) for start in range(0, len(values), run)]
        figure.add_trace(
            go.Scatter(
                x=list(range(0, len(values), run)),
                y=heights,
                mode="lines",
                name=text(names[expert]),
                line={
                    "width": 1.5,
                    "color": SERIES[expert % len(SERIES)],
                    "dash": DASHES[expert % len(DASHES)],
                },
                hovertemplate="%{y:.3r} mnat",
            )
        )
    summed = f" Each point sums {run} rows." if run > 1 else ""
    return Chart(
        figure=figure,
        title="Importance of each row",
        note=f"One row is one output of the matrix. By gradients, in thousandths of a nat.{summed}",
        alt=f"Importance of the rows of {cell_name(*cell)}: {_peaks(labels, signed, names)}",
    )


def curves_chart(agreement: Agreement) -> Chart:
    """Small plots, one an expert: its loss with its top partitions put back to the base, for each ranking."""
    experts = agreement.experts
    across = min(ACROSS, len(experts))
    figure = new_figure(
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        **_arrange([one.expert for one in experts], across),
    )
    for number, one in enumerate(experts):
        suffix = "" if number == 0 else str(number + 1)
        ticks = [str(count) for count in one.counts]
        for index, (name, losses) in enumerate(one.curves.items()):
            figure.add_trace(
                go.Scatter(
                    x=ticks,
                    y=list(losses),
                    xaxis=f"x{suffix}",
                    yaxis=f"y{suffix}",
                    mode="lines+markers",
                    name=text(_curve_name(name)),
                    legendgroup=name,
                    showlegend=number == 0,
                    line={"width": 2, "color": SERIES[index], "dash": DASHES[index]},
                    marker={"size": 5},
                    hovertemplate=f"{text(one.expert)}, %{{x}} put back by {text(_curve_name(name))}: "
                    "<b>%{y:.3r}</b> nats<extra></extra>",
                )
            )
    return Chart(
        figure=figure,
        title="What happens when the top parts are put back to the base",
        note="Loss of each expert on its own task (nats per answer token) with its top 1, 2, 4, … matrices put back. A "
        "ranking that finds what matters rises early; a useless one rises no earlier than chance.",
        alt="Removal curves. " + " ".join(map(_told, experts)),
        narrow=_arrange([one.expert for one in experts], 1),
    )


def _arrange(names: Sequence[str], across: int) -> dict[str, Any]:
    """Layout keys that place the small plots in rows of `across`."""
    lines = math.ceil(len(names) / across)
    top, gap = 36, 0.07
    width = (1 - gap * (across - 1)) / across
    layout: dict[str, Any] = {
        "height": lines * CURVE_HEIGHT + top,
        "margin": {"l": 56, "r": 8, "t": top, "b": 8},
        "annotations": [],
    }
    for number, name in enumerate(names):
        line, column = divmod(number, across)
        suffix = "" if number == 0 else str(number + 1)
        left = column * (width + gap)
        upper, lower = 1 - (line + 0.12) / lines, 1 - (line + 0.78) / lines
        layout[f"xaxis{suffix}"] = {
            "domain": [left, left + width],
            "anchor": f"y{suffix}",
            "type": "category",
            "fixedrange": True,
            "showgrid": False,
            "title": {"text": "matrices put back", "standoff": 4, "font": {"size": 11}},
        }
        layout[f"yaxis{suffix}"] = {
            "domain": [lower, upper],
            "anchor": f"x{suffix}",
            "rangemode": "tozero",
            "fixedrange": True,
            **({"title": {"text": "loss (nats)", "font": {"size": 11}}} if column == 0 else {}),
        }
        layout["annotations"].append(
            {
                "text": f"<b>{text(name)}</b>",
                "x": left,
                "y": upper,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 13},
            }
        )
    return layout


def _curve_name(name: str) -> str:
    return {CHANGE: "‖δ‖² alone", "random": "chance"}.get(name, name)


def _told(one: Any) -> str:
    first = {name: losses[min(3, len(losses) - 1)] for name, losses in one.curves.items()}
    count = one.counts[min(3, len(one.counts) - 1)]
    said = ", ".join(f"{_curve_name(name)} {loss:.3g}" for name, loss in first.items())
    return f"{one.expert}, loss with {count} put back: {said}."


def _direction(value: float) -> str:
    return "the change lowers the loss" if value < 0 else "the change raises the loss"


def _peaks(labels: Sequence[str], signed: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    told = []
    for name, values in zip(names, signed, strict=True):
        best = max(range(len(values)), key=lambda number: abs(values[number]))
        told.append(f"{name} most in {labels[best]} ({MILLI * abs(values[best]):.3g} mnat)")
    return "; ".join(told) + "."
