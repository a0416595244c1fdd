"""Downloading a pinned model into huggingface_hub's cache: progress, cancel, resume, room on the disk, checked bytes.

huggingface_hub 2 throws a file away whose download ends early; here it stays as `blobs/<hash>.incomplete`, and goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from merging.errors import HubError
from merging.events import Progress
from merging.folders.room import bytes_text
from merging.heartbeats import Stopped
from merging.hub.cache import ref_file, repository_folder, snapshot_folder
from merging.hub.files import HubFile, Pinned
from merging.hub.requests import CutOff, HubRequests

TRIES = 3
"""Times that a connection may break without a new byte before a download gives up."""
PAUSE = 1.0
"""Seconds between two of them."""
BEAT = 0.2
"""Seconds between two events."""


@dataclass(frozen=True)
class Downloaded:
    """How far a download is. `bytes_done` and `nbytes` count what this download had to fetch, not what was there."""

    file: str
    files_done: int
    files: int
    bytes_done: int
    nbytes: int
    seconds: float
    folder: Path | None = None
    """Where the model lies, of the last event."""

    @property
    def progress(self) -> Progress:
        """The same as a job tells it; files stand for tensors."""
        share = self.bytes_done / self.nbytes if self.nbytes else 1.0
        return Progress(
            f"downloading {self.file}", self.files_done, self.files, self.bytes_done, share, self.seconds
        )


def missing_bytes(pinned: Pinned, cache: Path | None) -> int:
    """Bytes of a model that are not on this machine."""
    return sum(_Place(pinned, file, cache).missing for file in pinned.files)


class _Place:
    """Where one file of a model lies: its bytes under their hash, and a link in the folder of the commit."""

    def __init__(self, pinned: Pinned, file: HubFile, cache: Path | None):
        self.file = file
        self.blob = repository_folder(pinned.id, cache) / "blobs" / file.identity
        self.part = self.blob.with_name(f"{file.identity}.incomplete")
        self.link = snapshot_folder(pinned.id, pinned.commit, cache) / file.name

    @property
    def missing(self) -> int:
        if self.link.is_file() or self.blob.is_file():
            return 0
        there = self.part.stat().st_size if self.part.is_file() else 0
        return self.file.nbytes - there if there <= self.file.nbytes else self.file.nbytes

    def publish(self) -> None:
        """Let the commit's folder have the file, whose bytes are all here."""
        self.link.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.link.symlink_to(os.path.relpath(self.blob, self.link.parent))
        except FileExistsError:
            pass
        except OSError:  # a disk without links
            os.replace(self.blob, self.link)


class Download:
    """One download of a model; `run` fetches files, some or all, and `finish` tells that the model is complete."""

    def __init__(
        self,
        requests: HubRequests,
        pinned: Pinned,
        cache: Path | None,
        cancelled: Callable[[], bool] = lambda: False,
    ):
        self._requests = requests
        self._pinned = pinned
        self._cache = cache
        self._cancelled = cancelled
        self._began = time.monotonic()
        self._now = Downloaded("", 0, 0, 0, 0, 0.0)

    def run(self, files: Iterable[HubFile]) -> Iterator[Downloaded]:
        """Fetch what is missing of the files; see `Hub.download`."""
        places = [_Place(self._pinned, file, self._cache) for file in files]
        self._now = replace(self._now, files=len(places), nbytes=sum(place.missing for place in places))
        with self._disk_explained(), self._requests.explained(self._pinned.id):
            for number, place in enumerate(places):
                self._now = replace(self._now, file=place.file.name, files_done=number)
                yield self._event()
                if not place.link.is_file():
                    if not place.blob.is_file():
                        yield from self._fetch(place)
                    place.publish()
            self._now = replace(self._now, files_done=len(places))

    def finish(self) -> Downloaded:
        """The last event. From here on the revision means this commit on this machine."""
        pinned = self._pinned
        file = ref_file(pinned.id, pinned.revision, self._cache)
        if file is not None and pinned.revision != pinned.commit:
            with self._disk_explained():
                file.parent.mkdir(parents=True, exist_ok=True)
                new = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
                new.write_text(pinned.commit, encoding="ascii")
                os.replace(new, file)
        return replace(self._event(), folder=snapshot_folder(pinned.id, pinned.commit, self._cache))

    def _event(self) -> Downloaded:
        return replace(self._now, seconds=time.monotonic() - self._began)

    def _fetch(self, place: _Place) -> Iterator[Downloaded]:
        """The bytes of a file, from where an earlier download left off."""
        place.part.parent.mkdir(parents=True, exist_ok=True)
        with place.part.open("ab", buffering=0) as out:
            yield from self._wait_for(out)
            if place.blob.is_file():  # another download had it
                place.part.unlink(missing_ok=True)
                return
            have = os.fstat(out.fileno()).st_size
            if have > place.file.nbytes:
                out.truncate(0)
                have = 0
            digest = _digest(place, have)
            yield from self._append(place, out, have, digest)
            if digest.hexdigest() != place.file.identity:
                place.part.unlink()
                raise HubError(
                    f"{self._pinned.id}: the bytes of {place.file.name} are not those the Hub lists (their hash differs); they "
                    "were deleted. Download it again."
                )
            os.replace(place.part, place.blob)

    def _append(self, place: _Place, out: IO[bytes], have: int, digest: Any) -> Iterator[Downloaded]:
        """The rest of a file after `have` bytes; a connection that breaks is made anew."""
        file, tries = place.file, TRIES
        url = self._requests.address(self._pinned.id, self._pinned.commit, file.name)
        told = time.monotonic()
        while have < file.nbytes:
            before = have
            try:
                for chunk in self._requests.pieces(url, have, file.nbytes, total=file.nbytes):
                    _write(out, chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    self._now = replace(self._now, bytes_done=self._now.bytes_done + len(chunk))
                    self._stop_if_cancelled()
                    if time.monotonic() - told >= BEAT:
                        told = time.monotonic()
                        yield self._event()
                if have < file.nbytes:
                    raise CutOff
            except CutOff:
                tries = TRIES if have > before else tries - 1
                if not tries:
                    raise HubError(
                        f"{self._pinned.id}: the connection broke off after {bytes_text(have)} of {bytes_text(file.nbytes)} of "
                        f"{file.name}. Start the download again; it goes on from there."
                    ) from None
                yield from self._pause(PAUSE)

    def _wait_for(self, out: IO[bytes]) -> Iterator[Downloaded]:
        """Until nobody else downloads this file."""
        while True:
            try:
                return fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield from self._pause(BEAT)

    def _pause(self, seconds: float) -> Iterator[Downloaded]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._stop_if_cancelled()
            yield self._event()
            time.sleep(min(BEAT, seconds))

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise Stopped

    @contextmanager
    def _disk_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HubError(
                    f"{self._pinned.id}: the disk is full. Make room and start the download again; it goes on from there."
                ) from None
            raise HubError(
                f"{self._pinned.id}: cannot be written to {repository_folder(self._pinned.id, self._cache)} "
                f"({error.strerror}). Set HF_HUB_CACHE to a folder that may be written."
            ) from None


def _digest(place: _Place, have: int) -> Any:
    """The hash that names a file's content, git's or SHA-256, over the `have` bytes that are here."""
    nbytes = place.file.nbytes
    git = len(place.file.identity) == 40
    digest = hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False) if git else hashlib.sha256()
    with place.part.open("rb") as there:
        while have and (block := there.read(1 << 20)):
            digest.update(block)
    return digest


def _write(out: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[out.write(rest) :]
