"""Several models answering the same question, each on a thread of its own: at once, or in rounds. No widgets here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field

from merging import MergingError
from merging.answering.drawing import Sampling
from merging.inference import Ending, LoadedModel, stream
from merging.tokenizing.prompts import Message, Prompt, TokenIds

TICK = 0.06
"""Seconds between two looks at the replies."""
PLAIN = "no chat template: plain completion"
PLAIN_ALONE = "no chat template: plain completion, without the system prompt"
NO_SYSTEM = "its chat template takes no system prompt: left out"
LENGTH = "reached the length limit"
UNEXPECTED = "Something went wrong while this model answered; the server's log has the details."

_log = logging.getLogger(__name__)


@dataclass
class Reply:
    """One model's answer as far as it has come. `rate` is tokens a second, reading the question included; `about` says
    which model it was where its column does not; `turn` why it could not answer with the first, and `waiting` whether it
    still has to."""

    load: Callable[[], LoadedModel]
    messages: Sequence[Message]
    about: str = ""
    turn: str = ""
    waiting: bool = False
    text: str = ""
    tokens: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    begun: float = 0.0
    last: float = 0.0
    loading: bool = True
    stopped: bool = False
    ended: bool = False
    ids: TokenIds = field(default_factory=TokenIds)

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
        self.notes += _about_prompt(model.prompt(self.messages))
        self.begun = time.perf_counter()
        for piece in self._to_its_end(model, stream(model, self.messages, sampling, stop, self.ids)):
            self.last = time.perf_counter()
            self.text += piece
            self.tokens += 1

    def _to_its_end(self, model: LoadedModel, pieces: Generator[str, None, Ending]) -> Iterator[str]:
        ending = yield from pieces
        if ending == "length":
            self.notes.append(LENGTH)
        elif ending == "context":
            self.notes.append(f"reached the end of its context, {model.context:,} tokens")


def _about_prompt(prompt: Prompt) -> list[str]:
    if not prompt.templated:
        return [PLAIN_ALONE if prompt.system_left_out else PLAIN]
    return [NO_SYSTEM] if prompt.system_left_out else []


def answer_in_rounds(
    rounds: Sequence[Sequence[Reply]], sampling: Sampling, stop: threading.Event
) -> Iterator[None]:
    """Run the replies of each round together, one round after the other; yields and stops as `answer_together`."""
    for replies in rounds:
        if stop.is_set():
            for reply in replies:
                reply.stopped = True
        else:
            for reply in replies:
                reply.waiting = False
            yield from answer_together(replies, sampling, stop)
    yield


def answer_together(replies: Sequence[Reply], sampling: Sampling, stop: threading.Event) -> Iterator[None]:
    """Run all replies; yields whenever they have grown, and once at the end. Closing it stops them.

    A stop does not wait for models that are being loaded.
    """
    loaded = threading.Barrier(max(1, len(replies)))
    threads = {
        threading.Thread(
            target=copy_context().run, args=(reply.run, sampling, stop, loaded), name="chat", daemon=True
        ): reply
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
    except GeneratorExit:
        stop.set()
        raise
    finally:
        loaded.abort()
        for thread, reply in threads.items():
            thread.join(0 if reply.loading else 5)


def _is_awaited(thread: threading.Thread, reply: Reply, stop: threading.Event) -> bool:
    return thread.is_alive() and not (reply.loading and stop.is_set())
