"""Everything that can be said of a recipe before it is merged: changes, preview, and what trimming leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from merging import engine
from merging.changes import TensorStatistics
from merging.errors import MergingError
from merging.events import Progress
from merging.inspection import TrimWatch, inspect_plan, inspect_recipe, trim_of
from merging.methods import Scope
from merging.plan import Plan, make_plan
from merging.report import Report, Sample, Trim
from merging.row_sample import GROUPS, checked_share, estimate, sampled


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
        sample: None looks at every element; a share in (0, 1) at a stratified sample of so many of them.
        density, scope: of the trim; by default those of the recipe, and no trim where it keeps everything.

    Raises:
        MergingError: slices of different models, a recipe without a base, a density outside (0, 1].
    """
    asked = _trim_of(plan, density, scope)
    if sample is not None:
        yield from _sampled(plan, checked_share(sample), asked, device)
        return
    yield from _one(plan, _with_base_of(plan), asked and trim_of(_with_base(plan), *asked), asked, device)


def _one(
    plan: Plan,
    based: Callable[[], Plan],
    trimmed: Plan | None,
    asked: tuple[float, Scope] | None,
    device: str,
) -> Iterator[Progress | Report]:
    """The report of one plan, or of one sample of it."""
    steps = 2 if trimmed is not None else 1
    report: Report | None = None
    for event in _with_preview(plan, based, device):
        if isinstance(event, Report):
            report = event
        else:
            yield _part(event, 0, steps)
    assert report is not None
    if trimmed is not None and asked is not None:
        watch = TrimWatch()
        try:
            for step in engine.run_plan(trimmed, engine.NoSink(), device=device, watches=[watch]):
                if isinstance(step, Progress):
                    yield _part(step, 1, steps)
            report = replace(report, trim=Trim(*asked, watch.result()))
        except MergingError as error:
            report = _without(report, "what trimming leaves", error)
    yield report


def _with_base_of(plan: Plan) -> Callable[[], Plan]:
    return lambda: _with_base(plan)


def _with_preview(plan: Plan, based: Callable[[], Plan], device: str) -> Iterator[Progress | Report]:
    """The report and the preview in one pass; the report alone where the merge would fail."""
    try:
        yield from inspect_recipe(plan, device=device)
        return
    except MergingError as error:
        failed = error
    for event in inspect_plan(based(), device=device):
        yield _without(event, "a preview", failed) if isinstance(event, Report) else event


def _sampled(
    plan: Plan, share: float, asked: tuple[float, Scope] | None, device: str
) -> Iterator[Progress | Report]:
    """The report of four samples together, with the error that their spread shows."""
    if plan.scores is not None:
        raise MergingError(
            f"sample: {plan.recipe.merge_method} works on the importance of whole tensors; leave sample out."
        )
    trimmed = trim_of(_with_base(plan), *asked) if asked is not None else None
    found: list[Report] = []
    for group in range(GROUPS):
        part = sampled(plan, share, group)
        based = _sampled_base(plan, share, group)
        fewer = sampled(trimmed, share, group) if trimmed is not None else None
        for event in _one(part, based, fewer, asked, device):
            if isinstance(event, Report):
                found.append(event)
            else:
                yield _part(event, group, GROUPS)
    yield _together(plan, share, found)


def _sampled_base(plan: Plan, share: float, group: int) -> Callable[[], Plan]:
    return lambda: sampled(_with_base(plan), share, group)


def _together(plan: Plan, share: float, found: list[Report]) -> Report:
    """One report of several samples, scaled up to whole tensors."""
    sizes = {tensor.info.name: tensor.info.elements for tensor in plan.tensors}
    first = found[0]
    report = replace(first, tensors=estimate([one.tensors for one in found], sizes))
    trims = [one.trim for one in found if one.trim is not None]
    if len(trims) == len(found):
        groups = tuple(estimate([trim.tensors], sizes) for trim in trims)
        together = estimate([trim.tensors for trim in trims], sizes)
        report = replace(report, trim=replace(trims[0], tensors=together, sample=Sample(share, groups)))
    previews = [one.preview for one in found if one.preview is not None]
    if len(previews) == len(found):
        groups = tuple(estimate([preview.tensors], sizes) for preview in previews)
        together = estimate([preview.tensors for preview in previews], sizes)
        report = replace(report, preview=replace(previews[0], tensors=together, sample=Sample(share, groups)))
    read = sum(one.total.elements for one in found) / max(1, report.total.elements)
    spread = Sample(share, tuple(estimate([one.tensors], sizes) for one in found))
    said = []
    for expert, name in enumerate(report.experts):
        change = report.total.relative_change(expert)
        error = spread.error(partial(_change_of, expert=expert), report.tensors)
        if change is not None and error is not None:
            said.append(f"{Path(name).name} {change:.4g} ± {error:.2g}")
    warning = (
        f"All numbers are estimates from {min(1.0, read):.1%} of the weights (rows spread evenly over every tensor); "
        f"relative change and its standard error: {', '.join(said) or 'unknown'}. Cuts and largest changes are those of the "
        "sample."
    )
    return replace(report, warnings=(*report.warnings, warning))


def _change_of(found: TensorStatistics, expert: int) -> float | None:
    return found.relative_change(expert)


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
    changes: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "models": tuple(entry.model_copy(update={"parameters": {}}) for entry in plan.recipe.models),
        "parameters": {},
        "profile": "paper",
        "importance": None,
        "overrides": (),
    }
    recipe = plan.recipe.model_copy(update=changes)
    recipe._folder = plan.recipe._folder
    return make_plan(recipe)


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


def _without(report: Report, what: str, reason: object) -> Report:
    said = str(reason).rstrip(".")
    return replace(report, warnings=(*report.warnings, f"The report is without {what}: {said}."))


def _part(progress: Any, number: int, steps: int) -> Progress:
    """The progress of one of several passes as a share of all."""
    return replace(progress, share=(number + progress.share) / steps)
