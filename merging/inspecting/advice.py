"""What a report suggests in plain words, each with the evidence beside it; nothing where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterator

from merging.effective import short_names
from merging.inspecting.advice_facts import Advice, Facts, some_names
from merging.inspecting.advice_rules import RULES
from merging.inspecting.kinship import Kinship, kinship
from merging.plan import Plan
from merging.reports.report import Report

__all__ = ["Advice", "Kinship", "advice", "kinship"]


def advice(report: Report, plan: Plan | None = None) -> list[Advice]:
    """What to look at or do, warnings first. `plan` adds what the models' headers show."""
    found = [*_broken(report), *_headers(report, plan)]
    whole = report.intact
    if whole is not None and report.experts:
        names = short_names(report.experts)
        facts = Facts(report, plan, tuple(names[expert] for expert in report.experts), whole)
        for rule in RULES:
            found += rule(facts)
    return sorted(found, key=lambda one: one.severity != "warning")


def _broken(report: Report) -> Iterator[Advice]:
    models = ("the base", *(short_names(report.experts)[expert] for expert in report.experts))
    for number, model in enumerate(models):
        counts = {name: t.broken[number] for name, t in report.tensors.items() if t.broken[number]}
        if counts:
            yield Advice(
                f"{model} holds NaN or infinite values, so it cannot be merged as it is. Use an intact copy, or exclude "
                "these tensors.",
                f"{sum(counts.values()):,} values in {some_names(list(counts))}; the sums over the model leave these tensors out",
                "warning",
            )


def _headers(report: Report, plan: Plan | None) -> Iterator[Advice]:
    said = (*report.warnings, *(plan.warnings if plan is not None else ()))
    for warning in dict.fromkeys(said):
        yield Advice(warning, "found while the recipe and the models' headers were checked", "warning")
