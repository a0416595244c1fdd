"""Why a push to the Hub went wrong, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from merging.errors import HubError, MergingError
from merging.heartbeats import Stopped
from merging.hub.client import Hub

LONGEST_ANSWER = 200


def why_not(error: BaseException, hub: Hub, name: str, account: frozenset[str]) -> BaseException:
    """What an upload raised as something to be raised for a user; what nobody expects stays as it is.

    Args:
        account: the names under which the token's owner may push.
    """
    for one in _causes(error):
        if isinstance(one, MergingError | Stopped):
            return one
        if isinstance(one, HfHubHTTPError):
            return HubError(f"{name}: {_why(one, hub, name, account)}")
        if isinstance(one, OfflineModeIsEnabled):
            return HubError(f"{name}: HF_HUB_OFFLINE is set, so nothing is sent to the Hub. Unset it.")
        if isinstance(one, HTTPError):
            return HubError(
                f"{name}: the Hub cannot be reached, or the connection broke off. Check it, and push again."
            )
        if isinstance(one, ValueError | TypeError | KeyError | AttributeError):
            said = _said(str(one))
            return HubError(f"{name}: the Hub did not take it as it was sent ({said}).")
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: huggingface_hub wraps what an upload raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _why(error: HfHubHTTPError, hub: Hub, name: str, account: frozenset[str]) -> str:
    status = error.response.status_code
    said = _said(error.server_message or "")
    if status == 401:
        return "the Hub does not know your token any more. Make a new one with the right to write, and give that."
    if status in (402, 403) and "storage" in said.lower():
        return f"your account has no room for it ({said}). Make room there, or push it as public."
    if status == 403:
        yours = ", ".join(sorted(account))
        return f"your token may not write there ({said}). It can push under {yours}, with the right to write."
    if status == 409:
        return "is on the Hub already, where your token does not see it. Choose another name."
    if status == 412:
        return "somebody committed there meanwhile. Look at what changed, and push again."
    if status == 413:
        return f"is too large for the Hub ({said}). Merge to bfloat16, or write smaller shards."
    if status in (400, 404, 422):
        return f"the Hub did not take it ({said})."
    return hub.requests.why_status(status, error.response.headers)


def _said(text: Any) -> str:
    """What the Hub says, as the end of a sentence in brackets."""
    words = " ".join(str(text).split())
    return words[:LONGEST_ANSWER].rstrip(". ") or "it does not say why"
