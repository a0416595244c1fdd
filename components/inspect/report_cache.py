"""Reports kept on disk by the contents of their models, so that a restart measures nothing twice."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from merging import MergingError, Report

MOST_BYTES = 1 << 30
LEFT_BEHIND = 3600
"""Seconds after which an unfinished entry is that of a process that died."""
_KEY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.partial")


class ReportCache:
    """A folder with one report in each subfolder, named by its key; the one not used for longest goes first.

    Several processes may share it: an entry appears and goes by a rename. What cannot be read is as if it were not
    there, and what cannot be written is not kept.
    """

    def __init__(self, folder: str | Path, most_bytes: int = MOST_BYTES):
        self.folder = Path(folder)
        self.most_bytes = most_bytes

    def get(self, key: str) -> Report | None:
        """A kept report; a damaged one is removed."""
        if not _KEY.fullmatch(key) or not (entry := self.folder / key).is_dir() or entry.is_symlink():
            return None
        try:
            report = Report.load(entry)
        except (MergingError, OSError):
            self._remove(entry)
            return None
        with suppress(OSError):
            os.utime(entry)
        return report

    def keep(self, key: str, report: Report) -> None:
        """Keep a report; one that is there already stays."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a report")
        entry, partial = self.folder / key, self._unfinished(key)
        if entry.exists():
            return
        try:
            report.save(partial)
            partial.rename(entry)
            os.utime(entry)
        except (MergingError, OSError):  # a full disk, no right to write, or another process was faster
            shutil.rmtree(partial, ignore_errors=True)
        self._make_room()

    def _make_room(self) -> None:
        try:
            found = [entry for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        used: list[tuple[float, int, Path]] = []
        for entry in found:
            with suppress(OSError):
                changed = entry.stat(follow_symlinks=False).st_mtime
                if _KEY.fullmatch(entry.name):
                    used.append((changed, _bytes(Path(entry.path)), Path(entry.path)))
                elif _UNFINISHED.fullmatch(entry.name) and changed < time.time() - LEFT_BEHIND:
                    shutil.rmtree(entry.path, ignore_errors=True)
        size = sum(nbytes for _, nbytes, _ in used)
        for _, nbytes, path in sorted(used):
            if size <= self.most_bytes:
                return
            self._remove(path)
            size -= nbytes

    def _remove(self, entry: Path) -> None:
        gone = self._unfinished(entry.name)
        with suppress(OSError):  # another process was faster
            entry.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _unfinished(self, key: str) -> Path:
        return self.folder / f".{key}.{secrets.token_hex(4)}.partial"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
