"""One tensor from near: its heads, its rows and its spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch

from components.figures.chart import DASHES, SERIES, Chart, new_figure, text
from components.figures.importance import MOST_POINTS, PATTERNS
from merging.inspecting.detail import TensorDetail
from merging.inspecting.part_sums import PartSums
from merging.inspecting.spectra import Spectrum

SIGNS, MASS = "#4f5bc9", "#b5731a"
"""Colours of the two measures of conflict."""
FIRST_POINTS = 64
"""Singular values that are all drawn; of the rest a part."""
CONFLICT_NOTE = (
    "Below: the share of opposite signs among weights that two experts changed (0.5 = what unrelated experts would show), "
    "and the share of change that cancels when the experts are added up."
)


def heads_chart(detail: TensorDetail, names: Sequence[str], where: str) -> Chart | None:
    """Relative change of each attention head, a bar an expert, and the conflict in each; None where there are no heads."""
    if detail.heads is None:
        return None
    sums, labels = detail.heads, list(detail.head_names)
    figure = _two_panels(sums, where, xaxis={"type": "category", "title": {"text": "head", "standoff": 8}})
    figure.update_layout(barmode="group")
    for expert, values in enumerate(_lists(sums.relative_change())):
        figure.add_trace(
            go.Bar(
                x=labels,
                y=values,
                name=text(names[expert]),
                marker=_hatched(expert),
                hovertemplate=f"{text(names[expert])}, head %{{x}}: <b>%{{y:.3r}}</b> of the base's length<extra></extra>",
            )
        )
    for name, colour, symbol, values in _conflicts(sums):
        figure.add_trace(
            go.Scatter(
                x=labels,
                y=values,
                yaxis="y2",
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 8},
                hovertemplate=f"head %{{x}}, {name}: <b>%{{y:.3f}}</b><extra></extra>",
            )
        )
    return Chart(
        figure=figure,
        title="Change and conflict of each attention head",
        note="Above: how far each expert moved a head's weights, ‖δ‖ / ‖θ₀‖: its rows in q, k and v, its columns in o. "
        + _second_note(sums),
        alt=f"Heads of {where}: {_peaks(sums, [f'head {name}' for name in detail.head_names], names)}",
    )


def rows_chart(detail: TensorDetail, names: Sequence[str], where: str) -> Chart | None:
    """Relative change of each row, a line an expert, and the conflict in each; None for a tensor without elements.

    Of more than `MOST_POINTS` rows each point is the largest of a run.
    """
    sums = detail.rows
    if not len(sums) or not int(sums.elements[0]):
        return None
    run = math.ceil(len(sums) / MOST_POINTS)
    starts = list(range(0, len(sums), run))
    kind = "column" if detail.row_axis else "row"
    figure = _two_panels(sums, where, xaxis={"title": {"text": f"{kind} of the tensor", "standoff": 8}})
    figure.update_layout(hovermode="x unified")
    for expert, values in enumerate(_lists(_largest(sums.relative_change(), run))):
        line = {"width": 1.5, "color": SERIES[expert % len(SERIES)], "dash": DASHES[expert % len(DASHES)]}
        figure.add_trace(_line(starts, values, names[expert], line))
    for name, colour, _, values in _conflicts(sums, run):
        dash = "solid" if colour == SIGNS else "dot"
        figure.add_trace(_line(starts, values, name, {"width": 1.5, "color": colour, "dash": dash}, "y2"))
    largest = f" Each point is the largest of {run} {kind}s." if run > 1 else ""
    return Chart(
        figure=figure,
        title=f"Change and conflict of each {kind}",
        note=f"One {kind} is {detail.row_meaning}. Above: ‖δ‖ / ‖θ₀‖ of each. {_second_note(sums)}{largest}",
        alt=f"The {kind}s of {where}: {_peaks(sums, [f'{kind} {number}' for number in range(len(sums))], names)}",
    )


def spectrum_chart(spectra: Mapping[int, Spectrum], names: Sequence[str], where: str) -> Chart | None:
    """Singular values of each expert's change on a log scale, by the expert's number; None where nothing was changed."""
    drawn = {expert: found for expert, found in spectra.items() if found.stable_rank is not None}
    if not drawn:
        return None
    figure = new_figure(
        height=300,
        margin={"l": 64, "r": 8, "t": 36, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
        hovermode="x unified",
        uirevision=where,
        xaxis={"title": {"text": "number of the direction", "standoff": 8}, "fixedrange": True},
        yaxis={
            "type": "log",
            "title": {"text": "singular value (log)"},
            "exponentformat": "power",
            "fixedrange": True,
        },
    )
    for expert, found in sorted(drawn.items()):
        numbers = _shown_numbers(int((found.values > 0).sum()))
        line = {"width": 2, "color": SERIES[expert % len(SERIES)], "dash": DASHES[expert % len(DASHES)]}
        values = found.values[numbers].tolist()
        figure.add_trace(_line([number + 1 for number in numbers], values, names[expert], line))
    ranks = " ".join(ranks_sentence(found, names[expert]) for expert, found in sorted(drawn.items()))
    return Chart(
        figure=figure,
        title="Spectrum of each change",
        note="How strong the change is in each of its directions; a steep fall means few directions. "
        + ranks,
        alt=f"Singular values of the changes in {where}. {ranks}",
    )


def ranks_sentence(found: Spectrum, name: str) -> str:
    """Stable and effective rank, and how many directions hold 0.9 of the energy, in words."""
    if found.stable_rank is None:
        return f"{name}: no change."
    told = [f"stable rank {found.stable_rank:.3g}"]
    if found.effective_rank is not None:
        told.append(f"effective rank {found.effective_rank:.3g}")
    many = found.rank_of(0.9)
    told.append(
        f"0.9 of the energy in {f'{many:,}' if many else f'more than {len(found.values):,}'} of {min(found.shape):,} "
        "directions"
    )
    incomplete = "" if found.complete else f" {found.note}"
    return f"{name}: {', '.join(told)}.{incomplete}"


def _two_panels(sums: PartSums, where: str, *, xaxis: Mapping[str, Any]) -> go.Figure:
    """Change above, conflict below where there is any."""
    has_conflict = bool(sums.shared.sum())
    lower: dict[str, Any] = {
        "yaxis2": {"title": {"text": "conflict"}, "range": [0, 1], "domain": [0, 0.36], "fixedrange": True},
        "shapes": [{"type": "line", "xref": "paper", "yref": "y2", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5}],
    }
    return new_figure(
        height=400 if has_conflict else 300,
        margin={"l": 56, "r": 8, "t": 36, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=True,
        uirevision=where,
        xaxis={"fixedrange": True, "showgrid": False, "anchor": "y2" if has_conflict else "y", **xaxis},
        yaxis={
            "title": {"text": "relative change"},
            "rangemode": "tozero",
            "domain": [0.46 if has_conflict else 0, 1],
            "fixedrange": True,
        },
        **(lower if has_conflict else {}),
    )


def _conflicts(sums: PartSums, run: int = 1) -> list[tuple[str, str, str, list[float | None]]]:
    """Name, colour, symbol and values of each measure of conflict; none where nothing was changed by two experts."""
    if not bool(sums.shared.sum()):
        return []
    signs, mass = (_lists(_largest(v[None], run))[0] for v in (sums.opposite_share(), sums.mass_conflict()))
    return [("opposite signs", SIGNS, "circle", signs), ("cancelled change", MASS, "diamond", mass)]


def _line(
    x: Sequence[int], y: Sequence[float | None], name: str, line: Mapping[str, Any], axis: str = "y"
) -> go.Scatter:
    return go.Scatter(
        x=list(x), y=list(y), yaxis=axis, mode="lines", name=text(name), line=line, hovertemplate="%{y:.3r}"
    )


def _hatched(expert: int) -> dict[str, Any]:
    colour = SERIES[expert % len(SERIES)]
    shape = PATTERNS[expert % len(PATTERNS)]
    pattern = {"shape": shape, "fgcolor": "#ffffff", "bgcolor": colour, "fgopacity": 0.6}
    return {"color": colour, "pattern": pattern}


def _second_note(sums: PartSums) -> str:
    damaged = int(sums.damaged.sum())
    hurt = f" {damaged:,} hold values that are not finite and have gaps." if damaged else ""
    return (CONFLICT_NOTE if bool(sums.shared.sum()) else "No weight was changed by two experts.") + hurt


def _largest(values: torch.Tensor, run: int) -> torch.Tensor:
    """[…, n] -> […, ⌈n / run⌉]: the largest of every `run`; NaN only where all are."""
    missing = -values.shape[-1] % run
    known = torch.nn.functional.pad(
        values.nan_to_num(-math.inf, math.inf, -math.inf), (0, missing), value=-math.inf
    )
    found = known.unflatten(-1, (-1, run)).amax(-1)
    return found.where(found.isfinite(), math.nan)


def _lists(values: torch.Tensor) -> list[list[float | None]]:
    """Rows of numbers, None for what is not finite, with as many digits as a picture needs."""
    return [
        [float(f"{value:.5g}") if math.isfinite(value) else None for value in line]
        for line in values.tolist()
    ]


def _shown_numbers(count: int) -> list[int]:
    """The first ones all, then evenly spaced up to the last."""
    first = list(range(min(count, FIRST_POINTS)))
    if count <= MOST_POINTS:
        return list(range(count))
    rest = torch.linspace(FIRST_POINTS, count - 1, MOST_POINTS - FIRST_POINTS).round().int().unique()
    return first + rest.tolist()


def _peaks(sums: PartSums, labels: Sequence[str], names: Sequence[str]) -> str:
    """Where each expert changed most, and where two conflict most, in words."""
    told = []
    for expert, values in enumerate(sums.relative_change()):
        if bool((~values.isnan()).any()):
            best = int(values.nan_to_num(-1.0).argmax())
            told.append(f"{names[expert]} changed {labels[best]} most ({float(values[best]):.3g})")
    conflict = sums.opposite_share()
    if bool((~conflict.isnan()).any()):
        best = int(conflict.nan_to_num(-1.0).argmax())
        told.append(f"signs are opposite most often in {labels[best]} ({float(conflict[best]):.2f})")
    return ("; ".join(told) or "nothing was changed") + "."
