"""Asking in the Chat tab: plain functions from values to values.

`talk` holds the conversation of every column as lists of messages, `log` every question with what became of it; both stay
on the server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components.chat import views
from components.chat.export import forget_chat, zip_chat
from components.chat.lent import answer, size_of
from components.chat.loading import Asked, Turns, asked_models, take_turns
from components.chat.log import Log, Turn, before_last
from components.chat.models import COLUMNS, NOBODY, Visit, examples
from components.chat.recipe import page_merges
from components.chat.replies import Reply
from components.chat.sampling import sampling_of, system_of
from components.chat.views import Talk
from components.server.settings import Settings
from components.toasts import toast
from merging import MergingError
from merging.answering.drawing import LIMITS

GREEDY = (
    "At temperature 0 the likeliest token is always taken: the same model, asked alike, says the same again."
)
QUESTION = 2 * COLUMNS + 2
"""Where the question's field stands among what `ask` yields."""
NOTHING = [gr.skip()] * (QUESTION + 6)


@dataclass
class Asking:
    """A question that is being answered: what stops it, and the columns that have another model by now."""

    halt: threading.Event = field(default_factory=threading.Event)
    left: set[int] = field(default_factory=set)
    owner: str = ""


running: dict[str, Asking] = {}
"""The question of each page: one at a time."""


def clear(chosen: Sequence[str]) -> list[Any]:
    """Forget what was said: chats, notes, conversations, log, and the buttons that need some of it."""
    return [
        *views.chats(views.silence(), chosen),
        *[""] * COLUMNS,
        views.silence(),
        (),
        *[gr.update(interactive=False)] * 3,
    ]


def stop(request: gr.Request) -> None:
    """End the replies of this page; what was said so far stays."""
    asking = running.get(request.session_hash or "")
    if asking is not None:
        asking.halt.set()


def close(settings: Settings, request: gr.Request) -> None:
    """Free what was kept for a page that is gone."""
    page_merges(settings).leave(request.session_hash or "")
    forget_chat(request.session_hash or "")


def export(log: Log, request: gr.Request) -> dict[str, Any]:
    """Make the file of everything that was asked on this page."""
    try:
        return gr.update(value=str(zip_chat(log, request.session_hash or "")))
    except MergingError as error:
        raise toast(str(error), "The conversation was not exported") from None


def retry(visit: Visit, talk: Talk, log: Log, keys: Sequence[str], *drawn: Any) -> Iterator[list[Any]]:
    """Ask the last question once more, in place of the replies it had: drawn with the next seed, or, at temperature 0, with
    the same.

    Yields:
        As `ask`, and the seed.
    """
    if not log or visit.session in running:
        yield [*NOTHING, gr.skip()]
        return
    sampling = sampling_of(visit.settings, drawn)
    seed = sampling.seed
    if sampling.temperature > 0:
        seed = seed + 1 if seed < LIMITS["seed"][1] else 0
    else:
        gr.Info(GREEDY, title="The same seed again")
    again = ask(visit, log[-1].question, before_last(talk, log), log[:-1], keys, *drawn[:-1], seed)
    for update in again:
        yield [*update[:QUESTION], gr.skip(), *update[QUESTION + 1 :], seed]


def ask(
    visit: Visit, prompt: str, talk: Talk, log: Log, keys: Sequence[str], *drawn: Any
) -> Iterator[list[Any]]:
    """Put one question to the models of all columns and stream what they say.

    `drawn` is what the widgets of `build_sampling` hold.

    Yields:
        Chats, notes, conversations, log, question field, buttons to send, stop, retry, clear and export.
    """
    question, system, sampling = (prompt or "").strip(), system_of(drawn), sampling_of(visit.settings, drawn)
    asking = Asking(owner=visit.owner)
    if (
        not _can_be_asked(visit, question, system, log, keys)
        or running.setdefault(visit.session, asking) is not asking
    ):
        yield NOTHING
        return
    asked = [
        [*said, {"role": "user", "content": question}] if key != NOBODY else []
        for said, key in zip(talk, keys, strict=True)
    ]
    try:
        models = asked_models(visit, keys)
        turns = take_turns(visit, models)
        replies = _replies(models, turns, asked, system)
        yield [
            *views.chats(asked, keys),
            *views.notes(replies),
            talk,
            gr.skip(),
            "",
            *views.buttons(running=True),
        ]
        rounds = [[replies[column] for column in columns] for columns in turns.rounds]
        for _ in answer(rounds, sampling, asking.halt, size_of(models, sampling)):
            shown = [views.answered(said, replies.get(column)) for column, said in enumerate(asked)]
            kept = _kept(talk, shown, replies)
            told = _told(shown, keys, views.notes(replies), kept, asking)
            yield [*told, gr.skip(), gr.skip(), *views.buttons(running=True)]
    finally:
        asking.halt.set()
        if running.get(visit.session) is asking:
            del running[visit.session]
    notes = views.notes(replies, _answer(visit, question))
    log = (*log, Turn.of((question, system, sampling), models, replies))
    field = question if all(reply.failed for reply in replies.values()) else gr.skip()
    yield [*_told(shown, keys, notes, kept, asking), log, field, *views.buttons(running=False)]


def _replies(models: Mapping[int, Asked], turns: Turns, asked: Talk, system: str) -> dict[int, Reply]:
    """A reply for every column that is asked; all but those of the first round wait."""
    before = [{"role": "system", "content": system}] if system else []
    first = turns.rounds[0]
    return {
        column: Reply(
            model.load,
            [*before, *asked[column]],
            model.about,
            turn="" if column in first else turns.reason,
            waiting=column not in first,
        )
        for column, model in models.items()
    }


def _kept(talk: Talk, shown: Talk, replies: Mapping[int, Reply]) -> Talk:
    """The conversations as they go on: a question that came to nothing is not part of them."""
    failed = {column for column, reply in replies.items() if reply.failed}
    return [
        before if column in failed else now
        for column, (before, now) in enumerate(zip(talk, shown, strict=True))
    ]


def _answer(visit: Visit, question: str) -> str | None:
    answers = {example.prompt: example.answer for example in examples(visit.settings.demo)}
    return answers.get(question)


def _told(shown: Talk, keys: Sequence[str], notes: Sequence[str], kept: Talk, asking: Asking) -> list[Any]:
    """Chats, notes and conversations; a column that has another model by now is left alone."""
    here = [column not in asking.left for column in range(COLUMNS)]
    chats = views.chats(shown, keys)
    return [
        *(chat if stays else gr.skip() for chat, stays in zip(chats, here, strict=True)),
        *(note if stays else gr.skip() for note, stays in zip(notes, here, strict=True)),
        [said if stays else [] for said, stays in zip(kept, here, strict=True)],
    ]


def _can_be_asked(visit: Visit, question: str, system: str, log: Log, keys: Sequence[str]) -> bool:
    """Whether there is a question that fits and somebody to ask; says what is missing."""
    most = visit.settings.longest_prompt
    for what, text in (("question", question), ("system prompt", system)):
        if len(text) > most:
            gr.Warning(
                f"The {what} has {len(text):,} characters, and at most {most:,} can be asked. Shorten it.",
                title="Too long",
            )
            return False
    if question and len(log) >= visit.settings.longest_chat:
        gr.Warning(
            f"This conversation has {len(log)} questions, and no more are kept. Export it if you like, then press Clear.",
            title="Long enough",
        )
        return False
    if question and not visit.settings.single_owner and _asks_elsewhere(visit):
        gr.Warning(
            "A question of yours is being answered on another page. Others wait too: let it end, or stop it there.",
            title="One at a time",
        )
        return False
    if question and all(key == NOBODY for key in keys):
        gr.Warning("Choose a model in one of the columns first.", title="Nobody to ask")
        return False
    return bool(question)


def _asks_elsewhere(visit: Visit) -> bool:
    others = [asking.owner for page, asking in list(running.items()) if page != visit.session]
    return visit.owner in others


def typed(prompt: str, request: gr.Request) -> dict[str, Any]:
    """The send button: enabled while there is a question and none is being answered."""
    ready = bool((prompt or "").strip()) and (request.session_hash or "") not in running
    return gr.update(interactive=ready)
