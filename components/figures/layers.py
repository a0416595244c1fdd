"""Which layers did it: a bar for every part of a model that was put back to another's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from components.figures.chart import Chart, new_figure, shortened
from merging.answering.put_back import EMBEDDINGS, EVERYTHING, LAST, NORM, NOTHING, OTHERS, TIED, PartPutBack

UP, DOWN = "#2f7ed8", "#c9610f"
"""Each reaches a contrast of 3 on the light and on the dark page; the side of the line says the same."""
TICKS = {EMBEDDINGS: "emb", TIED: "emb", LAST: "end", NORM: "norm", OTHERS: "other"}
"""Short enough to stand side by side on a phone; hovering and the table say the whole name."""
LETTERS = 40


def layers_chart(parts: Sequence[str], found: Sequence[PartPutBack], model: str, donor: str) -> Chart | None:
    """A bar for each part that was put back so far, room for the others; None before the first number."""
    measured = {one.part: one for one in found}
    if NOTHING not in measured:
        return None
    shown = [measured.get(part) for part in parts]
    figure = new_figure(
        height=320,
        margin={"l": 60, "r": 8, "t": 12, "b": 64},
        showlegend=False,
        uirevision="layers",
        bargap=0.25,
        xaxis={
            "type": "category",
            "range": [-0.5, len(parts) - 0.5],
            "fixedrange": True,
            "showgrid": False,
            "title": {"text": "part put back (numbers are blocks)", "standoff": 8},
        },
        yaxis={"title": {"text": "change (nats)"}, "fixedrange": True, "zeroline": True, "zerolinewidth": 2},
    )
    figure.add_trace(
        go.Bar(
            x=[_tick(part) for part in parts],
            y=[None if one is None else one.change for one in shown],
            customdata=["" if one is None else f"{one.part}: {worded(one.change)}" for one in shown],
            marker={"color": [UP if one is not None and one.change > 0 else DOWN for one in shown]},
            hovertemplate="<b>%{y:+.3r}</b> nats<br>%{customdata}<extra></extra>",
        )
    )
    short = shortened(donor, LETTERS)
    return Chart(
        figure=figure,
        title=f"What the answer gains or loses with one part put back to {short}",
        note=_note(measured, donor),
        alt=f"Change of the answer's log-likelihood under {shortened(model, LETTERS)} with one part of it put back to {short}. "
        f"{_extremes([one for one in shown if one is not None])} The table below holds all numbers.",
    )


def worded(change: float) -> str:
    """A change of a log-likelihood as a factor: `the answer is 2.7 times likelier`."""
    factor = math.exp(min(abs(change), 700))
    if factor < 1.005:
        return "the answer is as likely as before"
    size = f"{factor:.3g}" if factor < 1e4 else f"{factor:.0e}"
    return f"the answer is {size} times {'likelier' if change > 0 else 'less likely'}"


def _note(measured: dict[str, PartPutBack], donor: str) -> str:
    before = measured[NOTHING].log_likelihood
    last = measured.get(EVERYTHING)
    whole = f" With everything put back, which is {donor} itself, {last.log_likelihood:.3g}." if last else ""
    return (
        f"Log-likelihood of the whole answer in nats, as a difference. As it is, it has {before:.3g}.{whole}"
    )


def _extremes(shown: Sequence[PartPutBack]) -> str:
    if not shown:
        return "Nothing is measured yet."
    low, high = min(shown, key=_change), max(shown, key=_change)
    return f"From {low.change:+.3g} nats ({low.part}) to {high.change:+.3g} nats ({high.part})."


def _change(one: PartPutBack) -> float:
    return one.change


def _tick(part: str) -> str:
    return TICKS.get(part, part.removeprefix("block "))
