"""Pushing a merged folder to the Hub: one commit, private unless asked otherwise, and nothing left of a push that fails.

```python
for step in push(Hub(token), folder, Order("me/my-merge"), packing(folder)): ...   # the last one is `Pushed`
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from merging.errors import HubError
from merging.events import Progress
from merging.heartbeats import Stopped
from merging.hub.client import Hub
from merging.hub.push_files import Meter, open_files
from merging.hub.upload import MESSAGE, Order, Pushed, There, Upload, look

LONGEST_MESSAGE = 200
LONGEST_NAME = 96
PATIENCE = 3.0
"""Seconds that a push which ends early waits for the Hub to remove the repository made for it; an answer takes one or less."""


def repository_name(text: str) -> str:
    """A name as the Hub allows it.

    Raises:
        HubError: it is none; says what the Hub allows.
    """
    name = text.strip()
    if not name:
        raise HubError("Write the name of the repository: org/name, with your account or organisation first.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    owner, _, own = name.partition("/")
    if not owner or not own or len(owner) > LONGEST_NAME or len(own) > LONGEST_NAME:
        raise HubError(
            f"'{text.strip()[:60]}' is no name of a repository; write org/name: your account or organisation, then letters, "
            f"digits, '-', '_' and '.', at most {LONGEST_NAME}, not beginning or ending with '-' or '.', without '--' or '..'."
        )
    return name


def push(
    hub: Hub,
    folder: Path,
    order: Order,
    packing: Iterable[Progress | Mapping[str, bytes]],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    patience: float = PATIENCE,
) -> Iterator[Progress | Pushed]:
    """Upload a folder and commit it at once; the last event says where it is.

    A repository that was made for it and is still empty is removed when the push fails, is cancelled or is closed.

    Args:
        packing: makes what goes in place of the folder's own files or beside them, by name, and tells how far it is; it
            is begun once the Hub has said who pushes.
        patience: seconds for the removing, which goes on afterwards as long as the process lives.

    Raises:
        HubError: a wrong name, no token or one that may not write, a repository that is there, no room, a limit, a
            connection that broke off; also where something was or may be left on the Hub.
        Stopped: `cancelled` said so.
    """
    order = _checked(order)
    account = account_of(hub)
    there = _there(hub, order, account)
    over: Mapping[str, bytes] = {}
    for event in packing:
        if isinstance(event, Progress):
            yield replace(event, stage="drawing the maps of the model card", bytes_done=0)
            if cancelled():
                raise Stopped
        else:
            over = event
    with ExitStack() as files:
        meter = Meter()
        upload = Upload(hub, order, there, open_files(folder, over, meter, files), meter, account)
        try:
            yield from upload.follow(cancelled)
        except HubError as error:
            upload.undo(str(error), patience)
            raise
        except BaseException:
            upload.undo("Cancelled.", patience)
            raise
        assert upload.done is not None
        yield upload.done


def _checked(order: Order) -> Order:
    message = " ".join(order.message.split())[:LONGEST_MESSAGE] or MESSAGE
    return Order(repository_name(order.name), bool(order.private), bool(order.add), message)


def account_of(hub: Hub) -> frozenset[str]:
    """The names under which the token's owner may push, in small letters.

    Raises:
        HubError: there is no token, it is unknown, or it may only read.
    """
    if not hub.has_token:
        raise HubError(
            "To push, the Hub has to know you: give an access token with the right to write, or sign in."
        )
    with hub.requests.explained("your account"), hub.requests.understood("your account"):
        who = json.loads(hub.requests.content(f"{hub.endpoint}/api/whoami-v2", 1 << 20, params={}))
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        names = [who["name"], *(org["name"] for org in who.get("orgs") or [])]
    if role == "read":
        raise HubError(
            "Your token may only read. Make one with the right to write under Settings, Access Tokens."
        )
    return frozenset(str(name).lower() for name in names)


def _there(hub: Hub, order: Order, account: frozenset[str]) -> There | None:
    """The repository as it is; None where there is none that the token may see.

    Raises:
        HubError: it is there, and may not be added to.
    """
    found = look(hub, order.name)
    if found is None:
        return None
    if order.name.partition("/")[0].lower() not in account:
        raise HubError(
            f"{order.name}: is on the Hub already, and not yours. Choose a name that begins with your account's."
        )
    if not order.add:
        raise HubError(
            f"{order.name}: is on the Hub already. Choose another name, or let it be a further commit there."
        )
    return found
