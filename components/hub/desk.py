"""What the page knows of the Hub: every visitor's token and what was looked up for them, in memory only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from merging import Checkpoint, MergingError
from merging.hub.client import Found, Hub, Pinned
from merging.references import Reference

MOST_LOOKED_UP = 256
"""Models of all visitors together whose headers are kept."""
MOST_OF_OWNER = 48
"""Models of one visitor whose headers are kept."""
MOST_TOKENS = 1000
LONGEST_TOKEN = 500


@dataclass(frozen=True)
class Looked:
    """What the Hub said of a reference: its commit, its headers and the bytes that are still to be downloaded, or why not."""

    pinned: Pinned | None = None
    model: Checkpoint | None = None
    missing: int = 0
    problem: str = ""

    @property
    def is_adapter(self) -> bool:
        """Whether it changes a model and is none."""
        return self.pinned is not None and self.pinned.is_adapter


@dataclass
class HubDesk:
    """Asks the Hub for visitors, each with their own token; `known` asks nothing.

    Nobody learns what was looked up with another's token: answers are kept by owner.
    """

    machine_token: bool = False
    """Whether who has given no token is asked for with this machine's own: where the page is its user's alone."""
    _tokens: OrderedDict[str, str] = field(default_factory=OrderedDict, repr=False)
    _signed_in: set[str] = field(default_factory=set, repr=False)
    _looked: OrderedDict[tuple[str, str], Looked] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take_token(self, owner: str, token: str) -> None:
        """Use a token for this owner from now on; an empty one is forgotten. What failed before may succeed now."""
        with self._lock:
            self._signed_in.discard(owner)
            self._tokens.pop(owner, None)
            if token:
                self._tokens[owner] = token
                while len(self._tokens) > MOST_TOKENS:
                    self._signed_in.discard(self._tokens.popitem(last=False)[0])
        self.forget_failures(owner)

    def sign_in(self, owner: str, token: str) -> None:
        """Use the token of who signed in; one that was typed stays, and without one the owner signed out."""
        if self.has_token(owner) and not self.signed_in(owner):
            return
        self.take_token(owner, token)
        if token:
            with self._lock:
                self._signed_in.add(owner)

    def signed_in(self, owner: str) -> bool:
        """Whether the token in use is that of a signing in."""
        with self._lock:
            return owner in self._signed_in

    def forget_failures(self, owner: str) -> None:
        """Ask again for what could not be looked up."""
        with self._lock:
            for key in [key for key, looked in self._looked.items() if key[0] == owner and looked.problem]:
                del self._looked[key]

    def has_token(self, owner: str) -> bool:
        with self._lock:
            return owner in self._tokens

    def owners(self) -> set[str]:
        """Everybody of whom something is known."""
        with self._lock:
            return {*self._tokens, *(owner for owner, _ in self._looked)}

    def forget(self, owner: str) -> None:
        """Forget an owner's token and what was looked up for them."""
        self.take_token(owner, "")
        with self._lock:
            for key in [key for key in self._looked if key[0] == owner]:
                del self._looked[key]

    def hub(self, owner: str) -> Hub:
        """The Hub as this owner sees it."""
        with self._lock:
            token = self._tokens.get(owner)
        return Hub.from_environment() if token is None and self.machine_token else Hub(token)

    def search(self, owner: str, text: str) -> list[Found]:
        """Models whose name holds a text.

        Raises:
            MergingError: the Hub cannot be asked.
        """
        return self.hub(owner).search(text)

    def known(self, owner: str, reference: Reference) -> Looked | None:
        """What was looked up before; None where the Hub has to be asked."""
        key = owner, str(reference)
        with self._lock:
            looked = self._looked.get(key)
        if looked is not None and looked.missing and looked.pinned is not None:
            hub = self.hub(owner)
            if not hub.missing(looked.pinned):
                return self._keep(key, self._opened(hub, looked.pinned))
        return looked

    def look_up(self, owner: str, reference: Reference) -> Looked:
        """Ask the Hub, by headers only."""
        hub = self.hub(owner)
        try:
            looked = self._opened(hub, hub.pin(reference))
        except MergingError as error:
            looked = Looked(problem=str(error))
        return self._keep((owner, str(reference)), looked)

    def _opened(self, hub: Hub, pinned: Pinned) -> Looked:
        model = None if pinned.is_adapter else hub.open(pinned)
        return Looked(pinned, model, hub.missing(pinned))

    def _keep(self, key: tuple[str, str], looked: Looked) -> Looked:
        with self._lock:
            self._looked.pop(key, None)
            self._looked[key] = looked
            own = [other for other in self._looked if other[0] == key[0]]
            for oldest in own[:-MOST_OF_OWNER]:
                del self._looked[oldest]
            while len(self._looked) > MOST_LOOKED_UP:
                self._looked.popitem(last=False)
        return looked
