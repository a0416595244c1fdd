"""What keeps visitors of a shared server apart from its owner, and all of them from files that are nobody's business."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import constants

from components.server.settings import Settings
from merging.hub.cache import cache_folder

FORGED = "The page sent a value that this field cannot have. Reload the page, and try again."
LARGEST = 2**63 - 1
"""The largest whole number that an answer can hold."""
LONGEST_NAME = 100
"""Letters of what a page calls itself; Gradio's own are a tenth of it."""
MOST_WAITING = 64
"""Events of one page that may wait; opening it is ten."""
CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


def keep_apart(settings: Settings) -> None:
    """On a shared server: the owner's token is used for nobody, and what visitors upload or download lies in folders of its
    own. To be called before the page is built."""
    if settings.single_owner:
        return
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    if not any(os.environ.get(name) for name in CACHE_VARIABLES):
        constants.HF_HUB_CACHE = str(settings.hub_cache)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.kept / "uploads"))


def private_paths(settings: Settings) -> list[str]:
    """Folders of which the server sends no file: runs, inspections, models of the Hub, and where a token lies."""
    folders = (settings.runs, settings.reports, cache_folder(), Path(constants.HF_TOKEN_PATH).parent)
    return [str(folder.resolve()) for folder in folders]


def check_values(app: gr.Blocks) -> None:
    """Have events and values that no page of ours sends answered by a sentence: Gradio's own parts and its answers fail on
    them with a traceback, and a file is fetched from wherever a value says. What an event tells of itself is a table, or
    nothing."""
    read, process, push = app.preprocess_data, app.process_api, app._queue.push

    async def careful(block_fn: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        try:
            if not (is_plain(inputs) and all(map(fits, block_fn.inputs, inputs))):
                raise gr.Error(FORGED)
            return await read(block_fn, inputs, *rest, **named)
        except Exception as error:
            said = error.message if type(error) is gr.Error else FORGED  # such as a number beyond its limits
            raise gr.Error(html.escape(said), print_exception=False) from None

    async def known(body: Any, *rest: Any, **named: Any) -> Any:
        if (
            getattr(app.fns.get(body.fn_index), "fn", None) is None
            or len(body.session_hash or "") > LONGEST_NAME
        ):
            return False, FORGED, "error"
        waiting = len(app._queue.pending_event_ids_session.get(body.session_hash, ()))
        if waiting >= MOST_WAITING:
            return (
                False,
                f"{waiting} requests of this page wait already. Try again in a moment.",
                "queue_full",
            )
        return await push(body, *rest, **named)

    async def told(*values: Any, event_data: Any = None, **named: Any) -> Any:
        if event_data is not None and not (isinstance(event_data._data, dict) and is_plain(event_data._data)):
            event_data._data = {}
        return await process(*values, event_data=event_data, **named)

    app.preprocess_data = careful  # type: ignore[method-assign]
    app.process_api = told  # type: ignore[method-assign]
    app._queue.push = known  # type: ignore[method-assign]


def fits(block: Any, value: Any) -> bool:
    """Whether a component of the page can hold a value; choices are looked at by Gradio, and by those who use them."""
    if value is None:
        return True
    if isinstance(block, (gr.Number, gr.Slider)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(block, (gr.Radio, gr.Dropdown, gr.CheckboxGroup)):
        several = isinstance(block, gr.CheckboxGroup) or getattr(block, "multiselect", False)
        chosen = value if several and isinstance(value, list) else [value]
        return all(isinstance(one, (str, int, float)) for one in chosen)
    if isinstance(block, (gr.Textbox, gr.Code, gr.Button)):
        return isinstance(value, str)
    return isinstance(value, bool) if isinstance(block, gr.Checkbox) else True


def is_plain(value: Any) -> bool:
    """Whether a value can be sent back, without half characters and endless numbers, and names no file of another server."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            # a page tells the url of what it uploaded as well, and nobody reads that
            if "://" in str(one.get("path", "")):
                return False
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif (isinstance(one, int) and abs(one) > LARGEST) or (
            isinstance(one, str) and not one.isascii() and one.encode(errors="ignore").decode() != one
        ):
            return False
    return True
