"""Tab 1: which models. A base and up to eight experts, a card for each, and what a merge of them costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import gradio as gr

from components.family import Family
from components.model_cards import card_html, estimate_html
from components.models import (
    DEMO,
    LONG_EXPERT,
    LONGEST,
    MOST_EXPERTS,
    Choice,
    choose,
    demo_rows,
    has_long_expert,
    kept_rows,
    plan_family,
    remembered,
)
from components.settings import Settings
from components.shared import Shared, owner_id
from merging import MergingError

ROWS, JUDGED = 3 + 2 * MOST_EXPERTS, 6 + MOST_EXPERTS
"""How many values `add_expert` and its like return, and `judge`."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
JUDGING: dict[str, Any] = {**PRIVATE, "concurrency_id": "models", "concurrency_limit": 1}
"""One judgement at a time, so that an older one never comes last."""
RESTORED = "() => document.documentElement.classList.remove('restoring')"
"""Shows the rows that `theme.HEAD` hides until what the browser kept has been put in."""


@dataclass(frozen=True)
class Row:
    """One model: its frame, the field to type in, its card, and for experts a button that removes it."""

    frame: gr.Row
    field: gr.Textbox
    card: gr.HTML
    remove: gr.Button | None


@dataclass(frozen=True)
class ModelsTab:
    """The components of the tab; `next` leads to Inspect."""

    base: Row
    experts: tuple[Row, ...]
    shown: gr.State
    demo: gr.Button
    add_long: gr.Button
    add: gr.Button
    estimate: gr.HTML
    next: gr.Button

    @property
    def fields(self) -> list[gr.Textbox]:
        """What is typed, the base first."""
        return [self.base.field, *(row.field for row in self.experts)]

    @property
    def rows(self) -> list[Any]:
        """What `add_expert` and its like set."""
        return [self.shown, *self.fields, *(row.frame for row in self.experts), self.add]

    def judged(self, shared: Shared) -> list[Any]:
        """What `judge` sets."""
        cards = [self.base.card, *(row.card for row in self.experts)]
        return [*cards, self.estimate, shared.family, self.add_long, self.next, shared.models]


def build_models_tab(settings: Settings) -> ModelsTab:
    """Build the tab with the demo family chosen."""
    typed_base, typed = demo_rows(settings)
    choice = choose(settings, typed_base, typed)
    with gr.Row(elem_classes="section-head"):
        gr.HTML(
            "<h2>Which models?</h2><p>One base, and experts that were fine-tuned from it. Only their headers are read "
            "here.</p>",
        )
        demo = gr.Button("Demo family", size="sm", min_width=120, scale=0)
        add_long = gr.Button(
            f"Add {LONG_EXPERT}: tuned long at a high rate",
            size="sm",
            scale=0,
            min_width=290,
            visible=has_long_expert(settings),
        )
    base = _build_row("Base", typed_base, card_html(choice.base, is_base=True), visible=True)
    experts = []
    for number in range(MOST_EXPERTS):
        card = card_html(choice.experts[number], is_base=False) if number < len(typed) else ""
        value = typed[number] if number < len(typed) else ""
        experts.append(
            _build_row(f"Expert {number + 1}", value, card, visible=number < len(typed), removable=True)
        )
    with gr.Row(elem_classes="actions"):
        add = gr.Button("Add an expert", size="sm", scale=0, min_width=140)
    estimate = gr.HTML(_estimate(choice), elem_classes="estimate")
    with gr.Row(elem_classes="actions"):
        following = gr.Button(
            "Inspect these models",
            variant="primary",
            size="md",
            scale=0,
            min_width=220,
            interactive=bool(choice.family.experts),
        )
    shown = gr.State(len(typed))
    return ModelsTab(base, tuple(experts), shown, demo, add_long, add, estimate, following)


def _build_row(label: str, value: str, card: str, *, visible: bool, removable: bool = False) -> Row:
    with gr.Row(elem_classes="model", visible=visible) as frame:
        with gr.Column(scale=3, min_width=230):
            field = gr.Textbox(
                value,
                label=label,
                placeholder="a folder, or demo:math",
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


def wire_models_tab(app: gr.Blocks, tab: ModelsTab, settings: Settings, shared: Shared) -> None:
    """Connect the tab's events: whatever changes a row judges all rows again and sets the shared family."""
    fields, judged = tab.fields, tab.judged(shared)
    events = [event for field in fields for event in (field.submit, field.blur)]
    app.load(
        partial(restore, settings),
        [shared.models, shared.family, shared.owner],
        [*tab.rows, *judged, shared.opened],
        **JUDGING,
    ).then(None, None, None, js=RESTORED, api_visibility="private")
    gr.on(
        events,
        partial(judge, settings),
        [shared.owner, tab.shown, *fields],
        judged,
        trigger_mode="always_last",
        **JUDGING,
    )

    def change(button: gr.Button, function: Callable[..., list[Any]]) -> None:
        button.click(function, [tab.shown, *fields], tab.rows, **PRIVATE).success(
            partial(judge, settings), [shared.owner, tab.shown, *fields], judged, **JUDGING
        )

    change(tab.demo, partial(take_demo, settings))
    change(tab.add, add_expert)
    change(tab.add_long, add_long_expert)
    for number, row in enumerate(tab.experts):
        if row.remove is not None:
            change(row.remove, partial(remove_expert, number))


def restore(settings: Settings, stored: object, family: Family, owner: object = None) -> list[Any]:
    """The rows that this browser kept; what `judge` says of them; and for `Shared.opened` that the family is the one that is
    there already. Where it kept none, the page is right as it was built, unless more was typed since."""
    kept = kept_rows(stored)
    if kept is None:
        return [*[gr.skip()] * (ROWS + JUDGED), True]
    base, experts = kept
    arranged = _arranged((), base, experts)
    judged = judge(settings, owner, len(experts), *arranged[1 : 2 + MOST_EXPERTS])
    stays = judged[2 + MOST_EXPERTS] == family
    return [*arranged, *judged, True if stays else gr.skip()]


def judge(settings: Settings, owner: object, shown: int, *typed: str) -> list[Any]:
    """Cards of all rows, the estimate, the family, which buttons make sense, and what the browser keeps; `owner` is what the
    browser keeps as one."""
    experts = list(typed[1 : 1 + _rows(shown)])
    choice = choose(settings, typed[0] or "", [text or "" for text in experts], owner_id(settings, owner))
    cards = [card_html(card, is_base=False) for card in choice.experts]
    cards += [""] * (MOST_EXPERTS - len(cards))
    offer_long = (
        has_long_expert(settings)
        and typed[0] == DEMO + "base"
        and DEMO + LONG_EXPERT not in experts
        and len(experts) < MOST_EXPERTS
    )
    ready = bool(choice.family.experts)
    return [
        card_html(choice.base, is_base=True),
        *cards,
        _estimate(choice),
        choice.family,
        gr.update(visible=offer_long),
        gr.update(interactive=ready),
        remembered(typed[0] or "", [text or "" for text in experts]),
    ]


def _estimate(choice: Choice) -> str:
    listed = sum(not card.empty for card in choice.experts)
    if not choice.family.experts:
        return estimate_html(None, listed)
    try:
        plan = plan_family(choice.family)
    except MergingError:
        return estimate_html(None, listed)
    return estimate_html(plan, listed)


def add_expert(shown: int, *typed: str) -> list[Any]:
    """One more empty row."""
    return _arranged(typed, typed[0], [*typed[1 : 1 + _rows(shown)], ""])


def add_long_expert(shown: int, *typed: str) -> list[Any]:
    """One more row with the demo's fourth expert."""
    return _arranged(typed, typed[0], [*typed[1 : 1 + _rows(shown)], DEMO + LONG_EXPERT])


def remove_expert(number: int, shown: int, *typed: str) -> list[Any]:
    """All rows but one; those below it move up."""
    experts = list(typed[1 : 1 + _rows(shown)])
    return _arranged(typed, typed[0], experts[:number] + experts[number + 1 :])


def take_demo(settings: Settings, shown: int, *typed: str) -> list[Any]:
    """The demo family in place of whatever is there."""
    return _arranged(typed, *demo_rows(settings))


def with_merge(reference: str, as_base: bool, shown: int, *typed: str) -> list[Any]:
    """A finished merge as the base, or as an expert: in the first empty row, in a new one, or where it is already.

    Raises:
        MergingError: all rows are taken.
    """
    experts = list(typed[1 : 1 + _rows(shown)])
    if as_base:
        return _arranged(typed, reference, [text for text in experts if text != reference])
    if reference not in experts:
        if len(experts) == MOST_EXPERTS and all(experts):
            raise MergingError(
                f"There are {MOST_EXPERTS} experts already; remove one on the Models tab first."
            )
        place = next((n for n, text in enumerate(experts) if not text), len(experts))
        experts[place : place + 1] = [reference]
    return _arranged(typed, typed[0], experts)


def _rows(shown: object) -> int:
    return min(MOST_EXPERTS, max(0, shown)) if isinstance(shown, int) else 0


def _arranged(typed: Sequence[str], base: str, experts: Sequence[str]) -> list[Any]:
    """All rows; a field that has its text already is left alone, because more may have been typed since it was sent."""
    experts = list(experts)[:MOST_EXPERTS]
    texts = [base, *experts, *[""] * (MOST_EXPERTS - len(experts))]
    return [
        len(experts),
        *(gr.skip() if there == text else text for there, text in zip_longest(typed, texts)),
        *(gr.update(visible=number < len(experts)) for number in range(MOST_EXPERTS)),
        gr.update(interactive=len(experts) < MOST_EXPERTS),
    ]
