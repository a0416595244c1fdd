"""A visitor's own access token, typed or from signing in; it is kept in memory and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.hub.desk import LONGEST_TOKEN
from components.server.backend import hub_desk
from components.server.settings import Settings
from components.shared import Shared, owner_id

ABOUT = (
    "Only for private and gated models: an access token of yours with the right to read. It is kept in memory until "
    "Mergescope stops, and never written down."
)
IN_USE = "A token is in use for what you ask the Hub."
SIGNED_IN = "You are signed in: the Hub is asked as you."
MALFORMED = "This is no access token; one begins with hf_ and has no spaces."
NO_IDENTITY = "This browser has no identity yet. Reload the page."


TO_PUSH = "An access token of yours with the right to write. It is kept in memory until Mergescope stops, and never written down."


@dataclass(frozen=True)
class TokenField:
    """The field, its two buttons, and a line that says whether a token is in use, else what it is `about`. All fields of a
    page speak of the same token."""

    about: str

    field: gr.Textbox
    use: gr.Button
    forget: gr.Button
    note: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.field, self.forget, self.note]


def build_token_field(settings: Settings, about: str = ABOUT, id: str = "sign-in") -> TokenField:
    """The parts in a row, and a button to sign in where the app offers it, whose id is `id`."""
    if settings.sign_in:
        gr.LoginButton(logout_value="Sign out ({})", size="sm", scale=0, min_width=240, elem_id=id)
    with gr.Row(elem_classes="hub-token"):
        field = gr.Textbox(
            label="Access token",
            type="password",
            placeholder="hf_…",
            max_length=LONGEST_TOKEN,
            html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
            scale=3,
            min_width=230,
        )
        use = gr.Button("Use token", size="sm", scale=0, min_width=120)
        forget = gr.Button("Forget it", size="sm", scale=0, min_width=110, visible=False)
    note = gr.HTML(_note(about))
    return TokenField(about, field, use, forget, note)


def wire_token(own: TokenField, settings: Settings, shared: Shared) -> list[Any]:
    """The events after which the Hub sees another visitor, of what can be done with the field."""
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    taken, forgotten = partial(take, settings, about=own.about), partial(forget, settings, about=own.about)
    return [
        *(
            trigger(taken, [own.field, shared.owner], own.outputs, **private)
            for trigger in (own.use.click, own.field.submit)
        ),
        own.forget.click(forgotten, shared.owner, own.outputs, **private),
    ]


def take(settings: Settings, token: str, stored: Any, about: str = ABOUT) -> list[Any]:
    """Use what was typed from now on; the field is emptied, so that the page no longer holds it."""
    owner, token = owner_id(settings, stored), (token or "").strip()
    if not settings.single_owner and owner != stored:
        return ["", gr.skip(), _note(NO_IDENTITY)]
    if not token.isascii() or not token.isprintable() or " " in token or not 8 <= len(token) <= LONGEST_TOKEN:
        return ["", gr.skip(), _note(MALFORMED)]
    hub_desk(settings).take_token(owner, token)
    return shown(settings, stored, about)


def forget(settings: Settings, stored: Any, about: str = ABOUT) -> list[Any]:
    """Use no token any more."""
    hub_desk(settings).take_token(owner_id(settings, stored), "")
    return shown(settings, stored, about)


def shown(settings: Settings, stored: Any, about: str = ABOUT) -> list[Any]:
    """An empty field, and whether a token is in use."""
    desk, owner = hub_desk(settings), owner_id(settings, stored)
    has, signed_in = desk.has_token(owner), desk.signed_in(owner)
    return [
        "",
        gr.update(visible=has and not signed_in),
        _note(SIGNED_IN if signed_in else IN_USE if has else about),
    ]


def sign_in(settings: Settings, stored: Any, token: gr.OAuthToken | None) -> list[Any]:
    """Ask the Hub as who signed in; without a token, as nobody any more."""
    owner = owner_id(settings, stored)
    if settings.single_owner or owner == stored:
        hub_desk(settings).sign_in(owner, token.token if token is not None else "")
    return shown(settings, stored)


def _note(words: str) -> str:
    return f'<p class="hub-note">{words}</p>'
