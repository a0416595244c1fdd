"""A report from a stratified sample of rows, each number with the error that the sample's groups tell."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from merging.errors import MergingError
from merging.events import Progress
from merging.executors import quietly
from merging.folders.room import memory_problem
from merging.inspecting.changes import TensorStatistics
from merging.inspecting.fate import FateWatch
from merging.inspecting.sampling import Rows, SampledFamily, sample_rows, steady
from merging.inspection import PieceWatch, TrimWatch, origin_of, preview_of, require_one_family, trim_of
from merging.memory.replay import RecordWatch, merged, show
from merging.memory.resident import family_bytes, family_key, sources_of
from merging.methods import METHODS, Scope
from merging.plan import Plan
from merging.reports.report import Preview, Report, Sample, Trim

SEED = 0
"""The same rows are drawn each time."""
MOST_BYTES = 2 << 30
"""Memory that a sample may take."""
EXACT_FROM = 0.2
"""Share from which on a sample takes as long as every weight: sampled rows are kept, and their keys sorted."""


def rows_to_read(plan: Plan, share: float) -> tuple[Rows | None, str]:
    """The rows of a sample that fits into `MOST_BYTES` and into free memory, and what to say where it is another share.

    None instead of rows where all weights are to be looked at: a large share does not fit, or not even the fewest rows.

    Raises:
        MergingError: no such share, slices of different models.
    """
    require_one_family(plan)
    rows = sample_rows(plan, SEED, share=checked_share(share))
    needed = family_bytes(plan, rows.elements)
    if _fits(needed):
        return rows, ""
    said = (
        f"sample: {share:.2%} of these models would take {needed / 1e9:.1f} GB of memory, more than the "
        f"{MOST_BYTES / 1e9:.1f} GB for samples or than is free; "
    )
    if share < EXACT_FROM:
        rows = sample_rows(plan, SEED, share=0.95 * share * MOST_BYTES / needed)
        if _fits(family_bytes(plan, rows.elements)):
            looked = rows.elements / max(1, rows.whole)
            return rows, said + f"{looked:.2%} were looked at. Leave sample out to look at every weight."
    return None, said + "every weight was looked at instead, piece by piece, and all numbers are exact."


def _fits(needed: int) -> bool:
    return needed <= MOST_BYTES and not memory_problem(needed)


def sampled_report(
    plan: Plan, based: Plan, rows: Rows, trim: tuple[float, Scope] | None
) -> Iterator[Progress | Report]:
    """Progress while rows of a family are read and merged in memory, then their report.

    The preview is left out, and the warnings say why, where a sample cannot tell what the method makes of the models
    (`steady`), or where the merge fails.

    Args:
        based: a plan over the same models that has a base.

    Raises:
        MergingError: slices of different models.
    """
    require_one_family(plan)
    steps = 2 if trim is None else 3
    family = SampledFamily([*sources_of(plan)], rows)
    origin_of(plan, None)
    report = yield from _changes(plan, family, steps)
    try:
        report = replace(report, preview=(yield from _preview(plan, family, steps)))
    except MergingError as error:
        report = without(report, "a preview", error)
    if trim is not None:
        trimmed = trim_of(based, *trim)
        if family_key(trimmed) != family_key(plan):
            family = SampledFamily([*sources_of(trimmed)], rows)
        try:
            found = yield from _replayed(trimmed, family, TrimWatch, (2, steps))
            report = replace(report, trim=Trim(*trim, *found))
        except MergingError as error:
            report = without(report, "what trimming leaves", error)
    yield replace(report, warnings=(*report.warnings, _said(report)))


def _changes(plan: Plan, family: SampledFamily, steps: int) -> Generator[Progress, None, Report]:
    watch = family.watch(PieceWatch)
    for progress in show(plan, family, watch):
        yield within(progress, 0, steps)
    tensors, sample = watch.result()
    return Report(plan.reference.label, plan.names, tensors, warnings=plan.warnings, sample=sample)


def _preview(plan: Plan, family: SampledFamily, steps: int) -> Generator[Progress, None, Preview]:
    if not steady(plan):
        title = METHODS[plan.recipe.merge_method].title
        raise MergingError(
            f"what {title} makes of whole models cannot be told from some of their rows; leave sample out."
        )
    return preview_of(plan, *(yield from _replayed(plan, family, FateWatch, (1, steps))))


def _replayed(
    plan: Plan, family: SampledFamily, make: Callable[[], RecordWatch], part: tuple[int, int]
) -> Generator[Progress, None, tuple[dict[str, Any], Sample | None]]:
    """`replay` with progress, of one part of the whole job."""
    watch = family.watch(make)
    steps = merged(plan, family, watch)
    while (progress := quietly(_following, steps)) is not None:
        yield within(progress, *part)
    return quietly(_result, watch)


def _following(steps: Iterator[Progress]) -> Progress | None:
    return next(steps, None)


def _result(watch: Any) -> tuple[dict[str, Any], Sample | None]:
    found: tuple[dict[str, Any], Sample | None] = watch.result()
    return found


def within(progress: Progress, number: int, steps: int) -> Progress:
    """The progress of one of several passes as a share of all."""
    return replace(progress, share=(number + progress.share) / steps)


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
        margin = report.sample.margin(partial(_change_of, expert=expert), intact or report.tensors)
        if change is not None and margin is not None:
            said.append(f"{Path(name).name} {change:.4g} ± {margin:.2g}")
    return (
        f"All numbers are estimates from {report.sample.share:.1%} of the weights (rows spread evenly over every large "
        f"tensor); relative change (± covers 95 %): {', '.join(said) or 'unknown'}. Cuts are those of the sample, "
        "largest changes are the largest in it, and random masks are drawn anew."
    )


def _change_of(found: TensorStatistics, expert: int) -> float | None:
    return found.relative_change(expert)
