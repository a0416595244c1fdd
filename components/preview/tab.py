"""The part of the Merge tab that shows what the recipe would keep of every expert, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from components.clickable_plot import EVERY, clickable_plot, clicked_cell
from components.late_choice import LateDropdown, LateRadio
from components.merge.fields import slot_id
from components.merge.form import MergeForm
from components.preview import events, views
from components.preview.brush_bar import BrushBar, build_brush_bar
from components.preview.store import shared_pages, shared_previews
from components.server.settings import Settings
from components.shared import Shared

SCRIPT = Path(__file__).with_name("live.js").read_text(encoding="utf-8")
TELLS = "(...values) => {{ window.dispatchEvent(new Event('mergescope-{}')); return values; }}"
CHANGING, CHANGED, FOLLOWED = (TELLS.format(event) for event in ("changing", "changed", "followed"))
"""Tell `live` that the form is about to change the recipe, that it has, and that the new recipe's picture is on its way:
from the first until `live` has another value, what is drawn is marked as an older one."""
AT_ONCE = 16
"""Requests for a picture, of all pages; one that waits for the older one of its page counts."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class PreviewPart:
    """The components of the part; `cell` holds the chosen cell, `listed` whether the table is open, `visited` whether
    anybody has looked at this tab, `source` what a brush of the map means; `live` draws while a slider moves, and its
    event `rest` says that a number of the form is no longer on its way."""

    number: gr.Radio
    which: gr.Dropdown
    everything: gr.Checkbox
    status: gr.HTML
    map: gr.HTML
    facts: gr.HTML
    bars: gr.HTML
    whole: gr.Button
    figures: gr.HTML
    explanation: gr.HTML
    twin: gr.Accordion
    table: gr.Dataframe
    csv: gr.HTML
    cell: gr.State
    listed: gr.State
    visited: gr.State
    source: gr.State
    brush: BrushBar
    live: gr.HTML

    @property
    def choice(self) -> list[Any]:
        """What is to be seen, as `preview_events.choice_of` reads it."""
        return [self.number, self.which, self.everything, self.cell]

    @property
    def drawn(self) -> list[Any]:
        """The picture, and what is said of it."""
        return [self.status, self.map, self.bars, self.figures]

    @property
    def all(self) -> list[Any]:
        """Everything that depends on the preview or on what is to be seen of it."""
        rest = [self.whole, self.number, self.which, self.facts, self.explanation, self.table, self.csv]
        return [*self.drawn, self.cell, *rest, self.source, self.live]


def build_preview(form: MergeForm) -> PreviewPart:
    """Build the part beside a form; it fills itself once somebody comes to the tab."""
    parts: dict[str, Any] = {
        "cell": gr.State(None),
        "listed": gr.State(False),
        "visited": gr.State(False),
        "source": gr.State(None),
    }
    with gr.Column(elem_classes="pv", elem_id="preview"):
        with gr.Row(elem_classes="pv-head"):
            gr.HTML('<h2>What this recipe would keep</h2><p class="pv-updating" role="status"></p>')
            parts["everything"] = gr.Checkbox(
                label="Norms and embeddings", scale=0, min_width=170, elem_id="preview-everything"
            )
            parts["whole"] = gr.Button(
                "Whole model",
                size="sm",
                scale=0,
                min_width=110,
                visible=False,
                elem_id="preview-whole",
            )
        parts["status"] = gr.HTML(elem_classes="status", elem_id="preview-status")
        parts["bars"] = clickable_plot(empty=views.NOTHING, name="mergescope-fate", elem_id="preview-bars")
        _build_map(parts)
        parts["brush"] = build_brush_bar("preview")
        _build_words(parts)
        parts["live"] = _build_live(form)
    return PreviewPart(**parts)


def _build_map(parts: dict[str, Any]) -> None:
    """What to show, and the map."""
    parts["number"] = LateRadio(
        views.NUMBERS,
        value=views.FIRST,
        label="What to show",
        elem_classes="segments pv-segments",
        elem_id="preview-number",
    )
    parts["which"] = LateDropdown([], label="Which", visible=False, filterable=False, elem_id="preview-which")
    parts["facts"] = gr.HTML(elem_id="preview-facts")
    parts["map"] = clickable_plot(
        empty=views.NOTHING,
        name="mergescope-preview",
        elem_id="preview-map",
        elem_classes="pv-map",
    )


def _build_words(parts: dict[str, Any]) -> None:
    """The same in numbers and in words."""
    with gr.Accordion("In numbers", open=False, elem_classes="explain"):
        parts["figures"] = gr.HTML(elem_id="preview-figures")
    with gr.Accordion("What am I looking at?", open=False, elem_classes="explain"):
        parts["explanation"] = gr.HTML(elem_id="preview-explanation")
    with gr.Accordion("The map as a table", open=False, elem_classes="explain") as parts["twin"]:
        parts["table"] = gr.Dataframe(
            headers=["block", "module"], interactive=False, show_search="filter", elem_id="preview-table"
        )
        parts["csv"] = gr.HTML(elem_id="preview-csv")


def _build_live(form: MergeForm) -> gr.HTML:
    """What asks for new numbers while a slider moves, without the page's own events."""

    def move(asked: Any) -> dict[str, Any] | None:
        return events.move(shared_previews(), shared_pages(), asked)

    wide = {slot_id(slot): slot.partition("/")[0] for slot in form.fields.wide}
    own = {f"merge-{key.replace('.', '-')}": key for key in form.fields.own}
    return gr.HTML(
        {"token": ""},
        html_template="<span hidden></span>",
        # not as a property: Gradio forgets those of what is updated before it is first shown
        js_on_load=f"const FIELDS = {json.dumps({**wide, **own})};\n{SCRIPT}",
        server_functions=[move],
        elem_classes="pv-live",
    )


def wire_preview(
    app: gr.Blocks,
    part: PreviewPart,
    tab: Any,
    settings: Settings,
    shared: Shared,
    opened: Any = None,
    taken: Sequence[Any] = (),
) -> None:
    """Connect the part to the Merge tab `tab`: any change of the recipe is followed.

    Args:
        opened: the event of a visitor coming to the tab, if the app has one.
        taken: events after which the YAML may be what it was, though what is drawn is not the recipe's.
    """
    previews, pages = shared_previews(), shared_pages()
    # a newer request ends an older one, so it must not wait in a queue for it
    newer: dict[str, Any] = {
        "trigger_mode": "multiple",
        "concurrency_id": "preview",
        "concurrency_limit": AT_ONCE,
        **PRIVATE,
    }
    state = [tab.recipe, shared.family, part.visited, part.listed, *part.choice]

    def follow(request: gr.Request, *values: Any) -> Any:
        yield from events.follow(previews, pages, pages.token(page_of(request)), settings, *values)

    def visit(request: gr.Request, recipe: Any, family: Any, visited: bool, *values: Any) -> Any:
        yield from follow(request, recipe, family, True, *values)

    def pick(request: gr.Request, event: gr.EventData, *values: Any) -> list[Any]:
        return events.pick(previews, pages, pages.token(page_of(request)), clicked_cell(event), *values)

    def name(request: gr.Request, source: Any, blocks: Any, kinds: Any, *values: Any) -> list[Any]:
        place = events.place_of(source, blocks, kinds)
        return events.pick(previews, pages, pages.token(page_of(request)), place, *values)

    # Gradio cannot tell whether a state that holds a recipe changed; its YAML always changes with it
    tab.yaml.change(follow, state, part.all, js=FOLLOWED, **newer)
    for event in taken:
        event(follow, state, part.all, **newer)
    first = opened if opened is not None else app.load
    first(lambda: True, None, part.visited, **PRIVATE)
    first(visit, state, part.all, **newer)
    gr.on([c.input for c in (part.number, part.which, part.everything)], follow, state, part.all, **newer)
    part.twin.expand(lambda: True, None, part.listed, **PRIVATE).then(follow, state, part.all, **newer)
    part.twin.collapse(lambda: False, None, part.listed, **PRIVATE)
    looked = [tab.recipe, *part.choice]
    picked = [part.cell, part.bars, part.figures, part.whole, part.map]
    latest: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}
    part.map.select(pick, looked, picked, concurrency_limit=1, **PRIVATE, **EVERY)
    fields = [part.brush.blocks, part.brush.kinds]
    gr.on([field.input for field in fields], name, [part.source, *fields, *looked], picked, **latest)
    part.whole.click(lambda: None, None, part.cell, **PRIVATE).then(follow, state, part.all, **newer)


def page_of(request: gr.Request) -> str:
    """What tells one open page from another."""
    return request.session_hash or ""
