"""The events of the Models tab."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from components.compare.runner import PRIVATE, wire_runner
from components.hub import downloads, search, token
from components.hub.reach import hub_reach
from components.hub.token import TokenField
from components.models import events
from components.models.tab import ModelsTab
from components.models.words import KEYS
from components.server.settings import Settings
from components.shared import Shared
from components.toasts import toast
from merging import MergingError

RESTORED = "() => document.documentElement.classList.remove('restoring')"
"""Shows the rows that `theme.HEAD` hides until what the browser kept has been put in."""
JUDGING: dict[str, Any] = {**PRIVATE, "concurrency_id": "models", "concurrency_limit": 1}
"""One judgement at a time, so that an older one never comes last."""
ASKING: dict[str, Any] = {**PRIVATE, "concurrency_id": "hub", "concurrency_limit": 4}


def wire_models_tab(tab: ModelsTab, settings: Settings, shared: Shared) -> None:
    """Connect the tab's events: whatever changes a row judges all rows again and sets the shared family; what the Hub has
    to be asked for is asked, and then they are judged once more."""
    typed, judged = tab.typed(shared), tab.judged(shared)

    def come(*kept: Any) -> list[Any]:
        """What this browser kept, and the presets where the Hub answers."""
        offered = bool(tab.presets.buttons) and hub_reach().known()
        return [*events.restore(settings, *kept), gr.update(visible=True) if offered else gr.skip()]

    shared.known(
        come,
        [shared.models, shared.family, shared.owner],
        [*tab.rows, tab.words.decided, *judged, shared.opened, tab.presets.frame],
        **JUDGING,
    ).then(None, None, None, js=RESTORED, api_visibility="private")

    def judge(triggers: list[Any], how: Callable[..., list[Any]]) -> None:
        gr.on(triggers, partial(how, settings), typed, judged, trigger_mode="always_last", **JUDGING)

    judge([field.blur for field in tab.fields], events.judge)
    judge([field.submit for field in tab.fields], events.judge_anew)
    judge([tab.hub.answered.change, tab.hub.ended.change], events.judge)

    def change(trigger: Callable[..., Any], function: Callable[..., list[Any]]) -> None:
        trigger(function, [tab.shown, *tab.fields], tab.rows, **PRIVATE).success(
            partial(events.judge, settings), typed, judged, **JUDGING
        )

    change(tab.demo.click, partial(events.take_demo, settings))
    for preset, button in tab.presets.buttons:
        button.click(
            partial(events.take_preset, preset),
            [tab.shown, *tab.fields],
            [*tab.rows, tab.words.decided],
            **PRIVATE,
        ).success(partial(events.judge, settings), typed, judged, **JUDGING)
    change(tab.add.click, events.add_expert)
    change(tab.add_long.click, events.add_long_expert)
    for number, row in enumerate(tab.experts):
        if row.remove is not None:
            change(row.remove.click, partial(events.remove_expert, number))

    for key, list_ in zip(KEYS, tab.words.lists, strict=True):
        list_.input(
            partial(events.decide, key), [list_, tab.words.decided], tab.words.decided, **PRIVATE
        ).success(partial(events.judge, settings), typed, judged, **JUDGING)

    def pick(event: gr.EventData, shown: int, *typed: str) -> list[Any]:
        id, role = search.selected(event)
        try:
            return events.with_model(id, role == "base", shown, *typed) if id else [gr.skip()] * events.ROWS
        except MergingError as error:
            raise toast(str(error), "The model was not taken") from None

    change(tab.hub.search.select, pick)
    for changed in _wire_token(tab.hub.token, settings, shared):
        changed.success(partial(events.judge, settings), typed, judged, **JUDGING)
    _wire_hub(tab, settings, shared)


def _wire_token(own: TokenField, settings: Settings, shared: Shared) -> list[Any]:
    """The events after which the Hub sees another visitor."""
    if settings.sign_in:

        def come(stored: Any, signed: gr.OAuthToken | None) -> list[Any]:
            return token.sign_in(settings, stored, signed)

        came = [shared.known(come, shared.owner, own.outputs, **PRIVATE)]
    else:
        shared.opened.change(partial(token.shown, settings), shared.owner, own.outputs, **PRIVATE)
        came = []
    return [*came, *token.wire_token(own, settings, shared)]


def _wire_hub(tab: ModelsTab, settings: Settings, shared: Shared) -> None:
    hub = tab.hub
    hub.to_ask.change(partial(events.look_up, settings), [hub.to_ask, shared.owner], hub.answered, **ASKING)
    hub.search.input(
        partial(search.search, settings),
        [hub.search, shared.owner],
        hub.search,
        trigger_mode="always_last",
        **ASKING,
    )
    work = downloads.work(settings, [tab.shown, *tab.fields], hub.ended)
    wire_runner(hub.download, work, shared, [shared.opened.change, shared.family.change])
