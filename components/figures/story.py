"""The story of one cell of a map: how large its changes are, and whether the experts agree on their signs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import plotly.graph_objects as go

from components.figures.chart import DASHES, SERIES, Chart, new_figure, text
from components.figures.maps import CHANCE_LIMITS
from merging.inspecting.changes import Conflict, TensorStatistics, bin_edges

MOST_BARS = 6


@dataclass(frozen=True)
class Cuts:
    """Where a trim cuts: for each expert the smallest |δ| that is kept, infinite where nothing is; the density in per
    cent, and what is kept in words."""

    thresholds: Sequence[float]
    density: str
    kept: str


def change_histogram(
    statistics: TensorStatistics, names: Sequence[str], where: str, *, cuts: Cuts | None = None
) -> Chart | None:
    """Distribution of |δ| for each expert over half-octave bins, with the cuts of a trim; None where no expert changed
    anything."""
    used = [b for b, counts in enumerate(zip(*statistics.histogram, strict=True)) if any(counts)]
    if not used:
        return None
    edges = bin_edges()
    first, last = max(0, used[0] - 1), min(len(edges) - 2, used[-1] + 1)
    figure = new_figure(
        height=300,
        margin={"l": 56, "r": 8, "t": 36, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=len(names) > 1,
        hovermode="x unified",
        uirevision=where,
        xaxis={
            "type": "log",
            "title": {"text": "size of the change, |δ| (log)", "standoff": 8},
            "exponentformat": "power",
            "dtick": 1,
            "fixedrange": True,
            "unifiedhovertitle": {"text": "|δ| from %{x:.2~e}"},
        },
        yaxis={"title": {"text": "share of weights"}, "rangemode": "tozero", "fixedrange": True},
    )
    for index, name in enumerate(names):
        if statistics.changed_share(index) is None:
            continue
        counts = statistics.histogram[index]
        shares = [count / max(1, statistics.elements) for count in counts[first : last + 1]]
        figure.add_trace(
            go.Scatter(
                x=edges[first : last + 1],
                y=shares,
                mode="lines",
                name=text(name),
                line={
                    "shape": "hv",
                    "width": 2,
                    "color": SERIES[index % len(SERIES)],
                    "dash": DASHES[index % len(DASHES)],
                },
                hovertemplate="%{y:.3f} of the weights",
            )
        )
    told = _draw_cuts(figure, cuts, names) if cuts is not None else ""
    shares = [statistics.changed_share(index) for index in range(len(names))]
    unchanged = ", ".join(
        f"{name} {'–' if share is None else f'{1 - share:.2f}'}"
        for name, share in zip(names, shares, strict=True)
    )
    return Chart(
        figure=figure,
        title="How large the changes are",
        note=f"Share of weights by the size of their change, in steps of √2. Unchanged: {unchanged}.{told}",
        alt=f"Histograms of the size of each expert's changes in {where}. Unchanged shares: {unchanged}.{told}",
    )


def _draw_cuts(figure: go.Figure, cuts: Cuts, names: Sequence[str]) -> str:
    """A vertical line for each expert's cut, exact; returns what the lines say."""
    shapes, told = [], []
    for index, (name, cut) in enumerate(zip(names, cuts.thresholds, strict=True)):
        if not math.isfinite(cut):
            continue
        colour, dash = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
        line = {"color": colour, "width": 1.5, "dash": dash}
        shapes.append({"type": "line", "x0": cut, "x1": cut, "y0": 0, "y1": 1, "yref": "paper", "line": line})
        told.append(f"{name} {cut:.3g}")
    figure.update_layout(shapes=shapes)
    return (
        f" Upright lines: the smallest change left by a density of {cuts.density}: {', '.join(told)}."
        if told
        else ""
    )


def sign_agreement(
    signs: Conflict,
    names: Sequence[str],
    where: str,
    *,
    after: Conflict | None = None,
    damaged: Collection[str] = (),
) -> Chart | None:
    """Share of opposite signs for each pair of experts, `after` trimming too: bars for a few pairs, a matrix for many.

    None where no weight was changed by two experts. `damaged` are those that hold NaN there.
    """
    if signs.opposite_share() is None:
        return None
    pairs = list(combinations(range(len(names)), 2))
    values = [signs.opposite_share(pair) for pair in range(len(pairs))]
    if len(pairs) <= MOST_BARS:
        figure = _bars(names, pairs, values, damaged)
        if after is not None:
            _mark_after(figure, [after.opposite_share(pair) for pair in range(len(pairs))])
    else:
        figure = _matrix(names, pairs, values)
    figure.update_layout(uirevision=where)
    told = "; ".join(
        f"{names[a]} and {names[b]} {value:.2f}"
        for (a, b), value in zip(pairs, values, strict=True)
        if value is not None
    )
    return Chart(
        figure=figure,
        title="How often two experts disagree on the sign",
        note="Share of opposite signs among weights that both changed. 0.5 = what unrelated experts would show."
        + (" Diamonds: after trimming." if after is not None and len(pairs) <= MOST_BARS else ""),
        alt=f"Share of opposite signs in {where}: {told}.",
    )


def _bars(
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    values: Sequence[float | None],
    damaged: Collection[str],
) -> go.Figure:
    none = ["NaN" if {names[a], names[b]} & set(damaged) else "none in common" for a, b in pairs]
    figure = new_figure(
        height=max(180, 44 * len(pairs) + 90),
        margin={"l": 8, "r": 24, "t": 24, "b": 52},
        bargap=0.45,
        xaxis={
            "range": [0, 1],
            "title": {"text": "share of opposite signs", "standoff": 8},
            "fixedrange": True,
            "dtick": 0.25,
        },
        yaxis={"autorange": "reversed", "automargin": True, "fixedrange": True, "showgrid": False},
        shapes=[{"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper"}],
        annotations=[
            {
                "text": "chance",
                "x": 0.5,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 11},
            }
        ],
    )
    figure.add_trace(
        go.Bar(
            x=list(values),
            y=[f"{text(names[a])} · {text(names[b])} " for a, b in pairs],
            orientation="h",
            marker={"color": "#4f5bc9"},
            text=[why if value is None else f"{value:.2f}" for value, why in zip(values, none, strict=True)],
            textposition=["outside" if value is None or value < 0.15 else "inside" for value in values],
            insidetextanchor="start",
            insidetextfont={"color": "#ffffff"},
            cliponaxis=False,
            hovertemplate="%{y}: <b>%{x:.3f}</b> of the weights that both changed<extra></extra>",
        )
    )
    return figure


def _mark_after(figure: go.Figure, values: Sequence[float | None]) -> None:
    """A diamond on each pair's bar: its share after trimming."""
    figure.add_trace(
        go.Scatter(
            x=list(values),
            y=figure.data[0].y,
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 11,
                "color": "#ffffff",
                "line": {"color": "#c9610f", "width": 2.5},
            },
            showlegend=False,
            hovertemplate="%{y}, after trimming: <b>%{x:.3f}</b> of the weights that both still change<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)


def _matrix(
    names: Sequence[str], pairs: Sequence[tuple[int, int]], values: Sequence[float | None]
) -> go.Figure:
    table: list[list[float | None]] = [[None] * len(names) for _ in names]
    for (a, b), value in zip(pairs, values, strict=True):
        table[a][b] = table[b][a] = value
    labels = [text(name) for name in names]
    figure = new_figure(
        height=34 * len(names) + 110,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"automargin": True, "fixedrange": True, "showgrid": False, "type": "category"},
        yaxis={
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "autorange": "reversed",
            "type": "category",
        },
    )
    figure.add_trace(
        go.Heatmap(
            z=table,
            x=labels,
            y=labels,
            zmin=CHANCE_LIMITS[0],
            zmax=CHANCE_LIMITS[1],
            colorscale="RdBu_r",
            showscale=False,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} and %{x}: <b>%{z:.3f}</b> of the weights that both changed<extra></extra>",
        )
    )
    return figure
