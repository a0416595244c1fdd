"""Tab 1: which models. A base and up to eight experts, a card for each, and what a merge of them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.compare.runner import Runner, build_runner
from components.hub.search import build_hub_search
from components.hub.token import TokenField, build_token_field
from components.late_choice import LateRadio
from components.models.cards import card_html
from components.models.events import estimate, following
from components.models.opening import LONG_EXPERT, LONGEST, MOST_EXPERTS, choose, demo_rows, has_long_expert
from components.models.presets import Preset, preset_html, presets
from components.models.words import KEYS, LABELS
from components.server.settings import Settings
from components.shared import Shared


@dataclass(frozen=True)
class Row:
    """One model: its frame, the field to type in, its card, and for experts a button that removes it."""

    frame: gr.Row
    field: gr.Textbox
    card: gr.HTML
    remove: gr.Button | None


@dataclass(frozen=True)
class HubPart:
    """Finding models on the Hub and downloading them. `to_ask` holds what is to be looked up, `answered` changes when it was,
    and `ended` when a download came to its end."""

    search: gr.HTML
    token: TokenField
    download: Runner
    to_ask: gr.State
    answered: gr.State
    ended: gr.State


@dataclass(frozen=True)
class WordsPart:
    """What becomes of tokens, templates and heads, shown where the models differ in them. `decided` holds what the visitor
    decided, by recipe key, `lists` the choices in the order of the keys."""

    frame: gr.Column
    told: gr.HTML
    lists: tuple[LateRadio, ...]
    decided: gr.State


@dataclass(frozen=True)
class PresetsPart:
    """Families of the Hub, shown where it answers, and a button for each."""

    frame: gr.Column
    buttons: tuple[tuple[Preset, gr.Button], ...]


@dataclass(frozen=True)
class ModelsTab:
    """The components of the tab; `next` leads to Inspect."""

    base: Row
    experts: tuple[Row, ...]
    shown: gr.State
    demo: gr.Button
    add_long: gr.Button
    presets: PresetsPart
    add: gr.Button
    estimate: gr.HTML
    next: gr.Button
    hub: HubPart
    words: WordsPart

    @property
    def fields(self) -> list[gr.Textbox]:
        """What is typed, the base first."""
        return [self.base.field, *(row.field for row in self.experts)]

    @property
    def rows(self) -> list[Any]:
        """What `add_expert` and its like set."""
        return [self.shown, *self.fields, *(row.frame for row in self.experts), self.add]

    def typed(self, shared: Shared) -> list[Any]:
        """What `judge` is told."""
        return [shared.owner, self.words.decided, self.shown, *self.fields]

    def judged(self, shared: Shared) -> list[Any]:
        """What `judge` sets."""
        return [
            self.base.card,
            *(row.card for row in self.experts),
            self.estimate,
            shared.family,
            self.add_long,
            self.hub.download.run,
            self.hub.to_ask,
            self.words.frame,
            self.words.told,
            *self.words.lists,
            self.next,
            shared.models,
        ]


def build_models_tab(settings: Settings) -> ModelsTab:
    """Build the tab with the demo family chosen."""
    typed_base, typed = demo_rows(settings)
    choice = choose(settings, typed_base, typed)
    with gr.Row(elem_classes="section-head"):
        gr.HTML(
            "<h2>Which models?</h2><p>A base, and experts: copies of it trained further, each for something "
            "else. The demo family is ready.</p>",
        )
        demo = gr.Button("Demo family", size="md", min_width=140, scale=0)
        onwards = gr.Button(variant="primary", size="md", scale=0, min_width=220, **following(choice))
    offered = _build_presets(settings)
    download = build_runner("Download", "models-download", width=220, visible=False)
    hint = _hint(settings)
    base = _build_row("Base", typed_base, card_html(choice.base, is_base=True), hint, visible=True)
    experts = []
    for number in range(MOST_EXPERTS):
        card = card_html(choice.experts[number], is_base=False) if number < len(typed) else ""
        value = typed[number] if number < len(typed) else ""
        label, shown = f"Expert {number + 1}", number < len(typed)
        experts.append(_build_row(label, value, card, hint, visible=shown, removable=True))
    with gr.Row(elem_classes="actions"):
        add = gr.Button("Add an expert", size="sm", scale=0, min_width=140)
        add_long = gr.Button(
            f"Add {LONG_EXPERT}: tuned long at a high rate",
            size="sm",
            scale=0,
            min_width=290,
            visible=has_long_expert(settings),
        )
    with gr.Accordion(
        "Find models on the Hugging Face Hub", open=False, visible=settings.hub, elem_classes="explain"
    ):
        search = build_hub_search()
        token = build_token_field(settings)
    words = _build_words()
    costs = gr.HTML(estimate(choice), elem_classes="estimate")
    hub = HubPart(search, token, download, gr.State(None), gr.State(""), gr.State(""))
    return ModelsTab(
        base, tuple(experts), gr.State(len(typed)), demo, add_long, offered, add, costs, onwards, hub, words
    )


def _hint(settings: Settings) -> str:
    """What may be typed for a model on this server."""
    folder, hub = settings.local_folders, settings.hub
    *others, last = [*["a folder"] * folder, "demo:math", *["org/name of the Hub"] * hub]
    return f"{', '.join(others)} or {last}" if others else last


def _build_presets(settings: Settings) -> PresetsPart:
    buttons = []
    with gr.Column(visible=False, elem_classes="presets", elem_id="presets") as frame:
        gr.HTML("<h3>Or take a family of real models from the Hugging Face Hub</h3>")
        with gr.Row(elem_classes="preset-row"):
            for preset in presets(settings):
                with gr.Row(elem_classes="preset"):
                    gr.HTML(preset_html(preset))
                    button = gr.Button(f"Take {preset.title}", size="sm", scale=0, min_width=160)
                buttons.append((preset, button))
    return PresetsPart(frame, tuple(buttons))


def _build_words() -> WordsPart:
    with gr.Column(visible=False, elem_classes="words-part") as frame:
        gr.HTML(
            "<h3>These models do not speak with the same tokens</h3><p>Decide what the result takes; the recipe under Merge "
            "says so, and all tabs compare the models this way.</p>",
            elem_classes="words-head",
        )
        lists = tuple(
            LateRadio(label=LABELS[key], visible=False, elem_classes="segments", elem_id=f"words-{key}")
            for key in KEYS
        )
        told = gr.HTML()
    return WordsPart(frame, told, lists, gr.State({}))


def _build_row(
    label: str, value: str, card: str, hint: str, *, visible: bool, removable: bool = False
) -> Row:
    with gr.Row(elem_classes="model", visible=visible) as frame:
        with gr.Column(scale=3, min_width=230):
            field = gr.Textbox(
                value,
                label=label,
                placeholder=hint,
                max_length=LONGEST,
                elem_classes="model-field",
            )
        with gr.Column(scale=8, min_width=280):
            shown = gr.HTML(card)
        remove = None
        if removable:
            remove = gr.Button(
                f"Remove {label.lower()}", size="sm", scale=0, min_width=140, elem_classes="remove"
            )
    return Row(frame, field, shown, remove)
