"""What keeps visitors of a shared server apart from its owner, and all of them from files that are nobody's business."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import constants

from components.settings import Settings
from merging.hub_cache import cache_folder

FORGED = "The page sent a value that this field cannot have. Reload the page, and try again."
MOST_BODY = 8_000_000
"""Bytes of a request that is no upload: the longest text that a field takes, several times."""
UPLOAD = "/gradio_api/upload"
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
    """Have values that no page of ours sends answered by a sentence: Gradio's own parts fail on them with a traceback, and
    fetch a file from wherever a value says."""
    read = app.preprocess_data

    async def careful(block_fn: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        try:
            if not is_plain(inputs):
                raise gr.Error(FORGED)
            return await read(block_fn, inputs, *rest, **named)
        except Exception as error:
            said = (
                error.message if isinstance(error, gr.Error) and "not in the list" in str(error) else FORGED
            )
            raise gr.Error(said, print_exception=False) from None

    app.preprocess_data = careful  # type: ignore[method-assign]


def is_plain(value: Any) -> bool:
    """Whether a value has no half characters, which cannot be sent back, and names no file of another server."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "://" in str(
                one.get("path", "")
            ):  # a page tells the url of what it uploaded too, and nobody reads it
                return False
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and not one.isascii() and one.encode(errors="ignore").decode() != one:
            return False
    return True


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Bounded:
    """Refuses requests that are longer than any of our page: they would be held in memory as a whole."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], most: int = MOST_BODY):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/").endswith(UPLOAD):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.most:
                await self._refuse(send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        first: list[MutableMapping[str, Any]] = [
            message if message["type"] != "http.request" else {**message, "body": bytes(body)}
        ]

        async def again() -> MutableMapping[str, Any]:
            return first.pop() if first else await receive()

        await self.app(scope, again, send)

    async def _refuse(self, send: Send) -> None:
        words = f"This request has more than {self.most:,} bytes, and no more are read. Send less.".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": words})
