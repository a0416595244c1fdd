"""Scores of models beside each other: one small plot a task, a bar a model, with the interval of each score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import Chart, heading, new_figure, shortened, text

PARENT, RUN = "#667085", "#2f7ed8"
"""Colours of parents and of merges; each reaches a contrast of 3 on the light and on the dark page."""
MOST_ACROSS = 4
LETTERS, NARROW_LETTERS = 30, 20
"""Letters of a model's name beside its bars."""
TALLEST, LOWEST = 26, 15
"""Pixels of a bar with its gap: few are tall, many are low."""
ROOM = 0.2
"""What a small plot has beyond 100 % for the numbers."""


@dataclass(frozen=True)
class TaskScore:
    """A model's score on one task, 0 to 1, over `n` items, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        right = round(self.value * self.n)
        return f"{self.value:.1%} correct ({right} of {self.n:,}), 95 % interval {self.low:.1%} to {self.high:.1%}"


@dataclass(frozen=True)
class ScoredModel:
    """A model with its score on each task, None where it was not asked; `parent`: the base or an expert."""

    name: str
    scores: tuple[TaskScore | None, ...]
    parent: bool = False


def scores_chart(models: Sequence[ScoredModel], tasks: Sequence[str]) -> Chart | None:
    """A small plot for each task, models in the given order but parents first; None where nothing was scored.

    Every plot runs from 0 to 100 %, so that tasks can be compared.
    """
    shown = sorted(models, key=lambda model: not model.parent)
    asked = [task for task in range(len(tasks)) if any(model.scores[task] for model in shown)]
    if not asked:
        return None
    figure = new_figure(
        barmode="overlay",
        bargap=0.28,
        uirevision="scores",
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        **_arrange(shown, [tasks[task] for task in asked], min(MOST_ACROSS, len(asked))),
    )
    for place, task in enumerate(asked):
        for parents in (True, False):
            found = [
                (row, model, score)
                for row, model in enumerate(shown)
                if model.parent == parents and (score := model.scores[task]) is not None
            ]
            if found:
                first = not any(trace.name == _group(parents) for trace in figure.data)
                figure.add_trace(_bars(found, tasks[task], place, legend=first))
        figure.add_trace(_numbers(shown, task, place))
    return Chart(
        figure=figure,
        title="Score of every model on every task",
        note="Share of the items answered correctly. The line on a bar is the 95 % interval (Wilson): where two lines overlap "
        "much, the difference may be chance.",
        alt=f"Scores. {' '.join(_told(model, tasks) for model in shown)} The table holds all numbers.",
        narrow=_arrange(shown, [tasks[task] for task in asked], 1),
    )


def _bars(
    found: Sequence[tuple[int, ScoredModel, TaskScore]], task: str, place: int, *, legend: bool
) -> go.Bar:
    """The bars of the parents or of the merges on one task."""
    parents = found[0][1].parent
    colour, suffix = PARENT if parents else RUN, _suffix(place)
    scores = [score for _, _, score in found]
    return go.Bar(
        orientation="h",
        x=[score.value for score in scores],
        y=[row for row, _, _ in found],
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        name=_group(parents),
        legendgroup=_group(parents),
        showlegend=legend,
        width=0.72,
        # pale, so that the line of the interval is seen on the bar as well as beside it
        marker={
            "color": _pale(colour),
            "line": {"color": colour, "width": 1},
            "pattern": {"shape": "/" if parents else "", "fgcolor": colour, "fgopacity": 0.35, "size": 6},
        },
        error_x={
            "type": "data",
            "array": [score.high - score.value for score in scores],
            "arrayminus": [score.value - score.low for score in scores],
            "color": colour,
            "thickness": 2,
            "width": 3,
        },
        customdata=[f"{text(model.name)}, {text(task)}<br><b>{score}</b>" for _, model, score in found],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _numbers(shown: Sequence[ScoredModel], task: int, place: int) -> go.Scatter:
    """The scores as numbers at the right edge; the best one is bold."""
    suffix = _suffix(place)
    known = [(row, model.scores[task]) for row, model in enumerate(shown)]
    best = max(score.value for _, score in known if score is not None)

    def written(score: TaskScore | None) -> str:
        if score is None:
            return "–"
        number = f"{100 * score.value:.0f}"
        return f"<b>{number}</b>" if score.value == best else number

    return go.Scatter(
        mode="text",
        x=[1 + ROOM] * len(known),
        y=[row for row, _ in known],
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        text=[written(score) for _, score in known],
        textposition="middle left",
        textfont={"size": 12},
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
    )


def _arrange(shown: Sequence[ScoredModel], tasks: Sequence[str], across: int) -> dict[str, Any]:
    """Layout keys that place the small plots in rows of `across`, and a line between parents and merges."""
    bar = max(LOWEST, min(TALLEST, 620 // len(shown)))
    lines, head, foot = math.ceil(len(tasks) / across), 26, 26
    inside = bar * len(shown)
    step = head + inside + foot
    narrow = across == 1 and len(tasks) > 1
    names = [shortened(model.name, NARROW_LETTERS if narrow else LETTERS) for model in shown]
    left = min(210, 14 + 7 * max(map(len, names)))
    gap = 0.025
    width = (1 - gap * (across - 1)) / across
    parents = sum(model.parent for model in shown)
    layout: dict[str, Any] = {
        "height": lines * step + 34,
        "margin": {"l": left, "r": 8, "t": 30, "b": 4},
        "annotations": [],
        "shapes": [],
    }
    for place, task in enumerate(tasks):
        line, column = divmod(place, across)
        suffix, start = _suffix(place), column * (width + gap)
        top = 1 - (line * step + head) / (lines * step)
        bottom = top - inside / (lines * step)
        layout[f"xaxis{suffix}"] = {
            "domain": [start, start + width],
            "anchor": f"y{suffix}",
            "range": [0, 1 + ROOM],
            "tickvals": [0, 0.5, 1],
            "ticktext": ["0", "50", "100 %"],
            "fixedrange": True,
            "zeroline": False,
        }
        layout[f"yaxis{suffix}"] = {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
            "range": [len(shown) - 0.5, -0.5],
            "tickvals": list(range(len(shown))),
            "ticktext": [text(name) for name in names],
            "showticklabels": column == 0,
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        }
        layout["annotations"].append(heading(shortened(task, LETTERS), start, top))
        if 0 < parents < len(shown):
            layout["shapes"].append(_divider(parents - 0.5, suffix))
    return layout


def _divider(height: float, suffix: str) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": f"x{suffix}",
        "yref": f"y{suffix}",
        "x0": 0,
        "x1": 1 + ROOM,
        "y0": height,
        "y1": height,
    }


def _suffix(place: int) -> str:
    return "" if place == 0 else str(place + 1)


def _group(parents: bool) -> str:
    return "parents" if parents else "merges"


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.28)"


def _told(model: ScoredModel, tasks: Sequence[str]) -> str:
    said = [
        f"{task} {score.value:.0%}"
        for task, score in zip(tasks, model.scores, strict=True)
        if score is not None
    ]
    return f"{model.name}{' (parent)' if model.parent else ''}: {', '.join(said) or 'not asked'}."
