"""Where pieces are worked on: in the caller's thread, or in several threads at once.

A worker's operations are not split over cores: several pieces at a time keep all cores busy, where splitting a small
operation over cores that something else keeps busy makes it wait for the slowest of them, tens of times longer than one
core alone would take.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Barrier, Event, Lock
from typing import ParamSpec, Protocol, TypeVar

import torch

from merging.devices import on_own_stream
from merging.heartbeats import Stopped

AT_ONCE = 2
"""Short calls that are worked on at the same time, by `quietly`."""
WORTH_WAKING = 1 << 18
"""Elements of all experts below which one thread is enough."""
MOST_WORKERS = 8
"""Every worker has a piece with all that is made of it; more of them wait for memory and for the interpreter's lock."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT = 256 << 20, 32 << 20
"""Freed memory that each heap keeps, and the largest request that is served from a heap: glibc allows no more."""
AHEAD = 2
"""Pieces that are under way for each worker, so that none waits for the caller."""
LOOK_UP = 0.1
"""Seconds between two looks at whether the results are still wanted."""
PATIENCE = 0.3
"""Seconds that an early end waits for what is under way. A loop that is being compiled takes longer; nobody then waits for
it, and what comes of it is forgotten."""
_starting = Lock()
_unwanted: ContextVar[Callable[[], bool]] = ContextVar("unwanted", default=lambda: False)
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


@contextmanager
def wanted_until(stop: Callable[[], bool]) -> Iterator[None]:
    """Once `stop` says so, whatever an executor of this thread is at raises `Stopped`, between two things or while it waits
    for one."""
    before = _unwanted.set(stop)
    try:
        yield
    finally:
        _unwanted.reset(before)


def unwanted() -> bool:
    """Whether nobody wants any more what this thread works on; see `wanted_until`."""
    return _unwanted.get()()


def _go_on() -> None:
    if unwanted():
        raise Stopped


class Executor(Protocol):
    """Works on things, up to `workers` at a time; results come in the order of the things."""

    workers: int

    def map(self, work: Callable[[S], T], things: Iterable[S]) -> Iterator[T]: ...


class Inline:
    """One thing after another, in the caller's thread."""

    workers = 1

    def map(self, work: Callable[[S], T], things: Iterable[S]) -> Iterator[T]:
        for thing in things:
            _go_on()
            yield work(thing)


class Threads:
    """Several things at once, in threads that all runs of this process share.

    Work that itself has an executor needs a `pool` of another name: it would wait for the threads that it holds.
    """

    def __init__(self, workers: int, pool: str = "piece"):
        self.workers = workers
        self._pool = pool

    def map(self, work: Callable[[S], T], things: Iterable[S]) -> Iterator[T]:
        """Closing the iterator begins nothing more, stops executors inside the work, and waits for what is under way, within
        `PATIENCE`; so does an error in the work."""
        pool, pending = _threads(self.workers, self._pool), deque[Future[T]]()
        ended, unwanted = Event(), _unwanted.get()

        def stoppable(thing: S) -> T:
            with wanted_until(lambda: ended.is_set() or unwanted()):
                _go_on()
                return work(thing)

        try:
            for thing in things:
                pending.append(pool.submit(stoppable, thing))
                if len(pending) >= AHEAD * self.workers:
                    yield _first(pending)
            while pending:
                yield _first(pending)
        finally:
            ended.set()
            for future in pending:
                future.cancel()
            wait(pending, PATIENCE)


class Streams(Threads):
    """The same on a GPU, every worker with a stream of its own: what a worker hands over is done."""

    def __init__(self, device: torch.device, workers: int):
        super().__init__(workers)
        self.device = device

    def map(self, work: Callable[[S], T], things: Iterable[S]) -> Iterator[T]:
        def streamed(thing: S) -> T:
            with on_own_stream(self.device):
                return work(thing)

        return super().map(streamed, things)


def _first(pending: deque[Future[T]]) -> T:
    """Its result, and it is no longer pending: only then, so that it is waited for where this wait is interrupted."""
    _go_on()
    while not wait([pending[0]], LOOK_UP).done:
        _go_on()
    result = pending[0].result()
    pending.popleft()
    return result


def workers_here() -> int:
    """Pieces that are worked on at once: one for every core that this process may use, up to `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def executor_for(device: torch.device, elements: int) -> Executor:
    """Threads on a CPU, unless there is so little to do that waking them takes longer."""
    _keep_freed_memory()
    workers = workers_here()
    return Threads(workers) if device.type == "cpu" and elements >= WORTH_WAKING and workers > 1 else Inline()


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next piece. Else every large tensor is given back to the system and its pages
    are cleared anew: with two workers half of the time of a merge."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # another C library
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def quietly(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of `work`, done in a worker's thread: short work that must not keep others from their cores."""
    return _threads(AT_ONCE, "quiet").submit(work, *arguments, **named).result()


@cache
def _threads(count: int, name: str) -> ThreadPoolExecutor:
    """Workers that have all started: `set_num_threads` holds for the calling thread, and for all that are started later,
    which get their number back before anything else goes on."""
    with _starting:
        everywhere, started = torch.get_num_threads(), Barrier(count)
        pool = ThreadPoolExecutor(count, name, initializer=_one_thread)
        wait([pool.submit(started.wait) for _ in range(count)])
        torch.set_num_threads(everywhere)
    return pool


def forget_threads() -> None:
    """In a fork: its parent's threads are not there, and work given to them would wait for ever."""
    global _starting
    _starting = Lock()
    _threads.cache_clear()


def _one_thread() -> None:
    torch.get_num_threads()  # the first call of a thread takes everybody's number, even after `set_num_threads`
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=forget_threads)
