"""Inspections that were made, so that the same models are measured once."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from components.inspect.report_cache import ReportCache
from components.newest import Newest
from components.server.settings import Settings
from merging import Checkpoint, Plan, Progress, Report, __version__
from merging.inspection import inspect_plan
from merging.memory.resident import source_key
from merging.reports.document import VERSION

MOST_REPORTS = 8


class Reports:
    """The latest reports by the fingerprints of their models; shared by all visitors, and bounded.

    `disk` holds more of them, from one start to the next.
    """

    def __init__(self, most: int = MOST_REPORTS, disk: ReportCache | None = None):
        self.disk = disk
        self._kept: Newest[Report] = Newest(most)

    def get(self, key: object) -> Report | None:
        """A report that is still kept, in memory or on disk."""
        if not isinstance(key, str):
            return None
        report = self._kept.get(key)
        if report is None and self.disk is not None and (report := self.disk.get(key)) is not None:
            self._kept.keep(key, report)
        return report

    def of_experts(self, experts: tuple[str, ...]) -> Report | None:
        """The latest kept report on just these experts, as their family names them."""
        return self._kept.find(lambda report: report.experts == experts)

    def keep(self, key: str, report: Report) -> None:
        """Keep a report in place of the one that was not asked for longest."""
        self._kept.keep(key, report)

    def measure(self, plan: Plan, key: str, device: str) -> Iterator[Progress]:
        """Make the report of a plan unless it is kept already; closing the iterator stops the reading."""
        if self.get(key) is not None:
            return
        for event in inspect_plan(plan, device=device):
            if isinstance(event, Report):
                self.keep(key, event)
                if self.disk is not None:
                    self.disk.keep(key, event)
            else:
                yield event


@cache
def _shared() -> Reports:
    return Reports()


def shared_reports(settings: Settings | None = None) -> Reports:
    """The reports that all pages of this process share; `settings` say where more of them lie on disk."""
    reports = _shared()
    if settings is not None:
        reports.disk = ReportCache(settings.reports)
    return reports


class Stop(threading.Event):
    """Set when a measurement shall end; `left` says that nobody looks at it any more."""

    left = False
    of: object = None


class Stops:
    """Running measurements that a visitor may stop, by a token each."""

    def __init__(self) -> None:
        self._running: dict[str, Stop] = {}

    @contextmanager
    def running(self, of: object = None) -> Iterator[tuple[str, Stop]]:
        """A new token and what `stop` sets for it; `of` is the family that is measured."""
        token, event = secrets.token_hex(16), Stop()
        event.of = of
        self._running[token] = event
        try:
            yield token, event
        finally:
            del self._running[token]

    def stop(self, token: object) -> None:
        """Ask the measurement of a token to end; nothing happens if it has."""
        if (event := self._find(token)) is not None:
            event.set()

    def stop_unless(self, token: object, of: object) -> None:
        """`stop` for what is not of this family: the measurement of a family that was just chosen may run already."""
        if (event := self._find(token)) is not None and event.of != of:
            event.set()

    def leave(self, token: object) -> None:
        """`stop` for a measurement that is not shown any more, so that its end is not told either."""
        if (event := self._find(token)) is not None:
            event.left = True
            event.set()

    def _find(self, token: object) -> Stop | None:
        return self._running.get(token) if isinstance(token, str) else None


def report_key(plan: Plan) -> str:
    """What a report depends on: names, contents (by sample), files and their times of change of base and experts, and
    the program. Some tensor may be left as it is, or read in another format: that is part of it, too."""
    digest = hashlib.blake2b(f"{__version__} {VERSION}\0".encode(), digest_size=16)
    for name, source in zip(("base", *plan.names), (plan.reference, *plan.experts), strict=True):
        digest.update(f"{name}\0{source.label}\0".encode())
        if isinstance(source, Checkpoint):
            digest.update(f"{source.fingerprint}\0{source_key(source)}\0".encode())
    for tensor in plan.tensors:
        digest.update(
            f"{tensor.info.name}\0{tensor.method is not None}\0{tensor.base is not None}\0".encode()
        )
    digest.update(f"{plan.work_dtype}\0".encode())
    for warning in plan.warnings:
        digest.update(f"{warning}\0".encode())
    return digest.hexdigest()
