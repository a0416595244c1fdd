"""Tab 6: take a merge home, as a zip or as a model of the Hub; and what Mergescope is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.compare.runner import PRIVATE, Runner, build_runner, wire_runner
from components.export import chosen, push_job
from components.export.about import about_html
from components.hub.token import TO_PUSH, TokenField, build_token_field, shown, wire_token
from components.late_choice import LateRadio
from components.server.settings import Settings
from components.shared import Shared
from components.toasts import toast
from merging import MergingError
from merging.hub.push import LONGEST_MESSAGE, LONGEST_NAME, MESSAGE

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
SAVE_FILE = "() => setTimeout(() => document.querySelector('#export-file')?.click(), 250)"


@dataclass(frozen=True)
class PushPart:
    """Where the merge goes, in whose name, and the job; `result` says where it is."""

    name: gr.Textbox
    problem: gr.HTML
    public: gr.Checkbox
    add: gr.Checkbox
    message: gr.Textbox
    token: TokenField
    runner: Runner
    result: gr.HTML


@dataclass(frozen=True)
class ExportTab:
    """The components of the tab: `shown` holds the id of the chosen merge, `newest` that of the newest when somebody came
    last; `first` leads to Merge."""

    list: gr.Radio
    card: gr.HTML
    first: gr.Button
    download: gr.Button
    file: gr.DownloadButton
    readme: gr.Accordion
    text: gr.Markdown
    push: PushPart
    shown: gr.State
    newest: gr.State

    @property
    def chosen(self) -> list[Any]:
        """What `chosen.card` sets."""
        return [self.shown, self.list, self.card, self.first, self.download, self.readme, self.text]


def build_export_tab(settings: Settings) -> ExportTab:
    """Build the tab with nothing chosen; `wire_export_tab` brings it to life."""
    gr.HTML(
        '<div class="section-head"><h2>Take it home</h2><p>Download a merge of yours, or make it a model on the Hugging '
        "Face Hub. Either way a model card goes with it that says what it was made of.</p></div>"
    )
    listed = LateRadio(
        [], label="Your merges", visible=False, elem_id="export-list", elem_classes="mg-history"
    )
    card = gr.HTML(chosen.EMPTY, elem_id="export-card")
    with gr.Row(elem_classes="actions"):
        first = gr.Button(
            "Merge first", variant="primary", size="sm", scale=0, min_width=140, elem_id="export-first"
        )
        download = gr.Button(
            "Download zip",
            variant="primary",
            size="sm",
            scale=0,
            min_width=220,
            visible=False,
            elem_id="export-download",
        )
        file = gr.DownloadButton("zip", visible="hidden", elem_id="export-file")
    with gr.Accordion(
        "Read its model card", open=False, visible=False, elem_id="export-readme", elem_classes="explain"
    ) as readme:
        text = gr.Markdown(elem_classes="ex-readme", sanitize_html=True)
    push = _build_push(settings)
    gr.HTML(about_html(settings), elem_id="about")
    return ExportTab(
        listed, card, first, download, file, readme, text, push, shown=gr.State(""), newest=gr.State("")
    )


def _build_push(settings: Settings) -> PushPart:
    gr.HTML(
        '<div class="section-head ex-push"><h2>Push to the Hugging Face Hub</h2><p>All files in one commit; if that fails or '
        "is cancelled, nothing is left there.</p></div>"
    )
    with gr.Row(elem_classes="ex-where"):
        name = gr.Textbox(
            label="Repository",
            placeholder="your-account/name-of-the-merge",
            max_length=2 * LONGEST_NAME + 1,
            elem_id="export-name",
            scale=3,
            min_width=230,
        )
        message = gr.Textbox(
            MESSAGE, label="Commit message", max_length=LONGEST_MESSAGE, scale=3, min_width=230
        )
    problem = gr.HTML(elem_classes="status", elem_id="export-name-problem")
    with gr.Row(elem_classes="ex-how"):
        public = gr.Checkbox(False, label="Public: everybody may see and download it", min_width=280)
        add = gr.Checkbox(
            False, label="If the repository is mine and there already, add a commit", min_width=280
        )
    token = build_token_field(settings, TO_PUSH, "sign-in-to-push")
    runner = build_runner("Push", "export-push", ready=False)
    result = gr.HTML(elem_classes="status", elem_id="export-pushed")
    return PushPart(name, problem, public, add, message, token, runner, result)


def wire_export_tab(
    tab: ExportTab, settings: Settings, shared: Shared, opened: Any, other: TokenField, tabs: gr.Tabs
) -> None:
    """Connect the tab's events.

    Args:
        opened: the event of a visitor coming to this tab.
        other: the field of another tab that speaks of the same token.
    """
    push, in_turn = tab.push, {**PRIVATE, "concurrency_id": "export", "concurrency_limit": 1}
    opened(
        partial(chosen.come, settings),
        [tab.shown, tab.newest, shared.family, shared.owner],
        [tab.newest, *tab.chosen],
        **in_turn,
    )
    opened(partial(shown, settings, about=TO_PUSH), shared.owner, push.token.outputs, **PRIVATE)
    tab.list.input(
        partial(chosen.show, settings),
        [tab.list, shared.owner],
        tab.chosen,
        trigger_mode="always_last",
        **in_turn,
    )
    tab.first.click(partial(gr.Tabs, selected="merge"), None, tabs, api_visibility="private")
    tab.download.click(
        partial(_download, settings),
        [tab.shown, shared.owner],
        tab.file,
        show_progress="minimal",
        show_progress_on=tab.download,
        api_visibility="private",
    ).success(None, None, None, js=SAVE_FILE, api_visibility="private")
    tab.readme.expand(
        partial(chosen.read_card, settings),
        [tab.shown, shared.owner],
        tab.text,
        show_progress="minimal",
        api_visibility="private",
    )
    push.name.change(push_job.name_problem, push.name, push.problem, trigger_mode="always_last", **PRIVATE)
    for changed in wire_token(push.token, settings, shared):
        changed.success(partial(shown, settings), shared.owner, other.outputs, **PRIVATE)
    work = push_job.work(settings, [tab.shown, push.name, push.public, push.add, push.message], push.result)
    wire_runner(push.runner, work, shared, [opened, push.token.note.change])


def _download(settings: Settings, id: Any, stored: Any) -> dict[str, Any]:
    try:
        return chosen.download(settings, id, stored)
    except MergingError as error:
        raise toast(str(error), "The download was not made") from None
