"""Mergescope: composes the tabs and starts the server."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio.utils import LRUCache
from starlette.middleware import Middleware

from components.chat.tab import CSS as CHAT_CSS
from components.chat.tab import build_chat_tab, wire_chat_tab
from components.clickable_plot import HEAD as CHART_HEAD
from components.compare.tab import CSS as COMPARE_CSS
from components.compare.tab import build_compare_tab, wire_compare_tab
from components.export.tab import CSS as EXPORT_CSS
from components.export.tab import build_export_tab, wire_export_tab
from components.hub.reach import hub_reach
from components.importance.merge import wire_importance_notice
from components.importance.tab import CSS as IMPORTANCE_CSS
from components.inspect.reports import shared_reports
from components.inspect.tab import build_inspect_tab, wire_inspect_tab
from components.merge.next_stage import wire_next_stage
from components.merge.tab import CSS as MERGE_CSS
from components.merge.tab import build_merge_tab, wire_merge_tab
from components.models.presets import presets
from components.models.tab import build_models_tab
from components.models.wiring import wire_models_tab
from components.preview.store import shared_previews
from components.server import zero_gpu  # noqa: F401  before all that may touch CUDA
from components.server.doors import Doors
from components.server.settings import Settings
from components.server.strangers import check_values, keep_apart, private_paths
from components.server.sweeper import start_sweeping
from components.server.warm_up import warm_up
from components.shared import build_shared
from components.theme import CSS, HEAD, about, build_header, build_theme
from merging import MergingError

PAGES = 1000
"""Of which the server remembers what they show: each takes 1.5 MB from its first event on, and Gradio forgets none before."""


def build_app(settings: Settings) -> gr.Blocks:
    """The page: header, numbered tabs, and their events."""
    with gr.Blocks(title="Mergescope", analytics_enabled=False) as app:
        shared = build_shared(app, settings)
        header = build_header(settings)
        with gr.Tabs() as tabs:
            with gr.Tab("1 Models", id="models"):
                models = build_models_tab(settings)
            with gr.Tab("2 Inspect", id="inspect"):
                inspect = build_inspect_tab()
            with gr.Tab("3 Merge", id="merge") as merge_page:
                merge = build_merge_tab(settings)
            with gr.Tab("4 Chat", id="chat") as chat_page:
                chat = build_chat_tab(settings)
            with gr.Tab("5 Compare", id="compare"):
                compare = build_compare_tab(settings)
            with gr.Tab("6 Export", id="export") as export_page:
                export = build_export_tab(settings)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        shared.family.change(partial(about, settings), shared.family, header, **quiet)
        wire_models_tab(models, settings, shared)
        wire_inspect_tab(inspect, settings, shared)
        wire_merge_tab(app, merge, settings, shared, merge_page.select)
        wire_importance_notice(merge.importance, merge, inspect.importance, settings, shared)
        wire_chat_tab(app, chat, settings, shared, merge, chat_page.select)
        wire_compare_tab(compare, settings, shared, merge, tabs)
        wire_export_tab(export, settings, shared, export_page.select, models.hub.token, tabs)
        wire_next_stage(merge, models, settings, shared, tabs)
        steps = ((models.next, "inspect"), (inspect.next, "merge"), (merge.next, "chat"))
        for button, tab in steps:
            button.click(
                partial(gr.Tabs, selected=tab), None, tabs, show_progress="hidden", api_visibility="private"
            )
    tell_hidden_progress(app, shared.opened)
    keep_states_outside(app)
    app.queue(max_size=settings.events, default_concurrency_limit=4, api_open=False)
    let_pages_leave(app)
    check_values(app)
    return app


def tell_hidden_progress(app: gr.Blocks, where: gr.State) -> None:
    """Have progress that nobody sees told to a state, which the page draws nowhere.

    The page tells how every event goes to every output that any event had so far, and searches its whole tree for each:
    half of the time that it takes to load.
    """
    for event in app.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [where]


def keep_states_outside(app: gr.Blocks) -> None:
    """Move every state to the root of the page.

    One in a tab that was not drawn yet has no part of the page that knows its value: the page takes the first null it hears of
    it for a change, and runs everything that follows one once more than the server asks for.
    """
    for block in app.blocks.values():
        if isinstance(block, gr.State) and block.parent is not None:
            block.parent.children.remove(block)
            block.parent = app
            app.children.insert(0, block)


class Leaving(LRUCache[str, Any]):
    """What waits to be told to every page, where a page that left already may leave again."""

    def __delitem__(self, page: str) -> None:
        if page in self:
            super().__delitem__(page)


def let_pages_leave(app: gr.Blocks) -> None:
    """Let a page that had two streams open hang up on both: Gradio forgets it twice, and the second time fails in the log."""
    waiting = app._queue.pending_messages_per_session
    app._queue.pending_messages_per_session = Leaving(waiting.max_size)


def main() -> None:
    """Start the app as `MERGESCOPE_*` variables say and print its address."""
    try:
        settings = Settings.from_environment()
    except MergingError as error:
        sys.exit(str(error))
    keep_apart(settings)
    start_sweeping(settings)
    ready = settings, shared_reports(settings), shared_previews()
    threading.Thread(target=warm_up, args=ready, daemon=True).start()
    if presets(settings):
        threading.Thread(target=hub_reach().ask, daemon=True).start()
    serve(build_app(settings), settings)


def serve(app: gr.Blocks, settings: Settings, **options: Any) -> None:
    """Start the server of a page; `options` go to `launch` as well."""
    app.launch(
        server_name=settings.host,
        server_port=settings.port,
        theme=build_theme(),
        css=CSS + IMPORTANCE_CSS + MERGE_CSS + CHAT_CSS + COMPARE_CSS + EXPORT_CSS,
        head=HEAD + CHART_HEAD,
        footer_links=[],
        show_error=False,
        max_file_size=settings.largest_upload,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=PAGES,
        blocked_paths=private_paths(settings),
        app_kwargs={"middleware": [Middleware(Doors, settings=settings)]},
        ssr_mode=False,  # a Space asks for it, and Node would then stand before the server
        _frontend=False,  # else Gradio ends an app whose first page takes a busy machine more than 3 seconds
        **options,
    )


if __name__ == "__main__":
    main()
