"""A search over parameters: every trial as it comes, the best so far, and where the good ones lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import Chart, new_figure, shortened, text

TRIAL, BEST, LOST, OTHER = "#667085", "#2f7ed8", "#c0453e", "#c9610f"
OTHERS, SCORE = "other trials", "mean score"
TOP = 0.1
"""The share of the trials that is drawn apart in parallel coordinates."""
MOST_AXES = 10
MOST_LINES = 200


@dataclass(frozen=True)
class TrialPoint:
    """One trial: its number from 1, its mean score, 0 to 1, or why there is none, and the values it tried by name."""

    number: int
    score: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


def tuning_chart(
    trials: Sequence[TrialPoint], tasks: Sequence[str], untuned: float | None = None, measure: str = SCORE
) -> Chart | None:
    """Every trial as a dot and the best so far as a line; None before the first.

    Args:
        untuned: the score of the recipe that the search began with.
        measure: what a score is.
    """
    if not trials:
        return None
    scored = [trial for trial in trials if trial.score is not None]
    failed = [trial for trial in trials if trial.score is None]
    known = [trial.score for trial in scored if trial.score is not None]
    floor = min([*known, *([untuned] if untuned is not None else [])], default=0.0)
    figure = new_figure(
        height=320,
        margin={"l": 62, "r": 16, "t": 34, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
        uirevision="tuning",
        xaxis={
            "title": {"text": "trial", "standoff": 8},
            "range": [0.5, max(10, trials[-1].number) + 0.5],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "tickformat": "d",
        },
        yaxis={"title": {"text": measure}, "tickformat": ".0%", "fixedrange": True, "zeroline": False},
    )
    figure.add_trace(_dots(scored))
    if scored:
        figure.add_trace(_best_line(scored, trials[-1].number))
    if failed:
        figure.add_trace(_crosses(failed, floor))
    if untuned is not None:
        figure.add_trace(_untuned_line(untuned, max(10, trials[-1].number)))
    return Chart(
        figure=figure,
        title="Score of every trial",
        note=f"{measure[:1].upper()}{measure[1:]}: {', '.join(tasks)}. {_said(trials, untuned)}",
        alt=f"Scores of {len(trials)} trials. {_said(trials, untuned)}",
        narrow={"height": 280},
    )


def parameters_chart(trials: Sequence[TrialPoint]) -> Chart | None:
    """Parallel coordinates: an axis for each parameter and one for the score, a line for each trial.

    None for fewer than three scored trials or a search over one number.
    """
    scored = sorted((t for t in trials if t.score is not None), key=lambda trial: trial.score or 0)[
        -MOST_LINES:
    ]
    names = [name for name in (scored[0].values if scored else {}) if _varies(scored, name)][:MOST_AXES]
    if len(scored) < 3 or len(names) < 2:
        return None
    columns = {name: [trial.values[name] for trial in scored] for name in names}
    columns[SCORE] = [trial.score or 0.0 for trial in scored]
    figure = new_figure(
        height=360,
        margin={"l": 34, "r": 34, "t": 58, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        showlegend=True,
        uirevision="parameters",
        **_axes(columns),
    )
    top = max(1, round(TOP * len(scored)))
    groups = (
        (OTHERS, scored[:-top], (TRIAL, 1)),
        ("best tenth", scored[-top:-1], (BEST, 1.5)),
        ("best", scored[-1:], (OTHER, 3.5)),
    )
    for name, some, look in groups:
        if some:
            figure.add_trace(_lines(name, some, columns, look))
    best = ", ".join(f"{name} {scored[-1].values[name]:.4g}" for name in names)
    return Chart(
        figure=figure,
        title="Which values the good trials have",
        note="Each line is a trial and crosses every axis at its value. Where the best lines lie close together, that "
        "parameter matters; where they spread, it hardly does.",
        alt=f"Parallel coordinates of {len(scored)} trials over {', '.join(names)}. The best has {best}.",
        narrow={"height": 420, "margin": {"l": 34, "r": 40, "t": 120, "b": 8}},
    )


def _dots(scored: Sequence[TrialPoint]) -> go.Scatter:
    return go.Scatter(
        x=[trial.number for trial in scored],
        y=[trial.score for trial in scored],
        mode="markers",
        name="trial",
        marker={"color": TRIAL, "size": 6},
        customdata=[_values_told(trial) for trial in scored],
        hovertemplate="trial %{x}: <b>%{y:.1%}</b><br>%{customdata}<extra></extra>",
    )


def _best_line(scored: Sequence[TrialPoint], last: int) -> go.Scatter:
    best = list(accumulate((trial.score or 0.0 for trial in scored), max))
    return go.Scatter(
        x=[*(trial.number for trial in scored), last],
        y=[*best, best[-1]],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": BEST, "width": 2.5},
        hovertemplate="best after trial %{x}: <b>%{y:.1%}</b><extra></extra>",
    )


def _crosses(failed: Sequence[TrialPoint], floor: float) -> go.Scatter:
    return go.Scatter(
        x=[trial.number for trial in failed],
        y=[floor] * len(failed),
        mode="markers",
        name="failed",
        marker={"color": LOST, "size": 9, "symbol": "x-thin", "line": {"color": LOST, "width": 2}},
        customdata=[f"{text(trial.problem)}<br>{_values_told(trial)}" for trial in failed],
        hovertemplate="trial %{x} failed: %{customdata}<extra></extra>",
        cliponaxis=False,
    )


def _untuned_line(untuned: float, last: int) -> go.Scatter:
    return go.Scatter(
        x=[0.5, last + 0.5],
        y=[untuned, untuned],
        mode="lines",
        name="untuned",
        line={"color": OTHER, "width": 1.5, "dash": "dot"},
        hovertemplate="before tuning: <b>%{y:.1%}</b><extra></extra>",
    )


def _lines(
    name: str,
    some: Sequence[TrialPoint],
    columns: Mapping[str, Sequence[float]],
    look: tuple[str, float],
) -> go.Scatter:
    """The lines of some trials in one trace, with gaps between them; `look`: colour and width."""
    places: list[int | None] = []
    heights: list[float | None] = []
    told: list[str] = []
    for trial in some:
        values = [*(trial.values[column] for column in list(columns)[:-1]), trial.score or 0.0]
        places += [*range(len(columns)), None]
        heights += [
            *(_share(value, column) for value, column in zip(values, columns.values(), strict=True)),
            None,
        ]
        told += [f"trial {trial.number}: <b>{trial.score:.1%}</b><br>{_values_told(trial)}"] * (
            len(columns) + 1
        )
    return go.Scatter(
        x=places,
        y=heights,
        mode="lines+markers",
        name=name,
        line={"color": look[0], "width": look[1]},
        marker={"size": 4},
        opacity=0.4 if name == OTHERS else 1.0,
        customdata=told,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _axes(columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """An upright axis for each column, with its name above and its lowest and highest value at its ends."""
    ends = []
    for place, (name, values) in enumerate(columns.items()):
        form = "{:.0%}" if name == SCORE else "{:.3g}"
        for height, value, anchor in ((0, min(values), "top"), (1, max(values), "bottom")):
            ends.append(
                {
                    "text": form.format(value),
                    "x": place,
                    "y": height,
                    "yanchor": anchor,
                    "showarrow": False,
                    "font": {"size": 11},
                }
            )
    return {
        "annotations": ends,
        "xaxis": {
            "side": "top",
            "tickvals": list(range(len(columns))),
            "ticktext": [text(shortened(name, 18)) for name in columns],
            "range": [-0.3, len(columns) - 0.7],
            "fixedrange": True,
            "zeroline": False,
            "gridwidth": 2,
            "ticks": "",
        },
        "yaxis": {"range": [-0.1, 1.1], "visible": False, "fixedrange": True},
    }


def _share(value: float, column: Sequence[float]) -> float:
    """Where a value lies between the lowest and the highest of its column, from 0 to 1."""
    low, high = min(column), max(column)
    return (value - low) / (high - low) if high > low else 0.5


def _varies(trials: Sequence[TrialPoint], name: str) -> bool:
    """Whether every trial has a number of this name and they differ."""
    return all(name in trial.values for trial in trials) and len({trial.values[name] for trial in trials}) > 1


def _values_told(trial: TrialPoint) -> str:
    return text(", ".join(f"{name} {value:.4g}" for name, value in trial.values.items()))


def _said(trials: Sequence[TrialPoint], untuned: float | None) -> str:
    """How many trials there are, and how far the best one is above the start."""
    scored = [trial for trial in trials if trial.score is not None]
    lost = len(trials) - len(scored)
    parts = [f"{len(trials)} trial{'s' if len(trials) != 1 else ''}{f', {lost} failed' if lost else ''}."]
    if scored:
        best = max(scored, key=lambda trial: (trial.score or 0.0, -trial.number))
        parts.append(f"Best so far: trial {best.number} with {best.score:.1%}.")
        if untuned is not None:
            parts.append(f"Untuned: {untuned:.1%}.")
    return " ".join(parts)
