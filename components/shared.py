"""What all tabs share: the chosen family and who is looking."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.models.opening import choose, demo_rows
from components.server.backend import visits
from components.server.settings import Settings
from merging.judging.history import LOCAL_OWNER

MODELS_KEY = "mergescope-models"
STILL_HERE = 300.0
"""Seconds between two words from a page that is open: who looks at something for long is there."""
_OWNER_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Shared:
    """`family` holds a `Family` (one without experts when nothing fits yet), `owner` the owner id that the browser
    keeps; pass what `owner` gives a handler through `owner_id` before using it. `importance` holds what this visitor
    measured on the family (`importance_job.Found`), or None. `models` is what was typed on the Models tab, as the browser
    keeps it.

    Once a page is open, exactly one of `family` and `opened` changes: the family where the browser kept another than the
    demo, else `opened`. Who shows the family waits for either, and shows it once. Who shows what an owner has waits for
    `known`, which takes an event's arguments and happens once when a page opens; `family` and `opened` come after it."""

    family: gr.State
    owner: gr.BrowserState
    importance: gr.State
    models: gr.BrowserState
    opened: gr.State
    known: Callable[..., Any]


def build_shared(app: gr.Blocks, settings: Settings) -> Shared:
    """The shared state of one page, whose owner is told apart as soon as it opens."""
    # the browser keeps these under fixed keys, so that they survive a restart of the app
    owner = gr.BrowserState(None, storage_key="mergescope-owner", secret="mergescope-owner")
    models = gr.BrowserState(None, storage_key=MODELS_KEY, secret=MODELS_KEY)
    knows = app.load(
        partial(owner_id, settings), owner, owner, show_progress="hidden", api_visibility="private"
    )
    if settings.ttl is not None and not settings.single_owner:
        gr.Timer(min(STILL_HERE, settings.ttl / 3)).tick(
            partial(still_here, settings), owner, show_progress="hidden", api_visibility="private"
        )
    return Shared(
        family=gr.State(choose(settings, *demo_rows(settings)).family),
        owner=owner,
        importance=gr.State(None),
        models=models,
        opened=gr.State(False),
        known=knows.then,
    )


def owner_id(settings: Settings, stored: object) -> str:
    """The owner a request speaks for: what the browser stored if it is an id, else a new random one of 128 bits.

    A start for one person has the one owner `local`.
    """
    if settings.single_owner:
        return LOCAL_OWNER
    if isinstance(stored, str) and _OWNER_ID.fullmatch(stored):
        visits(settings).note(stored)
        return stored
    return secrets.token_hex(16)


def still_here(settings: Settings, stored: object) -> None:
    """Somebody has the page open."""
    owner_id(settings, stored)
