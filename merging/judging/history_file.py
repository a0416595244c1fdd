"""The one file of the run history: opened, brought up to date, and kept aside where it is damaged."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from merging.errors import MergingError

APPLICATION = 0x4D534850
"""By what SQLite's header tells our files from those of other programs."""
PATIENCE = 5.0
"""Seconds to wait for another process that holds the file."""
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, title TEXT NOT NULL, recipe TEXT NOT NULL,
            models TEXT NOT NULL, subject TEXT NOT NULL, seconds REAL, note TEXT NOT NULL, job TEXT)""",
        "CREATE INDEX runs_of_owner ON runs (owner, created)",
        """CREATE TABLE scores (
            owner TEXT NOT NULL, subject TEXT NOT NULL, kind TEXT NOT NULL, fingerprint TEXT NOT NULL,
            name TEXT NOT NULL, scoring TEXT NOT NULL, n INTEGER NOT NULL, value REAL, seconds REAL,
            created REAL NOT NULL, size INTEGER NOT NULL, questions TEXT NOT NULL, content TEXT NOT NULL,
            PRIMARY KEY (owner, subject, kind, fingerprint))""",
        "CREATE INDEX scores_by_age ON scores (owner, created, size)",
        "CREATE INDEX scores_by_questions ON scores (owner, questions)",
        """CREATE TABLE questions (
            owner TEXT NOT NULL, id TEXT NOT NULL, size INTEGER NOT NULL, content TEXT NOT NULL,
            PRIMARY KEY (owner, id))""",
    ),
)
"""The statements that lead from each version of the file to the next; version 0 is a file without tables."""

BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


class HistoryFile:
    """A SQLite file in which every use is a connection and a transaction of its own, in any thread or process.

    `remark` says what a visitor should know of the file: that a damaged one was kept aside.

    Args:
        path: where it is; made, with its folder, when it is first used.
        steps: the statements from each version to the next.
        patience: seconds to wait for another process that holds it.
    """

    def __init__(self, path: str | Path, steps: Sequence[Sequence[str]] = STEPS, patience: float = PATIENCE):
        self.path = Path(path)
        self.steps = steps
        self.patience = patience
        self.remark = ""
        self._checked = False
        self._checking = threading.Lock()

    @contextmanager
    def use(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection inside a transaction, which is kept if the block ends and undone if it fails.

        Raises:
            MergingError: the file is held by another process, is another program's or a later version's, or cannot be
                read or written there.
        """
        file = self._inode()
        try:
            self._check()
            file = self._inode()
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise MergingError(self._sentence(error, file)) from None

    def _check(self) -> None:
        """Once in a process: see whether the file is sound, and keep it aside if it is not."""
        with self._checking:
            if self._checked:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise MergingError(
                    f"{self.path.parent}: the run history cannot be kept there ({error.strerror}); choose another folder."
                ) from None
            if self.path.is_dir():
                raise MergingError(
                    f"{self.path}: is a folder, and the run history belongs there; move the folder away."
                )
            with self._alone():
                file = self._inode()
                if file is not None and self._is_damaged():
                    self._keep_aside(file)
            self._checked = True

    def _is_damaged(self) -> bool:
        try:
            with closing(self._open()) as connection:
                return connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok"
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if _code(error) in DAMAGED:
                return True
            raise

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self.patience, isolation_level=None)
        connection.text_factory = _text
        return connection

    def _connect(self) -> sqlite3.Connection:
        """An open connection to a file of our version."""
        connection = self._open()
        try:
            connection.execute("BEGIN")  # for one view of the file while another process may begin it
            version = self._version(connection)
            connection.execute("COMMIT")
            if version < len(self.steps):
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        """The file's version.

        Raises:
            MergingError: it is another program's, or of a version that we do not know.
        """
        version = _number(connection, "user_version")
        if _number(connection, "application_id") != APPLICATION:
            if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise MergingError(
                    f"{self.path}: is a database of another program; move it away, and a run history is begun there."
                )
            return 0
        if not 0 <= version <= len(self.steps):
            raise MergingError(
                f"{self.path}: was written by a later Mergescope (version {version} of the file, {len(self.steps)} is "
                "the last that is known here); update Mergescope, or move the file away."
            )
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.OperationalError):  # some file systems have no shared memory: then without
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for step in self.steps[self._version(connection) :]:  # another process may have been first
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(self.steps)}")
        connection.execute("COMMIT")

    def _inode(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process looks at the file for damage or moves it."""
        with ExitStack() as stack:
            with suppress(OSError):  # some file systems have no such locks: then without
                folder = os.open(self.path.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield

    def _keep_aside(self, inode: int) -> None:
        """Rename the damaged file, unless another process has done so already.

        Raises:
            MergingError: it cannot be renamed.
        """
        try:
            if self._inode() != inode:
                return
            kept = self._free_name()
            for suffix in ("-wal", "-shm", ""):  # a new file must not find the old one's log
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{kept}{suffix}")
        except OSError as error:
            raise MergingError(
                f"{self.path}: is damaged, and cannot be kept aside ({error.strerror}); move it away."
            ) from None
        self.remark = f"The run history was damaged. It is kept as {kept.name}; a new one was begun."

    def _free_name(self) -> Path:
        name = f"{self.path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (Path(f"{name}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        return next(path for path in names if not path.exists())

    def _sentence(self, error: Exception, file: int | None) -> str:
        code = _code(error)
        if code in BUSY:
            return (
                "The run history is held by another program; nothing was lost. Try again in a moment, or close the "
                f"program that uses {self.path.name}."
            )
        if code in DAMAGED and file is not None:
            with self._alone():
                self._keep_aside(file)
            return f"{self.remark or 'The run history was damaged; a new one was begun.'} Try again."
        if code == sqlite3.SQLITE_FULL:
            return f"{self.path}: the disk is full, so this was not written to the run history; make room and try again."
        if code in CLOSED:
            return f"{self.path}: the run history cannot be opened or written there; check the rights to that folder."
        return f"{self.path}: the run history cannot be used ({error}); move the file away, and a new one is begun."


def _code(error: Exception) -> int:
    """SQLite's primary result code; names that are no text are damage too."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
