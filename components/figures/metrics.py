"""The numbers a map can show, each with its words and its scale."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from components.family import Family
from merging import Report
from merging.changes import TensorStatistics
from merging.report import Grid

MOST_PAIRS = 6
"""More pairs than this are shown as one map over all of them."""

Scale = Literal["robust", "chance", "signed"]


@dataclass(frozen=True, kw_only=True)
class MapWords:
    """What a map says of itself, and its scale.

    `hover` is a sentence that continues the number. `scale`: "robust" runs from the 2nd to the 98th percentile, "chance"
    is fixed around 0.5, "signed" is centred on 0. `significant`: numbers span magnitudes, so they are written with
    significant digits.
    """

    key: str
    label: str
    title: str
    note: str
    hover: str
    explanation: str
    scale: Scale
    significant: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric(MapWords):
    """One number per cell and expert, or per cell and pair of experts.

    `value(statistics, index)` measures expert or pair `index`; `overall(statistics)` all pairs together, None where
    that means nothing.
    """

    over: Literal["experts", "pairs"]
    value: Callable[[TensorStatistics, int], float | None]
    overall: Callable[[TensorStatistics], float | None] | None = None


def _mean_cosine(statistics: TensorStatistics) -> float | None:
    values = [statistics.cosine(pair) for pair in range(len(statistics.dot))]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


METRICS = {
    metric.key: metric
    for metric in (
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
            key="conflict",
            label="Sign conflict",
            title="Where the experts pull the same weights in opposite directions",
            note="Share of weights with opposite signs, among those that both experts changed. "
            "0.5 = what unrelated experts would show.",
            hover="of the weights that both changed are pulled in opposite directions (0.5 by chance)",
            explanation="For each pair of experts, look at the weights that both of them changed, and count how often "
            "one raised what the other lowered. Unrelated experts disagree on half of them, so 0.5 is the chance level: "
            "blue cells agree more than chance (averaging keeps what they share), red cells fight more than chance "
            "(averaging cancels them; TIES elects one sign and drops the other).",
            over="pairs",
            scale="chance",
            value=lambda statistics, pair: statistics.signs.opposite_share(pair),
            overall=lambda statistics: statistics.signs.opposite_share(),
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
        Metric(
            key="cosine",
            label="Cosine of changes",
            title="Whether two experts changed a matrix in the same direction",
            note="Cosine between the two changes: 1 = the same direction, 0 = unrelated, −1 = opposite.",
            hover="cosine between the two changes (0 for unrelated experts)",
            explanation="Each expert's change of a matrix is one long vector. The cosine of two such vectors says "
            "whether they point the same way. Unlike the sign conflict it counts large changes more than small ones. "
            "Near 0 the experts do not interfere and can simply be added; far above 0 they learnt the same thing, and "
            "adding them counts it twice.",
            over="pairs",
            scale="signed",
            value=lambda statistics, pair: statistics.cosine(pair),
            overall=_mean_cosine,
        ),
    )
}


@dataclass(frozen=True)
class Panel:
    """One small map: a grid under a name."""

    name: str
    grid: Grid


def expert_names(report: Report) -> tuple[str, ...]:
    """The experts' short names, in the report's order."""
    return Family("", report.experts).names


def pair_names(report: Report) -> list[str]:
    """A name for each pair of experts, in the report's order."""
    names = expert_names(report)
    return [f"{names[first]} · {names[second]}" for first, second in report.pairs]


def panels(report: Report, metric: Metric, *, everything: bool = False) -> list[Panel]:
    """The small maps of a metric: one an expert; or one a pair, after one over all pairs where there are several."""

    def panel(name: str, value: Callable[[TensorStatistics], float | None]) -> Panel:
        return Panel(name, report.grid(value, everything=everything))

    if metric.over == "experts":
        shown = enumerate(expert_names(report))
        return [panel(name, lambda s, index=index: metric.value(s, index)) for index, name in shown]
    pairs = pair_names(report)
    found = []
    if metric.overall is not None and len(pairs) > 1:
        found.append(panel("all pairs", metric.overall))
    if len(pairs) <= MOST_PAIRS:
        found += [
            panel(name, lambda s, index=index: metric.value(s, index)) for index, name in enumerate(pairs)
        ]
    return found


def row_name(block: int | None) -> str:
    """How a block is called on the axis of a map."""
    return "outside" if block is None else str(block)


def cell_name(block: int | None, kind: str) -> str:
    """How a cell is called in a sentence."""
    return f"{kind}, outside the blocks" if block is None else f"block {block}, {kind}"


def explanation_html(metric: MapWords) -> str:
    return f"<p>{html.escape(metric.explanation)}</p>"
