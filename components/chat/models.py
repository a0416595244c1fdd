"""Who can be asked in the Chat tab, and the demo's example questions.

A model is named by a key: `job:ID` for a merge of this owner, `recipe:` for the merge of the page's own recipe, and
`base:HASH` or `expert:HASH` for a model of the family, with a hash of its folder: another model never has the same key.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.chat.recipe import LABEL, RECIPE
from components.family import DEMO_EXPERTS, Family
from components.merge.cards import KIND
from components.server.settings import Settings
from components.shared import owner_id
from merging import MergingError, Recipe
from merging.answering.abilities import why_silent
from merging.jobs import JobStore
from merging.sources import open_model

COLUMNS = 4
NOBODY = ""
EXAMPLES_PER_TASK = 2
LONGEST_EXAMPLE = 40


@dataclass(frozen=True)
class Visit:
    """One open page: what tells it from others, its models, the recipe in its Merge tab, and the owner it is `stored`
    under."""

    settings: Settings
    session: str
    family: Family
    recipe: Recipe
    stored: Any

    @property
    def owner(self) -> str:
        return owner_id(self.settings, self.stored)


@dataclass(frozen=True)
class Example:
    """A question whose right answer is known."""

    prompt: str
    answer: str


def choices(store: JobStore, owner: str, family: Family, *, recipe: bool = False) -> list[tuple[str, str]]:
    """Label and key of every model that can be asked: merges first, the newest at the top, then the recipe if that can."""
    merges = []
    for job in store.list(owner):
        done = job.kind == KIND and job.state == "done"
        folder = store.model(owner, job.id) if done else None
        if folder is not None and not unable(folder):
            when = time.strftime("%H:%M", time.localtime(job.created))
            merges.append((f"{job.title} ({when})", f"job:{job.id}"))
    unsaved = [(LABEL, RECIPE)] if recipe else []
    return [*merges, *unsaved, *_named(family), ("nobody", NOBODY)]


def _named(family: Family) -> list[tuple[str, str]]:
    """Label and key of the base and the experts; none of a family that has no experts yet."""
    if not family.experts:
        return []
    experts = zip(family.names, family.experts, strict=True)
    named = [(family.base_name, "base", family.base), *((name, "expert", expert) for name, expert in experts)]
    return [(name, parent_key(kind, model)) for name, kind, model in named if not unable(model)]


def unable(model: str | Path) -> str:
    """Why a model cannot be asked, and what can be done with it; empty where it can, or cannot be opened, which its
    loading will tell."""
    try:
        return why_silent(open_model(str(model)).config)
    except MergingError:
        return ""


def parent_key(kind: str, folder: str) -> str:
    """The key of a `base` or an `expert` in `folder`."""
    return f"{kind}:{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:12]}"


def locate(store: JobStore, owner: str, family: Family, key: object) -> Path | None:
    """The folder of the model a key means for this owner; None where it means none."""
    kind, _, rest = key.partition(":") if isinstance(key, str) else ("", "", "")
    if kind == "job":
        return store.model(owner, rest)
    if not family.experts:
        return None
    models = [("base", family.base), *(("expert", expert) for expert in family.experts)]
    return next((Path(folder) for kind, folder in models if parent_key(kind, folder) == key), None)


def default_keys(available: Sequence[str]) -> list[str]:
    """The newest merge and the experts; the base where no merge is there yet."""
    return fill([None] * COLUMNS, available)


def fill(columns: Sequence[str | None], available: Sequence[str]) -> list[str]:
    """Put a model that is in no column yet where `columns` has None; nobody where none is left.

    The newest merge comes first unless a merge is there already, then the experts, and the base last or, without any
    merge, first.
    """
    merges, experts, base = (_of_kind(kind, available) for kind in ("job", "expert", "base"))
    has_merge = any(key and key.startswith("job:") for key in columns)
    newest = [] if has_merge else merges[:1]
    preferred = [*newest, *experts, *base] if newest or has_merge else [*base, *experts]
    spare = iter([key for key in preferred if key not in columns])
    return [next(spare, NOBODY) if key is None else key for key in columns]


def _of_kind(kind: str, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key.startswith(f"{kind}:")]


def without_the_gone(chosen: Sequence[str], available: Collection[str]) -> list[str | None]:
    """The columns with None where the model is gone; None everywhere once nobody would be left."""
    kept = [key if key in available else None for key in chosen]
    return kept if any(kept) else [None] * COLUMNS


def to_front(chosen: Sequence[str], key: str) -> list[str]:
    """The columns with `key` in the first; where it was before comes what was first."""
    swapped = [chosen[0] if other == key else other for other in chosen]
    return [key, *swapped[1:]]


@lru_cache(maxsize=4)
def examples(demo: Path) -> tuple[Example, ...]:
    """Some short questions of every task the demo family knows, its experts' own first; none where the family is not there.

    Those come first which the task's expert answered right and the other models of the family wrong.
    """
    replies = _recorded_replies(demo)
    found = []
    for file in sorted(demo.glob("data/*/test.jsonl"), key=_place):
        task = file.parent.name
        asked = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        telling = [_telling(item["answer"], number, task, replies) for number, item in enumerate(asked)]
        kinds: dict[str, Example] = {}
        for number in sorted(range(len(asked)), key=lambda number: -telling[number]):
            item = asked[number]
            if len(item["prompt"]) <= LONGEST_EXAMPLE:
                kinds.setdefault(item["prompt"][:2], Example(item["prompt"], item["answer"]))
        found += list(kinds.values())[:EXAMPLES_PER_TASK]
    return tuple(found)


def _place(file: Path) -> tuple[int, str]:
    task = file.parent.name
    return DEMO_EXPERTS.index(task) if task in DEMO_EXPERTS else len(DEMO_EXPERTS), task


def _recorded_replies(demo: Path) -> dict[str, dict[str, list[str]]]:
    """What the base and the experts said to every task's test questions; nothing where that cannot be read."""
    try:
        recorded = json.loads((demo / "results.json").read_text(encoding="utf-8"))
        return {model: recorded[model] for model in ("base", *DEMO_EXPERTS) if model in recorded}
    except (OSError, ValueError, TypeError):
        return {}


def _telling(answer: str, number: int, task: str, replies: dict[str, dict[str, list[str]]]) -> int:
    """How well a question tells the models apart: the wrong ones are counted where the task's expert is right."""
    try:
        right = {model: said[task][number] == answer for model, said in replies.items()}
    except (KeyError, IndexError, TypeError):
        return 0
    return sum(not ok for ok in right.values()) if right.get(task, any(right.values())) else 0


def is_demo(settings: Settings, family: Family) -> bool:
    """Whether all models are the project's own."""
    home = settings.demo.resolve()
    return all(Path(model).resolve().parent == home for model in (family.base, *family.experts))
