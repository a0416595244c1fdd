"""What a recipe makes of every expert's change: bars by fate, and maps of what is kept, lost and present."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from components.figures.chart import Chart, new_figure, shortened, text
from components.figures.maps import panels_chart
from components.figures.metrics import MapWords, Panel
from merging.cards.fate_words import WORDS
from merging.inspecting.fate import TensorFate
from merging.reports.report import Cell, Grid, Preview, added_up, frame_of, placed

LOWEST_LABELLED = 0.07
"""Shares below this have no room for their number in a bar."""
LOW_CELL = 15
"""Height of a cell, in pixels, where maps stand below each other beside the form."""
MOST_NAME = 18
"""Characters of an expert's name beside its bar."""
LEAST_BARS = 3
"""Bars for which there is room at least: a flatter figure has none for its legend."""
PRESENCE, NOBODY = "presence", "nobody"


_ENERGY = (
    "A change counts by its energy, the sum of δ² of its weights, so that large changes weigh more than many tiny ones. Every "
    "weight of every expert has exactly one fate, the first of these that applies: dropped (trimmed, dropped at random, or "
    "weight 0), out-voted (lost the election of a sign), rounded away (the output equals the base there: the merged "
    "change is too small for the number format, or nothing is left of it, as with λ 0 or experts that cancel each other "
    "exactly), cancelled (added, but the sum of all experts went the other way), kept. "
)


def _fate_words(key: str) -> MapWords:
    words = WORDS[key]
    return MapWords(
        key=key,
        label=words.label.capitalize(),
        title=f"How much of each expert's change is {words.label}",
        note="Share of the change's energy (δ²), from 0 to 100 %.",
        hover=f"of this expert's change here is {words.label}",
        explanation=_ENERGY
        + f"This map shows the share that is {words.label}: it {words.meaning}. The colours always "
        "run from 0 to 100 %, so they keep their meaning while you move a slider.",
        scale="robust",
    )


MAPS = {
    **{key: _fate_words(key) for key in WORDS},
    PRESENCE: MapWords(
        key=PRESENCE,
        label="Presence",
        title="How much of each expert is present in the merged model",
        note="Projection of the merged change on the expert's: 1 = fully present, 0 = absent.",
        hover="of this expert's change is present (1 = fully, below 0 = reversed)",
        explanation="The merged change is laid on each expert's task vector: ⟨Δ, δ⟩ / ‖δ‖². 1 means that the whole of this "
        "expert's change is in the merged model, 0 that nothing of it is left, above 1 that it is exaggerated, below 0 "
        "that the merge moved against it. Experts that learnt the same thing lend each other presence.",
        scale="signed",
    ),
    NOBODY: MapWords(
        key=NOBODY,
        label="Nobody's",
        title="How much of the merged change belongs to no expert",
        note="Length of what is no mixture of the experts' changes, beside the whole length.",
        hover="of the merged change is no mixture of the experts' changes",
        explanation="Any weighted sum of the experts' changes lies in the space they span. Trimming, elections, random "
        "drops and rounding push the merged change out of it: this residual, ‖Δ − projection‖ / ‖Δ‖, is what the method "
        "itself put in (interference). 0 means that the merge is a plain mixture in this cell.",
        scale="robust",
    ),
}
"""What the maps can show of a preview, by key; rounding and parameters have figures of their own."""

UNCHANGED = "Nothing of {} is here to be kept: no weight differs from the base."
Records = Mapping[Cell, TensorFate]


def available(preview: Preview) -> list[str]:
    """The keys of `MAPS` that mean something for the method of a preview."""
    return list(MAPS) if preview.elementwise else [PRESENCE, NOBODY]


def fate_cells(preview: Preview, *, everything: bool = False) -> dict[Cell, TensorFate]:
    """Block and kind -> the fate of all tensors merged there."""
    return added_up(_places(preview, everything), preview.tensors)


def preview_grid(
    preview: Preview, value: Callable[[Cell], float | None], *, everything: bool = False
) -> Grid:
    """A map over all tensors of a preview, copied ones too; `value` gives None for a gap."""
    rows, columns = frame_of(_places(preview, everything))
    return Grid(rows, columns, [[value((row, column)) for column in columns] for row in rows])


def names_at(preview: Preview, cell: Cell) -> list[str]:
    """The tensors behind one cell of a map."""
    places = placed([*preview.tensors, *preview.copied], everything=True)
    return [name for name, place in places.items() if (place.block, place.kind) == cell]


def fate_panels(preview: Preview, names: Sequence[str], key: str, *, everything: bool = False) -> list[Panel]:
    """The small maps of `MAPS[key]`: one an expert; what is nobody's has one."""
    cells = fate_cells(preview, everything=everything)

    def grid(value: Callable[[TensorFate], float | None]) -> Grid:
        return preview_grid(
            preview, lambda cell: value(cells[cell]) if cell in cells else None, everything=everything
        )

    if key == NOBODY:
        return [Panel("all experts together", grid(lambda fate: fate.residual()))]
    if key == PRESENCE:
        return [
            Panel(name, grid(lambda fate, expert=expert: fate.projection(expert)))
            for expert, name in enumerate(names)
        ]
    return [
        Panel(name, grid(lambda fate, expert=expert: fate.share(expert, key)))
        for expert, name in enumerate(names)
    ]


def fate_chart(preview: Preview, names: Sequence[str], key: str, *, everything: bool = False) -> Chart | None:
    """The map of one key; None where there is nothing to show. Its limits are fixed: 0 to 1, for presence −1 to 1."""
    shown = fate_panels(preview, names, key, everything=everything)
    chart = panels_chart(MAPS[key], shown, everything=everything, low_cell=LOW_CELL)
    if chart is None:
        return None
    cells = fate_cells(preview, everything=everything)
    for expert, (trace, panel) in enumerate(zip(chart.figure.data, shown, strict=True)):
        trace.text = hover_lines(panel.grid, cells, None if key == NOBODY else expert)
        trace.hovertemplate = trace.hovertemplate.replace("<extra>", "<br>%{text}<extra>")
    if key == PRESENCE:
        fix_scale(chart.figure, -1, 1, "RdBu_r", ".1f", (-1, -0.5, 0, 0.5, 1))
        _write(chart.figure, ".2f")
    else:
        fix_scale(chart.figure, 0, 1, "Cividis", ".0%", (0, 0.25, 0.5, 0.75, 1))
        _write(chart.figure, ".0%")
    if unchanged := [
        panel.name for panel in shown if all(v is None for row in panel.grid.values for v in row)
    ]:
        chart = replace(chart, note=f"{chart.note} {UNCHANGED.format(' and '.join(unchanged))}")
    return chart


def hover_lines(grid: Grid, cells: Records, expert: int | None) -> list[list[str]]:
    """What else is to be known of every cell: all shares of one expert, or what each is present with."""

    def said(fate: TensorFate | None) -> str:
        if fate is None:
            return ""
        if expert is None or fate.energy is None:
            return f"{fate.elements:,} weights"
        shares = [(WORDS[key].label, fate.share(expert, key)) for key in WORDS]
        known = [f"{label} {share:.1%}" for label, share in shares if share is not None]
        return "<br>".join(known) or "this expert changed nothing here"

    return [[said(cells.get((row, column))) for column in grid.columns] for row in grid.rows]


def fix_scale(
    figure: go.Figure, low: float, high: float, colours: str, form: str, ticks: Sequence[float]
) -> None:
    """Colour limits that do not move with the values, so that the same colour always means the same."""
    figure.layout.coloraxis.update(colorscale=colours, cmin=low, cmax=high)
    figure.layout.coloraxis.colorbar.update(tickformat=form, tickvals=list(ticks))


def _write(figure: go.Figure, form: str) -> None:
    for trace in figure.data:
        if trace.texttemplate:
            trace.texttemplate = f"%{{z:{form}}}"
        start, _, rest = trace.hovertemplate.partition("%{z:")
        trace.hovertemplate = f"{start}%{{z:{form}}}{rest[rest.index('}') + 1 :]}"


def story_bars(fate: TensorFate, names: Sequence[str], where: str) -> Chart:
    """The bars of a cell or of the whole model: by fate, or for methods that have none, what of each is present."""
    return fate_bars(fate, names, where) if fate.energy is not None else presence_bars(fate, names, where)


def fate_bars(fate: TensorFate, names: Sequence[str], where: str) -> Chart:
    """One stacked bar for each expert, from kept to cancelled; shares are written in where there is room."""
    figure = _bar_figure(names, where, barmode="stack", legend=True)
    figure.layout.xaxis.update(range=[0, 1], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    lengths, labels = bar_values(fate, len(names))
    for key, words in WORDS.items():
        figure.add_trace(
            go.Bar(
                y=[text(name) for name in names],
                x=lengths[key],
                orientation="h",
                name=words.label,
                marker={
                    "color": words.colour,
                    "line": {"width": 0},
                    "pattern": {
                        "shape": words.pattern,
                        "fgcolor": "#ffffff",
                        "fgopacity": 0.3,
                        "bgcolor": words.colour,
                        "size": 6,
                        "solidity": 0.2,
                    },
                },
                text=labels[key],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                insidetextfont={"color": "#ffffff", "size": 11.5},
                hovertemplate=f"%{{y}}: <b>%{{x:.1%}}</b> {words.label}<br>{words.meaning}<extra></extra>",
            )
        )
    told = "; ".join(_told(fate, expert, name) for expert, name in enumerate(names))
    unchanged = [name for expert, name in enumerate(names) if not sum(fate.energy[expert])]
    return Chart(
        figure=figure,
        title=f"Each expert's change: {where}",
        note=UNCHANGED.format(" and ".join(unchanged)) if unchanged else "",
        alt=f"Fate of the changes, {where}: {told}.",
    )


def presence_bars(fate: TensorFate, names: Sequence[str], where: str) -> Chart:
    """For methods that are no sum of scaled changes: what of each expert's change is in the merged one."""
    values = [fate.projection(expert) for expert in range(len(names))]
    lengths, labels = bar_values(fate, len(names))
    known = [value for value in values if value is not None]
    figure = _bar_figure(names, where, barmode="overlay", legend=False)
    figure.layout.xaxis.update(range=[min([-0.05, *known]), 1.08 * max([1.0, *known])], tickformat=".1f")
    figure.layout.shapes = [{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper"}]
    figure.add_trace(
        go.Bar(
            y=[text(name) for name in names],
            x=lengths[PRESENCE],
            orientation="h",
            marker={"color": "#4f5bc9"},
            text=labels[PRESENCE],
            textposition="auto",
            insidetextfont={"color": "#ffffff", "size": 11.5},
            hovertemplate="%{y}: <b>%{x:.3f}</b> present (1 = fully)<extra></extra>",
        )
    )
    residual = fate.residual()
    nobody = (
        "" if residual is None else f" {residual:.1%} of the merged change's length is no mixture of them."
    )
    told = "; ".join(
        f"{name} {'unchanged' if value is None else f'{value:.2f}'}"
        for name, value in zip(names, values, strict=True)
    )
    return Chart(
        figure=figure,
        title=f"Each expert's presence: {where}",
        note=f"1 = fully present. This method is no sum of scaled changes, so they have no single fates.{nobody}",
        alt=f"Projection of the merged change on each expert's, {where}: {told}.{nobody}",
    )


def bar_values(fate: TensorFate, experts: int) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Lengths and labels of the bars of `story_bars`, by fate; under one key where a method has no fates."""
    everyone = range(experts)
    if fate.energy is None:
        values = [fate.projection(expert) for expert in everyone]
        labels = ["unchanged" if value is None else f"{value:.2f}" for value in values]
        return {PRESENCE: [value or 0.0 for value in values]}, {PRESENCE: labels}
    shares = {key: [fate.share(expert, key) or 0.0 for expert in everyone] for key in WORDS}
    return shares, {key: [_label(share) for share in line] for key, line in shares.items()}


def _label(share: float) -> str:
    return f"{share:.0%}" if share >= LOWEST_LABELLED else ""


def share_rows(fate: TensorFate, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the bars' table: each expert's shares, and what of it is present."""
    keys = list(WORDS) if fate.energy is not None else []
    rows = []
    for expert, name in enumerate(names):
        shares = [fate.share(expert, key) for key in keys]
        present = fate.projection(expert)
        rows.append(
            [
                name,
                *("–" if share is None else f"{share:.1%}" for share in shares),
                "–" if present is None else f"{present:.3f}",
            ]
        )
    return ["expert", *(WORDS[key].label for key in keys), "presence"], rows


def _told(fate: TensorFate, expert: int, name: str) -> str:
    shares = [(WORDS[key].label, fate.share(expert, key)) for key in WORDS]
    known = ", ".join(f"{label} {share:.1%}" for label, share in shares if share)
    return f"{name} {known}" if known else f"{name} changed nothing"


def _bar_figure(names: Sequence[str], where: str, *, barmode: str, legend: bool) -> go.Figure:
    """`legend` on top, in one line where there is room and in two where there is not."""
    top = 52 if legend else 8
    axes: dict[str, Any] = {"fixedrange": True, "zeroline": False}
    return new_figure(
        height=26 * max(LEAST_BARS, len(names)) + top + 26,
        margin={"l": 8, "r": 22, "t": top, "b": 22},
        barmode=barmode,
        bargap=0.24,
        uirevision=where,
        showlegend=legend,
        legend={
            "orientation": "h",
            "x": 0,
            "xref": "container",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "traceorder": "normal",
            "entrywidth": 78,
            "entrywidthmode": "pixels",
            "font": {"size": 11.5},
            "itemclick": False,
            "itemdoubleclick": False,
        },
        xaxis=axes,
        yaxis={
            **axes,
            "autorange": "reversed",
            "automargin": True,
            "showgrid": False,
            "type": "category",
            "tickvals": [text(name) for name in names],
            "ticktext": [text(shortened(name, MOST_NAME)) for name in names],
        },
    )


def _places(preview: Preview, everything: bool) -> dict[str, Any]:
    return placed([*preview.tensors, *preview.copied], everything=everything)
