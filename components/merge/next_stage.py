"""Multi-stage merges: the two buttons that make the merge on the card a model of the next one."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from components.merge.tab import MergeTab
from components.models.events import judge, with_model
from components.models.tab import ModelsTab
from components.models.wiring import JUDGING, PRIVATE
from components.server.settings import Settings
from components.shared import Shared, owner_id
from components.stages import RUN, run_folder
from components.toasts import toast
from merging import MergingError


def wire_next_stage(
    merge: MergeTab, models: ModelsTab, settings: Settings, shared: Shared, tabs: gr.Tabs
) -> None:
    """Connect the buttons: they put the merge into a row of the Models tab, lead there, and have all rows judged."""
    for button, as_base in ((merge.as_base, True), (merge.as_expert, False)):
        taken = button.click(
            partial(take_merge, settings, as_base),
            [merge.shown, shared.owner, models.shown, *models.fields],
            models.rows,
            **PRIVATE,
        )
        taken.success(
            partial(gr.Tabs, selected="models"), None, tabs, show_progress="hidden", api_visibility="private"
        )
        taken.success(partial(judge, settings), models.typed(shared), models.judged(shared), **JUDGING)


def take_merge(settings: Settings, as_base: bool, id: str, stored: Any, shown: int, *typed: str) -> list[Any]:
    """The rows with the merge on the card in them; `id` comes from the browser, and must be a merge of this owner's."""
    try:
        run_folder(settings, owner_id(settings, stored), id)
        return with_model(f"{RUN}{id}", as_base, shown, *typed)
    except MergingError as error:
        raise toast(str(error), "The merge was not taken") from None
