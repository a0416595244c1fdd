"""What happens in the Models tab: plain functions from values to values.

`stored` is what the browser keeps as owner. What was typed is judged without a word to the Hub; models that it has to be asked
for are handed on to `look_up`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import gradio as gr

from components.family import Family
from components.hub.sources import DEMO
from components.models.cards import asking_html, card_html, estimate_html
from components.models.choice import Choice
from components.models.opening import (
    LONG_EXPERT,
    MOST_EXPERTS,
    choose,
    demo_rows,
    has_long_expert,
    kept_rows,
    kept_words,
    remembered,
)
from components.models.presets import Preset
from components.models.words import KEYS, heads_differ, words_html
from components.numbers import size
from components.server.backend import hub_desk
from components.server.settings import Settings
from components.shared import owner_id
from merging import MergingError
from merging.references import Reference

ROWS, JUDGED = 3 + 2 * MOST_EXPERTS, 10 + len(KEYS) + MOST_EXPERTS
"""How many values `add_expert` and its like return, and `judge`."""
AT_ONCE = 4
"""Models of one visitor that the Hub is asked for at the same time."""


def restore(settings: Settings, stored_rows: object, family: Family, stored: object = None) -> list[Any]:
    """The rows that this browser kept; what `judge` says of them; and for `Shared.opened` that the family is the one that is
    there already. Where it kept none, the page is right as it was built, unless more was typed since. The Hub is not asked."""
    kept = kept_rows(stored_rows)
    if kept is None:
        return [*[gr.skip()] * (ROWS + 1 + JUDGED), True]
    base, experts = kept
    arranged = _arranged((), base, experts)
    words = kept_words(stored_rows)
    judged = judge(settings, stored, words, len(experts), *arranged[1 : 2 + MOST_EXPERTS], ask=False)
    stays = judged[2 + MOST_EXPERTS] == family
    return [*arranged, words, *judged, True if stays else gr.skip()]


def judge_anew(
    settings: Settings, stored: Any, words: Mapping[str, str], shown: int, *typed: str
) -> list[Any]:
    """`judge`, and ask the Hub again for what it could not say before."""
    hub_desk(settings).forget_failures(owner_id(settings, stored))
    return judge(settings, stored, words, shown, *typed)


def judge(
    settings: Settings, stored: Any, words: Mapping[str, str], shown: int, *typed: str, ask: bool = True
) -> list[Any]:
    """Cards of all rows, the estimate, the family, which buttons make sense, what the Hub is to be asked for, what there is
    to decide about tokens, and what the browser keeps."""
    base, experts = typed[0] or "", [text or "" for text in typed[1 : 1 + _rows(shown)]]
    choice = choose(settings, base, experts, owner_id(settings, stored), words)
    asks = ask and bool(choice.to_ask)
    cards = [
        asking_html(card) if asks and card.waits else card_html(card, is_base=number == 0)
        for number, card in enumerate((choice.base, *choice.experts))
    ]
    cards += [""] * (1 + MOST_EXPERTS - len(cards))
    offer_long = (
        has_long_expert(settings)
        and base == DEMO + "base"
        and DEMO + LONG_EXPERT not in experts
        and len(experts) < MOST_EXPERTS
    )
    return [
        *cards,
        estimate(choice),
        choice.family,
        gr.update(visible=offer_long),
        gr.update(visible=bool(choice.missing), value=f"Download {size(choice.missing)}"),
        (secrets.token_hex(8), choice.to_ask) if asks else gr.skip(),
        *_words(choice),
        gr.update(**following(choice)),
        remembered(base, experts, words),
    ]


def _words(choice: Choice) -> list[Any]:
    """The section on tokens, what it says, and a list of choices for each key."""
    open_now = {one.key: one for one in choice.decisions}
    tokens = choice.plan.tokens if choice.plan is not None else None
    shown = bool(open_now or choice.problems or (tokens is not None and heads_differ(tokens)))
    lists = [
        gr.update(visible=True, choices=list(one.choices), value=one.value)
        if (one := open_now.get(key))
        else gr.update(visible=False)
        for key in KEYS
    ]
    told = words_html(choice.plan, choice.named, choice.problems) if shown else ""
    return [gr.update(visible=shown), told, *lists]


def decide(key: str, value: Any, words: Mapping[str, str]) -> dict[str, str]:
    """Something about tokens was decided; `judge` makes sure of the value."""
    return {**kept_words({"words": words}), **kept_words({"words": {key: value}})}


def look_up(settings: Settings, asked: tuple[str, Sequence[Reference]] | None, stored: Any) -> str:
    """Ask the Hub for models, by their headers; the name of this asking, so that what waits for it sees a change."""
    if asked is None:
        return ""
    name, references = asked
    desk, owner = hub_desk(settings), owner_id(settings, stored)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="hub") as pool:
        list(pool.map(lambda reference: desk.look_up(owner, reference), references))
    return name


def following(choice: Choice) -> dict[str, Any]:
    """The button that leads on: what it says, and whether it can."""
    if choice.missing:
        return {"value": "Download first", "interactive": False}
    return {"value": "Inspect these models", "interactive": bool(choice.family.experts)}


def estimate(choice: Choice) -> str:
    """What a merge of these models costs."""
    return estimate_html(choice.plan, sum(not card.empty for card in choice.experts), choice.missing)


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


def take_preset(preset: Preset, shown: int, *typed: str) -> list[Any]:
    """A family of the Hub in place of whatever is there, and what is decided about its tokens."""
    base, *experts = preset.typed
    return [*_arranged(typed, base, experts), preset.words]


def with_model(reference: str, as_base: bool, shown: int, *typed: str) -> list[Any]:
    """A model as the base, or as an expert: in the first empty row, in a new one, or where it is already.

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
