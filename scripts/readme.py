"""Writes the generated tables of README.md: methods and parameters from their classes, the demo family's scores from
its own README, what was measured of methods and importance from benchmarks/results. `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from merging import METHODS  # noqa: E402


def table() -> str:
    """Two tables: what each method is for, then every parameter with both profiles' defaults."""
    lines = ["| method | when to use it | source |", "|---|---|---|"]
    for name, method in METHODS.items():
        lines.append(f"| `{name}` {method.title} | {method.when_to_use} | [link]({method.paper}) |")
    lines += [
        "",
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
    return "\n".join(lines)


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
