"""Inspections that were made, so that the same models are measured once."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from merging import Checkpoint, Plan, Progress, Report
from merging.inspection import inspect_plan

MOST_REPORTS = 8


class Reports:
    """The latest reports by the fingerprints of their models; shared by all visitors, and bounded."""

    def __init__(self, most: int = MOST_REPORTS):
        self._most = most
        self._kept: OrderedDict[str, Report] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> Report | None:
        """A report that is still kept."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def of_experts(self, experts: tuple[str, ...]) -> Report | None:
        """The latest kept report on just these experts, as their family names them."""
        with self._lock:
            return next((r for r in reversed(self._kept.values()) if r.experts == experts), None)

    def keep(self, key: str, report: Report) -> None:
        """Keep a report in place of the one that was not asked for longest."""
        with self._lock:
            self._kept[key] = report
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def measure(self, plan: Plan, key: str, device: str) -> Iterator[Progress]:
        """Make the report of a plan unless it is kept already; closing the iterator stops the reading."""
        if self.get(key) is not None:
            return
        for event in inspect_plan(plan, device=device):
            if isinstance(event, Report):
                self.keep(key, event)
            else:
                yield event


@cache
def shared_reports() -> Reports:
    """The reports that all pages of this process share."""
    return Reports()


class Stops:
    """Running measurements that a visitor may stop, by a token each."""

    def __init__(self) -> None:
        self._running: dict[str, threading.Event] = {}

    @contextmanager
    def running(self) -> Iterator[tuple[str, threading.Event]]:
        """A new token and what `stop` sets for it."""
        token, event = secrets.token_hex(16), threading.Event()
        self._running[token] = event
        try:
            yield token, event
        finally:
            del self._running[token]

    def stop(self, token: object) -> None:
        """Ask the measurement of a token to end; nothing happens if it has."""
        event = self._running.get(token) if isinstance(token, str) else None
        if event is not None:
            event.set()


def report_key(plan: Plan) -> str:
    """What a report depends on: names, contents (by sample) and times of change of base and experts."""
    digest = hashlib.blake2b(digest_size=16)
    for name, source in zip(("base", *plan.names), (plan.reference, *plan.experts), strict=True):
        digest.update(name.encode() + b"\0")
        if isinstance(source, Checkpoint):
            digest.update(source.fingerprint.encode())
            for file in sorted({t.file for t in source.tensors.values() if t.file is not None}):
                state = Path(file).stat()
                digest.update(f"{file}\0{state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()
