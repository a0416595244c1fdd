"""The upload of a push: all files and one commit, on a thread of its own that can be followed, stopped and undone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars

from merging.errors import HubError
from merging.events import Progress
from merging.heartbeats import Stopped
from merging.hub.client import Hub
from merging.hub.files import is_model_file
from merging.hub.push_errors import why_not
from merging.hub.push_files import Meter, WatchedFile

MESSAGE = "Upload a merge made with Mergescope"
BEAT = 0.1
"""Seconds between two looks at an upload."""
SILENCE = 60.0
"""Seconds after which an upload that moves no byte is given up; writing the commit may take longer."""
LONGEST_COMMIT = 300.0
LAST_WORDS = 0.3
"""Seconds that a push which ends early waits for its upload to end."""
MADE_BY_THE_HUB = frozenset({".gitattributes"})
"""The files of a repository that nobody put anything into."""


@dataclass(frozen=True)
class Order:
    """Where a merge goes: `name` is org/name; `add` lets it be a further commit of a repository that is there already."""

    name: str
    private: bool = True
    add: bool = False
    message: str = MESSAGE


@dataclass(frozen=True)
class Pushed:
    """The last event: where the merge can be found. `new`: the repository was made for it."""

    id: str
    url: str
    commit: str
    private: bool
    new: bool
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class There:
    """A repository that is on the Hub already."""

    commit: str
    private: bool
    files: frozenset[str]


def look(hub: Hub, name: str) -> There | None:
    """A repository of models as it is now; None where the token sees none of that name.

    Raises:
        HubError: the Hub cannot be asked.
    """
    with hub.requests.explained(name), hub.requests.understood(name):
        try:
            found = json.loads(hub.requests.content(f"{hub.endpoint}/api/models/{name}", 16 << 20, params={}))
        except RepositoryNotFoundError:
            return None
        names = frozenset(str(file["rfilename"]) for file in found.get("siblings") or [])
        return There(str(found["sha"]), bool(found.get("private")), names)


@dataclass
class Upload:
    """The upload on a thread of its own: huggingface_hub's calls return when they are done, and not before."""

    hub: Hub
    order: Order
    there: There | None
    files: list[WatchedFile]
    meter: Meter
    account: frozenset[str]
    stage: str = "reading the files"
    made: bool = False
    committing: bool = False
    done: Pushed | None = None
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="push", daemon=True)

    def follow(self, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """Progress until all is done.

        Raises:
            HubError: see `push`.
            Stopped: `cancelled` said so.
        """
        self.thread.start()
        while self.thread.is_alive():
            yield self._progress()
            self.thread.join(BEAT)
            if cancelled():
                raise Stopped
            if self.meter.quiet > (LONGEST_COMMIT if self.committing else SILENCE):
                raise HubError(
                    f"{self.order.name}: the Hub takes no more bytes. Check the connection, and push again."
                )
        if self.error is not None:
            raise why_not(self.error, self.hub, self.order.name, self.account) from None

    def undo(self, why: str, patience: float) -> None:
        """Stop what still goes on, and remove the repository if it was made for nothing.

        Raises:
            HubError: the commit was made before it could be stopped, the empty repository cannot be removed, or the Hub
                did not say so in time.
        """
        self.meter.stop.set()
        self.thread.join(LAST_WORDS)
        left: list[str] = []
        tidy = threading.Thread(target=self._tidy, args=(why, left), name="push-undo", daemon=True)
        tidy.start()
        tidy.join(patience)
        if tidy.is_alive():
            left.append(
                f"{why} The Hub does not answer, so something of it may be left; look at {self._url}."
            )
        if left:
            raise HubError(left[0])

    def _tidy(self, why: str, left: list[str]) -> None:
        """Undo the upload, once it can make no repository and no commit any more; say in `left` what could not be undone.

        One that only sends files is not waited for: it looks at the meter before its commit, which is never begun then.
        """
        if self.committing or (self.there is None and not self.made):
            self.thread.join(LONGEST_COMMIT)
        if self.done is not None:
            left.append(
                f"{self.order.name}: the commit was made before it could be stopped; it is at {self._url}."
            )
        elif self.made:
            try:
                now = look(self.hub, self.order.name)
                if now is not None and now.files <= MADE_BY_THE_HUB:
                    self._api.delete_repo(self.order.name, missing_ok=True)
            except Exception:
                left.append(
                    f"{why} The empty repository made for it could not be removed; delete it at {self._url}."
                )

    @property
    def _url(self) -> str:
        return f"{self.hub.endpoint}/{self.order.name}"

    @property
    def _api(self) -> HfApi:
        return self.hub.api

    def _progress(self) -> Progress:
        meter = self.meter
        share = meter.bytes_done / max(1, meter.nbytes)
        seconds = time.monotonic() - self.began
        return Progress(
            self.stage, meter.files_done, len(meter.files), meter.bytes_done, min(1.0, share), seconds
        )

    def _run(self) -> None:
        try:
            disable_progress_bars()
            self._upload()
        except BaseException as error:
            self.error = error

    def _upload(self) -> None:
        additions = [CommitOperationAdd(file.name, cast(BinaryIO, file)) for file in self.files]
        self.meter.begin()
        name, there = self.order.name, self.there
        if there is None:
            self._api.create_repo(name, private=self.order.private)
            self.made = True
        self.began, self.stage = time.monotonic(), "uploading"
        self.meter.beat()
        self._api.preupload_lfs_files(name, additions)
        self.stage, self.committing = "writing the commit", True
        self.meter.beat()
        names = {file.name for file in self.files}
        stale = sorted(file for file in there.files - names if is_model_file(file)) if there else []
        commit = self._api.create_commit(
            name,
            [*additions, *map(CommitOperationDelete, stale)],
            commit_message=self.order.message,
            parent_commit=there.commit if there else None,
        )
        self.done = Pushed(
            id=name,
            url=self._url,
            commit=str(commit.oid),
            private=there.private if there else self.order.private,
            new=there is None,
            nbytes=self.meter.nbytes,
            seconds=time.monotonic() - self.began,
        )
