"""Which models the columns of the Chat tab have: plain functions from values to values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from components.chat import views
from components.chat.events import running
from components.chat.models import (
    NOBODY,
    Visit,
    choices,
    examples,
    fill,
    is_demo,
    to_front,
    without_the_gone,
)
from components.chat.recipe import RECIPE, can_be_asked, page_merges
from components.chat.views import Talk
from components.server.backend import job_store


def refresh(visit: Visit, talk: Talk, chosen: Sequence[str]) -> list[Any]:
    """Who can be asked now; a column whose model is gone gets another.

    Returns:
        Dropdowns, chats, their notes, conversations, chosen keys, introduction, example buttons.
    """

    def arrange(available: Sequence[str]) -> list[str]:
        return fill(without_the_gone(chosen, available), available)

    return _page(visit, talk, chosen, arrange)


def take_family(visit: Visit, talk: Talk, chosen: Sequence[str]) -> list[Any]:
    """Other models were chosen: merges and models that have been asked stay, the rest is filled anew.

    Returns:
        As `refresh`.
    """

    def arrange(available: Sequence[str]) -> list[str]:
        stay = [
            key.startswith(("job:", RECIPE)) or bool(said) for key, said in zip(chosen, talk, strict=True)
        ]
        columns = [
            key if there and key in available else None for key, there in zip(chosen, stay, strict=True)
        ]
        return fill(columns, available)

    return _page(visit, talk, chosen, arrange)


def take_fresh(visit: Visit, talk: Talk, chosen: Sequence[str], fresh: str) -> list[Any]:
    """The newest merge takes the first column unless it has one already or a question is being answered.

    Returns:
        As `refresh`.
    """
    merged = f"job:{fresh}"

    def arrange(available: Sequence[str]) -> list[str]:
        keys = fill(without_the_gone(chosen, available), available)
        if merged not in available or merged in keys or visit.session in running:
            return keys
        before = keys[0]
        keys[0] = merged
        if before.startswith(("expert:", RECIPE)) and NOBODY in keys:
            keys[keys.index(NOBODY)] = before
        return keys

    return _page(visit, talk, chosen, arrange)


def take_merge(visit: Visit, talk: Talk, chosen: Sequence[str], id: str) -> list[Any]:
    """A certain merge of this owner takes the first column; nothing changes where the id names none.

    Returns:
        As `refresh`.
    """
    merged = f"job:{id}"

    def arrange(available: Sequence[str]) -> list[str]:
        keys = fill(without_the_gone(chosen, available), available)
        return to_front(keys, merged) if merged in available else keys

    return _page(visit, talk, chosen, arrange)


def look(visit: Visit, chosen: Sequence[str]) -> list[Any]:
    """Somebody came to the tab: who can be asked with the recipe as it is by now. Dropdowns, introduction."""
    options = _options(visit, chosen)
    return [*(gr.update(choices=options) for _ in chosen), _intro(visit, options)]


def _options(visit: Visit, chosen: Sequence[str]) -> list[tuple[str, str]]:
    """Who can be asked; a column that has the recipe keeps it even where it cannot run, and says so when it is asked."""
    recipe = RECIPE in chosen or can_be_asked(visit.recipe)
    return choices(job_store(visit.settings), visit.owner, visit.family, recipe=recipe)


def _intro(visit: Visit, options: Sequence[tuple[str, str]]) -> str:
    keys = [key for _, key in options]
    merged = any(key.startswith("job:") for key in keys)
    return views.intro_html(visit.settings, visit.family, merged=merged, recipe=RECIPE in keys)


def _page(
    visit: Visit, talk: Talk, before: Sequence[str], arrange: Callable[[Sequence[str]], list[str]]
) -> list[Any]:
    """The tab after `arrange` chose among the keys that are available; a conversation moves with its model."""
    options = _options(visit, before)
    chosen = arrange([key for _, key in options])
    _leave(visit, before, chosen)
    talk = [_said_to(key, column, talk, before) for column, key in enumerate(chosen)]
    demo = is_demo(visit.settings, visit.family)
    return [
        *(gr.update(choices=options, value=key) for key in chosen),
        *views.chats(talk, chosen),
        *views.cleared(chosen, before),
        talk,
        chosen,
        _intro(visit, options),
        *(gr.update(visible=demo) for _ in examples(visit.settings.demo)),
    ]


def _said_to(key: str, column: int, talk: Talk, before: Sequence[str]) -> list[dict[str, str]]:
    if before[column] == key:
        return talk[column]
    return talk[before.index(key)] if key != NOBODY and key in before else []


def choose(column: int, visit: Visit, key: str, talk: Talk, before: Sequence[str]) -> list[Any]:
    """Another model in one column: its dropdown, its chat, its note, the conversations, the chosen keys.

    A dropdown that is only left sends its choice as well; then there is nothing to do. It is told its choice once more, for
    what was on its way to the page when that was made may have shown another since.
    """
    if key == before[column]:
        return [gr.skip()] * 5
    talk = [[] if number == column else said for number, said in enumerate(talk)]
    chosen = [key if number == column else other for number, other in enumerate(before)]
    _leave(visit, before, chosen)
    return [key, gr.update(value=[], visible=key != NOBODY), "", talk, chosen]


def _leave(visit: Visit, before: Sequence[str], chosen: Sequence[str]) -> None:
    """Keep a question that is being answered out of the columns that have another model now, and free the recipe's merge
    once no column asks it."""
    asking = running.get(visit.session)
    if asking is not None:
        asking.left |= {column for column, key in enumerate(chosen) if key != before[column]}
    if RECIPE in before and RECIPE not in chosen:
        page_merges(visit.settings).leave(visit.session)
