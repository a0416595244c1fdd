"""Every method on the demo family at its paper's defaults and the best few after a search.

    python -m benchmarks.tuning [--trials 40] [--best 3]

What is chosen is chosen on the validation files: the best untuned method, those that are tuned (of those that merge all
experts), and the best of the tuned.
The test files score every row of the table; the best tuned merge is compared with the best untuned one on them once, item
by item. Results go to benchmarks/results/tuning-demo.json, the best recipe to examples/recipes/demo-tuned.yaml; `make format`
writes README's table from the former.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from merging import Recipe
from merging.evaluation import SuiteResult
from merging.judging.every_method import Scored, try_every_method
from merging.judging.intervals import mcnemar, paired_bootstrap
from merging.judging.suites import Suite
from merging.judging.trials import Trials, mean_score
from merging.memory.whatif import Residents
from merging.recipe import ModelEntry
from merging.tuning import Trial, Tuned, tune

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("examples/demo")
RESULT = Path(__file__).resolve().parent / "results" / "tuning-demo.json"
TUNED = ROOT / "examples" / "recipes" / "demo-tuned.yaml"
TASKS = ("math", "code", "words", "compare")
EXPERTS = TASKS[:3]
OWN = (("dppa", "dppa"), ("pcb", "pcb-es"))
"""Methods whose papers have a search of their own."""
NOT_TUNED = ("apl",)
"""Its importance file is not part of the repository, so a recipe of it could not be run again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40, help="trials of each search")
    parser.add_argument("--best", type=int, default=3, help="methods that are tuned, the best on validation")
    arguments = parser.parse_args()
    started = time.perf_counter()
    trials = Trials(Residents(), "cpu")
    validation, test = suites("validation"), suites("test")
    family = Recipe(
        merge_method="task_arithmetic",
        profile="paper",
        base_model=str(DEMO / "base"),
        models=tuple(ModelEntry(model=str(DEMO / name)) for name in EXPERTS),
    )
    judged = {row.attempt.title: row for row in untuned(family, validation, trials)}
    seconds = time.perf_counter()
    tested = {row.attempt.title: row for row in untuned(family, test, trials)}
    seconds = time.perf_counter() - seconds
    methods = [row for row in judged.values() if row.attempt.method and row.results]
    methods.sort(key=lambda row: -mean_score(row.results))
    whole = [row for row in methods if row.attempt.title not in NOT_TUNED and not row.attempt.reason]
    chosen = whole[: arguments.best]
    plans = [(row.attempt.title, "tpe") for row in chosen] + list(OWN)
    found = [search(judged[name], kind, validation, trials, arguments.trials) for name, kind in plans]
    best = max(found, key=lambda tuned: tuned.best.mean or 0)
    after = {id(tuned): trials.score(tuned.recipe, test) for tuned in found}
    before = tested[methods[0].attempt.title]
    content = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, CPU",
        "tasks": list(TASKS),
        "all_methods_on_test_seconds": round(seconds, 1),
        "untuned": {
            name: {"validation": scores(judged[name].results), "test": scores(row.results)}
            for name, row in tested.items()
            if row.results
        },
        "left_out": {name: row.problem for name, row in tested.items() if not row.results},
        "searches": [one(tuned, after[id(tuned)]) for tuned in found],
        "comparison": {
            "before": before.attempt.title,
            "after": f"{best.recipe.merge_method} by {best.strategy}",
            **compared(before.results, after[id(best)]),
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    TUNED.write_text(best.to_yaml(), encoding="utf-8")


def suites(split: str) -> list[Suite]:
    return [Suite.load(DEMO / "data" / task / f"{split}.jsonl", task) for task in TASKS]


def untuned(family: Recipe, judges: Sequence[Suite], trials: Trials) -> Iterator[Scored]:
    """The parents and every method."""
    calibration = {str(DEMO / name): DEMO / "data" / name / "calibration.jsonl" for name in EXPERTS}
    for event in try_every_method(family, judges, trials, calibration=calibration):
        if isinstance(event, Scored):
            print(event.attempt.title, event.problem or f"{event.score:.3f}", flush=True)
            yield event


def search(row: Scored, strategy: str, judges: Sequence[Suite], trials: Trials, budget: int) -> Tuned:
    assert row.attempt.recipe is not None
    for event in tune(row.attempt.recipe, judges, trials=trials, strategy=strategy, budget=budget):
        if isinstance(event, Trial):
            print(row.attempt.title, strategy, event.number, event.score, event.problem, flush=True)
    assert isinstance(event, Tuned)
    return event


def one(tuned: Tuned, test: Sequence[SuiteResult]) -> dict[str, Any]:
    """A search: what it found, what it cost, and every trial."""
    return {
        "method": tuned.recipe.merge_method,
        "strategy": tuned.strategy,
        "seed": tuned.seed,
        "trials": len(tuned.trials),
        "failed": sum(trial.score is None for trial in tuned.trials),
        "minutes": round(tuned.seconds / 60, 2),
        "seconds_per_trial": round(tuned.seconds / len(tuned.trials), 2),
        "values": dict(tuned.best.values),
        "validation": {"before": scores(tuned.trials[0].results), "after": scores(tuned.best.results)},
        "test": scores(test),
        "means": [None if trial.mean is None else round(trial.mean, 4) for trial in tuned.trials],
    }


def scores(results: Sequence[SuiteResult]) -> list[float]:
    return [round(result.score, 4) for result in results]


def compared(before: Sequence[SuiteResult], after: Sequence[SuiteResult]) -> dict[str, Any]:
    """The difference of the mean scores with its 95 % interval over all items of all tasks, which have equally many."""
    pairs = [
        (first.correct, second.correct)
        for one, other in zip(before, after, strict=True)
        for first, second in zip(one.items, other.items, strict=True)
    ]
    gained = sum(second and not first for first, second in pairs)
    lost = sum(first and not second for first, second in pairs)
    interval = paired_bootstrap([float(first) for first, _ in pairs], [float(second) for _, second in pairs])
    return {
        "items": len(pairs),
        "difference": round(mean_score(after) - mean_score(before), 4),
        "interval": {name: round(value, 4) for name, value in asdict(interval).items()},
        "gained": gained,
        "lost": lost,
        "p": mcnemar(gained, lost),
    }


if __name__ == "__main__":
    main()
