"""What every figure function returns, and the style that all of them share."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

SERIES = ("#2f7ed8", "#c9610f", "#15925f", "#b8479b", "#8a7a12", "#7a63d6", "#c0453e", "#0f8a99")
"""One colour for each expert, in order; each reaches a contrast of 3 on the light and on the dark page."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px", "2px 4px")
"""A line style for each expert, so that colour is never the only difference."""


@dataclass(frozen=True)
class Chart:
    """A figure with the words around it.

    `title` says what is seen, `note` how to read it, `alt` says the same as the figure to those who cannot see it.
    `narrow` holds the layout keys that differ on a small screen.
    """

    figure: go.Figure
    title: str
    note: str
    alt: str
    narrow: dict[str, Any] = field(default_factory=dict)


def new_figure(**layout: Any) -> go.Figure:
    """An empty figure without plotly's default template; the page gives it the colours of its theme."""
    defaults = {
        "template": go.layout.Template(),
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "font": {"size": 12},
        "hoverlabel": {"align": "left"},
    }
    return go.Figure(layout=go.Layout(**(defaults | layout)))


def text(value: str) -> str:
    """Text from outside (names of models and modules) for a place where plotly reads markup or templates; plotly shows
    the entity of a quote as it is written."""
    return html.escape(value, quote=False).replace("%{", "%&#123;")


def shortened(value: str, most: int) -> str:
    """A name in at most so many letters: its beginning and its end."""
    kept = most - 1
    return (
        value
        if len(value) <= most
        else f"{value[: kept - kept // 2].rstrip()}…{value[-(kept // 2) :].lstrip()}"
    )


def heading(name: str, left: float, top: float) -> dict[str, Any]:
    """The annotation that names a small plot among others: above its upper left corner, in shares of the paper."""
    return {
        "text": f"<b>{text(name)}</b>",
        "x": left,
        "y": top,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13},
    }


def decimals(values: Iterable[float | None]) -> int:
    """Digits after the point that show the largest of the values with two of them, at least 2 and at most 7."""
    largest = max((abs(value) for value in values if value), default=1.0)
    return min(7, max(2, 1 - math.floor(math.log10(largest))))
