"""Background jobs: each has an owner, a record on disk, progress, and a way to stop it.

The records are the truth: a reloaded page, or the next start of the program, finds every job again.
"""

from __future__ import annotations

import fcntl
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from merging.engine import Finished, Progress
from merging.errors import MergingError
from merging.executors import wanted_until
from merging.heartbeats import Stopped
from merging.job_records import RECORD, Job, Partial, State, is_name, outcome, read_record, write_record
from merging.turns import Turns

Work = Callable[[Path], Iterator[Any]]
"""Given the folder its result belongs in, yields `Progress` and `Partial` events, None where there is nothing new, and at the
end a `Finished` or a JSON table.

It is called and closed on the worker's thread; closing it must leave nothing behind.
"""

BETWEEN_RECORDS = 1.0
"""Seconds between two records of what a running job has found: a long table is not written for each of its rows."""
UNEXPECTED = "Something went wrong inside Mergescope; the server's log has the details. Nothing was written."
NO_MEMORY = "There was not enough memory for this. Nothing was written; close other programs or use the CPU."
TOO_LONG = (
    "Stopped after {:g} minutes: this server gives no job more time. Ask for less at once, or run Mergescope on your own "
    "machine."
)

_log = logging.getLogger(__name__)


@dataclass
class _Live:
    """A job of this process that waits or runs. It runs in the context that it was started in: who visits is known there."""

    job: Job
    work: Work
    context: Context = field(default_factory=copy_context)
    stop: threading.Event = field(default_factory=threading.Event)
    late: bool = False
    forget: bool = False
    progress: Progress | None = None
    written: float = -math.inf

    def expire(self) -> None:
        """Stop it because it had all its time."""
        self.late = True
        self.stop.set()


class JobStore:
    """Jobs under `folder/<owner>/<job id>/`, run one after the other on a thread of their own: of every owner one in turn.

    Every look-up takes the owner; a job of someone else's is a job that does not exist.

    Args:
        most_of_owner: jobs one owner may have queued or running.
        most: jobs of all owners together that may be.
        longest: seconds that one job may run; None for as long as it takes.
    """

    def __init__(
        self, folder: str | Path, most_of_owner: int = 4, most: int = 16, longest: float | None = None
    ):
        self.folder = Path(folder)
        self.most_of_owner, self.most, self.longest = most_of_owner, most, longest
        self._changed = threading.Condition()
        self._live: dict[str, _Live] = {}
        self._queue = Turns()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._lock = self._recover()

    def start(self, owner: str, kind: str, work: Work, *, title: str = "", recipe: str | None = None) -> str:
        """Queue a job; its id.

        Raises:
            MergingError: the owner is no owner, or has too many jobs waiting.
        """
        if not is_name(owner):
            raise MergingError("This browser has no identity yet. Reload the page.")
        now = time.time()
        job = Job(
            id=secrets.token_hex(16),
            owner=owner,
            kind=kind,
            title=title or kind,
            state="queued",
            created=now,
            recipe=recipe,
        )
        with self._changed:
            waiting = sum(live.job.owner == owner for live in self._live.values())
            if waiting >= self.most_of_owner:
                raise MergingError(
                    f"{waiting} jobs of yours are waiting or running, and no more may. Let one end, or cancel one."
                )
            if len(self._live) >= self.most:
                raise MergingError(
                    f"The server is busy: {len(self._live)} jobs are waiting or running. Try again in a few minutes."
                )
            self._keep(job)
            self._live[job.id] = _Live(job, work)
            self._queue.add(job.id, owner)
            if self._worker is None:
                self._worker = threading.Thread(target=self._run_all, name="jobs", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job.id

    def get(self, owner: str, id: str) -> Job | None:
        """The job as it is now; None where this owner has none of that id."""
        if not (is_name(owner) and is_name(id)):
            return None
        with self._changed:
            live = self._live.get(id)
            if live is None:
                return self._at_rest(read_record(self.folder / owner / id))
            if live.job.owner != owner:
                return None
            ahead = self._queue.before(id) + self._running() if id in self._queue else 0
            return live.job.model_copy(update={"progress": live.progress, "ahead": ahead})

    def _at_rest(self, job: Job | None) -> Job | None:
        """A job that nobody runs: what its record calls active was interrupted, unless another process runs it."""
        if job is not None and job.active and self._lock is not None:
            return job.model_copy(update={"state": "interrupted"})
        return job

    def list(self, owner: str) -> list[Job]:
        """All jobs of an owner, the newest first."""
        if not is_name(owner) or not (self.folder / owner).is_dir():
            return []
        jobs = [self.get(owner, path.name) for path in (self.folder / owner).iterdir()]
        return sorted((job for job in jobs if job is not None), key=lambda job: job.created, reverse=True)

    def cancel(self, owner: str, id: str) -> bool:
        """Ask a job to stop; False where there is no such job waiting or running."""
        with self._changed:
            live = self._live.get(id) if is_name(id) else None
            if live is None or live.job.owner != owner:
                return False
            live.stop.set()
            if id in self._queue:
                self._queue.remove(id)
                self._end(live, "cancelled")
            return True

    def delete(self, owner: str, id: str) -> bool:
        """Forget a job and its result; one that runs is stopped first."""
        job = self.get(owner, id)
        if job is None:
            return False
        with self._changed:
            live = self._live.get(id)
            if live is not None:
                live.forget = True
                return self.cancel(owner, id)
        shutil.rmtree(self._folder_of(job), ignore_errors=True)
        return True

    def owners(self) -> set[str]:
        """Everybody who has jobs here."""
        return {path.name for path in self.folder.iterdir() if is_name(path.name) and path.is_dir()}

    def busy(self, owner: str) -> bool:
        """Whether a job of an owner waits or runs."""
        with self._changed:
            return any(live.job.owner == owner for live in self._live.values())

    def forget(self, owner: str) -> bool:
        """Forget all jobs of an owner with their results; False while one of them waits or runs."""
        if not is_name(owner):
            return False
        with self._changed:
            if self.busy(owner):
                return False
            shutil.rmtree(self.folder / owner, ignore_errors=True)
        return True

    def forget_oldest(self, owner: str, kind: str, kept: int) -> None:
        """Forget all but the newest of an owner's jobs of a kind that have ended."""
        ended = [job for job in self.list(owner) if job.kind == kind and not job.active]
        for job in ended[kept:]:
            self.delete(owner, job.id)

    def model(self, owner: str, id: str) -> Path | None:
        """The folder of a finished job's model."""
        job = self.get(owner, id)
        if job is None or job.state != "done":
            return None
        folder = self._folder_of(job) / "model"
        return folder if folder.is_dir() else None

    def wait(self, owner: str, id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: id not in self._live, timeout)
        return self.get(owner, id)

    def close(self) -> None:
        """Stop the running job, leave the waiting ones unrun, and give the folder back."""
        with self._changed:
            self._closed = True
            for live in list(self._live.values()):
                live.stop.set()
            self._changed.notify_all()
            worker = self._worker
        if worker is not None:
            worker.join(10)
        if self._lock is not None:
            self._lock.close()

    def _run_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                live = self._live[self._queue.take()]
                live.job = live.job.model_copy(update={"state": "running", "started": time.time()})
            live.context.run(self._run, live)

    def _run(self, live: _Live) -> None:
        changes: dict[str, Any] = {}
        try:
            self._keep(live.job)
            with self._in_time(live), wanted_until(live.stop.is_set):
                state: State = "done" if self._follow(live, changes) else "cancelled"
        except Stopped:
            state = "cancelled"
        except MergingError as error:
            state, changes["error"] = "failed", str(error)
        except Exception as error:
            _log.exception("job %s (%s) failed", live.job.id, live.job.kind)
            short = isinstance(error, MemoryError | torch.OutOfMemoryError)
            state, changes["error"] = "failed", NO_MEMORY if short else UNEXPECTED
        if state != "done":
            _tidy(self._folder_of(live.job))
        if state == "cancelled" and live.late:
            state, changes["error"] = "failed", TOO_LONG.format((self.longest or 0) / 60)
        with self._changed:
            if state == "cancelled" and self._closed:
                state = "interrupted"
            self._end(live, state, **changes)

    @contextmanager
    def _in_time(self, live: _Live) -> Iterator[None]:
        """Stop a job that runs longer than any may."""
        if self.longest is None:
            yield
            return
        timer = threading.Timer(self.longest, live.expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _follow(self, live: _Live, changes: dict[str, Any]) -> bool:
        """Run the work to its end; False if it was stopped on the way."""
        events = live.work(self.folder / live.job.owner / live.job.id / "model")
        try:
            for event in events:
                if isinstance(event, Progress):
                    live.progress = event
                elif isinstance(event, Partial):
                    self._keep_so_far(live, event.result)
                elif event is not None:
                    changes["result"] = outcome(event) if isinstance(event, Finished) else event
                    break
                if live.stop.is_set():
                    return False
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
        return True

    def _keep_so_far(self, live: _Live, result: dict[str, Any]) -> None:
        """Show what a running job has found, and keep it, at most every second, for the case that nobody lives to see its
        end."""
        with self._changed:
            live.job = live.job.model_copy(update={"result": result})
        if time.monotonic() - live.written < BETWEEN_RECORDS:
            return
        live.written = time.monotonic()
        with suppress(MergingError):  # a full disk is told at the job's end
            self._keep(live.job)

    def _end(self, live: _Live, state: State, **changes: Any) -> None:
        live.job = live.job.model_copy(update={"state": state, "ended": time.time(), **changes})
        try:
            if live.forget:
                shutil.rmtree(self._folder_of(live.job), ignore_errors=True)
            else:
                self._keep(live.job)
        except (MergingError, ValueError):
            _log.exception("job %s: its record cannot be written", live.job.id)
        del self._live[live.job.id]
        self._changed.notify_all()

    def _running(self) -> int:
        return sum(live.job.state == "running" for live in self._live.values())

    def _folder_of(self, job: Job) -> Path:
        return self.folder / job.owner / job.id

    def _keep(self, job: Job) -> None:
        write_record(self._folder_of(job), job)

    def _recover(self) -> IO[str] | None:
        """Mark what an earlier process left running, unless another process uses this folder right now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        for record in self.folder.glob(f"*/*/{RECORD}"):
            job = read_record(record.parent)
            if job is not None and job.active:
                _tidy(record.parent)
                with suppress(MergingError):  # then it only looks so, see `_at_rest`
                    self._keep(job.model_copy(update={"state": "interrupted"}))
        return lock


def _tidy(folder: Path) -> None:
    """Remove what a process half wrote that was ended before it could do so itself."""
    for leftover in folder.glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
