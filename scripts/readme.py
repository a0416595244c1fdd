"""Writes the generated tables of README.md: methods and parameters from their classes, the demo family's scores from
its own README. `--check` only compares."""

from __future__ import annotations

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


def main() -> int:
    readme = ROOT / "README.md"
    text = fresh = readme.read_text(encoding="utf-8")
    for mark, content in (("methods", table()), ("demo", demo_table())):
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
