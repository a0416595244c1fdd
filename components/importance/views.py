"""What the page says about importance: plain functions from what was measured to values of components."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from components.clickable_plot import payload
from components.figures.importance import curves_chart, head_chart, part_scores, row_chart
from components.figures.importance_maps import (
    METHOD,
    MILLI,
    THOUSAND,
    Cell,
    CellScores,
    cell_scores,
    importance_chart,
    importance_panels,
    owner_table,
)
from components.figures.metrics import cell_name, expert_names
from components.importance.job import MAPPED, Found
from components.progress import job_bar, left
from components.tables import Table, html_table, panels_table
from merging import Importance, Report
from merging.engine import Progress
from merging.importances.agreement import CHANGE, SHUFFLED, SIZE, Agreement, interval
from merging.job_records import Job

NOT_MEASURED = (
    "Importance has not been measured for these models. Open “Importance (APL)” below the map and press Compute: for the "
    "demo models it takes seconds."
)
NO_PAIRS = "This map compares experts with each other. Add a second expert on the Models tab."
NO_HEADS = "This module has no attention heads."
NO_ROWS = "This module was not measured row by row."
NO_DETAILS = "Measured without heads and rows. Switch “Heads and rows” on and compute again."
ABOUT = (
    "<p>Importance asks, with a few examples of each expert's task, which parts of its change that task depends on: the change "
    "times the slope of the loss, or the loss when a part is put back to the base. The map shows it, and the APL merge keeps "
    "more where it is high. <strong>This is a reconstruction</strong> of "
    '<a href="https://arxiv.org/abs/2408.09485" target="_blank" rel="noopener noreferrer">APL (2408.09485)</a>: the '
    "paper's full text and code were not available, so it follows the abstract and public digests.</p>"
)


def scores_of(report: Report | None, found: Found | None) -> CellScores | None:
    """The importance of a report's cells."""
    known = found.load(MAPPED) if found is not None else None
    if report is None or found is None or known is None or found.family.experts != report.experts:
        return None
    return cell_scores(report, known, found.places)


def show_importance_map(
    report: Report, key: str, everything: bool, picked: tuple[int, int] | None, found: Found | None
) -> list[Any]:
    """The map of one key of `MAPS` as payload, and its table."""
    scores = scores_of(report, found)
    if scores is None:
        return [{"empty": NOT_MEASURED}, Table(["block", "module"], [])]
    chart = importance_chart(report, scores, key, everything=everything)
    if key == "owner":
        rows = owner_table(report, scores, everything=everything)
        table = Table(["block", "module", "owner", "share of the claims, %"], rows)
    else:
        table = panels_table(importance_panels(report, scores, key, everything=everything))
    return [payload(chart, picked, empty=NO_PAIRS), table]


def with_importance(table: Table, report: Report, everything: bool, found: Found | None) -> Table:
    """A table with a row for each cell of a report, and each expert's signed importance (nats) beside it."""
    scores = scores_of(report, found)
    if scores is None:
        return table
    names = expert_names(report)
    empty: list[float | None] = [None] * len(names)
    rows = [
        [*row, *(scores.signed.get(cell) or empty)]
        for row, cell in zip(table.rows, report.cells(everything=everything), strict=True)
    ]
    return Table([*table.headers, *(f"{name} signed importance (nats)" for name in names)], rows)


def show_importance_story(report: Report | None, cell: Cell | None, found: Found | None) -> list[Any]:
    """The story's importance part: whether it is there, its table, heads, rows."""
    scores = scores_of(report, found)
    if report is None or cell is None or scores is None or found is None or cell not in scores.signed:
        return [gr.update(visible=False), "", None, None]
    names = expert_names(report)
    charts = []
    for unit, draw, nothing in (("head", head_chart, NO_HEADS), ("row", row_chart, NO_ROWS)):
        known = found.load(unit)
        if known is None:
            charts.append({"empty": NO_DETAILS})
            continue
        labels, signed = part_scores(report, known, found.places, cell)
        charts.append(payload(draw(labels, signed, names, cell), empty=nothing))
    return [gr.update(visible=True), _cell_table(scores, names, cell), *charts]


def _cell_table(scores: CellScores, names: tuple[str, ...], cell: Cell) -> str:
    rows = []
    for expert, name in enumerate(names):
        signed, value = scores.signed[cell][expert], scores.value(cell, expert) or 0.0
        share = scores.share(cell, expert)
        others = sorted((scores.value(other, expert) or 0.0 for other in scores.signed), reverse=True)
        rows.append(
            [
                name,
                digits(MILLI * value),
                _signed(signed),
                digits(MILLI * THOUSAND * value / scores.sizes[cell]),
                "–" if share is None else f"{100 * share:.1f} %",
                f"{others.index(value) + 1} of {len(others)}",
            ]
        )
    headers = [
        "expert",
        "importance, mnat",
        "effect of the change on its loss, mnat",
        "mnat per thousand weights",
        "share of its total",
        "rank",
    ]
    owner = scores.owner(cell)
    owned = (
        f" {names[owner[0]]} owns this cell with {100 * owner[1]:.0f} % of all claims."
        if owner and len(names) > 1
        else ""
    )
    table = html_table(f"Importance of {cell_name(*cell)} to each expert's task", headers, rows, wide=True)
    return f'<h3 class="chart-title">Importance to each expert\'s task</h3><p class="chart-note">{html.escape(owned)}</p>{table}'


def _signed(value: float) -> str:
    """What a change does to its expert's loss, as a signed number and a word."""
    if not value:
        return "0"
    sign, word = ("−", "helps") if value < 0 else ("+", "harms")
    return f"{sign}{digits(MILLI * abs(value))} ({word})"


def progress_html(job: Job | None) -> str:
    """How far the running measurement is; empty where none waits or runs."""
    return job_bar(job, "measuring importance", "reading headers", _told)


def _told(progress: Progress) -> list[str]:
    steps = [f"step {progress.tensors_done} of {progress.tensors}"] if progress.tensors else []
    return [progress.stage, *steps, *left(progress, 1)]


def status_html(found: Found | None) -> str:
    """What is known of the family's importance, in sentences."""
    known = found.load(MAPPED) if found is not None else None
    if known is None or found is None:
        return '<p class="quiet">Not measured for these models yet.</p>'
    facts = [known.experts[place] for place in found.places]
    losses = "; ".join(
        f"{html.escape(one.name)} {one.base_loss:.3f} as the base, {one.expert_loss:.3f} as the expert"
        for one in facts
    )
    doubts = [
        f'<p class="im-note">{html.escape(one.name)} is no better than the base on these examples, so its importance means '
        "little. Give examples of its own task.</p>"
        for one in facts
        if one.expert_loss >= one.base_loss
    ]
    return (
        f'<div data-job="{found.job}" role="status"><p><strong>Measured:</strong> {told(known)}. '
        f"APL merges of these models use it by {UNITS[found.unit]}.</p>"
        f'<p class="quiet">Loss in nats per answer token: {losses}.</p>{"".join(doubts)}</div>'
    )


UNITS = {"model": "the whole model", "layer": "blocks", "module": "modules", "head": "heads", "row": "rows"}


def told(known: Importance) -> str:
    """How importance was measured, in words."""
    where = f"gradients at the {known.at}" if known.at != "trapezoid" else "gradients at base and expert"
    how = "exact intervention" if known.how == "exact" else where
    examples = known.description.samples
    return f"{how}, {examples} example{'s' if examples != 1 else ''} an expert"


def recommendation(agreement: Agreement | None, how: str = "gradient") -> str:
    """Whether APL is recommended with scores measured so, in a sentence or two of plain text."""
    if agreement is None and how == "exact":
        return (
            "These scores are exact intervention itself. Whether APL merges well with them, the result tells."
        )
    if agreement is None:
        return (
            "Not compared with exact intervention yet, so APL is not recommended over simpler methods: whether its scores tell "
            "more than ‖δ‖² is not known here."
        )
    if not agreement.recommended:
        return (
            "APL is not recommended here: its scores agree no better with exact intervention than ‖δ‖², the plain size of "
            "the change."
        )
    beaten = [expert.expert for expert in agreement.experts if not expert.recommended]
    but = f" (not for {', '.join(beaten)})" if beaten else ""
    told = f"APL is recommended here: on average its scores agree better with exact intervention than ‖δ‖² does{but}."
    if agreement.as_good:
        blind = " and ".join(_predictor(name, "").removesuffix(" (null)") for name in agreement.as_good)
        told += f" Trust it little, though: {blind}, blind to the task, did at least as well."
    unsure = [
        expert.expert
        for expert in agreement.experts
        for one in expert.correlations
        if one.predictor == agreement.score and one.low is not None and one.low <= 0
    ]
    if unsure:
        told += f" For {' and '.join(unsure)} it could be chance: the interval reaches 0."
    if better := agreement.better:
        mine, theirs = (agreement.mean(name) or 0.0 for name in (agreement.score, better))
        told += f" {better.capitalize()} agrees better here ({theirs:.2f} against {mine:.2f}): choose it above and compute again."
    return told


def agreement_html(agreement: Agreement | None, how: str = "gradient") -> str:
    """The recommendation and the table behind it."""
    advice = html.escape(recommendation(agreement, how))
    if agreement is None:
        return f'<p class="im-advice">{advice}</p>'
    look = "im-good" if agreement.recommended else "im-note"
    at = agreement.score.rpartition(" at ")[2]
    first = agreement.experts[0].correlations
    order = [
        one.predictor for one in first if not one.predictor.startswith(SHUFFLED) or one.predictor.endswith(at)
    ]
    order.sort(key=lambda name: name != agreement.score)
    rows = []
    for name in order:
        found = [
            next(one for one in expert.correlations if one.predictor == name) for expert in agreement.experts
        ]
        rows.append([_predictor(name, agreement.score), *map(interval, found)])
    headers = ["predictor", *(expert.expert for expert in agreement.experts)]
    table = html_table("Spearman's correlation with exact intervention", headers, rows, wide=True)
    return (
        f'<p class="im-advice {look}" role="status">{advice}</p>'
        "<h3 class='chart-title'>Agreement with exact intervention</h3>"
        f'<p class="chart-note">Spearman\'s rank correlation over {len(agreement.experts[0].keys)} modules, and its 95 % '
        f"bootstrap interval over the {agreement.examples} examples. 1 = the same order, 0 = none. ‖δ‖², the size and "
        "shuffled answers know nothing of the task: a useful score beats them. A resample repeats some examples, so an "
        f"interval can lie below its value. {html.escape(METHOD)}</p>{table}"
    )


def _predictor(name: str, score: str) -> str:
    words = {CHANGE: "‖δ_P‖² (null)", SIZE: "n_P, number of weights (null)"}.get(name, name)
    if name.startswith(SHUFFLED):
        words += " (null)"
    return f"{words}, the score used" if name == score else words


def show_agreement(found: Found | None) -> list[Any]:
    """The report's text, whether there are removal curves, and these."""
    agreement, known = (found.agreement, found.load(MAPPED)) if found is not None else (None, None)
    text = agreement_html(agreement, known.how) if known is not None else ""
    chart = payload(curves_chart(agreement)) if agreement is not None else None
    return [text, gr.update(visible=chart is not None), chart]


def digits(value: float) -> str:
    """Three significant digits, without an exponent unless it is very small."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
