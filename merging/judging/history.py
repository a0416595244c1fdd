"""The run history: what was merged and how it did, in one file that survives a restart."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from merging.errors import MergingError
from merging.evaluation import Perplexity, SuiteResult
from merging.job_records import is_name
from merging.judging.history_file import PATIENCE, HistoryFile
from merging.judging.run_records import (
    COLUMNS,
    Draft,
    Run,
    checked_note,
    clean,
    has_words,
    new_run,
    row_of,
    run_of,
)
from merging.judging.score_records import (
    Score,
    pack,
    pack_perplexity,
    questions_of,
    text_fingerprint,
    unpack,
    unpack_perplexity,
)
from merging.judging.subjects import ModelRef, subject_of_model, subject_of_plan
from merging.judging.suites import Suite

__all__ = [
    "Draft",
    "History",
    "ModelRef",
    "Run",
    "Score",
    "subject_of_model",
    "subject_of_plan",
    "text_fingerprint",
]

LOCAL_OWNER = "local"
"""Who owns what is made where one person uses the app."""
FILE = "history.sqlite"
"""Its name in the folder of runs."""
MOST_RUNS = 1_000
"""Runs that are kept of one owner; the oldest without a note goes first."""
MOST_BYTES = 200_000_000
"""What the scores of one owner may take; the oldest go first."""

SUITE, TEXT = "suite", "text"
"""The kinds of scores: of the replies to a suite, and the perplexity of a text."""


class History:
    """Runs and scores of every owner in one SQLite file.

    Every look-up takes the owner; what is someone else's does not exist. Safe from many threads and processes. Every
    method raises a MergingError of one sentence where the file is held by another program or cannot be used.

    Args:
        file: made when it is first used.
        patience: seconds to wait for another program that holds the file.
        most_runs: how many runs are kept of one owner.
        most_bytes: how much the scores of one owner may take.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        patience: float = PATIENCE,
        most_runs: int = MOST_RUNS,
        most_bytes: int = MOST_BYTES,
    ):
        self._file = HistoryFile(file, patience=patience)
        self._most_runs = most_runs
        self._most_bytes = most_bytes

    @property
    def remark(self) -> str:
        """What a visitor should be told of the file: that a damaged one was kept aside; else empty."""
        return self._file.remark

    def add(self, owner: str, draft: Draft) -> Run:
        """Keep a run.

        Raises:
            MergingError: the owner is no owner, or note or recipe are too long.
        """
        _require_owner(owner)
        run = new_run(owner, draft)
        marks = ", ".join("?" * len(COLUMNS))
        with self._file.use(write=True) as connection:
            connection.execute(f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", row_of(run))
            self._forget_oldest(connection, owner)
        return run

    def get(self, owner: str, id: str) -> Run | None:
        """The run; None where this owner has none of that id."""
        return next(iter(self._runs(owner, "AND id = ?", (id,))), None) if is_name(id) else None

    def list(self, owner: str, search: str = "") -> tuple[Run, ...]:
        """The owner's runs, the newest first: those in whose title, recipe, note and models every word is found."""
        words = search.casefold().split()
        runs = self._runs(owner, "ORDER BY created DESC, rowid DESC")
        return tuple(run for run in runs if not words or has_words(run, words))

    def note(self, owner: str, id: str, text: str) -> bool:
        """Replace a run's note; False where this owner has none of that id.

        Raises:
            MergingError: the note is too long.
        """
        text = checked_note(text)
        if not (is_name(owner) and is_name(id)):
            return False
        with self._file.use(write=True) as connection:
            done = connection.execute(
                "UPDATE runs SET note = ? WHERE owner = ? AND id = ?", (text, owner, id)
            )
            return done.rowcount > 0

    def delete(self, owner: str, id: str) -> bool:
        """Forget a run, and its scores unless another run of the owner has the same subject."""
        if not (is_name(owner) and is_name(id)):
            return False
        with self._file.use(write=True) as connection:
            return _delete(connection, owner, [id]) > 0

    def owners(self) -> set[str]:
        """Everybody of whom something is kept."""
        with self._file.use() as connection:
            rows = connection.execute("SELECT owner FROM runs UNION SELECT owner FROM scores").fetchall()
        return {owner for (owner,) in rows}

    def forget(self, owner: str) -> None:
        """Forget all runs and scores of an owner."""
        with self._file.use(write=True) as connection:
            for table in ("runs", "scores", "questions"):
                connection.execute(f"DELETE FROM {table} WHERE owner = ?", (owner,))

    def put_score(
        self, owner: str, subject: str, result: SuiteResult, suite: Suite, seconds: float | None = None
    ) -> None:
        """Keep what a model scored on a suite, in place of what it scored before.

        Raises:
            MergingError: the owner is no owner.
        """
        questions, asked = questions_of(result)
        facts = (clean(result.suite), result.scoring, result.n, result.score, seconds)
        self._put((owner, subject, SUITE, suite.fingerprint), facts, pack(result), questions, asked)

    def scores(self, owner: str, subjects: Iterable[str]) -> dict[tuple[str, str], SuiteResult]:
        """(subject, suite's fingerprint) -> every reply, as it was put."""
        columns = "name, scoring, questions.content, scores.content"
        found = {key: unpack(*stored) for key, stored in self._scores(owner, SUITE, columns, subjects)}
        return {key: result for key, result in found.items() if result is not None}

    def totals(self, owner: str, subjects: Iterable[str]) -> dict[tuple[str, str], Score]:
        """(subject, suite's fingerprint) -> the score without its replies: quick, for tables of many runs."""
        columns = "name, scoring, n, value, seconds, scores.created"
        return {key: Score(*key, *row) for key, row in self._scores(owner, SUITE, columns, subjects)}

    def put_perplexity(
        self, owner: str, subject: str, result: Perplexity, text: str, seconds: float | None = None
    ) -> None:
        """Keep a model's perplexity of a text, in place of what was there before; the text itself is not kept.

        Raises:
            MergingError: the owner is no owner.
        """
        key = (owner, subject, TEXT, text_fingerprint(text))
        facts = (clean(result.name), "", result.tokens, result.value, seconds)
        self._put(key, facts, pack_perplexity(result), "", "")

    def perplexities(self, owner: str, subjects: Iterable[str]) -> dict[tuple[str, str], Perplexity]:
        """(subject, `text_fingerprint` of the text) -> what was put."""
        stored = self._scores(owner, TEXT, "scores.content", subjects)
        found = {key: unpack_perplexity(content) for key, (content,) in stored}
        return {key: result for key, result in found.items() if result is not None}

    def _put(
        self, key: tuple[str, str, str, str], facts: tuple[Any, ...], content: str, questions: str, asked: str
    ) -> None:
        owner = key[0]
        _require_owner(owner)
        row = (*key, *facts, time.time(), len(content), questions, content)
        with self._file.use(write=True) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO questions VALUES (?, ?, ?, ?)", (owner, questions, len(asked), asked)
            )
            connection.execute(f"INSERT OR REPLACE INTO scores VALUES ({', '.join('?' * len(row))})", row)
            self._make_room(connection, owner)

    def _scores(
        self, owner: str, kind: str, columns: str, subjects: Iterable[str]
    ) -> Iterator[tuple[tuple[str, str], tuple[Any, ...]]]:
        """(subject, fingerprint of what was asked) and the columns of every score."""
        wanted = json.dumps([*subjects])
        if not is_name(owner):
            return
        with self._file.use() as connection:
            rows = connection.execute(
                f"SELECT subject, fingerprint, {columns} FROM scores "
                "JOIN questions ON questions.owner = scores.owner AND questions.id = scores.questions "
                "WHERE scores.owner = ? AND kind = ? AND subject IN (SELECT value FROM json_each(?))",
                (owner, kind, wanted),
            ).fetchall()
        for subject, fingerprint, *row in rows:
            yield (subject, fingerprint), tuple(row)

    def _runs(self, owner: str, where: str, values: tuple[Any, ...] = ()) -> tuple[Run, ...]:
        query = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE owner = ? {where}"
        if not is_name(owner):
            return ()
        with self._file.use() as connection:
            rows = connection.execute(query, (owner, *values)).fetchall()
        return tuple(run for row in rows if (run := run_of(row)) is not None)

    def _forget_oldest(self, connection: sqlite3.Connection, owner: str) -> None:
        """Delete runs beyond those that are kept, never the newest."""
        count = connection.execute("SELECT count(*) FROM runs WHERE owner = ?", (owner,)).fetchone()[0]
        if count > self._most_runs:
            oldest = connection.execute(
                "SELECT id FROM (SELECT * FROM runs WHERE owner = ?1 ORDER BY created, rowid LIMIT ?2) "
                "ORDER BY note != '', created LIMIT ?3",
                (owner, count - 1, count - self._most_runs),
            ).fetchall()
            _delete(connection, owner, [id for (id,) in oldest])

    def _make_room(self, connection: sqlite3.Connection, owner: str) -> None:
        """Delete the oldest scores while all take too much, never the newest."""
        while True:
            held, count = connection.execute(
                "SELECT total(size) + (SELECT total(size) FROM questions WHERE owner = ?1), count(*) "
                "FROM scores WHERE owner = ?1",
                (owner,),
            ).fetchone()
            if held <= self._most_bytes or count <= 1:
                return
            connection.execute(
                "DELETE FROM scores WHERE rowid IN "
                "(SELECT rowid FROM scores WHERE owner = ? ORDER BY created LIMIT ?)",
                (owner, max(1, count // 10)),
            )
            _forget_questions(connection, owner)


def _delete(connection: sqlite3.Connection, owner: str, ids: Iterable[str]) -> int:
    """Forget runs and the scores that no other run of the owner has a part in; how many runs there were."""
    deleted = 0
    for id in ids:
        row = connection.execute(
            "SELECT subject FROM runs WHERE owner = ? AND id = ?", (owner, id)
        ).fetchone()
        if row is None:
            continue
        deleted += connection.execute("DELETE FROM runs WHERE id = ?", (id,)).rowcount
        connection.execute(
            "DELETE FROM scores WHERE owner = ?1 AND subject = ?2 "
            "AND NOT EXISTS (SELECT 1 FROM runs WHERE owner = ?1 AND subject = ?2)",
            (owner, *row),
        )
    _forget_questions(connection, owner)
    return deleted


def _forget_questions(connection: sqlite3.Connection, owner: str) -> None:
    connection.execute(
        "DELETE FROM questions WHERE owner = ?1 AND NOT EXISTS "
        "(SELECT 1 FROM scores WHERE scores.owner = ?1 AND scores.questions = questions.id)",
        (owner,),
    )


def _require_owner(owner: str) -> None:
    if not is_name(owner):
        raise MergingError("This browser has no identity yet. Reload the page.")
