"""A report from a stratified sample of rows, each number with the error that the sample's groups tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from merging.changes import TensorStatistics
from merging.errors import MergingError
from merging.events import Progress
from merging.fate import FateWatch
from merging.inspection import PieceWatch, TrimWatch, origin_of, preview_of, require_one_family, trim_of
from merging.methods import METHODS, Scope
from merging.plan import Plan
from merging.quiet import quietly
from merging.replay import replay, show
from merging.report import Preview, Report, Trim
from merging.resident import family_bytes, family_key, sources_of
from merging.room import memory_problem
from merging.sampling import Rows, SampledFamily, sample_rows, steady

SEED = 0
"""The same rows are drawn each time."""


def sampled_report(
    plan: Plan, based: Plan, share: float, trim: tuple[float, Scope] | None
) -> Iterator[Progress | Report]:
    """Progress while about a share of the weights is read, then the report of these rows, all of them held in memory.

    The preview is left out, and the warnings say why, where a sample cannot tell what the method makes of the models
    (`steady`), or where the merge fails.

    Args:
        based: a plan over the same models that has a base.

    Raises:
        MergingError: no such share, too little memory, slices of different models.
    """
    require_one_family(plan)
    rows = sample_rows(plan, SEED, share=checked_share(share))
    family = _family(plan, rows)
    origin_of(plan, None)
    watch = family.watch(PieceWatch)
    yield from show(plan, family, watch)
    tensors, sample = watch.result()
    report = Report(plan.reference.label, plan.names, tensors, warnings=plan.warnings, sample=sample)
    try:
        report = replace(report, preview=_preview(plan, family))
    except MergingError as error:
        report = without(report, "a preview", error)
    if trim is not None:
        trimmed = trim_of(based, *trim)
        if family_key(trimmed) != family_key(plan):
            family = _family(trimmed, rows)
        try:
            report = replace(report, trim=Trim(*trim, *quietly(replay, trimmed, family, TrimWatch)))
        except MergingError as error:
            report = without(report, "what trimming leaves", error)
    yield replace(report, warnings=(*report.warnings, _said(report)))


def _preview(plan: Plan, family: SampledFamily) -> Preview:
    if not steady(plan):
        title = METHODS[plan.recipe.merge_method].title
        raise MergingError(
            f"what {title} makes of whole models cannot be told from some of their rows; leave sample out."
        )
    return preview_of(plan, *quietly(replay, plan, family, FateWatch))


def _family(plan: Plan, rows: Rows) -> SampledFamily:
    """The sample's family.

    Raises:
        MergingError: it does not fit in memory.
    """
    needed = family_bytes(plan, rows.elements)
    if memory_problem(needed):
        raise MergingError(
            f"sample: {rows.elements / max(1, rows.whole):.0%} of these models takes up to {needed / 1e9:.1f} GB of "
            "memory, more than is free; give a smaller share, or leave it out to look at every weight piece by piece."
        )
    return SampledFamily([*sources_of(plan)], rows)


def checked_share(share: float) -> float:
    """A share of the weights to look at.

    Raises:
        MergingError: it is not between 0 and 1.
    """
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise MergingError(
            f"sample: {share} is not a share between 0 and 1; leave it out to look at every weight."
        )
    return float(share)


def without(report: Report, what: str, reason: object) -> Report:
    """A report that says what it lacks."""
    said = str(reason).rstrip(".")
    return replace(report, warnings=(*report.warnings, f"The report is without {what}: {said}."))


def _said(report: Report) -> str:
    """How much was looked at, and how near the experts' changes are."""
    assert report.sample is not None
    intact = [name for name in report.tensors if name not in report.broken]
    said = []
    for expert, name in enumerate(report.experts):
        change = report.total.relative_change(expert)
        error = report.sample.error(partial(_change_of, expert=expert), intact or report.tensors)
        if change is not None and error is not None:
            said.append(f"{Path(name).name} {change:.4g} ± {error:.2g}")
    return (
        f"All numbers are estimates from {report.sample.share:.1%} of the weights (rows spread evenly over every large "
        f"tensor); relative change and its standard error: {', '.join(said) or 'unknown'}. Cuts are those of the sample, "
        "largest changes are the largest in it, and random masks are drawn anew."
    )


def _change_of(found: TensorStatistics, expert: int) -> float | None:
    return found.relative_change(expert)
