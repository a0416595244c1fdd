"""What the page of a report shows: groups of maps, each with its table and its explanation; a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from components.figures import effective, fate, rounding
from components.figures.chart import Chart
from components.figures.importance_maps import (
    MAPS,
    CellScores,
    cell_scores,
    importance_chart,
    importance_panels,
)
from components.figures.maps import map_chart
from components.figures.metrics import METRICS, expert_names, percent
from components.figures.story import Cuts, change_histogram, sign_agreement
from components.tables import Table, map_table, panels_table
from merging import Importance, Report
from merging.inspecting.changes import TensorStatistics
from merging.inspecting.fate import DTYPES, FATES, TensorFate
from merging.inspecting.sums import total
from merging.reports.report import Preview

MODEL = "the whole model"
SHOWN_ALWAYS = ("weight", "density", "lambda")
"""Parameters that get a map even where they are the same everywhere."""
VARIES = "It varies over the model. Cells marked “base” are copied from the base."
SAME = "It is the same in all merged tensors. Cells marked “base” are copied from the base."
_DISTRIBUTION = (
    "All weights of the model by the size of their change, on a logarithmic axis. A density keeps the largest: it cuts from "
    "the right."
)
_PAIRS = (
    "For each pair of experts: of the weights that both changed, the share that one raised and the other lowered, over the "
    "whole model."
)


@dataclass(frozen=True)
class Section:
    """A chart, its twin as a table, and the answer to "What am I looking at?"."""

    chart: Chart
    table: Table
    explanation: str


@dataclass(frozen=True)
class Group:
    """Sections under a heading; `lead` says what they answer, or why there are none. `key` names it in links."""

    key: str
    title: str
    lead: str
    sections: list[Section]


@dataclass(frozen=True)
class Known:
    """An importance artefact, and where the report's experts stand in it."""

    importance: Importance
    places: tuple[int, ...]


def groups(report: Report, known: Known | None = None, *, everything: bool = False) -> list[Group]:
    """All that the page shows, in order; `everything` adds norms and embeddings to the maps."""
    found = [
        Group(
            "change",
            "Where the experts changed",
            "How far each expert moved from the base, by block and module.",
            list(_change(report, everything)),
        ),
        Group("conflict", "Where they fight", _fight_lead(report), list(_conflict(report, everything))),
        *_recipe_groups(report, everything),
    ]
    if known is not None:
        found.append(
            Group(
                "importance",
                "What their tasks depend on",
                "Importance (APL), measured on the experts' tasks.",
                list(_importance(report, known, everything)),
            )
        )
    return found


def _recipe_groups(report: Report, everything: bool) -> list[Group]:
    preview, why = report.preview, "There is no preview of this recipe, so there are no maps of it."
    made = preview is not None and bool(preview.tensors)
    lead = f"By the pass that merges ({preview.method})." if made and preview else why
    names = expert_names(report)
    return [
        Group(
            "fate",
            "What the recipe makes of each change",
            lead,
            list(_fate(preview, names, everything)) if made and preview else [],
        ),
        Group(
            "rounding",
            "What is lost in rounding",
            rounding.rounding_advice(preview) if made and preview else why,
            list(_rounding(preview, everything)) if made and preview else [],
        ),
        Group(
            "parameters",
            "What every tensor gets",
            effective.caption(preview) if made and preview else why,
            list(_parameters(preview, names, everything)) if made and preview else [],
        ),
    ]


def _section(chart: Chart | None, table: Callable[[], Table], explanation: str) -> Iterator[Section]:
    if chart is not None:
        yield Section(chart, table(), explanation)


def _change(report: Report, everything: bool) -> Iterator[Section]:
    for metric in METRICS.values():
        if metric.over == "experts":
            yield from _metric(report, metric.key, everything)
    whole = report.intact
    if whole is not None:
        names = expert_names(report)
        chart = change_histogram(whole, names, MODEL, cuts=_cuts(report))
        yield from _section(chart, lambda: _sizes(whole, names), _DISTRIBUTION)


def _conflict(report: Report, everything: bool) -> Iterator[Section]:
    for metric in METRICS.values():
        if metric.over != "experts":
            yield from _metric(report, metric.key, everything)
    whole = report.intact
    if whole is not None and report.pairs:
        names = expert_names(report)
        rows = [
            [f"{names[a]} · {names[b]}", whole.signs.opposite_share(number), whole.cosine(number)]
            for number, (a, b) in enumerate(report.pairs)
        ]
        after = total(report.trim.tensors.values()).signs if report.trim is not None else None
        chart = sign_agreement(whole.signs, names, MODEL, after=after)
        yield from _section(
            chart, lambda: Table(["pair", "opposite signs", "cosine"], [*map(list, rows)]), _PAIRS
        )


def _metric(report: Report, key: str, everything: bool) -> Iterator[Section]:
    metric = METRICS[key]
    trimmed = metric.signs and report.trim is not None
    chart = map_chart(report, metric, everything=everything, trimmed=trimmed)
    yield from _section(
        chart,
        lambda: map_table(report, metric, everything=everything, trimmed=trimmed),
        metric.explanation,
    )


def _fate(preview: Preview, names: tuple[str, ...], everything: bool) -> Iterator[Section]:
    whole = total(preview.tensors.values())
    headers, rows = fate.share_rows(whole, names)
    explanation = (
        fate.MAPS[FATES[-1]].explanation if preview.elementwise else fate.MAPS[fate.PRESENCE].explanation
    )
    yield Section(_bars(whole, names), Table(headers, [*map(list, rows)]), explanation)
    for key in fate.available(preview):
        chart = fate.fate_chart(preview, names, key, everything=everything)
        shown = fate.fate_panels(preview, names, key, everything=everything)
        yield from _section(chart, lambda shown=shown: panels_table(shown), fate.MAPS[key].explanation)


def _bars(whole: TensorFate, names: tuple[str, ...]) -> Chart:
    chart = fate.story_bars(whole, names, "over the whole model")
    return chart if chart.note else replace(chart, note="Share of each change's energy (δ²).")


def _rounding(preview: Preview, everything: bool) -> Iterator[Section]:
    for dtype in DTYPES:
        chart = rounding.rounding_chart(preview, dtype, everything=everything)
        shown = rounding.rounding_panels(preview, dtype, everything=everything)
        yield from _section(
            chart, lambda shown=shown: panels_table(shown), rounding.words_for(dtype).explanation
        )


def _parameters(preview: Preview, names: tuple[str, ...], everything: bool) -> Iterator[Section]:
    for name in effective.parameters(preview):
        if name in SHOWN_ALWAYS or effective.varies(preview, name):
            chart = effective.parameter_chart(preview, names, name, everything=everything)
            if chart is not None:
                chart = replace(chart, note=VARIES if effective.varies(preview, name) else SAME)
            shown = effective.parameter_panels(preview, names, name, everything=everything)
            yield from _section(
                chart, lambda shown=shown: panels_table(shown), effective.words_for(preview, name).explanation
            )


def _importance(report: Report, known: Known, everything: bool) -> Iterator[Section]:
    scores: CellScores = cell_scores(report, known.importance, known.places)
    for key, words in MAPS.items():
        chart = importance_chart(report, scores, key, everything=everything)
        shown = importance_panels(report, scores, key, everything=everything)
        yield from _section(chart, lambda shown=shown: panels_table(shown), words.explanation)


def _cuts(report: Report) -> Cuts | None:
    """Where a trim over the whole model cuts; a smaller scope has no single cut."""
    trim = report.trim
    if trim is None or trim.scope != "model" or not trim.tensors:
        return None
    whole = total(trim.tensors.values())
    return Cuts(tuple(whole.threshold), percent(trim.density), ", ".join(f"{kept:,}" for kept in whole.kept))


def _fight_lead(report: Report) -> str:
    if not report.pairs:
        return "These maps compare experts with each other; this recipe has one."
    return "Signs are compared where at least two experts changed a weight, beside what unrelated experts would show."


def _sizes(whole: TensorStatistics, names: tuple[str, ...]) -> Table:
    """The table of the distribution: one row an expert."""
    rows: list[list[str | int | float | None]] = []
    for expert, name in enumerate(names):
        mean = whole.mass[expert] / max(1, whole.nonzero[expert])
        rows.append(
            [name, whole.changed_share(expert), float(f"{mean:.4g}"), float(f"{whole.largest[expert]:.4g}")]
        )
    return Table(["expert", "share changed", "mean |δ| where changed", "largest |δ|"], rows)
