"""The History part of the Compare tab: every run, what made it, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.compare import runs as events
from components.late_choice import LateDropdown, LateRadio
from components.merge.form import IN_TURN
from components.merge.tab import MergeTab
from components.server.settings import Settings
from components.shared import Shared

PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}


@dataclass(frozen=True)
class HistoryPart:
    """The components; `shown` holds the id of the run on the card."""

    search: gr.Textbox
    runs: gr.Radio
    nothing: gr.HTML
    card: gr.Column
    facts: gr.HTML
    recipe: gr.Code
    note: gr.Textbox
    saved: gr.HTML
    other: gr.Dropdown
    difference: gr.HTML
    reload: gr.Button
    delete: gr.Button
    sure: gr.Row
    really: gr.Button
    keep: gr.Button
    shown: gr.State

    @property
    def one(self) -> list[Any]:
        """What shows one run."""
        return [
            self.shown, self.card, self.facts, self.recipe, self.note, self.saved, self.other, self.difference,
            self.delete, self.sure,
        ]  # fmt: skip

    @property
    def all(self) -> list[Any]:
        """What shows the history."""
        return [self.runs, self.nothing, *self.one]


def build_history() -> HistoryPart:
    """Build the part; it is filled when somebody comes to it."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="section-head cm-search"):
        gr.HTML("<h2>Every run</h2><p>Each finished merge and each measured recipe, with what made it.</p>")
        parts["search"] = gr.Textbox(
            label="Search the runs",
            placeholder="Method, model, note",
            show_label=False,
            scale=0,
            min_width=240,
            elem_id="history-search",
        )
    parts["nothing"] = gr.HTML(events.EMPTY)
    with gr.Row(elem_classes="cm-history"):
        with gr.Column(min_width=0):
            parts["runs"] = LateRadio(
                [],
                label="Runs, the newest first",
                visible=False,
                elem_id="history-runs",
                elem_classes="cm-runs",
            )
        with gr.Column(min_width=0, visible=False, elem_id="history-card") as parts["card"]:
            _build_card(parts)
    return HistoryPart(**parts, shown=gr.State(""))


def _build_card(parts: dict[str, Any]) -> None:
    """One run: its facts, its note, its recipe beside another's, and what can be done with it."""
    parts["facts"] = gr.HTML(elem_id="history-facts")
    with gr.Row(elem_classes="actions"):
        parts["reload"] = gr.Button(
            "Load its settings into Merge",
            variant="primary",
            size="sm",
            scale=0,
            min_width=220,
            elem_id="history-reload",
        )
        parts["delete"] = gr.Button("Delete", size="sm", scale=0, min_width=100, elem_id="history-delete")
    with gr.Row(visible=False, elem_classes="actions cm-sure") as parts["sure"]:
        gr.HTML("<p>Forget this run, its note and its scores? A saved model stays under Merge.</p>")
        parts["really"] = gr.Button(
            "Delete for good", variant="stop", size="sm", scale=0, min_width=140, elem_id="history-really"
        )
        parts["keep"] = gr.Button("Keep it", size="sm", scale=0, min_width=100, elem_id="history-keep")
    parts["note"] = gr.Textbox(
        label="Note", info="Kept when you leave the field.", lines=2, max_lines=6, elem_id="history-note"
    )
    parts["saved"] = gr.HTML(elem_classes="status", elem_id="history-saved")
    parts["recipe"] = gr.Code(
        language="yaml",
        label="Recipe (YAML)",
        lines=6,
        max_lines=24,
        interactive=False,
        wrap_lines=True,
        show_line_numbers=False,
        buttons=["copy", "download"],
        elem_id="history-recipe",
    )
    parts["other"] = LateDropdown(
        [], label="What differs from another run", filterable=False, visible=False, elem_id="history-other"
    )
    parts["difference"] = gr.HTML(elem_id="history-difference")


def wire_history(
    part: HistoryPart, settings: Settings, shared: Shared, merge: MergeTab, tabs: gr.Tabs, came: Any
) -> None:
    """Connect the part's events.

    Args:
        merge: the tab into whose form a run is loaded; `tabs` then show it.
        came: the event of a visitor coming to this part.
    """
    seen = [shared.owner, part.search, part.shown]
    look = partial(events.look, settings)
    gr.on([came, part.search.input], look, seen, part.all, **LATEST)
    part.runs.input(partial(events.show, settings), [part.runs, shared.owner], part.one, **LATEST)
    part.other.input(
        partial(events.differ, settings), [part.shown, part.other, shared.owner], part.difference, **LATEST
    )
    part.note.blur(
        partial(events.save_note, settings), [part.shown, part.note, shared.owner], part.saved, **PRIVATE
    ).success(partial(events.relist, settings), seen, part.runs, **PRIVATE)
    part.delete.click(partial(events.ask_again, True), None, [part.delete, part.sure], **PRIVATE)
    part.keep.click(partial(events.ask_again, False), None, [part.delete, part.sure], **PRIVATE)
    part.really.click(
        partial(events.delete, settings), [part.shown, shared.owner, part.search], part.all, **PRIVATE
    )
    part.reload.click(
        partial(events.reload, merge.form, settings),
        [part.shown, shared.owner, merge.recipe, shared.family, merge.watched],
        merge.filled,
        **PRIVATE,
        **IN_TURN,
    ).success(
        partial(gr.Tabs, selected="merge"), None, tabs, show_progress="hidden", api_visibility="private"
    )
