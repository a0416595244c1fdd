"""Maps of importance: per expert, per weight, times the sign conflict, and who owns each cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from components.figures.chart import SERIES, Chart, text
from components.figures.maps import panels_chart
from components.figures.metrics import cell_name, expert_names
from components.figures.words import MapWords, Panel
from merging import Importance, Report
from merging.inspecting.changes import TensorStatistics
from merging.reports.report import Cell, Grid

MILLI = 1e3
"""Importance is shown in thousandths of a nat."""
THOUSAND = 1e3
METHOD = (
    "Reconstructed from the abstract and public digests of the APL paper (2408.09485); its full text and code were not "
    "available."
)

_WHAT = (
    "Importance asks how much the expert's loss on its own task depends on the change in this matrix. By gradients it is "
    "|Σ δ·g|: the change times the slope of the loss, summed over the matrix. By exact intervention it is the difference "
    "that appears when the matrix is put back to the base. The unit is a thousandth of a nat (mnat) of the mean negative "
    "log-likelihood of an answer token. "
)
MAPS = {
    words.key: words
    for words in (
        MapWords(
            key="importance",
            label="Importance",
            title="Which changes each expert's task depends on",
            note="|effect of the change on the expert's own loss|, in thousandths of a nat per answer token. All maps share "
            "one scale; brighter matters more.",
            hover="mnat: how much the expert's loss on its task depends on this change",
            explanation=_WHAT
            + "Inside a large matrix, helpful and harmful changes cancel in the sum, and larger matrices "
            "collect more; compare with the map per weight. Losses of different tasks are not on one scale, so compare "
            "cells within one expert first. " + METHOD,
            scale="robust",
            significant=True,
        ),
        MapWords(
            key="importance_per_weight",
            label="Per weight",
            title="Which changes matter most for their size",
            note="Importance divided by the number of weights, in thousandths of a nat per thousand weights. All maps share "
            "one scale.",
            hover="mnat per thousand weights of this matrix",
            explanation=_WHAT
            + "Importance grows with the number of weights in a matrix; divided by it, small matrices "
            "such as k and v can be compared with large ones such as gate and down. " + METHOD,
            scale="robust",
            significant=True,
        ),
        MapWords(
            key="conflict_importance",
            label="Conflict × importance",
            title="Where what an expert needs is pulled the other way by others",
            note="Importance (mnat) × share of opposite signs against the other experts. Bright cells are where a merge can "
            "hurt this expert most; unrelated experts have a conflict of 0.5.",
            hover="mnat × share of opposite signs: important to this expert and fought over",
            explanation="The importance of each cell for an expert, multiplied by how often the other experts pull the same "
            "weights in the opposite direction (share of opposite signs among the weights both changed, over all pairs with "
            "this expert). A cell that nobody contests, or that does not matter, is dark. Unrelated experts disagree on half "
            "of the signs, so half of the importance is the level to expect by chance. " + METHOD,
            scale="robust",
            significant=True,
        ),
        MapWords(
            key="owner",
            label="Owner",
            title="Which expert owns each cell",
            note="The expert for which the cell makes up the largest part of its own importance; the percentage is "
            "its part of all experts' claims. A gap: a tie, or nobody needs it.",
            hover="",
            explanation="For each expert, the importance of a cell is divided by that expert's total over attention and MLP, "
            "because losses of different tasks are not on one scale (APL's weights are made from the same quotient, π). The "
            "expert with the largest quotient owns the cell; its share of the sum over the experts is shown: with three "
            "experts, 33 % is a tie and 100 % means that nobody else needs it. " + METHOD,
            scale="robust",
        ),
    )
}


@dataclass(frozen=True)
class CellScores:
    """Importance by cell of a report's maps, in the order of its experts.

    `signed` in nats, negative where the change lowers the loss; `sizes` in weights; `totals` each expert's sum of
    importance over attention and MLP.
    """

    signed: Mapping[Cell, tuple[float, ...]]
    sizes: Mapping[Cell, int]
    totals: tuple[float, ...]

    def value(self, cell: Cell, expert: int) -> float | None:
        """Absolute importance in nats; None where it was not measured."""
        return abs(self.signed[cell][expert]) if cell in self.signed else None

    def share(self, cell: Cell, expert: int) -> float | None:
        """The cell's part of its expert's total; None where that is 0."""
        value = self.value(cell, expert)
        return value / self.totals[expert] if value is not None and self.totals[expert] > 0 else None

    def owner(self, cell: Cell) -> tuple[int, float] | None:
        """The expert with the largest `share`, and its part of the sum of shares; None for a tie or nobody."""
        shares = [self.share(cell, expert) or 0.0 for expert in range(len(self.totals))]
        best = max(shares, default=0.0)
        if best <= 0 or shares.count(best) > 1:
            return None
        return shares.index(best), best / sum(shares)


def cell_scores(report: Report, importance: Importance, places: Sequence[int]) -> CellScores:
    """The importance of modules, by the cells of a report; `places` finds the report's experts in the artefact.

    A module's weight and bias are one partition; it is shown at its weight's cell.
    """
    partitions = importance.partitions
    signed = importance.signed[list(places)]
    found: dict[Cell, tuple[float, ...]] = {}
    sizes: dict[Cell, int] = {}
    for cell in report.cells(everything=True):
        numbers = []
        for name in report.names_at(*cell):
            index = partitions.index.get(name)
            if index is not None and index.numel() and partitions[int(index.flatten()[0])].tensors[0] == name:
                numbers.append(int(index.flatten()[0]))
        values = signed[:, numbers].sum(1)
        if numbers and bool(values.isfinite().all()):
            found[cell] = tuple(values.tolist())
            sizes[cell] = int(partitions.sizes[numbers].sum())
    inside = signed[:, ~partitions.outside].abs().nan_to_num(0).sum(1)
    return CellScores(found, sizes, tuple(inside.tolist()))


def contested(statistics: TensorStatistics, pairs: Sequence[tuple[int, int]], expert: int) -> float | None:
    """Share of opposite signs between one expert and all others; None where nobody changed the same weight."""
    mine = [number for number, pair in enumerate(pairs) if expert in pair]
    shared = sum(statistics.signs.shared[number] for number in mine)
    return sum(statistics.signs.opposite[number] for number in mine) / shared if shared else None


def importance_panels(
    report: Report, scores: CellScores, key: str, *, everything: bool = False
) -> list[Panel]:
    """The small maps of `MAPS[key]`: one an expert; for the owner one, with the owner's share of the claims."""
    if key == "owner":
        return [_panel(report, "share of the owner", lambda cell, s: _owner_share(scores, cell), everything)]
    if key == "conflict_importance" and not report.pairs:
        return []

    def number(cell: Cell, statistics: TensorStatistics, expert: int) -> float | None:
        value = scores.value(cell, expert)
        if value is None:
            return None
        if key == "importance_per_weight":
            return MILLI * THOUSAND * value / scores.sizes[cell]
        if key == "conflict_importance":
            conflict = contested(statistics, report.pairs, expert)
            return None if conflict is None else MILLI * value * conflict
        return MILLI * value

    return [
        _panel(report, name, lambda cell, s, expert=expert: number(cell, s, expert), everything)
        for expert, name in enumerate(expert_names(report))
    ]


def _owner_share(scores: CellScores, cell: Cell) -> float | None:
    owner = scores.owner(cell)
    return owner[1] if owner else None


def _panel(
    report: Report,
    name: str,
    value: Callable[[Cell, TensorStatistics], float | None],
    everything: bool,
) -> Panel:
    """A map whose numbers depend on the cell itself."""
    cells = report.cells(everything=everything)
    grid = report.grid(lambda s: s.elements, everything=everything)
    values = [
        [
            value((block, kind), cells[block, kind]) if (block, kind) in cells else None
            for kind in grid.columns
        ]
        for block in grid.rows
    ]
    return Panel(name, Grid(grid.rows, grid.columns, values))


def importance_chart(
    report: Report, scores: CellScores, key: str, *, everything: bool = False
) -> Chart | None:
    """The map of one key of `MAPS`; None where it has nothing to show."""
    shown = importance_panels(report, scores, key, everything=everything)
    chart = panels_chart(MAPS[key], shown, everything=everything)
    if chart is not None and key == "owner":
        _paint_owners(chart, report, scores, shown[0])
    return chart


def owner_table(report: Report, scores: CellScores, *, everything: bool = False) -> list[list[str | float]]:
    """Block, module, owner and its share of the claims in per cent; ties and cells nobody needs are left out."""
    names = expert_names(report)
    rows: list[list[str | float]] = []
    for block, kind in report.cells(everything=everything):
        owner = scores.owner((block, kind))
        if owner:
            rows.append(
                ["outside" if block is None else block, kind, names[owner[0]], round(100 * owner[1], 1)]
            )
    return rows


def _paint_owners(chart: Chart, report: Report, scores: CellScores, panel: Panel) -> None:
    """Turn a map of shares into one of owners: a colour and a number for each expert."""
    names, grid = expert_names(report), panel.grid
    owners = [[scores.owner((block, kind)) for kind in grid.columns] for block in grid.rows]
    trace: go.Heatmap = chart.figure.data[0]
    trace.z = [[owner[0] if owner else None for owner in line] for line in owners]
    signs = short_signs(names)
    trace.text = [[f"{signs[o[0]]} {100 * o[1]:.0f}%" if o else "" for o in line] for line in owners]
    trace.texttemplate = "%{text}"
    trace.customdata = [
        [
            f"{text(cell_name(block, kind))}<br><b>{text(names[owner[0]])}</b> owns it with {100 * owner[1]:.0f} % "
            "of all claims"
            if owner
            else ""
            for kind, owner in zip(grid.columns, line, strict=True)
        ]
        for block, line in zip(grid.rows, owners, strict=True)
    ]
    trace.hovertemplate = "%{customdata}<extra></extra>"
    count = len(names)
    steps = [
        (place / count, SERIES[index % len(SERIES)]) for index in range(count) for place in (index, index + 1)
    ]
    chart.figure.layout.annotations = ()
    chart.narrow["annotations"] = []
    chart.figure.layout.coloraxis.update(
        colorscale=[[share, _tint(colour)] for share, colour in steps],
        cmin=-0.5,
        cmax=count - 0.5,
        colorbar={
            "tickvals": list(range(count)),
            "ticktext": [f"{text(sign)} = {text(name)}" for sign, name in zip(signs, names, strict=True)],
            "tickformat": None,
        },
    )


def short_signs(names: Sequence[str]) -> list[str]:
    """A sign for each expert that fits a cell: the first letter where that tells them apart, else a number."""
    letters = [name[:1].upper() for name in names]
    return letters if len(set(letters)) == len(names) else [f"#{n}" for n in range(1, len(names) + 1)]


def _tint(colour: str) -> str:
    """A lighter tone, on which black text reads well."""
    channels = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(0.62 * channel + 0.38 * 255):02x}" for channel in channels)
