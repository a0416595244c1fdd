"""Who can be asked in the Chat tab, and the demo's example questions.

A model is named by a key: `job:ID` for a merge of this owner, `base`, or `expert:NUMBER`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from components.family import Family
from components.settings import Settings
from merging.jobs import JobStore

COLUMNS = 4
NOBODY = ""
EXAMPLES_PER_TASK = 2
LONGEST_EXAMPLE = 40


@dataclass(frozen=True)
class Example:
    """A question whose right answer is known."""

    prompt: str
    answer: str


def choices(store: JobStore, owner: str, family: Family) -> list[tuple[str, str]]:
    """Label and key of every model that can be asked: merges first, the newest at the top."""
    merges = []
    for job in store.list(owner):
        if job.state == "done" and store.model(owner, job.id) is not None:
            when = time.strftime("%H:%M", time.localtime(job.created))
            merges.append((f"{job.title} ({when})", f"job:{job.id}"))
    parents = [(family.base_name, "base")] if family.experts else []
    parents += [(name, f"expert:{number}") for number, name in enumerate(family.names)]
    return [*merges, *parents, ("nobody", NOBODY)]


def locate(store: JobStore, owner: str, family: Family, key: object) -> Path | None:
    """The folder of the model a key means for this owner; None where it means none."""
    kind, _, rest = key.partition(":") if isinstance(key, str) else ("", "", "")
    if kind == "job":
        return store.model(owner, rest)
    if key == "base" and family.experts:
        return Path(family.base)
    if kind == "expert" and rest.isdecimal() and int(rest) < len(family.experts):
        return Path(family.experts[int(rest)])
    return None


def default_keys(available: list[str]) -> list[str]:
    """The newest merge and the experts; the base where no merge is there yet."""
    merges = [key for key in available if key.startswith("job:")][:1]
    experts = [key for key in available if key.startswith("expert:")]
    others = [key for key in available if key == "base"]
    chosen = [*(merges or others), *experts, *(others if merges else [])][:COLUMNS]
    return chosen + [NOBODY] * (COLUMNS - len(chosen))


@lru_cache(maxsize=4)
def examples(demo: Path) -> tuple[Example, ...]:
    """Some short questions of every task the demo family knows; none where the family is not there."""
    found = []
    for file in sorted(demo.glob("data/*/validation.jsonl")):
        kinds: dict[str, Example] = {}
        for line in file.read_text(encoding="utf-8").splitlines()[:60]:
            item = json.loads(line)
            if len(item["prompt"]) <= LONGEST_EXAMPLE:
                kinds.setdefault(item["prompt"][:2], Example(item["prompt"], item["answer"]))
        found += list(kinds.values())[:EXAMPLES_PER_TASK]
    return tuple(found)


def is_demo(settings: Settings, family: Family) -> bool:
    """Whether all models are the project's own."""
    home = settings.demo.resolve()
    return all(Path(model).resolve().parent == home for model in (family.base, *family.experts))
