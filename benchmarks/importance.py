"""How well APL's importance agrees with exact intervention on the demo family, and what it costs.

    python -m benchmarks.importance [--samples 16] [--device cpu] [--save benchmarks/results/importance-demo.md]

Every expert is measured on its own calibration file. The scores are compared over all modules, and over a sample of
heads and of rows; beside them stand predictors that know nothing of the task. APL is rebuilt from the paper's abstract
and public digests (2408.09485).
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import merging
from merging.commands.importance import advice, interval
from merging.importances.agreement import CHANGE, Agreement
from merging.importances.measuring import SAMPLE, STATES
from merging.recipe import ModelEntry, Recipe

DEMO = Path(__file__).parent.parent / "examples" / "demo"
EXPERTS = ("math", "code", "words")
DATA = {name: DEMO / "data" / name / "calibration.jsonl" for name in EXPERTS}
LEVELS = ("module", "head", "row")


def recipe() -> Recipe:
    models = tuple(ModelEntry(model=str(DEMO / name)) for name in EXPERTS)
    return Recipe(merge_method="task_arithmetic", base_model=str(DEMO / "base"), models=models)


def timed(samples: int, device: str, **options: object) -> tuple[float, merging.Importance]:
    started = time.perf_counter()
    found = merging.importance(recipe(), DATA, samples=samples, device=device, **options)
    return time.perf_counter() - started, found


def correlations(report: Agreement, level: str) -> Iterator[str]:
    """A Markdown table: a row a predictor, a column an expert."""
    count = len(report.experts[0].keys)
    yield f"### {level.capitalize()}s: {count} of them\n"
    yield "| predictor | " + " | ".join(one.expert for one in report.experts) + " | mean |"
    yield "|---|" + "---:|" * (len(report.experts) + 1)
    for row in zip(*(one.correlations for one in report.experts), strict=True):
        known = [one.spearman for one in row if one.spearman is not None]
        mean = f"{sum(known) / len(known):.2f}" if known else "–"
        yield f"| {row[0].predictor} | " + " | ".join(interval(one) for one in row) + f" | {mean} |"
    yield ""
    yield advice(report) + "\n"


def curves(reports: dict[str, Agreement]) -> Iterator[str]:
    """Loss of each expert with its top k modules put back, by each score."""
    for number, expert in enumerate(EXPERTS):
        first = next(iter(reports.values())).experts[number]
        found = {name: report.experts[number].curves for name, report in reports.items()}
        rows = {name: curve for all_curves in found.values() for name, curve in all_curves.items()}
        yield f"| {expert}: order | " + " | ".join(f"k = {count}" for count in first.counts) + " |"
        yield "|---|" + "---:|" * len(first.counts)
        for name, curve in sorted(rows.items(), key=lambda item: (item[0] in {CHANGE, "random"}, item[0])):
            yield f"| {name} | " + " | ".join(f"{loss:.3f}" for loss in curve) + " |"
        yield ""


def report(samples: int, device: str) -> Iterator[str]:
    timed(1, device)  # the first call imports transformers
    times: dict[str, float] = {}
    reports: dict[str, Agreement] = {}
    for at in STATES:
        times[f"gradient at {at}"], _ = timed(samples, device, at=at)
    times["exact"], found = timed(samples, device, how="exact")
    for at in (*STATES, "exact"):
        options = {"how": "exact"} if at == "exact" else {"at": at}
        seconds, measured = timed(samples, device, agreement=True, **options)
        if at == "base":
            times["gradient at base with the report"] = seconds
        assert measured.agreement is not None
        reports[at] = measured.agreement
    yield "# Importance on the demo family\n"
    yield f"`python -m benchmarks.importance`, {samples} examples an expert, {device}, {platform.machine()},"
    yield f"{os.cpu_count()} cores, {torch.get_num_threads()} used, shared with other programs, torch {torch.__version__}. APL is a reconstruction from the"
    yield "paper's abstract and public digests (2408.09485).\n"
    losses = "; ".join(f"{e.name} {e.base_loss:.3f} → {e.expert_loss:.4f}" for e in found.experts)
    yield f"Mean NLL of an answer token, base → expert: {losses}.\n"
    yield "## Spearman's correlation with exact intervention\n"
    yield "In brackets the 95 % bootstrap interval over the examples (200 resamples). Shuffled answers, ‖δ‖² and size are"
    yield f"null predictors. Heads and rows: a random sample of {SAMPLE}.\n"
    yield from correlations(reports["base"], "module")
    for level in LEVELS[1:]:
        _, measured = timed(samples, device, partition=level, agreement=True)
        assert measured.agreement is not None
        yield from correlations(measured.agreement, level)
    yield "## Removal curves\n"
    yield "Loss of the expert with its top k of 42 modules put back to the base (random: mean of 3 orders). A good score"
    yield "rises early.\n"
    yield from curves(reports)
    yield "## Time\n"
    yield "All three experts, modules, loading included.\n"
    yield "| measurement | seconds |\n|---|---:|"
    yield from (f"| {name} | {seconds:.1f} |" for name, seconds in times.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    text = "\n".join(report(arguments.samples, arguments.device)) + "\n"
    print(text)
    if arguments.save:
        arguments.save.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
