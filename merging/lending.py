"""Work in a process that was forked to do it with a GPU that it is lent: what it must not inherit, and how its events and
errors come back.

A fork has none of its parent's threads: what waits for one of them, or for a lock that one of them held, waits for ever.
Pools of threads are forgotten where they are kept; `prepare_to_fork` is for the locks of others.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from merging import devices, inference
from merging.errors import MergingError
from merging.executors import wanted_until
from merging.heartbeats import heartbeats

LONGEST_WAIT = 20.0
"""Seconds that a fork waits for a thread that compiles or loads; then it is made all the same."""

_log = logging.getLogger(__name__)
_turns: list[_Turn] = []


@dataclass(frozen=True)
class Raised:
    """The last event of work that failed: the error, to be raised where the events are read."""

    error: Exception


@cache
def prepare_to_fork() -> None:
    """From now on this process uses no GPU, and is not forked while a thread of it compiles a loop or loads a model."""
    devices.keep_off_the_gpu()
    os.register_at_fork(after_in_child=gc.freeze)  # else the first collection copies all that the parent made
    for lock in _of_unfinished_work():
        turn = _Turn(lock)
        _turns.append(turn)
        os.register_at_fork(before=turn.take, after_in_parent=turn.give, after_in_child=lock._at_fork_reinit)


def wait_to_fork() -> None:
    """Wait as a fork would, so that the one to come need not: the time of a lent GPU runs by then."""
    for turn in _turns:
        turn.take()
        turn.give()


def _of_unfinished_work() -> Iterator[Any]:
    """The locks of what must not be half done in a fork."""
    yield inference.LOADING
    with suppress(ImportError):  # then there is nothing to compile
        from numba.core.compiler_lock import global_compiler_lock

        yield global_compiler_lock._lock


class _Turn:
    """Holds a lock while a thread forks this process; several may do so at once."""

    def __init__(self, lock: Any):
        self._lock = lock
        self._mine = threading.local()

    def take(self) -> None:
        self._mine.taken = self._lock.acquire(timeout=LONGEST_WAIT)

    def give(self) -> None:
        if self._mine.taken:
            self._lock.release()


def at_work(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """In the worker: the events of `work(*arguments)`, and None every quarter of a second in between; an error is the last.

    Closing it stops the work as a cancelled job is stopped. The GPU is there meanwhile.
    """
    stop = threading.Event()

    def events() -> Iterator[Any]:
        with wanted_until(stop.is_set), closing(work(*arguments)) as found:  # type: ignore[type-var]
            yield from found

    with devices.with_the_gpu(), closing(heartbeats(events(), stop)) as beats:
        try:
            yield from beats
        except (MergingError, MemoryError, torch.OutOfMemoryError) as error:
            yield Raised(error)
        except Exception as error:
            _log.exception("work in a worker failed")
            yield Raised(RuntimeError(f"{type(error).__name__} in a worker"))


def told(events: Iterator[Any]) -> Iterator[Any]:
    """In the parent: the events of `at_work`, whose error is raised; closing it closes them."""
    with closing(events) as found:  # type: ignore[type-var]
        for event in found:
            if isinstance(event, Raised):
                raise event.error
            yield event
