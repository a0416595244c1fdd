"""What was measured on the family: results.json, table.json and the tables in README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sampling import EXPERT_TASKS
from scoring import MERGES, Scores, average, load_suites, merged_models, score, scores_of

from merging.inference import LoadedModel
from merging.judging.suites import Suite

TRAINING_FILE = "training.json"
MODELS = ("base", *EXPERT_TASKS, "math-long")
TASK_NAMES = (*EXPERT_TASKS, "compare")


def write_report(folder: Path) -> str:
    """Score models and merges, write what was measured into `folder`, and return the tables.

    Of each merge method the parameters are chosen on the validation split; everything else is test.
    """
    models = {name: LoadedModel.load(folder / name) for name in MODELS}
    suites = load_suites(folder / "data", "test", TASK_NAMES)
    results = {name: score(model, suites) for name, model in models.items()}
    replies = {
        name: {task: [item.reply for item in result.items] for task, result in by_task.items()}
        for name, by_task in results.items()
    }
    test = {name: scores_of(result) for name, result in results.items()}
    validation, chosen = _score_merges(
        models, load_suites(folder / "data", "validation", EXPERT_TASKS), suites
    )
    changes = {name: relative_change(models["base"], models[name]) for name in MODELS[1:]}
    bar = measure_bar(test, chosen, changes)
    training = json.loads((folder / TRAINING_FILE).read_text())
    write_json(folder / "results.json", replies)
    write_json(
        folder / "table.json",
        {
            "test": test | chosen,
            "validation": validation,
            "relative_change": changes,
            "bar": bar,
        },
    )
    tables = "\n\n".join(
        (
            _score_table(test | chosen),
            _bar_table(bar),
            _training_table(training, changes),
        )
    )
    _replace_between_marks(folder / "README.md", tables)
    return tables


def relative_change(base: LoadedModel, expert: LoadedModel) -> float:
    """||theta - theta0|| / ||theta0|| over all parameters."""
    before = dict(base.model.named_parameters())
    change = sum((p - before[name]).square().sum().item() for name, p in expert.model.named_parameters())
    return (change / sum(p.square().sum().item() for p in before.values())) ** 0.5


def measure_bar(
    test: Mapping[str, Scores], merges: Mapping[str, Scores], changes: Mapping[str, float]
) -> dict[str, tuple[str, bool]]:
    """Each demand on the family: what was measured for it, and whether it is met."""
    base = average(test["base"])
    own = {task: test[task][task] for task in EXPERT_TASKS}
    away = {
        f"{expert} on {task}": 100 * (test[expert][task] - test["base"][task])
        for expert in EXPERT_TASKS
        for task in EXPERT_TASKS
        if task != expert
    }
    farthest = max(away, key=lambda name: abs(away[name]))
    means = {name: average(scores) for name, scores in merges.items()}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    gain, spread = 100 * (means[best] - base), 100 * (means[best] - means[worst])
    kept = means[best] / (sum(own.values()) / len(own))
    larger = changes["math-long"] / changes["math"]
    own_scores = ", ".join(f"{task} {value:.1%}" for task, value in own.items())
    return {
        "base at most 45 % on average": (f"{base:.1%}", base <= 0.45),
        "each expert at least 90 % on its own task": (own_scores, min(own.values()) >= 0.9),
        "each expert within 10 points of the base on the others": (
            f"farthest: {farthest} {away[farthest]:+.1f}",
            abs(away[farthest]) <= 10,
        ),
        "best merge at least 15 points above the base": (f"{best}: {gain:+.1f}", gain >= 15),
        "best merge at least 80 % of the experts' own mean": (f"{kept:.1%}", kept >= 0.8),
        "best and worst method at least 5 points apart": (f"{spread:.1f} ({worst} is worst)", spread >= 5),
        "math-long changes at least 4 times as much as math": (f"{larger:.1f} times", larger >= 4),
    }


def _score_merges(
    models: Mapping[str, LoadedModel], validation: Mapping[str, Suite], test: Mapping[str, Suite]
) -> tuple[dict[str, float], dict[str, Scores]]:
    """Every merge's average on the validation split, and the test scores of each method's best."""
    experts = [models[task] for task in EXPERT_TASKS]
    averages = {
        merge: average(scores_of(score(model, validation)))
        for merge, model in zip(MERGES, merged_models(models["base"], experts, MERGES), strict=True)
    }
    methods = dict.fromkeys(merge.method for merge in MERGES)
    chosen = [max((m for m in MERGES if m.method == method), key=averages.__getitem__) for method in methods]
    scores = {
        str(merge): scores_of(score(model, test))
        for merge, model in zip(chosen, merged_models(models["base"], experts, chosen), strict=True)
    }
    return {str(merge): value for merge, value in averages.items()}, scores


def _score_table(rows: Mapping[str, Scores]) -> str:
    cells = {
        name: [f"{100 * scores[task]:.1f}" for task in TASK_NAMES] + [f"{100 * average(scores):.1f}"]
        for name, scores in rows.items()
    }
    head = f"| model | {' | '.join(TASK_NAMES)} | mean of the three |\n|---|{'---:|' * (len(TASK_NAMES) + 1)}"
    return "\n".join([head, *(f"| {name} | {' | '.join(values)} |" for name, values in cells.items())])


def _bar_table(bar: Mapping[str, tuple[str, bool]]) -> str:
    rows = [f"| {name} | {text} | {'yes' if met else '**no**'} |" for name, (text, met) in bar.items()]
    return "\n".join(["| asked for | measured | met |\n|---|---|---|", *rows])


def _training_table(training: Mapping[str, Mapping[str, float]], changes: Mapping[str, float]) -> str:
    rows = ["| model | steps | training, wall | training, CPU | relative change |\n|---|---:|---:|---:|---:|"]
    for name in MODELS:
        times = training[name]
        change = f"{changes[name]:.3f}" if name in changes else ""
        minutes = f"{times['wall'] / 60:.1f} min | {times['cpu'] / 60:.1f} min"
        rows.append(f"| {name} | {times['steps']} | {minutes} | {change} |")
    return "\n".join(rows)


def write_json(file: Path, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Write two levels indented, and what lies below them on one line."""
    groups = []
    for name, group in content.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in group.items())
        groups.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    file.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def _replace_between_marks(readme: Path, text: str) -> None:
    """Put `text` between the README's `<!-- measured -->` marks."""
    pattern = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
    old = readme.read_text(encoding="utf-8")
    readme.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")
