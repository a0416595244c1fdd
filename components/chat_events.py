"""What happens in the Chat tab: plain functions from values to values.

`talk` holds the conversation of every column as lists of messages; it stays on the server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components import chat_views as views
from components.backend import job_store, model_cache
from components.chat_models import (
    COLUMNS,
    NOBODY,
    Visit,
    choices,
    examples,
    fill,
    is_demo,
    locate,
    to_front,
    without_the_gone,
)
from components.chat_recipe import RECIPE, can_be_asked, page_merges, summary
from components.chat_replies import Reply, answer_together
from components.chat_views import Talk
from merging import MergingError
from merging.devices import resolve_device
from merging.inference import LoadedModel, Sampling

LONGEST_PROMPT = 4000
MOST_TOKENS = 512


@dataclass
class _Asking:
    """A question that is being answered: what stops it, and the columns that have another model by now."""

    halt: threading.Event = field(default_factory=threading.Event)
    left: set[int] = field(default_factory=set)


_running: dict[str, _Asking] = {}
"""The question of each page: one at a time."""


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
        if merged not in available or merged in keys or visit.session in _running:
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


def clear(chosen: Sequence[str]) -> list[Any]:
    """Forget what was said: chats, notes, conversations, and the button that did it."""
    return [
        *views.chats(views.silence(), chosen),
        *[""] * COLUMNS,
        views.silence(),
        gr.update(interactive=False),
    ]


def stop(request: gr.Request) -> None:
    """End the replies of this page; what was said so far stays."""
    asking = _running.get(request.session_hash or "")
    if asking is not None:
        asking.halt.set()


def ask(visit: Visit, prompt: str, talk: Talk, keys: Sequence[str], *numbers: Any) -> Iterator[list[Any]]:
    """Put one question to the models of all columns and stream what they say.

    `numbers` are temperature, top-p, length and seed.

    Yields:
        Chats, notes, conversations, question field, buttons to send, stop and clear.
    """
    prompt = (prompt or "").strip()
    if visit.session in _running or not _can_be_asked(prompt, keys):
        yield [gr.skip()] * (2 * COLUMNS + 5)
        return
    asked = [
        [*said, {"role": "user", "content": prompt}] if key != NOBODY else []
        for said, key in zip(talk, keys, strict=True)
    ]
    loaders = _loaders(visit, keys)
    about = {RECIPE: summary(visit.recipe, visit.family)} if RECIPE in keys else {}
    replies = {
        column: Reply(load, asked[column], about.get(keys[column], "")) for column, load in loaders.items()
    }
    answers = {example.prompt: example.answer for example in examples(visit.settings.demo)}
    asking = _running[visit.session] = _Asking()
    try:
        yield [*views.chats(asked, keys), *views.notes(replies), talk, "", *views.buttons(running=True)]
        for _ in answer_together(list(replies.values()), _sampling(*numbers), asking.halt):
            shown = [views.answered(said, replies.get(column)) for column, said in enumerate(asked)]
            kept = [
                before if column in replies and replies[column].failed else now
                for column, (before, now) in enumerate(zip(talk, shown, strict=True))
            ]
            yield [
                *_told(shown, keys, views.notes(replies), kept, asking),
                gr.skip(),
                *views.buttons(running=True),
            ]
    finally:
        asking.halt.set()
        if _running.get(visit.session) is asking:
            del _running[visit.session]
    notes = views.notes(replies, answers.get(prompt))
    question = prompt if all(reply.failed for reply in replies.values()) else gr.skip()
    yield [*_told(shown, keys, notes, kept, asking), question, *views.buttons(running=False)]


def _told(shown: Talk, keys: Sequence[str], notes: Sequence[str], kept: Talk, asking: _Asking) -> list[Any]:
    """Chats, notes and conversations; a column that has another model by now is left alone."""
    here = [column not in asking.left for column in range(COLUMNS)]
    chats = views.chats(shown, keys)
    return [
        *(chat if stays else gr.skip() for chat, stays in zip(chats, here, strict=True)),
        *(note if stays else gr.skip() for note, stays in zip(notes, here, strict=True)),
        [said if stays else [] for said, stays in zip(kept, here, strict=True)],
    ]


def _leave(visit: Visit, before: Sequence[str], chosen: Sequence[str]) -> None:
    """Keep a question that is being answered out of the columns that have another model now, and free the recipe's merge
    once no column asks it."""
    asking = _running.get(visit.session)
    if asking is not None:
        asking.left |= {column for column, key in enumerate(chosen) if key != before[column]}
    if RECIPE in before and RECIPE not in chosen:
        page_merges(visit.settings).leave(visit.session)


def _can_be_asked(prompt: str, keys: Sequence[str]) -> bool:
    """Whether there is a question that fits and somebody to ask; says what is missing."""
    if len(prompt) > LONGEST_PROMPT:
        gr.Warning(
            f"The question has {len(prompt):,} characters, and at most {LONGEST_PROMPT:,} can be asked. Shorten it.",
            title="Too long",
        )
        return False
    if prompt and all(key == NOBODY for key in keys):
        gr.Warning("Choose a model in one of the columns first.", title="Nobody to ask")
        return False
    return bool(prompt)


def typed(prompt: str, request: gr.Request) -> dict[str, Any]:
    """The send button: enabled while there is a question and none is being answered."""
    ready = bool((prompt or "").strip()) and (request.session_hash or "") not in _running
    return gr.update(interactive=ready)


def _loaders(visit: Visit, keys: Sequence[str]) -> dict[int, Callable[[], LoadedModel]]:
    """For every column that names a model, how to get it; one that is gone says so when it is loaded."""
    device = str(resolve_device(visit.settings.device))

    def load(folder: Path | None) -> LoadedModel:
        if folder is None:
            raise MergingError("This model is no longer there. Choose another.")
        return model_cache(visit.settings).get(folder, device)

    def loader(key: str) -> Callable[[], LoadedModel]:
        if key == RECIPE:
            merges = page_merges(visit.settings)
            merges.enter(visit.session)
            return partial(merges.model, visit.session, visit.recipe, device)
        return partial(load, locate(store, visit.owner, visit.family, key))

    store = job_store(visit.settings)
    return {column: loader(key) for column, key in enumerate(keys) if key != NOBODY}


def _sampling(temperature: float, top_p: float, length: float, seed: float | None) -> Sampling:
    """The visitor's numbers, brought into their limits."""
    return Sampling(
        temperature=min(2.0, max(0.0, float(temperature))),
        top_p=min(1.0, max(0.01, float(top_p))),
        max_new_tokens=min(MOST_TOKENS, max(1, int(length))),
        seed=int(seed or 0) % 2**63,
    )
