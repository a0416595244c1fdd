"""The peak of a process's own memory, without the page cache. Standard library only: mergekit's environment uses it too."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
EVERY = 0.01
"""Seconds between two looks."""


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.bytes`: the most anonymous memory at any look; 0 where the system
    does not tell."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous())
            if self._done.wait(EVERY):
                return


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
