"""Models of the Hub: found, pinned to a commit, looked at by their headers, downloaded. Nothing calls out by itself.

```python
hub = Hub.from_environment()
pinned = hub.pin(Reference.parse("org/name@main"))
model = hub.open(pinned)                     # a card, a check: headers, config and tokenizer only
for step in hub.download(pinned): ...        # the last one has the folder
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, ModelInfo, constants, get_token

from merging.checkpoint import Checkpoint
from merging.errors import HubError
from merging.folders.adapter_file import AdapterFile
from merging.folders.room import disk_problem
from merging.hub.cache import cache_folder, has_weights, snapshot_folder
from merging.hub.download import Download, Downloaded, missing_bytes
from merging.hub.files import Pinned, pinned_model, tagged
from merging.hub.remote import open_remote
from merging.hub.requests import HubRequests
from merging.references import Reference
from merging.sources import open_snapshot


@dataclass(frozen=True)
class Found:
    """A model that a search found."""

    id: str
    downloads: int
    likes: int
    gated: bool
    licence: str | None
    updated: datetime | None


class Hub:
    """One visitor's way to the Hub. The token stays in memory: no error, log, record or `repr` shows it.

    Args:
        token: the visitor's own; None asks as nobody. A server's token is never used for a visitor.
        endpoint: by default what HF_ENDPOINT says, or the Hub itself.
        cache: by default huggingface_hub's folder, so that transformers and `hf` find the same files.
    """

    def __init__(self, token: str | None = None, endpoint: str | None = None, cache: Path | None = None):
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.cache = cache
        self.requests = HubRequests(self.endpoint, token)
        self._remote: dict[str, Checkpoint] = {}

    @classmethod
    def from_environment(cls) -> Hub:
        """With the token of this machine's user: HF_TOKEN, or of `hf auth login`. For one's own machine only."""
        return cls(get_token())

    def __repr__(self) -> str:
        return f"Hub({self.endpoint})"

    @property
    def has_token(self) -> bool:
        """Whether the Hub knows who asks."""
        return self.requests.has_token

    @property
    def api(self) -> HfApi:
        """huggingface_hub's own client in this visitor's name, never in that of the machine's user."""
        return self.requests.api

    def answers(self, seconds: float = 3.0) -> bool:
        """Whether the Hub is there at all: one small request, whose answer is not read."""
        return self.requests.answers("/api/models?limit=1", seconds)

    def search(self, text: str, limit: int = 12) -> list[Found]:
        """Models whose id holds `text`, the most downloaded first.

        Raises:
            HubError: offline, limited, or no Hub.
        """
        wanted = ["downloads", "likes", "gated", "lastModified", "tags"]
        params = {"search": text, "limit": limit, "sort": "downloads", "expand": wanted}
        found = self.requests.json("search", "/api/models", params)
        with self.requests.understood("search"):
            return [_found(ModelInfo(**one)) for one in found[:limit]]

    def pin(self, reference: Reference) -> Pinned:
        """The commit that a reference means now, and the files there.

        Raises:
            HubError: missing, gone, private, refused, offline, limited; or without safetensors weights.
        """
        if not reference.looks_like_hub:
            raise HubError(f"{reference}: is no name of a Hub model; write org/name or org/name@revision.")
        what, revision = str(reference.alone), reference.revision or constants.DEFAULT_REVISION
        found = self.requests.json(
            what, f"/api/models/{reference.model}/revision/{quote(revision, safe='')}", {"blobs": "true"}
        )
        with self.requests.understood(what):
            return pinned_model(ModelInfo(**found), reference.model, revision)

    def open(self, pinned: Pinned) -> Checkpoint | AdapterFile:
        """The model itself where it was downloaded, else a `RemoteCheckpoint`: headers, config and tokenizer. An adapter
        comes as its file, to go over a base.

        Raises:
            HubError: refused or cut off on the way.
            CheckpointError: of a kind that cannot be merged.
        """
        folder = snapshot_folder(pinned.id, pinned.commit, self.cache)
        if has_weights(folder):
            self._ensure_access(pinned)
            return open_snapshot(folder, pinned.id)
        if pinned.reference not in self._remote:
            for _ in Download(self.requests, pinned, self.cache).run(pinned.small):
                pass
            with self.requests.explained(pinned.id):
                self._remote[pinned.reference] = open_remote(self.requests, pinned, folder)
        model = self._remote[pinned.reference]
        return AdapterFile(folder, model, pinned.id) if pinned.is_adapter else model

    def look(self, reference: Reference) -> Checkpoint | AdapterFile:
        """`open` what a reference means now."""
        return self.open(self.pin(reference))

    def missing(self, pinned: Pinned) -> int:
        """Bytes that a download would still fetch; what an earlier one left behind counts as there."""
        return missing_bytes(pinned, self.cache)

    def ensure_room(self, models: Sequence[Pinned]) -> None:
        """See that the disk holds what is missing of all these models together.

        Raises:
            HubError: it does not.
        """
        needed = sum(self.missing(pinned) for pinned in models)
        names = ", ".join(pinned.id for pinned in models)
        if needed and (
            problems := disk_problem(self.cache or cache_folder(), needed, f"the download of {names}")
        ):
            raise HubError(problems[0])

    def _ensure_access(self, pinned: Pinned) -> None:
        """See that this visitor may read a gated model, whose facts anybody may; another visitor's download may lie here.

        Raises:
            HubError: gated, and not for them.
        """
        if pinned.gated:
            with self.requests.explained(pinned.id):
                self.requests.content(
                    self.requests.address(pinned.id, pinned.commit, pinned.weights[0].name), 1
                )

    def download(
        self, pinned: Pinned, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Downloaded]:
        """Fetch what is missing; the last event has the folder.

        What was fetched stays when it is cancelled, closed, or breaks off, and the next download goes on there. Every
        file is checked against the content's hash that the Hub lists.

        Raises:
            HubError: no room, refused, cut off, or other bytes than the Hub lists.
            Stopped: `cancelled` said so.
        """
        self._ensure_access(pinned)
        self.ensure_room([pinned])
        download = Download(self.requests, pinned, self.cache, cancelled)
        yield from download.run(pinned.files)
        yield download.finish()


def _found(model: ModelInfo) -> Found:
    return Found(
        id=str(model.id),
        downloads=int(model.downloads or 0),
        likes=int(model.likes or 0),
        gated=bool(model.gated),
        licence=tagged(model, "license:"),
        updated=model.last_modified,
    )
