"""What of the server can be reached, and how much a request may hold: all that comes over the network passes here first."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

import anyio

from components.server.kept_bytes import require_room_to_upload
from components.server.settings import Settings
from components.server.strangers import FORGED
from merging import MergingError

MOST_BODY = 8_000_000
"""Bytes of a request that is no upload: the longest text that a field takes, several times."""
MOST_PARTS = 200_000
"""Values in it: as many lists as fit into so many bytes take half a gigabyte, and all pages wait while they are made."""
AROUND = 10_000
"""Bytes that stand around an uploaded file in its request."""
UPLOAD = re.compile(r"/gradio_api/upload/?$")
CLOSED = re.compile(
    r"/gradio_api/(file[=/]\s*https?:|(proxy=|deep_link|process_recording|stream/|vibe-|dev/))", re.I
)
"""What Gradio offers and no page of ours uses: fetching from other servers, and keeping files that nobody counts."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is answered by a status and a sentence, and read no further."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class Doors:
    """Refuses what is closed, and requests that are longer than any of our page: they would be held in memory, or kept on
    the disk, as a whole. A request that Gradio fails on is answered by a sentence."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, await self._allowed(scope, receive), answer)
        except Refused as refused:
            await _say(answer, refused.status, str(refused))
        except Exception as error:
            _log.error("%s %.100s was not understood: %.200r", scope["method"], scope["path"], error)
            if not begun:
                await _say(answer, 400, FORGED)

    async def _allowed(self, scope: Scope, receive: Receive) -> Receive:
        """How the request is read from here on.

        Raises:
            Refused: it is not.
        """
        if CLOSED.search(scope["path"]):
            raise Refused(403, "This server does not do that.")
        if not UPLOAD.search(scope["path"]):
            return await _read(receive)
        length = dict(scope["headers"]).get(b"content-length", b"")
        most = self.settings.largest_upload
        if not length.isdigit() or int(length) > most + AROUND:
            raise Refused(
                413, f"One file is uploaded at a time, and exceeded maximum allowed size of {most} bytes."
            )
        try:
            await anyio.to_thread.run_sync(partial(require_room_to_upload, self.settings, int(length)))
        except MergingError as error:
            raise Refused(507, str(error)) from None
        return receive


async def _read(receive: Receive) -> Receive:
    """The whole body, to be read again.

    Raises:
        Refused: it is too long.
    """
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            raise Refused(
                413, f"This request has more than {MOST_BODY:,} bytes, and no more are read. Send less."
            )
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    if sum(map(body.count, (b"[", b"{", b","))) > MOST_PARTS:
        raise Refused(
            413, f"This request has more than {MOST_PARTS:,} values, and no more are read. Send less."
        )
    first = [message if message["type"] != "http.request" else {**message, "body": bytes(body)}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _say(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
