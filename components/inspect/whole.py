"""What the Inspect tab says of the whole model: key figures, pairs of experts, and advice with its evidence."""

from __future__ import annotations

import html
from collections.abc import Callable

from components.figures.metrics import MOST_PAIRS, expert_names, pair_names, percent, trim_words
from components.numbers import count
from components.tables import html_table
from merging import Plan, Report
from merging.inspecting.advice import Advice, advice, kinship
from merging.inspecting.advice_facts import some_names
from merging.inspecting.changes import Conflict, TensorStatistics
from merging.inspecting.sums import total

MOST_ROWS = 28


def show_totals(report: Report | None) -> str:
    """Key figures of the whole model, and which tensors they leave out because of NaN."""
    if report is None:
        return ""
    whole = report.total
    cells = [
        (f"{name} moved by", number(whole.relative_change(index), 3), "of the base's length")
        for index, name in enumerate(expert_names(report))
    ]
    if report.pairs:
        cells += _conflict_cells(whole.signs)
    cells.append(("measured", count(report.total.elements), f"weights in {len(report.tensors)} tensors"))
    body = "".join(
        f'<div><dt>{html.escape(name)}</dt><dd>{value}</dd><dd class="unit">{html.escape(unit)}</dd></div>'
        for name, value, unit in cells
    )
    return f'<dl class="tiles">{body}</dl>{_left_out(report)}'


def _left_out(report: Report) -> str:
    """Which models hold NaN, and in which tensors."""
    if not report.broken:
        return ""
    models = ("The base", *expert_names(report))
    told = [
        f"{model} holds NaN or infinite values in {some_names(names)}"
        for number, model in enumerate(models)
        if (names := [name for name, counts in report.broken.items() if counts[number]])
    ]
    where = "These tensors are" if len(report.broken) > 1 else "This tensor is"
    sentence = f"{'; '.join(told)}. {where} left out of the figures above."
    return f'<p class="problem">{html.escape(sentence)}</p>'


def _conflict_cells(signs: Conflict) -> list[tuple[str, str, str]]:
    coverage = signs.coverage
    return [
        (
            "changed by two or more",
            "–" if coverage is None else percent(coverage),
            "of the weights: coverage",
        ),
        ("opposite signs", number(signs.opposite_share(), 2), "0.50 by chance"),
        ("not unanimous", number(signs.split_share(), 2), f"{number(signs.split_chance(), 2)} by chance"),
        ("mass conflict", number(signs.mass(), 2), f"{number(signs.mass_chance(), 2)} by chance, 0 = none"),
    ]


def show_pairs(report: Report | None) -> str:
    """Model kinship and the conflict of each pair over the whole model, before and after a trim."""
    if report is None or not report.pairs:
        return ""
    kin = kinship(report)
    whole = report.intact
    if whole is None:
        return ""
    after = total(t.signs for t in report.trim.tensors.values()) if report.trim else None
    rows = [
        [name, *_pair_cells(kin.cosine[pair], kin.pearson[pair], kin.distance[pair], whole, after, pair)]
        for pair, name in enumerate(pair_names(report)[:MOST_ROWS])
    ]
    together = ""
    if len(rows) > 1:
        together = " All pairs: the means, and the opposite signs among all that two experts changed."
        pearson, cosine, distance = kin.means
        overall = [number(whole.signs.opposite_share(), 3)]
        overall += [number(after.opposite_share(), 3)] if after else []
        means = [number(cosine, 4), number(pearson, 4), number(distance, 2)]
        rows.insert(0, ["all pairs", *means, *overall])
    headers = ["pair", "cosine", "Pearson", "Euclidean distance", "opposite signs (0.5 by chance)"]
    headers += ["after trimming"] if after else []
    trimmed = f" After trimming: {html.escape(trim_words(report))}." if after else ""
    opened = " open" if len(report.pairs) <= MOST_PAIRS else ""
    return (
        f'<details class="fold"{opened}><summary>Model kinship: how alike the experts are</summary>'
        f"<p>{html.escape(kin.suggestion)}</p>"
        f"{html_table('Pairs of experts over the whole model', headers, rows, wide=True)}"
        '<p class="chart-note">Correlation, cosine and distance of the changes over all weights (model kinship, '
        '<a href="https://arxiv.org/abs/2410.12613" target="_blank" rel="noopener noreferrer">2410.12613</a>): 1 = the same '
        f"direction, 0 = unrelated.{together}{trimmed}</p></details>"
    )


def _pair_cells(
    cosine: float | None,
    pearson: float | None,
    distance: float | None,
    whole: TensorStatistics,
    after: Conflict | None,
    pair: int,
) -> list[str]:
    cells = [number(cosine, 4), number(pearson, 4), number(distance, 2)]
    cells.append(number(whole.signs.opposite_share(pair), 3))
    return [*cells, number(after.opposite_share(pair), 3)] if after else cells


def show_advice(report: Report | None, plan_of: Callable[[], Plan | None]) -> str:
    """What the report suggests, each with the evidence beside it; `plan_of` finds the models' headers."""
    if report is None:
        return ""
    found = advice(report, plan_of())
    if not found:
        return (
            '<section class="advice"><h3>Advice</h3><p class="quiet">Nothing stands out: no rule on odd headers, outlier '
            "blocks, parallel experts or ties applies here.</p></section>"
        )
    items = "".join(map(_item, found))
    return f'<section class="advice" aria-label="Advice"><h3>Advice</h3><ul>{items}</ul></section>'


def _item(one: Advice) -> str:
    word = "look" if one.severity == "warning" else "note"
    badge = "badge-note" if one.severity == "warning" else "badge-plain"
    return (
        f'<li><span class="badge {badge}">{word}</span><div><p>{html.escape(one.text)}</p>'
        f'<p class="evidence">{html.escape(one.evidence)}</p></div></li>'
    )


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
