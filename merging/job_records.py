"""What is kept of a background job: a JSON table beside its result."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from merging.engine import Finished, Progress
from merging.errors import OutputError

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]

RECORD = "job.json"
_NAME = re.compile(r"[0-9a-z]{1,32}\Z")


@dataclass(frozen=True)
class Partial:
    """An event of a job that has something to show before its end: its result so far, which stays if it is stopped."""

    result: dict[str, Any]


class Job(BaseModel):
    """What is known of a job at one moment. Times are seconds since the epoch.

    `ahead` counts the jobs that run before a queued one; `result` is the table its last event came to, or what a job that
    yields `Partial` has so far.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    kind: str
    title: str
    state: State
    created: float
    started: float | None = None
    ended: float | None = None
    recipe: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    progress: Progress | None = Field(None, exclude=True)
    ahead: int = Field(0, exclude=True)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in {"queued", "running"}


def outcome(finished: Finished) -> dict[str, Any]:
    """What a finished merge attained, as JSON: shares from 0 to 1, counts for each expert in the recipe's order."""
    attained = finished.attained
    return {
        "tensors": len(finished.tensors),
        "parameters": sum(tensor.elements for tensor in finished.tensors),
        "relative_change": finished.relative_change,
        "lost_share": finished.lost_share,
        "density": [count / max(1, attained.elements) for count in attained.nonzero] if attained else None,
        "asked": [count / max(1, attained.elements) for count in attained.kept] if attained else None,
        "tied": list(attained.tied) if attained else None,
        "bytes_read": finished.bytes_read,
        "bytes_written": finished.bytes_written,
        "seconds": finished.seconds,
        "warnings": list(finished.warnings),
    }


def is_name(name: Any) -> bool:
    """Whether this may be an owner or a job id, and so part of a path."""
    return isinstance(name, str) and _NAME.match(name) is not None


def read_record(folder: Path) -> Job | None:
    """The job whose folder this is; None where there is no intact record of just that owner and id."""
    try:
        job = Job.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return job if (job.owner, job.id) == (folder.parent.name, folder.name) else None


def write_record(folder: Path, job: Job) -> None:
    """Replace the record as a whole, so that no reader ever sees half of one.

    Raises:
        OutputError: the disk is full, or the folder may not be written.
    """
    draft = folder / f".{RECORD}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(job.model_dump_json(indent=1), encoding="utf-8")
        os.replace(draft, folder / RECORD)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
            folder.rmdir()  # unless there is an earlier record
        raise OutputError(
            f"{folder.parent.parent}: jobs cannot be recorded there ({error.strerror}); make room on that disk."
        ) from None
