"""The health of a merge: looked at as the last step of its job, and shown on its card."""

from __future__ import annotations

import html
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import merging
from merging import Finished, Progress, Recipe
from merging.answering.health import health_after_merge
from merging.cards.lineage import in_words, lineage_of_plan
from merging.devices import resolve_device
from merging.executors import unwanted
from merging.heartbeats import Stopped
from merging.job_records import outcome

STAGE = "looking at its health"


def merge_and_look(recipe: Recipe, out: Path, device: str) -> Iterator[Progress | dict[str, Any]]:
    """The events of a merge, then what it attained together with its health and, where its parents are merges themselves,
    its lineage; a cancelled one leaves nothing."""
    plan = merging.check(recipe)
    started = time.perf_counter()
    for event in merging.run(recipe, out, device=device):
        if isinstance(event, Finished):
            finished = event
        else:
            yield event
    tensors = len(finished.tensors)
    try:
        yield Progress(STAGE, tensors, tensors, 0, 0.99, time.perf_counter() - started)
        found = health_after_merge(out, plan, device=str(resolve_device(device)), stopped=unwanted)
    except (GeneratorExit, Stopped):
        shutil.rmtree(out, ignore_errors=True)
        raise
    lineage = lineage_of_plan(plan)
    staged = any(parent.parents for parent in lineage.parents)
    yield {**outcome(finished), "health": found.as_json(), "lineage": in_words(lineage) if staged else ""}


def unsound_html(health: Any) -> str:
    """A red sentence for each problem."""
    wrong = [check["sentence"] for check in _checks(health) if not check["ok"]]
    return "".join(f'<p class="mg-unsound" role="alert">{html.escape(sentence)}</p>' for sentence in wrong)


def health_html(health: Any) -> str:
    """One quiet line that opens to all that was looked at; nothing for merges of which nothing is kept."""
    checks = _checks(health)
    fine = [check["sentence"] for check in checks if check["ok"]]
    if not fine:
        return ""
    title = "Health: fine" if len(fine) == len(checks) else "Health: what is fine"
    looked = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in fine)
    return f'<details class="mg-health"><summary>{title}</summary><ul>{looked}</ul></details>'


def _checks(health: Any) -> list[dict[str, Any]]:
    return health["checks"] if isinstance(health, Mapping) else []
