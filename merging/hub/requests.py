"""Requests to the Hub that are bounded: so many bytes, so many seconds, no waiting for a retry; errors in a sentence.

huggingface_hub's own calls wait for minutes when the Hub limits requests, read an answer whole however long it is, and
drop what they have of a file when they are stopped; its session, addresses, headers and error classes are used here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from merging.errors import HubError

SILENCE = 10.0
"""Seconds without a byte after which a request is given up."""
LONGEST = 60.0
"""Seconds that an answer of limited size may take."""
MOST_JSON = 16 << 20
TOKEN_LETTERS = re.compile(r"[!-~]{1,1000}")


class CutOff(Exception):
    """The connection ended before the answer did."""


class HubRequests:
    """GET requests to one Hub in one visitor's name. The token goes to the Hub alone, not to where it redirects."""

    def __init__(self, endpoint: str, token: str | None):
        self.endpoint = endpoint.rstrip("/")
        self._token = token

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    @property
    def api(self) -> HfApi:
        """huggingface_hub's own client with just this token."""
        return HfApi(endpoint=self.endpoint, token=self._token or False)

    def address(self, model: str, commit: str, name: str) -> str:
        """Where a file of a model is."""
        return hf_hub_url(model, name, revision=commit, endpoint=self.endpoint)

    def json(self, what: str, path: str, params: Mapping[str, Any]) -> Any:
        """An answer of the Hub's API about `what`.

        Raises:
            HubError: see `explained`.
        """
        with self.explained(what), self.understood(what):
            return json.loads(self.content(f"{self.endpoint}{path}", MOST_JSON, params=params))

    def answers(self, path: str, seconds: float) -> bool:
        """Whether the API has something at a path, and begins to say so within some seconds; nobody's token is sent."""
        headers = build_hf_headers(token=False)
        try:
            with get_session().stream(
                "GET", self.endpoint + path, headers=headers, timeout=seconds
            ) as answer:
                return bool(answer.status_code == 200)
        except (OfflineModeIsEnabled, HTTPError):
            return False

    def content(
        self, url: str, most: int, *, first: int = 0, params: Mapping[str, Any] | None = None
    ) -> bytes:
        """The bytes of an answer from `first` on, `most` of them at most; within `LONGEST` seconds."""
        end = time.monotonic() + LONGEST
        found = bytearray()
        for chunk in self.pieces(url, first, first + most, params=params):
            found += chunk
            if time.monotonic() > end:
                raise CutOff
        return bytes(found)

    def pieces(
        self,
        url: str,
        first: int,
        stop: int,
        *,
        total: int | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """The bytes `first` to `stop` of a file as they arrive; of a shorter one, all from `first` on.

        A server that cannot begin in the middle begins at the start; what lies before is passed over.

        Args:
            total: what the file's size has to be.

        Raises:
            CutOff: the connection broke, or nothing came for `SILENCE` seconds.
            HfHubHTTPError: the Hub's own no.
            HubError: the file has another size than it should.
        """
        if self._token and not TOKEN_LETTERS.fullmatch(self._token):
            raise HubError("The token holds letters that no token has. Copy it again.")
        headers = {**build_hf_headers(token=self._token or False), "Accept-Encoding": "identity"}
        if params is None:
            headers["Range"] = f"bytes={first}-{stop - 1}"
        try:
            with get_session().stream("GET", url, headers=headers, params=params, timeout=SILENCE) as answer:
                size = _size(answer) if answer.status_code in (200, 206, 416) else None
                if None not in (total, size) and size != total:
                    raise HubError(
                        f"{url.rpartition('/')[2]}: the Hub lists {total:,} bytes and sends {size:,}. Try again later."
                    )
                hf_raise_for_status(answer)
                place = first if answer.status_code == 206 else 0
                for chunk in answer.iter_raw():
                    wanted = chunk[max(0, first - place) : stop - place]
                    place += len(chunk)
                    if wanted:
                        yield wanted
                    if place >= stop:
                        return
        except HfHubHTTPError:
            raise
        except HTTPError:
            raise CutOff from None

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turns what goes wrong with a request about `what` into a sentence.

        Raises:
            HubError: gated, private, missing, refused, limited, offline, cut off, or no Hub at all.
        """
        try:
            yield
        except OfflineModeIsEnabled:
            raise HubError(
                f"{what}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it, or use what was downloaded."
            ) from None
        except HfHubHTTPError as error:
            raise HubError(f"{what}: {self._why(what, error)}") from None
        except (CutOff, HTTPError):
            raise HubError(
                f"{what}: the Hub cannot be reached, or its answer broke off. Check the connection and try again; models "
                "that were downloaded can be used without it."
            ) from None

    @contextmanager
    def understood(self, what: str) -> Iterator[None]:
        """Turns an answer about `what` that is none of the Hub's into a sentence.

        Raises:
            HubError: it is.
        """
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise HubError(
                f"{what}: {self.endpoint} answered with something the Hub would not say. Check HF_ENDPOINT."
            ) from None

    def _why(self, what: str, error: HfHubHTTPError) -> str:
        model = what.partition("@")[0]
        if isinstance(error, GatedRepoError):
            page = f"{self.endpoint}/{model}"
            if self._token:
                return f"is gated, and the account of your token has no access yet. Ask for it at {page}."
            return f"is gated. Accept its conditions at {page} and give a token of that account."
        if isinstance(error, RepositoryNotFoundError):
            hint = "and whether your token may read it" if self._token else "or give a token if it is private"
            return f"is no model of the Hub, or a private one. Check the spelling, {hint}."
        if isinstance(error, RevisionNotFoundError):
            return "the Hub knows the model, but not this revision; it may have been deleted or renamed."
        if isinstance(error, RemoteEntryNotFoundError):
            return "a file that the Hub listed is gone. Look the model up again."
        if isinstance(error, DisabledRepoError):
            return "was disabled on the Hub; nobody can read it."
        return self.why_status(error.response.status_code, error.response.headers)

    def why_status(self, status: int, headers: Mapping[str, str]) -> str:
        """A status that is no success, as the rest of a sentence."""
        if status == 401:
            return "the Hub does not know your token. Make a new one under Settings, Access Tokens, and give that."
        if status == 403:
            return "your token may not read this. Give one with read access."
        if status == 404:
            return "the Hub has no such model."
        if status == 429:
            reset = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
            wait = headers.get("Retry-After", "") or (reset[1] if reset else "")
            hint = "" if self._token else " A token raises the limit."
            return f"the Hub allows no more requests for now. Try again in {f'{wait} seconds' if wait.isdigit() else 'a few minutes'}.{hint}"
        if status >= 500:
            return f"the Hub has trouble of its own (error {status}). Try again in a few minutes."
        return f"the Hub refused the request (error {status})."


def _size(answer: Any) -> int | None:
    """The size of the whole file that an answer holds all or a part of, where it tells."""
    text = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get(
        "Content-Length", ""
    )
    return int(text) if text.isdigit() else None
