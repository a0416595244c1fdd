"""What all tabs share: the chosen family and who is looking."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

import gradio as gr

from components.family import Family
from components.settings import Settings

LOCAL_OWNER = "local"
_OWNER_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Shared:
    """`family` holds a `Family` (one without experts when nothing fits yet), `owner` the owner id that the browser
    keeps; pass what `owner` gives a handler through `owner_id` before using it. `importance` holds what this visitor
    measured on the family (`importance_job.Found`), or None."""

    family: gr.State
    owner: gr.BrowserState
    importance: gr.State


def build_shared(settings: Settings) -> Shared:
    """The shared state of one page."""
    return Shared(
        family=gr.State(Family.demo(settings.demo)),
        # the browser keeps the id under this fixed key, so that it survives a restart of the app
        owner=gr.BrowserState(None, storage_key="mergescope-owner", secret="mergescope-owner"),
        importance=gr.State(None),
    )


def owner_id(settings: Settings, stored: object) -> str:
    """The owner a request speaks for: what the browser stored if it is an id, else a new random one of 128 bits.

    A start for one person has the one owner `local`.
    """
    if settings.single_owner:
        return LOCAL_OWNER
    if isinstance(stored, str) and _OWNER_ID.fullmatch(stored):
        return stored
    return secrets.token_hex(16)
