"""Everything that can be said of a recipe before it is merged: changes, preview, and what trimming leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from merging import engine
from merging.errors import MergingError
from merging.events import Progress
from merging.inspection import (
    TrimWatch,
    inspect_plan,
    inspect_recipe,
    over_same_models,
    require_one_family,
    trim_of,
)
from merging.methods import Scope
from merging.plan import Plan
from merging.reports.report import Report, Trim
from merging.reports.sampled import rows_to_read, sampled_report, within, without


def full_report(
    plan: Plan,
    *,
    device: str = "auto",
    sample: float | None = None,
    density: float | None = None,
    scope: Scope | None = None,
) -> Iterator[Progress | Report]:
    """Progress, then a report with the preview of the plan, and the trim where something is trimmed.

    What cannot be made (a NaN in a model stops every merge) is left out, and the report's warnings say why.

    Args:
        sample: None looks at every element; a share in (0, 1) at a stratified sample of about so many, in memory on the
            CPU: see `sampled_report`. Where it does not fit, fewer rows or all weights are: see `rows_to_read`.
        density, scope: of the trim; by default those of the recipe, and no trim where it keeps everything.

    Raises:
        MergingError: slices of different models, a recipe without a base, a density outside (0, 1], no such share.
    """
    yield from report_of(plan, device=device, sample=sample, asked=_trim_of(plan, density, scope))


def report_of(
    plan: Plan,
    *,
    device: str = "auto",
    sample: float | None = None,
    asked: tuple[float, Scope] | None = None,
) -> Iterator[Progress | Report]:
    """`full_report` with the trim that is asked for, or without one, which saves a pass over the models.

    Raises:
        MergingError: slices of different models, a recipe without a base, no such share.
    """
    require_one_family(plan)
    if sample is not None:
        based = _with_base(plan)
        rows, said = rows_to_read(plan, sample)
        found = _exact(plan, device, asked) if rows is None else sampled_report(plan, based, rows, asked)
        for event in found:
            if said and isinstance(event, Report):
                event = replace(event, warnings=(*event.warnings, said))
            yield event
        return
    yield from _exact(plan, device, asked)


def _exact(plan: Plan, device: str, asked: tuple[float, Scope] | None) -> Iterator[Progress | Report]:
    """The report of every weight, read piece by piece."""
    trimmed = trim_of(_with_base(plan), *asked) if asked is not None else None
    steps = 2 if trimmed is not None else 1
    report: Report | None = None
    for event in _with_preview(plan, device):
        if isinstance(event, Report):
            report = event
        else:
            yield within(event, 0, steps)
    assert report is not None
    if trimmed is not None and asked is not None:
        watch = TrimWatch()
        try:
            for step in engine.run_plan(trimmed, engine.NoSink(), device=device, watches=[watch]):
                if isinstance(step, Progress):
                    yield within(step, 1, steps)
            report = replace(report, trim=Trim(*asked, watch.result()))
        except MergingError as error:
            report = without(report, "what trimming leaves", error)
    yield report


def _with_preview(plan: Plan, device: str) -> Iterator[Progress | Report]:
    """The report and the preview in one pass; the report alone where the merge would fail."""
    try:
        yield from inspect_recipe(plan, device=device)
        return
    except MergingError as error:
        failed = error
    for event in inspect_plan(_with_base(plan), device=device):
        yield without(event, "a preview", failed) if isinstance(event, Report) else event


def checked_scope(word: str | None) -> Scope | None:
    """A scope by its word.

    Raises:
        MergingError: there is no such scope.
    """
    if word is not None and word not in get_args(Scope):
        raise MergingError(f"scope: '{word}' is unknown; write one of {', '.join(get_args(Scope))}.")
    return word  # type: ignore[return-value]


def _with_base(plan: Plan) -> Plan:
    """The plan itself, or one over the same models whose method looks at their base.

    Raises:
        MergingError: the recipe names no base.
    """
    if plan.base is not None:
        return plan
    if plan.recipe.base_model is None:
        raise MergingError(
            "inspect: this recipe names no base_model, so there is no change to look at. Name the model all others were "
            "tuned from."
        )
    return over_same_models(plan, "task_arithmetic", {})


def _trim_of(plan: Plan, density: float | None, scope: Scope | None) -> tuple[float, Scope] | None:
    """Density and scope of the trim: those asked for, or the recipe's; of several densities the one of most weights."""
    if density is not None and not 0 < density <= 1:
        raise MergingError(f"density: {density:g} is not above 0 and at most 1.")
    counts: Counter[float] = Counter()
    scopes: Counter[Scope] = Counter()
    sizes = {tensor.info.name: tensor.info.elements for tensor in plan.tensors}
    for one in plan.effective():
        given = one.values.get("density", ())
        for value in given if isinstance(given, tuple) else (given,):
            counts[value] += sizes[one.tensor]
        if "scope" in one.values:
            scopes[one.values["scope"]] += sizes[one.tensor]
    where = scope or (scopes.most_common(1)[0][0] if scopes else "model")
    if density is not None:
        return density, where
    below = Counter({value: count for value, count in counts.items() if 0 < value < 1})
    return (below.most_common(1)[0][0], where) if below else None
