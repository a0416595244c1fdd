"""When every owner was here last, also across a restart: by the time of their folder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from components.newest import Newest

MOST_OWNERS = 10_000
BETWEEN_MARKS = 60.0
"""Seconds between two marks on an owner's folder: a page asks several times a second."""


class Visits:
    """The last visits of owners whose jobs lie under `runs`; who was forgotten here is told by the folder."""

    def __init__(self, runs: Path, most: int = MOST_OWNERS):
        self.runs = runs
        self._seen: Newest[float] = Newest(most)
        self._marked: Newest[float] = Newest(most)

    def note(self, owner: str) -> None:
        """This owner is here now."""
        now = time.time()
        self._seen.keep(owner, now)
        if now - (self._marked.get(owner) or 0) > BETWEEN_MARKS:
            self._marked.keep(owner, now)
            with suppress(OSError):  # no folder yet
                os.utime(self.runs / owner)

    def last(self, owner: str) -> float:
        """When this owner was here last, in seconds since the epoch; 0 for one of whom nothing is known."""
        try:
            changed = (self.runs / owner).stat().st_mtime
        except OSError:
            changed = 0.0
        return max(changed, self._seen.get(owner) or 0.0)
