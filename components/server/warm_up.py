"""What is done before anybody comes, so that the first visitor waits for nothing that is done once."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from components.family import Family
from components.inspect.reports import Reports, report_key
from components.merge.recipe import default_recipe, one_click_recipe
from components.preview.store import Previews, asked_for
from components.server.backend import model_cache
from components.server.settings import Settings
from merging import MergingError, check, merge
from merging.devices import resolve_device


def warm_up(settings: Settings, reports: Reports, previews: Previews) -> None:
    """What the first visitor sees of the demo, in that order: its report, the preview of its first recipe, and on a shared
    server its one-click merge and the models that answer.

    Then its models are in memory and the compiled loops are loaded. On a new machine, such as every start of a Space,
    compiling them takes half a minute.
    """
    family = Family.demo(settings.demo)
    with suppress(MergingError, OSError):
        plan = check(family.recipe())
        for _ in reports.measure(plan, report_key(plan), settings.device):
            pass
        wanted = asked_for(default_recipe(family), family)
        if wanted is not None:
            previews.at_once(wanted, casts=True)
        if settings.single_owner:
            return
        device = str(resolve_device(settings.device))
        for model in (family.base, *family.experts):
            model_cache(settings).get(model, device)
        with tempfile.TemporaryDirectory() as folder:
            merge(one_click_recipe(family), Path(folder) / "merged", device=settings.device)
