"""The numbers a map can show, and the small maps that show them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from components.family import Family
from components.figures.conflict_metrics import CONFLICT_METRICS
from components.figures.words import MapWords, Metric, Panel
from merging import Report
from merging.anatomy import Block, block_name
from merging.inspecting.changes import Conflict, TensorStatistics
from merging.inspecting.sums import total
from merging.reports.report import Cell, Grid, Trim

MOST_PAIRS = 6
"""More pairs than this are shown as one map over all of them."""

CHANGE_METRICS = (
    Metric(
        key="change",
        label="Change magnitude",
        title="How far each expert moved from the base",
        note="Length of the change beside the length of the base's weights, ‖δ‖ / ‖θ₀‖. "
        "All maps share one scale; brighter means a larger change.",
        hover="of the base's length: how far this expert moved these weights",
        explanation="An expert is the base plus a change, δ. Each cell is one weight matrix: its row is the block "
        "(0 is next to the input), its column the module. The number is the length of δ in that matrix divided by the "
        "length of the base's weights there (relative Frobenius norm): 0.05 means that the expert moved these "
        "weights by a twentieth of their size. Bright cells are where a skill was written; a merge that thins out "
        "changes hurts most there. The colours end at the 2nd and 98th percentile, so that one extreme matrix does "
        "not flatten the rest; the numbers are never clipped.",
        over="experts",
        scale="robust",
        value=lambda statistics, expert: statistics.relative_change(expert),
    ),
    Metric(
        key="changed",
        label="Share of changed weights",
        title="How many weights each expert changed at all",
        note="Share of weights that differ from the base's by any amount. All maps share one scale.",
        hover="of these weights differ from the base's",
        explanation="Fine-tuning moves most weights a little, but a step too small for the stored number format "
        "is lost: in bfloat16 a weight keeps its value unless it moves by about 0.4 % of itself. A low share means "
        "that the change sits in few weights, so few of them meet those of another expert.",
        over="experts",
        scale="robust",
        value=lambda statistics, expert: statistics.changed_share(expert),
    ),
)
METRICS = {metric.key: metric for metric in (*CHANGE_METRICS, *CONFLICT_METRICS)}


def expert_names(report: Report) -> tuple[str, ...]:
    """The experts' short names, in the report's order."""
    return Family("", report.experts).names


def pair_names(report: Report) -> list[str]:
    """A name for each pair of experts, in the report's order."""
    names = expert_names(report)
    return [f"{names[first]} · {names[second]}" for first, second in report.pairs]


def percent(share: float) -> str:
    """A share in per cent, as short as it goes."""
    return f"{100 * share:.3g} %"


def panels(report: Report, metric: Metric, *, everything: bool = False, trimmed: bool = False) -> list[Panel]:
    """The small maps of a metric: one an expert; one a pair, after one over all pairs where there are several; or one.

    With `trimmed`, and a report that knows a trim, what counts signs is shown before and after it.
    """
    if metric.over != "experts" and not report.pairs:
        return []
    draw = partial(_panel, report, metric, everything=everything)
    if metric.over == "blocks":
        return [_by_block(report, metric, everything)]
    if metric.over == "experts":
        shown = enumerate(expert_names(report))
        return [draw(name, partial(_indexed, metric.value, i), experts=[i]) for i, name in shown]
    if metric.over == "all":
        whole = partial(_indexed, metric.value, 0)
        return _before_and_after(report, metric, draw, "", whole, trimmed)
    pairs, found = pair_names(report), []
    if metric.overall is not None and len(pairs) > 1:
        found += _before_and_after(report, metric, draw, "all pairs", metric.overall, trimmed)
    if len(pairs) <= MOST_PAIRS:
        for index, name in enumerate(pairs):
            value, experts = partial(_indexed, metric.value, index), report.pairs[index]
            if len(pairs) == 1:
                found += _before_and_after(report, metric, draw, name, value, trimmed)
            else:
                after = _is_trimmed(report, metric, trimmed)
                shown_as = f"{name}, after" if after else name
                found.append(draw(shown_as, value, experts=experts, after=after))
    return found


def worded(report: Report, metric: Metric, trimmed: bool) -> Metric:
    """The metric's words, which say where a trim is shown."""
    if not trimmed or metric.over == "experts" or report.trim is None:
        return metric
    if not _is_trimmed(report, metric, trimmed):
        return replace(metric, note=metric.note + " All changes: the cosine is not trimmed.")
    return replace(
        metric,
        title=f"{metric.title}, before and after trimming",
        note=f"{metric.note} After trimming: only {trim_words(report)} are left.",
    )


def trim_words(report: Report) -> str:
    """What a report's trim leaves, in words."""
    assert report.trim is not None
    return f"the largest {percent(report.trim.density)} of each expert's changes in {trim_scope(report.trim)}"


def trim_scope(trim: Trim) -> str:
    """Among which weights a trim finds the largest."""
    return {"tensor": "each tensor", "layer": "each block", "model": "the whole model"}[trim.scope]


def row_name(block: Block | None) -> str:
    """How a block is called on the axis of a map."""
    return "outside" if block is None else str(block)


def cell_name(block: Block | None, kind: str) -> str:
    """How a cell is called in a sentence."""
    return f"{kind}, outside the blocks" if block is None else f"{block_name(block)}, {kind}"


def explanation_html(metric: MapWords) -> str:
    return f"<p>{html.escape(metric.explanation)}</p>"


def _indexed(value: Callable[[Any, int], float | None], index: int, record: Any) -> float | None:
    return value(record, index)


def _is_trimmed(report: Report, metric: Metric, trimmed: bool) -> bool:
    return trimmed and metric.signs and report.trim is not None


def _before_and_after(
    report: Report,
    metric: Metric,
    draw: Callable[..., Panel],
    name: str,
    value: Callable[[Any], float | None],
    trimmed: bool,
) -> list[Panel]:
    """One panel, or two of them where a trim is shown."""
    if not _is_trimmed(report, metric, trimmed):
        return [draw(name or "all experts", value)]
    assert report.trim is not None
    start = f"{name}: " if name else ""
    return [
        draw(f"{start}all changes", value),
        draw(
            f"{start}largest {percent(report.trim.density)} in {trim_scope(report.trim)}", value, after=True
        ),
    ]


def _panel(
    report: Report,
    metric: Metric,
    name: str,
    value: Callable[[Any], float | None],
    *,
    everything: bool,
    experts: Sequence[int] | None = None,
    after: bool = False,
) -> Panel:
    """A small map over the report's frame; `experts` are those it speaks of (None: all)."""
    records = sign_records(report, after) if metric.signs else report.tensors
    return Panel(
        name,
        report.map_of(records, value, everything=everything),
        chance=report.map_of(records, metric.chance, everything=everything) if metric.chance else None,
        told=_told(report, records, everything) if metric.signs and metric.key != "coverage" else None,
        broken=_broken(report, experts, everything),
    )


def sign_records(report: Report, after: bool) -> dict[str, Conflict]:
    """How signs agree, by tensor; with `after` what the report's trim left of them."""
    if after and report.trim is not None:
        return {name: trimmed.signs for name, trimmed in report.trim.tensors.items()}
    return {name: statistics.signs for name, statistics in report.tensors.items()}


def _told(report: Report, records: Mapping[str, Conflict], everything: bool) -> list[list[str]]:
    """The share of weights that a number on signs speaks of, for the hover."""
    coverage = report.map_of(records, lambda signs: signs.coverage, everything=everything)
    return [
        ["" if value is None else f"{value:.3f} of all weights were changed by two or more" for value in line]
        for line in coverage.values
    ]


def _broken(report: Report, experts: Iterable[int] | None, everything: bool) -> list[list[int]] | None:
    """NaN and infinite values of the base and of some experts by cell; None where there are none at all."""
    if not any(any(statistics.broken) for statistics in report.tensors.values()):
        return None
    chosen = [0, *(1 + e for e in (range(len(report.experts)) if experts is None else experts))]

    def count(statistics: TensorStatistics) -> float:
        return sum(statistics.broken[place] for place in chosen)

    grid = report.grid(count, everything=everything)
    return [[int(value or 0) for value in line] for line in grid.values]


def block_sums(report: Report, *, everything: bool) -> dict[Block | None, TensorStatistics]:
    """The cells of every block added up."""
    by_block: dict[Block | None, list[TensorStatistics]] = {}
    cells: dict[Cell, TensorStatistics] = report.cells(everything=everything)
    for (block, _), statistics in cells.items():
        by_block.setdefault(block, []).append(statistics)
    return {block: total(some) for block, some in by_block.items()}


def _by_block(report: Report, metric: Metric, everything: bool) -> Panel:
    """A map with a row for each block and a column for each pair of experts, after one for their mean."""
    assert metric.overall is not None
    sums = block_sums(report, everything=everything)
    pairs = pair_names(report)
    columns = [*(["mean of all pairs"] if len(pairs) > 1 else []), *pairs]
    rows, _ = report.frame(everything=everything)
    values = []
    for row in rows:
        numbers = [metric.value(sums[row], pair) for pair in range(len(pairs))]
        values.append([*([metric.overall(sums[row])] if len(pairs) > 1 else []), *numbers])
    return Panel("whole blocks", Grid(rows, columns, values))
