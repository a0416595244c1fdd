"""Tab 4: the merged model and its parents side by side, asked the same question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.chat import columns, events, views
from components.chat.heard import Page
from components.chat.layers import LayerPanel, build_layers, wire_layers
from components.chat.models import COLUMNS, NOBODY, Visit, choices, default_keys, examples
from components.chat.sampling import build_sampling
from components.chat.tokens import CSS as TOKENS_CSS
from components.chat.tokens import TokenPanel, build_tokens, wire_tokens
from components.family import Family
from components.merge.tab import MergeTab
from components.server.backend import job_store
from components.server.settings import Settings
from components.shared import LOCAL_OWNER, Shared

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8") + TOKENS_CSS
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
SAVE_FILE = "() => setTimeout(() => document.querySelector('#chat-file')?.click(), 250)"


@dataclass(frozen=True)
class ChatTab:
    """The components of the tab; `talk` holds what was said in every column, `log` every question with what became of it,
    `chosen` each column's key."""

    intro: gr.HTML
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button
    export: gr.Button
    file: gr.DownloadButton
    examples: tuple[gr.Button, ...]
    models: tuple[gr.Dropdown, ...]
    chats: tuple[gr.Chatbot, ...]
    notes: tuple[gr.HTML, ...]
    sampling: tuple[gr.components.Component, ...]
    talk: gr.State
    log: gr.State
    chosen: gr.State
    tokens: TokenPanel
    layers: LayerPanel


def build_chat_tab(settings: Settings) -> ChatTab:
    """Build the tab over the demo family; `wire_chat_tab` brings it to life."""
    family = Family.demo(settings.demo)
    with gr.Row(elem_classes="section-head"):
        gr.HTML("<h2>Ask them all the same question</h2>")
    intro = gr.HTML(
        views.intro_html(settings, family, merged=False), elem_classes="ch-intro", elem_id="chat-intro"
    )
    question, send, stop = _build_question()
    with gr.Row(elem_classes="ch-examples"):
        buttons = [
            gr.Button(example.prompt, size="sm", scale=0, min_width=60, elem_id=f"chat-example-{number}")
            for number, example in enumerate(examples(settings.demo))
        ]
    options = choices(job_store(settings), LOCAL_OWNER if settings.single_owner else "", family)
    keys = default_keys([key for _, key in options])
    built = []
    with gr.Row(elem_classes="ch-columns"):
        for number in range(COLUMNS):
            built.append(_build_column(number, options, keys[number]))
    afterwards = _build_afterwards()
    with gr.Accordion(
        "Settings of the replies: system prompt, length, chance", open=False, elem_classes="mg-more"
    ):
        sampling = build_sampling(settings)
    models, chats, notes = zip(*built, strict=True)
    states = gr.State(views.silence), gr.State(()), gr.State(keys)
    asking = (intro, question, send, stop, *afterwards, tuple(buttons))
    return ChatTab(*asking, models, chats, notes, sampling, *states, build_tokens(), build_layers())


def _build_question() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    with gr.Row(elem_classes="ch-ask"):
        question = gr.Textbox(
            label="Question",
            show_label=False,
            placeholder="Ask all columns",
            lines=1,
            max_lines=6,
            scale=6,
            min_width=240,
            elem_id="chat-input",
        )
        send = gr.Button(
            "Send", variant="primary", scale=0, min_width=100, interactive=False, elem_id="chat-send"
        )
        stop = gr.Button("Stop", scale=0, min_width=90, interactive=False, elem_id="chat-stop")
    return question, send, stop


def _build_afterwards() -> tuple[gr.Button, gr.Button, gr.Button, gr.DownloadButton]:
    """What can be done once something was said: retry, clear, export, and the file that this makes."""
    quiet: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 80, "interactive": False}
    with gr.Row(elem_classes="ch-after"):
        retry = gr.Button("Retry", elem_id="chat-retry", **quiet)
        clear = gr.Button("Clear", elem_id="chat-clear", **quiet)
        export = gr.Button("Export", elem_id="chat-export", **quiet)
        file = gr.DownloadButton("zip", visible="hidden", elem_id="chat-file")
    return retry, clear, export, file


def _build_column(
    number: int, options: list[tuple[str, str]], key: str
) -> tuple[gr.Dropdown, gr.Chatbot, gr.HTML]:
    with gr.Column(min_width=230, elem_id=f"chat-column-{number}", elem_classes="ch-column"):
        model = gr.Dropdown(
            options, value=key, label=f"Column {number + 1}", filterable=False, elem_id=f"chat-model-{number}"
        )
        chat = gr.Chatbot(
            [],
            label=f"Replies in column {number + 1}",
            show_label=False,
            height=None,
            min_height=180,
            max_height=460,
            visible=key != NOBODY,
            render_markdown=False,
            latex_delimiters=[],
            buttons=[],
            elem_classes="ch-chat",
        )
        note = gr.HTML("")
    return model, chat, note


def wire_chat_tab(
    app: gr.Blocks, tab: ChatTab, settings: Settings, shared: Shared, merge: MergeTab, opened: Any
) -> None:
    """Connect the tab's events.

    Args:
        merge: the tab whose recipe can be asked, whose merges appear here, and which leads here.
        opened: the event of a visitor coming to this tab.
    """
    latest: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}
    told = [*tab.chats, *tab.notes, tab.talk]
    whose = [shared.family, merge.recipe, shared.owner]
    _wire_asking(tab, settings, whose, told)
    _wire_afterwards(tab, told)
    heard = Page(
        settings,
        [*whose, tab.talk, tab.chosen, tab.log],
        [tab.log.change, tab.chosen.change, opened],
    )
    wire_tokens(tab.tokens, heard)
    wire_layers(tab.layers, heard)

    def of_page(event: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def handle(request: gr.Request, *values: Any) -> list[Any]:
            return event(_visit(settings, request, *values[:3]), *values[3:])

        return handle

    for column, model in enumerate(tab.models):
        model.input(
            of_page(partial(columns.choose, column)),
            [*whose, model, tab.talk, tab.chosen],
            [model, tab.chats[column], tab.notes[column], tab.talk, tab.chosen],
            **latest,
        )
    known = [*whose, tab.talk, tab.chosen]
    page = [*tab.models, *told, tab.chosen, tab.intro, *tab.examples]
    shared.opened.change(of_page(columns.refresh), known, page, **latest)
    opened(of_page(columns.look), [*whose, tab.chosen], [*tab.models, tab.intro], **latest)
    shared.family.change(of_page(columns.take_family), known, page, **latest)
    merge.fresh.change(of_page(columns.take_fresh), [*known, merge.fresh], page, **latest)
    merge.next.click(of_page(columns.take_merge), [*known, merge.shown], page, **PRIVATE)

    def close(request: gr.Request) -> None:
        events.close(settings, request)

    app.unload(close)


def _visit(settings: Settings, request: gr.Request, family: Any, recipe: Any, stored: Any) -> Visit:
    return Visit(settings, request.session_hash or "", family, recipe, stored)


def _wire_asking(tab: ChatTab, settings: Settings, whose: list[Any], told: list[Any]) -> None:
    """Sending a question or an example, asking the last one again, and ending the replies."""
    context = [tab.talk, tab.log, tab.chosen, *tab.sampling]
    buttons = [tab.send, tab.stop, tab.retry, tab.clear, tab.export]
    answers = [*told, tab.log, tab.question, *buttons]
    options: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "chat", **PRIVATE}

    def ask(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        yield from events.ask(_visit(settings, request, *values[:3]), *values[3:])

    def retry(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        yield from events.retry(_visit(settings, request, *values[:3]), *values[3:])

    asked = [
        gr.on(
            [tab.send.click, tab.question.submit], ask, [*whose, tab.question, *context], answers, **options
        ),
        *(button.click(ask, [*whose, button, *context], answers, **options) for button in tab.examples),
        tab.retry.click(retry, [*whose, *context], [*answers, tab.sampling[-1]], **options),
    ]
    ready: dict[str, Any] = {"queue": False, **PRIVATE}
    tab.question.change(events.typed, tab.question, tab.send, trigger_mode="always_last", **ready)
    for event in asked:
        event.then(events.typed, tab.question, tab.send, **ready)
    tab.stop.click(events.stop, None, None, queue=False, **PRIVATE)


def _wire_afterwards(tab: ChatTab, told: list[Any]) -> None:
    """Clearing and exporting what was said."""
    tab.clear.click(events.clear, tab.chosen, [*told, tab.log, tab.retry, tab.clear, tab.export], **PRIVATE)
    made = tab.export.click(events.export, tab.log, tab.file, **PRIVATE)
    made.success(None, None, None, js=SAVE_FILE, api_visibility="private")
