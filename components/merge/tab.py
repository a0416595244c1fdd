"""Tab 3: one click for a sensible merge, a form and its YAML for any other, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.family import Family
from components.importance.merge import ImportanceNotice, build_importance_notice
from components.late_choice import LateRadio
from components.merge import events
from components.merge.extraction_part import ExtractionPart, build_extraction_part, wire_extraction_part
from components.merge.form import IN_TURN, MergeForm, build_merge_form
from components.merge.html import default_text, plan_html, result_html
from components.merge.picker import build_picker
from components.merge.recipe import check, default_recipe
from components.preview.brush_bar import CSS as BRUSH_CSS
from components.preview.brush_bar import Taken, wire_brush_bar
from components.preview.tab import CHANGED, CHANGING, PreviewPart, build_preview, wire_preview
from components.server.settings import Settings
from components.shared import Shared

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8") + BRUSH_CSS
TICK = 0.4
"""Seconds between two looks at a running job."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}
EACH: dict[str, Any] = {"trigger_mode": "multiple", **PRIVATE}
SAVE_FILE = "() => setTimeout(() => document.querySelector('#merge-file')?.click(), 250)"
TO_PROBLEMS = "() => setTimeout(() => document.querySelector('#merge-plan .mg-problems')?.scrollIntoView({block: 'center'}), 250)"
TO_PROGRESS = (
    "() => document.querySelector('#merge-progress, #merge-result')?.scrollIntoView({block: 'center'})"
)


@dataclass(frozen=True)
class MergeTab:
    """The components of the tab.

    `recipe` holds what is merged, `watched` the id of the job that waits or runs, `shown` that of the job on the
    card, `fresh` that of the newest finished merge; `next` leads to Chat.
    """

    lead: gr.HTML
    default: gr.Button
    importance: ImportanceNotice
    form: MergeForm
    advice: gr.HTML
    yaml: gr.Code
    apply: gr.Button
    plan: gr.HTML
    merge: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    result: gr.HTML
    download: gr.Button
    file: gr.DownloadButton
    reuse: gr.Button
    as_base: gr.Button
    as_expert: gr.Button
    delete: gr.Button
    extraction: ExtractionPart
    next: gr.Button
    history: gr.Radio
    timer: gr.Timer
    recipe: gr.State
    preview: PreviewPart
    ready: gr.State
    watched: gr.State
    shown: gr.State
    fresh: gr.State

    @property
    def card(self) -> list[Any]:
        """What `merge_cards.card` sets."""
        buttons = [self.next, self.download, self.reuse, self.as_base, self.as_expert, self.delete]
        return [self.shown, self.result, *buttons, self.history]

    @property
    def filled(self) -> list[Any]:
        """Everything that shows the recipe, in the order of `merge_events.refill`."""
        judged = [self.recipe, self.yaml, self.apply, self.plan, self.ready, self.merge, self.advice]
        return [*judged, *self.form.outputs]


def build_merge_tab(settings: Settings) -> MergeTab:
    """Build the tab over the demo family; `wire_merge_tab` brings it to life."""
    family = Family.demo(settings.demo)
    recipe = default_recipe(family)
    checked = check(recipe)
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="mg-top"):
        parts["lead"] = gr.HTML(default_text(family.names))
        parts["default"] = gr.Button(
            events.default_label(family),
            variant="primary",
            size="lg",
            scale=0,
            min_width=290,
            elem_id="merge-default-button",
            interactive=checked.plan is not None,
        )
    _build_outcome(parts)
    gr.HTML('<div class="mg-divider"><h2>Or choose how</h2></div>')
    with gr.Row(elem_classes="mg-columns"):
        with gr.Column(min_width=0, elem_classes="mg-pick"):
            picker = build_picker(recipe, family)
        with gr.Column(min_width=0, elem_classes="mg-form"):
            parts["importance"] = build_importance_notice()
            parts["form"] = build_merge_form(family, picker)
        with gr.Column(min_width=0, elem_classes="mg-side"):
            _build_go(parts, plan_html(checked), ready=checked.plan is not None)
            parts["preview"] = build_preview(parts["form"])
    with gr.Column(elem_classes="mg-yaml"):
        _build_yaml(parts, recipe.to_yaml())
    return MergeTab(
        **parts,
        timer=gr.Timer(TICK, active=False),
        recipe=gr.State(recipe),
        ready=gr.State(checked.plan is not None),
        watched=gr.State(""),
        shown=gr.State(""),
        fresh=gr.State(""),
    )


def _build_outcome(parts: dict[str, Any]) -> None:
    """Progress, the result's card with what can be done with it, and the earlier merges."""
    with gr.Row(elem_classes="mg-running"):
        parts["progress"] = gr.HTML(elem_id="merge-progress")
        parts["cancel"] = gr.Button(
            "Cancel",
            size="sm",
            scale=0,
            min_width=110,
            interactive=False,
            visible=False,
            elem_id="cancel-button",
        )
    with gr.Column(elem_classes="mg-outcome"):
        _build_card(parts)
        parts["extraction"] = build_extraction_part()
    parts["history"] = LateRadio(
        [], label="Your merges", visible=False, elem_id="merge-history", elem_classes="mg-history"
    )


def _build_card(parts: dict[str, Any]) -> None:
    """The result and its buttons; the style hides them while the card shows no result."""
    parts["result"] = gr.HTML(result_html(None), elem_id="merge-result")
    with gr.Row(elem_classes="actions"):
        parts["next"] = gr.Button(
            "Chat with it",
            variant="primary",
            size="sm",
            scale=0,
            min_width=140,
            visible=False,
            elem_id="merge-next",
        )
        parts["download"] = gr.Button(
            "Download", size="sm", scale=0, min_width=210, visible=False, elem_id="merge-download"
        )
        parts["reuse"] = gr.Button(
            "Use its recipe", size="sm", scale=0, min_width=140, visible=False, elem_id="merge-reuse"
        )
        parts["as_base"] = gr.Button(
            "Use as base", size="sm", scale=0, min_width=120, visible=False, elem_id="merge-as-base"
        )
        parts["as_expert"] = gr.Button(
            "Use as expert", size="sm", scale=0, min_width=130, visible=False, elem_id="merge-as-expert"
        )
        parts["delete"] = gr.Button(
            "Delete", size="sm", scale=0, min_width=100, visible=False, elem_id="merge-delete"
        )
        parts["file"] = gr.DownloadButton("zip", visible="hidden", elem_id="merge-file")


def _build_go(parts: dict[str, Any], plan: str, *, ready: bool) -> None:
    """What the recipe comes to, what speaks against it, and the button that runs it."""
    with gr.Row(elem_classes="mg-go"):
        parts["plan"] = gr.HTML(plan, elem_id="merge-plan")
        parts["merge"] = gr.Button(
            "Merge", variant="primary", scale=0, min_width=120, interactive=ready, elem_id="merge-button"
        )
    parts["advice"] = gr.HTML(elem_id="merge-advice")


def _build_yaml(parts: dict[str, Any], yaml: str) -> None:
    """The live YAML and the button that takes what was written into it."""
    parts["yaml"] = gr.Code(
        yaml,
        language="yaml",
        label="Recipe (YAML)",
        lines=12,
        max_lines=28,
        interactive=True,
        wrap_lines=True,
        show_line_numbers=False,
        buttons=["copy", "download"],
        elem_id="recipe-yaml",
    )
    parts["apply"] = gr.Button(
        "Apply the edited YAML", size="sm", interactive=False, elem_id="apply-yaml-button"
    )


def wire_merge_tab(
    app: gr.Blocks, tab: MergeTab, settings: Settings, shared: Shared, opened: Any = None
) -> None:
    """Connect the tab's events. The recipe is the truth; form and YAML are two views of it.

    What sets the recipe, the buttons or the card goes in turn, the timer as well: else the answer to an event that was
    worked on before a merge ended may come after the one that says so, and leave the button off.

    Args:
        opened: the event of a visitor coming to this tab, if the app has one.
    """
    form, widgets = tab.form, list(tab.form.inputs.values())
    shown = [tab.recipe, tab.yaml, tab.apply, tab.plan, tab.ready, tab.merge, tab.advice]
    judged, filled = [*shown, *form.fields.marked], tab.filled
    state = [tab.recipe, shared.family, tab.watched]

    edit = partial(events.edit, form), [*state, *widgets], judged
    # none of these waits in the page for the one before: it would come after a click that was made later
    gr.on([c.input for c in form.details], *edit, **EACH, **IN_TURN)
    tab.preview.live.rest(*edit, **EACH, **IN_TURN)
    for name, text in form.lists.items():
        text.change(partial(events.edit_list, form, name), [*state, text], judged, **LATEST, **IN_TURN)
    gr.on(
        [c.input for c in form.structure],
        partial(events.restructure, form),
        [*state, *widgets],
        filled,
        js=CHANGING,
        **LATEST,
        **IN_TURN,
    ).then(None, None, None, js=CHANGED, api_visibility="private")
    reset = form.preset.click(partial(events.preset, form), state, filled, **PRIVATE, **IN_TURN)
    published = [*state, form.published]
    form.published.input(partial(events.take_published, form), published, filled, **LATEST, **IN_TURN)
    form.new_seed.click(partial(events.new_seed, form), [*state, *widgets], filled, **PRIVATE, **IN_TURN)
    unapplied = [tab.apply, tab.plan, tab.ready, tab.merge]
    tab.yaml.input(events.yaml_edited, None, unapplied, **LATEST, **IN_TURN)
    applied = tab.apply.click(
        partial(events.apply_yaml, form), [tab.yaml, *state], filled, **PRIVATE, **IN_TURN
    )
    applied.success(None, None, None, js=TO_PROBLEMS, api_visibility="private")
    shared.family.change(
        partial(events.take_family, form), state, [*filled, tab.lead, tab.default], **PRIVATE, **IN_TURN
    )
    gr.on(
        [event for event in (opened, app.load) if event is not None],
        events.look_again,
        state[:2],
        tab.advice,
        **PRIVATE,
    )
    reused = tab.reuse.click(
        partial(events.reuse, form, settings),
        [tab.shown, shared.owner, *state],
        filled,
        **PRIVATE,
        **IN_TURN,
    )
    taken = [applied.success, reset.success, reused.success]
    wire_preview(app, tab.preview, tab, settings, shared, opened, taken)
    brushed = Taken(partial(events.take, form), state[1:], filled, IN_TURN)
    wire_brush_bar(tab.preview.brush, tab.preview.map, tab.preview.source, tab.recipe, brushed)
    _wire_jobs(tab, settings, shared)
    _wire_results(tab, settings, shared)
    wire_extraction_part(tab.extraction, tab.shown, settings, shared)


def _wire_jobs(tab: MergeTab, settings: Settings, shared: Shared) -> None:
    """Starting, watching, cancelling, and finding a job again after a reload."""
    running = [tab.watched, tab.timer, tab.progress, tab.cancel, tab.merge, tab.default]
    card = tab.card
    started = [*running, *card[1:-1]]
    tab.default.click(
        partial(events.start_default, settings), [shared.family, shared.owner], started, **PRIVATE, **IN_TURN
    )
    tab.merge.click(
        partial(events.start_shown, tab.form, settings),
        [tab.recipe, shared.family, shared.owner, *tab.form.inputs.values()],
        started,
        **PRIVATE,
        **IN_TURN,
    ).success(None, None, None, js=TO_PROGRESS, api_visibility="private")
    tab.cancel.click(partial(events.cancel, settings), [tab.watched, shared.owner], tab.cancel, **PRIVATE)
    tab.timer.tick(
        partial(events.tick, settings),
        [tab.watched, tab.ready, shared.family, shared.owner],
        [*running, *card],
        trigger_mode="once",
        **PRIVATE,
        **IN_TURN,
    )
    shared.known(
        partial(events.attach, settings),
        [tab.ready, shared.family, shared.owner],
        [*running, *card],
        **PRIVATE,
        **IN_TURN,
    )


def _wire_results(tab: MergeTab, settings: Settings, shared: Shared) -> None:
    """What can be done with a finished job."""
    card = tab.card
    tab.history.input(partial(events.show, settings), [tab.history, shared.owner], card, **LATEST, **IN_TURN)
    chosen = [tab.shown, shared.family, shared.owner]
    tab.delete.click(partial(events.delete, settings), chosen, card, **PRIVATE, **IN_TURN)
    shared.family.change(partial(events.other_family, settings), chosen, card, **PRIVATE, **IN_TURN)
    tab.result.change(partial(events.newest, settings), shared.owner, tab.fresh, **PRIVATE)
    tab.download.click(
        partial(events.download, settings),
        [tab.shown, shared.owner],
        tab.file,
        show_progress="minimal",
        show_progress_on=tab.download,
        api_visibility="private",
    ).success(None, None, None, js=SAVE_FILE, api_visibility="private")
