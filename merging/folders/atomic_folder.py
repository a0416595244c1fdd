"""A folder that appears complete or not at all: written hidden beside its place, then renamed."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from merging.errors import OutputError

LOCK = ".lock"
POLL = 0.02
"""Seconds between two looks at a lock that another writer holds."""


class AtomicFolder:
    """The hidden folder `partial` beside `out`, which `commit` renames to `out`.

    A process that is killed leaves `.NAME.partial`, or what `out` held before as `.NAME.replaced`; the next writer of the
    same `out` mends both. A lock inside keeps two running writers apart.

    Args:
        marker: the file that every finished folder of this sort holds.
        ensure: raises an OutputError where `out` holds what must not be replaced.
        patience: seconds to wait for another writer.

    Raises:
        OutputError: `out` holds something that is not ours, or is being written by another process.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, marker: str, ensure: Callable[[Path], None], patience: float = 0.0):
        self.out, self._marker, self._ensure = out, marker, ensure
        self.partial, self._replaced = hidden_names(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._wait(time.monotonic() + patience)
        try:
            _empty(self.partial, LOCK, but=True)
            self._mend()
        except BaseException:
            self.abort()
            raise

    def commit(self) -> None:
        """Make everything durable and let it appear as `out`, replacing what was there.

        The lock goes with the folder to its final name, and is held there until nothing is left to do.
        """
        self._ensure(self.out)
        for file in (*self.partial.iterdir(), self.partial):
            _sync(file)
        earlier = self.out.exists()
        try:
            if earlier:
                self.out.rename(self._replaced)
            self.partial.rename(self.out)
        except BaseException:
            if earlier and not self.out.exists():
                self._replaced.rename(self.out)
            raise
        _sync(self.out.parent)
        if earlier:
            with suppress(OSError):
                _empty(self._replaced, self._marker)
                self._replaced.rmdir()
        (self.out / LOCK).unlink()
        os.close(self._lock)

    def abort(self) -> None:
        """Remove what was written; `out` stays as it was."""
        self._leave(self._lock)

    def _wait(self, until: float) -> int:
        """The lock of the hidden folder, which is made where there is none."""
        while True:
            lock = self._take()
            if lock is not None:
                return lock
            if time.monotonic() >= until:
                raise OutputError(
                    f"{self.out}: another merge or report is being written there right now; wait, or choose another."
                )
            time.sleep(POLL)

    def _take(self) -> int | None:
        """The lock, if no other writer has it."""
        self._require_ours()
        try:
            with suppress(FileExistsError):
                self.partial.mkdir()
            lock = os.open(self.partial / LOCK, os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:  # another writer finished in between
            return None
        if _locked(lock) and self._holds(lock) and not self._finishing():
            return lock
        self._leave(lock)
        return None

    def _leave(self, lock: int) -> None:
        """Give a lock back, and remove the hidden folder if it is the one that is locked."""
        with suppress(OSError):
            if _locked(lock) and self._holds(lock):
                _empty(self.partial, LOCK)
                self.partial.rmdir()
        os.close(lock)

    def _finishing(self) -> bool:
        """Whether a writer that has renamed its folder is still at work; the lock of one that was killed is removed."""
        try:
            lock = os.open(self.out / LOCK, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            if not _locked(lock):
                return True
            (self.out / LOCK).unlink(missing_ok=True)
            return False
        finally:
            os.close(lock)

    def _require_ours(self) -> None:
        """Refuse a hidden folder that holds files and no lock, unless it goes away at this moment."""
        try:
            foreign = self.partial.is_symlink() or (
                LOCK not in (names := {file.name for file in self.partial.iterdir()}) and bool(names)
            )
        except FileNotFoundError:
            return
        except NotADirectoryError:
            foreign = True
        if foreign:
            raise OutputError(f"{self.partial}: is in the way of writing {self.out.name}; move it elsewhere.")

    def _holds(self, lock: int) -> bool:
        """Whether a lock is that of the hidden folder, not of one that was renamed or removed."""
        try:
            return os.fstat(lock).st_ino == (self.partial / LOCK).stat().st_ino
        except FileNotFoundError:
            return False

    def _mend(self) -> None:
        """Finish what a process left that died between the two renames of a commit, unless `out` is another's."""
        if self._left() and not self.out.exists():
            self._replaced.rename(self.out)
        self._ensure(self.out)
        if self._left():
            _empty(self._replaced, self._marker)
            self._replaced.rmdir()

    def _left(self) -> bool:
        """Whether there is a replaced folder of ours: with our marker, which is removed last, or empty."""
        if self._replaced.is_symlink() or not self._replaced.is_dir():
            return False
        return (self._replaced / self._marker).is_file() or not any(self._replaced.iterdir())


def hidden_names(out: Path) -> tuple[Path, Path]:
    """Where a result is written before it is complete, and where an earlier one waits while it is replaced."""
    return out.parent / f".{out.name}.partial", out.parent / f".{out.name}.replaced"


def _locked(lock: int) -> bool:
    """Whether this process has the lock now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _empty(folder: Path, last: str, *, but: bool = False) -> None:
    """Remove all files of a folder, the `last` one after the others or, with `but`, not at all."""
    for file in folder.iterdir():
        if file.name == last:
            continue
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()
    if not but:
        (folder / last).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
