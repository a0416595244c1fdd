"""Short work on few cores: one thread a call, so that it neither waits for busy cores nor keeps others from theirs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import ParamSpec, TypeVar

import torch

AT_ONCE = 2
"""Calls that are worked on at the same time."""
P = ParamSpec("P")
T = TypeVar("T")


def quietly(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of `work`, done in a thread in which torch does not split its operations.

    Splitting a small operation over cores that something else keeps busy makes it wait for the slowest of them: tens of
    times longer than one core alone would take.
    """
    return _workers().submit(work, *arguments, **named).result()


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "quiet", initializer=_one_thread)


def _one_thread() -> None:
    """`set_num_threads` holds for the calling thread, and for all that are started later: these get their number back."""
    everywhere = torch.get_num_threads()
    torch.set_num_threads(1)
    if everywhere > 1:
        _workers_restore(everywhere)


def _workers_restore(threads: int) -> None:
    with ThreadPoolExecutor(1) as other:
        other.submit(torch.set_num_threads, threads).result()
