"""A GPU that is lent to one call at a time, as on a ZeroGPU Space of Hugging Face; elsewhere nothing of it is seen.

There `spaces` runs a decorated function in a forked worker that has the GPU, sends it its arguments and takes back what it
yields, both pickled; this process itself has no GPU. `spaces` wants to be imported before anything that may touch CUDA, so
app.py imports this module first.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

try:
    import spaces
except ImportError:  # everywhere but on a Space
    spaces = None

from components.server.process import begin_anew
from merging import MergingError, Plan
from merging.heartbeats import heartbeats
from merging.lending import at_work, prepare_to_fork, told, wait_to_fork

LENT = spaces is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether a GPU is lent here, told by what `spaces` itself goes by."""
WORTH_LENDING = 30_000_000
"""Parameters of all models of some work below which the CPU is done with it before a GPU is lent and started."""
TO_START = 15
"""Seconds for a worker to get its GPU and the compiled loops."""
TO_FORK = 5
"""Of them those until the work begins."""
MOST_SECONDS = 120
"""Seconds asked for at most: who asks for more than a visitor's share of the day gets nothing."""
TO_END = 5.0
"""Seconds in which a worker stops what it is at."""
LONGEST_QUEUE = 120
"""Seconds that the wait for a GPU may take: Hugging Face gives up after 60. Who has waited longer than this and the seconds
asked for together waits for a worker that hangs."""
PARAMETERS_PER_SECOND = 100_000_000
"""Read, merged and written, by a careful guess."""
ANSWERS_PER_SECOND = 20
TAKEN_BACK = (
    "The GPU was taken back before this was done: it took longer than the GPU was lent for, or its worker ended. Try "
    "again, or with less to do at once."
)
WAITED_TOO_LONG = (
    "This waited for its turn until the visit it was started in was no longer known to Hugging Face. Reload the page and "
    "start it again."
)
NO_ANSWER = "No GPU could be had: the service that lends it does not answer as it should. Try again later."
NOT_FOR_US = re.compile(r"\[[^]]*\]\([^)]*\)[^.]*\.?|Try re-running outside of examples[^.]*\.?")
"""What `spaces` says for toasts, and for examples of another kind than ours."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """How much there is to do: the parameters of all models, how often they are gone through, and the answers asked for.

    `gradients`: whether it needs some. After a process has computed any, its forks no longer can.
    """

    parameters: int
    rounds: int = 1
    answers: int = 0
    gradients: bool = False

    @property
    def seconds(self) -> int:
        """Seconds for which the GPU is asked for."""
        work = self.rounds * self.parameters / PARAMETERS_PER_SECOND + self.answers / ANSWERS_PER_SECOND
        return round(min(TO_START + work, MOST_SECONDS))

    @property
    def worth_lending(self) -> bool:
        return self.gradients or self.rounds * self.parameters >= WORTH_LENDING


def size_of(plan: Plan, merges: int = 1, answers: int = 0) -> Size:
    """The work of so many merges of a plan's models, and of asking them."""
    parameters = sum(tensor.info.elements for tensor in plan.tensors) * (len(plan.experts) + 1)
    return Size(parameters, merges, answers)


def seconds_lent(size: Size) -> int | None:
    """Seconds that work of this size has where a GPU is lent for it; None where it may take as long as it does."""
    return size.seconds - TO_FORK if is_lent(size) else None


def is_lent(size: Size) -> bool:
    """Whether work of this size is done in a worker that has a GPU."""
    return LENT and size.worth_lending


def on_gpu(size: Size, work: Callable[..., Iterator[Any]], *values: Any) -> Callable[..., Iterator[Any]]:
    """`work(*values, ...)`, a module's function of values that can be pickled, to be called with what is left.

    Where a GPU is lent, and worth it, it runs in the worker that has one; None is yielded while there is nothing new.
    """
    if is_lent(size):
        return partial(_borrow, size.seconds, work, *values)
    return partial(work, *values)


def _borrow(seconds: int, work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """The events of a worker. Closing it waits for the worker's end, and not for a GPU that was not had yet."""
    begun, ended = threading.Event(), threading.Event()

    def lent() -> Iterator[Any]:
        try:
            wait_to_fork()
            with closing(told(_with_gpu(seconds, work, *arguments))) as events:  # type: ignore[type-var]
                for event in events:
                    begun.set()
                    yield event
        finally:
            ended.set()

    until = time.monotonic() + LONGEST_QUEUE + seconds
    try:
        with closing(heartbeats(lent(), threading.Event())) as beats:
            for event in beats:
                if time.monotonic() > until:
                    raise MergingError(TAKEN_BACK)
                yield event
    except gr.Error as error:
        raise MergingError(_sentence(error)) from None
    except MergingError:
        raise
    except Exception:
        if begun.is_set():
            raise
        _log.exception("no GPU could be asked for")
        raise MergingError(NO_ANSWER) from None
    finally:
        if begun.is_set():
            ended.wait(TO_END)


def _with_gpu(seconds: int, work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """All that ever runs with a lent GPU; nothing of it stays there."""
    begin_anew()
    try:
        yield from at_work(work, *arguments)
    finally:
        begin_anew()


def _sentence(error: gr.Error) -> str:
    """What `spaces` says of a GPU that it could not lend, or that was lost."""
    if getattr(error, "title", "") == "ZeroGPU worker error":
        return TAKEN_BACK
    reason = NOT_FOR_US.sub("", str(error.message)).strip().rstrip(".")
    if "Expired" in reason:
        return WAITED_TOO_LONG
    when = "" if "Try again" in reason else "Try again later. "
    return f"No GPU could be had: {reason}. {when}Who is signed in to Hugging Face gets a larger share."


def _asked_for(seconds: int, *_: Any) -> int:
    return seconds


if LENT:
    prepare_to_fork()
    _with_gpu = spaces.GPU(duration=_asked_for)(_with_gpu)
