"""Two tasks against each other: which models give the most of one for what they lose of the other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from components.figures.chart import Chart, new_figure, shortened, text
from components.figures.scores import PARENT, RUN, ScoredModel, TaskScore

FRONT = "#c9610f"
LETTERS = 22
"""Letters of a model's name beside its point."""
MOST_NAMED = 12
"""Points that are named in the plot; of more, only parents and those on the front are."""

Point = tuple[ScoredModel, TaskScore, TaskScore]


def pareto_chart(models: Sequence[ScoredModel], tasks: Sequence[str], across: int, up: int) -> Chart | None:
    """Every model that was asked both tasks, as a point with its intervals; None where there is none.

    Args:
        across: the place in `tasks` of the task on the horizontal axis; `up` that of the vertical one.
    """
    points: list[Point] = [
        (model, x, y)
        for model in models
        if (x := model.scores[across]) is not None and (y := model.scores[up]) is not None
    ]
    if not points:
        return None
    front = pareto_front([(x.value, y.value) for _, x, y in points])
    figure = new_figure(
        height=460,
        margin={"l": 62, "r": 16, "t": 34, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
        uirevision=f"{across} {up}",
        xaxis=_axis(tasks[across], [x for _, x, _ in points]),
        yaxis=_axis(tasks[up], [y for _, _, y in points]),
    )
    figure.add_trace(_front_line([points[place] for place in front]))
    for parents in (True, False):
        places = [place for place, (model, _, _) in enumerate(points) if model.parent == parents]
        if places:
            figure.add_trace(_marks([points[p] for p in places], [p in front for p in places], tasks[across], tasks[up],
                                    named=len(points) <= MOST_NAMED))  # fmt: skip
    best = ", ".join(points[place][0].name for place in front)
    return Chart(
        figure=figure,
        title=f"{tasks[across]} against {tasks[up]}",
        note="Up and to the right is better. Nothing beats a model on the stepped line (the Pareto front) at both tasks; "
        "hollow points are beaten by one that is as good at both and better at one. Crosses are 95 % intervals.",
        alt=f"{len(points)} models by their scores on {tasks[across]} and {tasks[up]}. On the Pareto front: {best}.",
        narrow={"height": 400},
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other is better than in one number and at least as good as in the other, by
    their first number."""

    def beaten(one: tuple[float, float]) -> bool:
        return any(x >= one[0] and y >= one[1] and (x, y) != one for x, y in points)

    kept = [place for place, point in enumerate(points) if not beaten(point)]
    return sorted(kept, key=lambda place: points[place])


def _front_line(front: Sequence[Point]) -> go.Scatter:
    """The front as steps: what lies below and to the left of it is beaten."""
    return go.Scatter(
        x=[0, *(x.value for _, x, _ in front), front[-1][1].value],
        y=[front[0][2].value, *(y.value for _, _, y in front), 0],
        mode="lines",
        line={"shape": "vh", "color": FRONT, "width": 2, "dash": "dash"},
        name="Pareto front",
        hoverinfo="skip",
    )


def _marks(
    points: Sequence[Point], on_front: Sequence[bool], across: str, up: str, *, named: bool
) -> go.Scatter:
    parents = points[0][0].parent
    colour = PARENT if parents else RUN
    symbol = "diamond" if parents else "circle"
    return go.Scatter(
        x=[x.value for _, x, _ in points],
        y=[y.value for _, _, y in points],
        mode="markers+text",
        name="parents" if parents else "merges",
        marker={
            "color": colour,
            "size": 10,
            "symbol": [symbol if best else f"{symbol}-open" for best in on_front],
            "line": {"width": 2},
        },
        error_x=_cross([x for _, x, _ in points], colour),
        error_y=_cross([y for _, _, y in points], colour),
        text=[
            text(shortened(model.name, LETTERS)) if named or best or parents else ""
            for (model, _, _), best in zip(points, on_front, strict=True)
        ],
        textposition="top right",
        textfont={"size": 11},
        cliponaxis=False,
        customdata=[
            f"<b>{text(model.name)}</b><br>{text(across)}: {x}<br>{text(up)}: {y}" for model, x, y in points
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _cross(scores: Sequence[TaskScore], colour: str) -> dict[str, object]:
    """The intervals on one axis, thin enough that many can lie over each other."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return {
        "type": "data",
        "array": [score.high - score.value for score in scores],
        "arrayminus": [score.value - score.low for score in scores],
        "color": f"rgba({red},{green},{blue},0.45)",
        "thickness": 1,
        "width": 0,
    }


def _axis(task: str, scores: Sequence[TaskScore]) -> dict[str, object]:
    """An axis over the intervals with a little room, never beyond 0 and 100 %."""
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.08 * max(high - low, 0.1)
    return {
        "title": {"text": f"{text(shortened(task, 40))} (% correct)", "standoff": 10},
        "range": [max(-0.02, low - room), min(1.04, high + 2 * room)],
        "tickformat": ".0%",
        "fixedrange": True,
        "zeroline": False,
    }
