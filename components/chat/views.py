"""What the Chat tab shows: conversations, notes under them and the introduction, as HTML and updates."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from components.chat.models import COLUMNS, NOBODY, is_demo, unable
from components.chat.replies import Reply
from components.family import Family
from components.server.settings import Settings

LIMITS = (
    "The demo models answer sums, list and string expressions and word games in a few letters. "
    "Anything else they answer with noise. Press a question below, or type one."
)
MERGE_FIRST = "No merge of yours yet: make one under Merge and it appears in the first column. The parents answer already."
RECIPE_TOO = "So does the recipe under Merge as it stands: choose it in a column."

Talk = list[list[dict[str, str]]]


def silence() -> Talk:
    """Nothing said in any column."""
    return [[] for _ in range(COLUMNS)]


def intro_html(settings: Settings, family: Family, *, merged: bool, recipe: bool = False) -> str:
    """What can be expected of these models, and what is missing; `recipe`: whether that can be asked."""
    if family.experts and (reason := unable(family.base)):
        return f"<p>{html.escape(reason)}</p>"
    lines = [LIMITS] if is_demo(settings, family) else []
    lines += [] if merged else [f"{MERGE_FIRST} {RECIPE_TOO}" if recipe else MERGE_FIRST]
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def answered(said: list[dict[str, str]], reply: Reply | None) -> list[dict[str, str]]:
    """A conversation with the reply as far as it has come."""
    if reply is None or reply.failed or not (reply.text or reply.ended):
        return said
    return [*said, {"role": "assistant", "content": reply.text}]


def chats(talk: Talk, keys: Sequence[str]) -> list[Any]:
    """The chats as they are shown: a Chatbot takes HTML, so every text is escaped."""
    shown = [[{**said, "content": html.escape(said["content"])} for said in told] for told in talk]
    return [gr.update(value=told, visible=key != NOBODY) for told, key in zip(shown, keys, strict=True)]


def cleared(chosen: Sequence[str], before: Sequence[str]) -> list[Any]:
    """The notes: empty where a column has another model now."""
    return [gr.skip() if now == old else "" for now, old in zip(chosen, before, strict=True)]


def notes(replies: dict[int, Reply], expected: str | None = None) -> list[str]:
    """The note under every column."""
    return [note_html(replies.get(column), expected) for column in range(COLUMNS)]


def note_html(reply: Reply | None, expected: str | None = None) -> str:
    """Which model it was, how many tokens at what speed, whether the answer is right where that is known, and what went wrong."""
    if reply is None:
        return ""
    if reply.error:
        return f'<p class="ch-note problem" role="alert">{html.escape(reply.error)}</p>'
    parts = told(reply)
    badge = ""
    if expected is not None and reply.ended and not reply.stopped:
        right = reply.text.strip() == expected
        words = "right" if right else f"expected {expected}"
        badge = f'<span class="badge badge-{"good" if right else "bad"}">{html.escape(words)}</span>'
    if not (reply.tokens or reply.stopped or reply.ended):
        parts.append("waiting" if reply.waiting else "loading" if reply.loading else "thinking")
    return f'<p class="ch-note">{badge}<span>{html.escape(" · ".join(parts))}</span></p>'


def told(reply: Reply) -> list[str]:
    """What there is to say of a reply that did not fail, in words."""
    parts = [reply.about] if reply.about else []
    if reply.tokens:
        parts.append(f"{reply.tokens} token{'s' if reply.tokens != 1 else ''}")
    if reply.rate is not None:
        parts.append(f"{reply.rate:,.0f} tokens/s")
    parts += reply.notes
    if reply.stopped:
        parts.append("stopped")
    return [*parts, reply.turn] if reply.turn else parts


def buttons(*, running: bool) -> list[Any]:
    """Buttons to send, stop, retry, clear and export; `typed` enables the first again once there is a question."""
    rest = gr.update(interactive=not running)
    return [
        gr.update(interactive=False) if running else gr.skip(),
        gr.update(interactive=running),
        *[rest] * 3,
    ]
