"""Writes the generated tables of README.md: methods and parameters from their classes, the demo family's scores from
its own README, what was measured of methods, tuning and importance from benchmarks/results, the settings from their
declarations. `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from components.server.settings import settings_table  # noqa: E402
from merging import METHODS  # noqa: E402


def table() -> str:
    """Two tables: what each method is for, then every parameter with both profiles' defaults."""
    lines = ["| method | when to use it | source |", "|---|---|---|"]
    for name, method in METHODS.items():
        lines.append(f"| `{name}` {method.title} | {method.when_to_use} | [link]({method.paper}) |")
    lines += [
        "",
        *_fold("Every parameter of every method, with the defaults of both profiles"),
        "| method | parameter | symbol | `paper` | `mergekit` | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        for parameter, field in method.parameters().items():
            extra = field.json_schema_extra
            each = " (each model may have its own)" if extra["per_model"] else ""
            mergekit = method.MERGEKIT.get(parameter, field.default)
            lines.append(
                f"| `{name}` | `{parameter}` | {extra['symbol']} | {_word(field.default)} | {_word(mergekit)} "
                f"| {field.description}{each} |"
            )
    return "\n".join([*lines, *UNFOLDED])


UNFOLDED = ["", "</details>"]


def _fold(summary: str) -> list[str]:
    """The beginning of a long part that is read on demand; `UNFOLDED` ends it."""
    return [f"<details><summary>{summary}</summary>", ""]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def demo_table() -> str:
    """What training measured, as the demo family's own README has it."""
    text = (ROOT / "examples" / "demo" / "README.md").read_text(encoding="utf-8")
    measured = text.split("<!-- measured -->")[1].split("<!-- /measured -->")[0]
    return measured.strip().split("\n\n")[0]


def scores_table() -> str:
    """Every method on the demo family, as benchmarks/methods.py measured it."""
    content = json.loads((ROOT / "benchmarks" / "results" / "methods-demo.json").read_text(encoding="utf-8"))
    tasks = list(next(iter(content["rows"].values()))[0])
    lines = [f"| model or method | {' | '.join(tasks)} | mean |", "|---|" + "---:|" * (len(tasks) + 1)]
    for name, runs in content["rows"].items():
        columns = [[100 * run[task] for run in runs] for task in tasks]
        columns.append([sum(values) / len(values) for values in zip(*columns, strict=True)])
        label = name
        if name in METHODS:
            given = tasks[: METHODS[name].experts_wanted]
            label = f"`{name}`" + (f" (of {' and '.join(given)} only)" if len(given) < len(tasks) else "")
        lines.append(f"| {label} | {' | '.join(map(_mean_and_range, columns))} |")
    return "\n".join(lines)


def tuned_table() -> str:
    """Every method on the test files before and after a search, as benchmarks/tuning.py measured it; then what it cost and
    whether it was worth it."""
    content = json.loads((ROOT / "benchmarks" / "results" / "tuning-demo.json").read_text(encoding="utf-8"))
    tasks, searches = content["tasks"], content["searches"]
    lines = _fold("The table: every method on four tasks, untuned and tuned")
    lines += [f"| model or method | {' | '.join(tasks)} | mean |", "|---|" + "---:|" * (len(tasks) + 1)]
    for name, measured in content["untuned"].items():
        pair = name in METHODS and METHODS[name].experts_wanted is not None
        label = f"`{name}`" if name in METHODS else name
        lines.append(_score_row(f"{label} (of two experts only)" if pair else label, measured["test"]))
        for one in searches:
            if one["method"] == name:
                lines.append(_score_row(f"`{name}`, tuned by {one['strategy']}", one["test"]))
    lines += [
        *UNFOLDED,
        "",
        "| search | trials (failed) | minutes | mean on validation | mean on test |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in searches:
        before, after = (100 * _mean(one["validation"][when]) for when in ("before", "after"))
        first, last = 100 * _mean(content["untuned"][one["method"]]["test"]), 100 * _mean(one["test"])
        lines.append(
            f"| `{one['method']}` by {one['strategy']} | {one['trials']} ({one['failed']}) | {one['minutes']:.1f} "
            f"| {before:.1f} → {after:.1f} | {first:.1f} → {last:.1f} |"
        )
    told = content["comparison"]
    low, high = (100 * told["interval"][end] for end in ("low", "high"))
    best = max(searches, key=lambda one: _mean(one["validation"]["after"]))
    moved = zip(tasks, content["untuned"][told["before"]]["test"], best["test"], strict=True)
    tasks_told = ", ".join(f"{task} {100 * (after - before):+.1f}" for task, before, after in moved)
    lines += [
        "",
        f"The best tuned merge ({told['after']}) against the best untuned one (`{told['before']}`), both chosen on "
        f"validation, on the {told['items']:,} test items: {100 * told['difference']:+.1f} points (95 % interval "
        f"{low:+.1f} to {high:+.1f}; {told['gained']} items gained, {told['lost']} lost; {tasks_told}).",
    ]
    return "\n".join(lines)


def _score_row(label: str, scores: list[float]) -> str:
    return f"| {label} | {' | '.join(f'{100 * score:.1f}' for score in [*scores, _mean(scores)])} |"


def _mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


def importance_table() -> str:
    """How importance of modules agrees with exact intervention, as benchmarks/importance.py measured it."""
    text = (ROOT / "benchmarks" / "results" / "importance-demo.md").read_text(encoding="utf-8")
    modules = text.split("### Modules")[1].split("###")[0]
    return "\n".join(line for line in modules.splitlines() if line.startswith("|"))


def _mean_and_range(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f}" + (f" ± {max(abs(v - mean) for v in values):.1f}" if len(values) > 1 else "")


def main() -> int:
    readme = ROOT / "README.md"
    text = fresh = readme.read_text(encoding="utf-8")
    tables = {
        "methods": table(),
        "demo": demo_table(),
        "scores": scores_table(),
        "importance": importance_table(),
        "tuned": tuned_table(),
        "settings": settings_table(),
    }
    for mark, content in tables.items():
        head, rest = fresh.split(f"<!-- {mark} -->")
        _, tail = rest.split(f"<!-- /{mark} -->")
        fresh = f"{head}<!-- {mark} -->\n{content}\n<!-- /{mark} -->{tail}"
    if "--check" in sys.argv:
        if fresh != text:
            print("README.md: a generated table is stale; run make format", file=sys.stderr)
            return 1
        return 0
    readme.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
