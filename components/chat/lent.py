"""Replies that are given in a worker with a lent GPU, shown as if they were given here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from typing import Any

from components.chat.loading import Asked
from components.chat.replies import UNEXPECTED, Reply, answer_in_rounds
from components.server.zero_gpu import Size, is_lent, on_gpu
from merging import MergingError
from merging.answering.drawing import Sampling
from merging.heartbeats import heartbeats

SENT = ("load", "messages")
"""What a reply is made of; all else of it comes back."""

_log = logging.getLogger(__name__)


def size_of(models: Mapping[int, Asked], sampling: Sampling) -> Size:
    """The work of a reply of every model; in float32 a parameter takes four bytes."""
    together = sum({model.key: model.nbytes for model in models.values()}.values()) // 4
    return Size(together, answers=len(models) * sampling.max_new_tokens)


def answer(
    rounds: Sequence[Sequence[Reply]], sampling: Sampling, stop: threading.Event, size: Size
) -> Iterator[None]:
    """`answer_in_rounds`, by a lent GPU where there is one and it is worth it."""
    if not is_lent(size):
        yield from answer_in_rounds(rounds, sampling, stop)
        return
    replies = [reply for some in rounds for reply in some]
    error = ""
    try:
        with closing(on_gpu(size, _given, rounds, sampling)()) as events:  # type: ignore[type-var]
            for event in events:
                for reply, state in zip(replies, event or (), strict=False):
                    vars(reply).update(state)
                if stop.is_set():
                    break
                if event:
                    yield
    except MergingError as problem:
        error = str(problem)
    except Exception:
        _log.exception("replies of a worker failed")
        error = UNEXPECTED
    for reply in replies:
        if not reply.ended:
            reply.error, reply.stopped, reply.ended = error, stop.is_set(), True
            reply.waiting = reply.loading = False
    yield


def _given(rounds: Sequence[Sequence[Reply]], sampling: Sampling) -> Iterator[list[dict[str, Any]]]:
    """In the worker: what every reply has come to, whenever one has grown, and several times a second."""
    stop, replies = threading.Event(), [reply for some in rounds for reply in some]
    with closing(heartbeats(answer_in_rounds(rounds, sampling, stop), stop)) as steps:
        for _ in steps:
            yield [_state(reply) for reply in replies]


def _state(reply: Reply) -> dict[str, Any]:
    return {one.name: getattr(reply, one.name) for one in fields(reply) if one.name not in SENT}
