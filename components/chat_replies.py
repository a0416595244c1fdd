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
    """One model's answer as far as it has come. `rate` is tokens a second, reading the question included."""

    load: Callable[[], LoadedModel]
    messages: Sequence[Message]
    text: str = ""
    tokens: int = 0
    note: str = ""
    error: str = ""
    begun: float = 0.0
    last: float = 0.0
    ended: bool = False

    @property
    def rate(self) -> float | None:
        return self.tokens / (self.last - self.begun) if self.last > self.begun else None

    def run(self, sampling: Sampling, stop: threading.Event, loaded: threading.Barrier) -> None:
        """Load the model, wait until the others are loaded, and answer; whatever goes wrong becomes a sentence."""
        try:
            try:
                model = self.load()
            finally:
                loaded.wait()
            self.note = "" if model.tokenizer.chat_template else PLAIN
            self.begun = time.perf_counter()
            for piece in stream(model, self.messages, sampling, stop):
                self.last = time.perf_counter()
                self.text += piece
                self.tokens += 1
        except MergingError as error:
            self.error = str(error)
        except Exception:
            _log.exception("a reply failed")
            self.error = UNEXPECTED
        self.ended = True


def answer_together(replies: Sequence[Reply], sampling: Sampling, stop: threading.Event) -> Iterator[None]:
    """Run all replies; yields whenever they have grown, and once at the end. Closing it stops them."""
    settings = (sampling, stop, threading.Barrier(max(1, len(replies))))
    threads = [
        threading.Thread(target=reply.run, args=settings, name="chat", daemon=True) for reply in replies
    ]
    for thread in threads:
        thread.start()
    seen = -1
    try:
        while any(thread.is_alive() for thread in threads):
            total = sum(reply.tokens for reply in replies)
            if total != seen:
                seen = total
                yield
            time.sleep(TICK)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(5)
