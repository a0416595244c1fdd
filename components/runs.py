"""Finished merges become runs of the history."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.merge.health import merge_and_look
from components.merge.recipe import check
from components.server.backend import run_history
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from merging import MergingError, Recipe
from merging.judging.history import Draft

_log = logging.getLogger(__name__)


def recorded(settings: Settings, owner: str, recipe: Recipe, title: str, out: Path) -> Iterator[Any]:
    """The work of a merge job. Once its folder `JOB/model` is there, the merge is a run; where the history cannot be
    written, the merge is good all the same.

    Raises:
        MergingError: as `merging.run`.
    """
    plan = check(recipe).plan  # with the models as they are now: nobody knows what they are afterwards
    if plan is not None:
        require_room(settings, plan.bytes_to_write, "This merge", owner)  # jobs before it may have filled it
    draft = Draft.of(plan, title=title, job=out.parent.name) if plan is not None else None
    with closing(merge_and_look(recipe, out, settings.device)) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, dict) and draft is not None:
                try:
                    run_history(settings).add(owner, replace(draft, seconds=event["seconds"]))
                except MergingError as error:
                    _log.warning("job %s is not in the run history: %s", out.parent.name, error)
            yield event
