"""Taking a recipe that was found on the Compare tab into the form of the Merge tab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.family import Family
from components.merge.events import refill
from components.merge.form import IN_TURN
from components.merge.tab import MergeTab
from components.merge.yaml import from_yaml
from components.server.settings import Settings
from components.shared import Shared, owner_id
from components.toasts import toast
from merging import MergingError, Recipe

NOT_LOADED = "The recipe was not loaded"
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Loader:
    """Where recipes are loaded into: the Merge tab of the page, and the tabs that show it afterwards."""

    settings: Settings
    shared: Shared
    merge: MergeTab
    tabs: gr.Tabs

    def wire(self, button: gr.Button, find: Callable[..., str], inputs: Sequence[Any]) -> None:
        """Have a button load the recipe that `find(owner, family, *values of inputs)` gives as YAML."""
        state = [self.merge.recipe, self.shared.family, self.merge.watched, self.shared.owner]
        button.click(
            partial(self.load, find), [*state, *inputs], self.merge.filled, **PRIVATE, **IN_TURN
        ).success(
            partial(gr.Tabs, selected="merge"),
            None,
            self.tabs,
            show_progress="hidden",
            api_visibility="private",
        )

    def load(
        self,
        find: Callable[..., str],
        recipe: Recipe,
        family: Family,
        watched: str,
        stored: Any,
        *values: Any,
    ) -> list[Any]:
        """Updates for the Merge tab; what cannot be loaded is said in a toast and changes nothing."""
        try:
            imported, problems = from_yaml(find(owner_id(self.settings, stored), family, *values), family)
        except MergingError as error:
            imported, problems = None, [str(error)]
        if imported is None:
            raise toast(" ".join(problems), NOT_LOADED)
        return refill(self.merge.form, imported, family, watched)
