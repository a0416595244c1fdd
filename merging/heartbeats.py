"""Long steps on a thread of their own, so that whoever waits for them can show progress and stop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")

PAUSE = 0.25
"""Seconds between two beats."""


class Stopped(Exception):
    """Raised inside a step when nobody waits for it any more."""


def heartbeats(items: Iterator[Item], stop: threading.Event) -> Generator[Item | None, None, None]:
    """The items in their order, each as soon as it is there, and None every quarter of a second in between.

    Closing it sets `stop`, which the work has to look at, and waits at most half a second for its end; the work is closed on
    its own thread, in the context of who asked for it. What the work raises is raised here.
    """
    found: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for item in items:
                found.put((item,))
                if stop.is_set():
                    if isinstance(items, Generator):
                        items.close()
                    break
            found.put(None)
        except BaseException as error:
            found.put(error)

    thread = threading.Thread(target=copy_context().run, args=(work,), name="measuring", daemon=True)
    thread.start()
    try:
        while True:
            try:
                next_one = found.get(timeout=PAUSE)
            except queue.Empty:
                yield None
                continue
            if next_one is None:
                return
            if isinstance(next_one, BaseException):
                raise next_one
            yield next_one[0]
    finally:
        stop.set()
        thread.join(0.5)
