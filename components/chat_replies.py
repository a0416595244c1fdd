"""Several models answering the same question at once, each on a thread of its own. No widgets here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from merging import MergingError
from merging.inference import LoadedModel, Message, Sampling, stream

TICK = 0.06
"""Seconds between two looks at the replies."""
PLAIN = "no chat template: plain completion"
UNEXPECTED = "Something went wrong while this model answered; the server's log has the details."

_log = logging.getLogger(__name__)


@dataclass
class Reply:
    """One model's answer as far as it has come. `rate` is tokens a second, reading the question included; `about` says
    which model it was where its column does not."""

    load: Callable[[], LoadedModel]
    messages: Sequence[Message]
    about: str = ""
    text: str = ""
    tokens: int = 0
    note: str = ""
    error: str = ""
    begun: float = 0.0
    last: float = 0.0
    loading: bool = True
    stopped: bool = False
    ended: bool = False

    @property
    def rate(self) -> float | None:
        return self.tokens / (self.last - self.begun) if self.last > self.begun else None

    @property
    def failed(self) -> bool:
        """Whether nothing came of it: an error, or a stop before the first token."""
        return bool(self.error) or (self.stopped and not self.tokens)

    def run(self, sampling: Sampling, stop: threading.Event, loaded: threading.Barrier) -> None:
        """Load the model, wait until the others are loaded, and answer; whatever goes wrong becomes a sentence."""
        try:
            self._answer(self._load(loaded), sampling, stop)
        except threading.BrokenBarrierError:
            pass
        except MergingError as error:
            self.error = str(error)
        except Exception:
            _log.exception("a reply failed")
            self.error = UNEXPECTED
        self.stopped = stop.is_set()
        self.ended = True

    def _load(self, loaded: threading.Barrier) -> LoadedModel:
        try:
            return self.load()
        finally:
            self.loading = False
            loaded.wait()

    def _answer(self, model: LoadedModel, sampling: Sampling, stop: threading.Event) -> None:
        if stop.is_set():
            return
        self.note = "" if model.tokenizer.chat_template else PLAIN
        self.begun = time.perf_counter()
        for piece in stream(model, self.messages, sampling, stop):
            self.last = time.perf_counter()
            self.text += piece
            self.tokens += 1


def answer_together(replies: Sequence[Reply], sampling: Sampling, stop: threading.Event) -> Iterator[None]:
    """Run all replies; yields whenever they have grown, and once at the end. Closing it stops them.

    A stop does not wait for models that are being loaded.
    """
    loaded = threading.Barrier(max(1, len(replies)))
    threads = {
        threading.Thread(target=reply.run, args=(sampling, stop, loaded), name="chat", daemon=True): reply
        for reply in replies
    }
    for thread in threads:
        thread.start()
    seen = -1
    try:
        while any(_is_awaited(thread, reply, stop) for thread, reply in threads.items()):
            if stop.is_set():
                loaded.abort()
            progress = sum(reply.tokens + (not reply.loading) for reply in replies)
            if progress != seen:
                seen = progress
                yield
            time.sleep(TICK)
        for reply in replies:
            reply.stopped = reply.stopped or reply.loading
        yield
    finally:
        stop.set()
        loaded.abort()
        for thread, reply in threads.items():
            thread.join(0 if reply.loading else 5)


def _is_awaited(thread: threading.Thread, reply: Reply, stop: threading.Event) -> bool:
    return thread.is_alive() and not (reply.loading and stop.is_set())
