"""The page as a whole, before a browser sees it."""

from __future__ import annotations

import socket

import gradio as gr
import pytest

from app import build_app, serve
from components.server.settings import Settings


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> gr.Blocks:
    return build_app(Settings(runs=tmp_path_factory.mktemp("runs")))


def test_every_state_stands_at_the_root(app):
    states = {block._id for block in app.blocks.values() if isinstance(block, gr.State)}
    assert len(states) > 10
    assert states <= {child["id"] for child in app.config["layout"]["children"]}


def test_clicks_on_maps_are_answered_one_by_one(app):
    clicks = [fn for fn in app.fns.values() if any(name in ("select", "brush") for _, name in fn.targets)]
    drawn = {id for id, block in app.blocks.items() if str(block.elem_id).endswith("map")}
    maps = [fn for fn in clicks if any(id in drawn for id, _ in fn.targets)]
    assert len(maps) == 4
    assert {(fn.trigger_mode, fn.concurrency_limit) for fn in maps} == {("multiple", 1)}


def test_a_page_may_leave_twice(app):
    waiting = app._queue.pending_messages_per_session
    waiting["page"] = object()
    for _ in range(2):  # what Gradio does for each stream of a page that hangs up
        del waiting["page"]
    assert "page" not in waiting


def test_no_node_stands_before_the_server_where_a_space_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SSR_MODE", "true")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = Settings(runs=tmp_path, port=free.getsockname()[1])
    with gr.Blocks() as page:
        pass
    serve(page, settings, prevent_thread_lock=True, quiet=True)
    try:
        assert not page.ssr_mode
    finally:
        page.close(verbose=False)
