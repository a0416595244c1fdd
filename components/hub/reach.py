"""Whether the Hub is there: asked in the background, once for all visitors, and again when that was long ago."""

from __future__ import annotations

import threading
import time
from functools import cache

from merging.hub.client import Hub

GOOD_FOR, BAD_FOR = 600.0, 60.0
"""Seconds for which an answer, and a silence, are believed."""


class Reach:
    """What is known of one Hub; `known` never waits."""

    def __init__(self, hub: Hub):
        self._hub = hub
        self._answered = False
        self._old_at = 0.0
        self._asking = threading.Lock()

    def known(self) -> bool:
        """Whether the Hub answered when it was last asked."""
        if time.monotonic() >= self._old_at and not self._asking.locked():
            threading.Thread(target=self.ask, name="hub-reach", daemon=True).start()
        return self._answered

    def ask(self) -> bool:
        """Ask the Hub, and wait for it."""
        with self._asking:
            self._answered = self._hub.answers()
            self._old_at = time.monotonic() + (GOOD_FOR if self._answered else BAD_FOR)
            return self._answered


def hub_reach() -> Reach:
    """What this process knows of the Hub that HF_ENDPOINT names."""
    return _reach(Hub().endpoint)


@cache
def _reach(endpoint: str) -> Reach:
    return Reach(Hub(endpoint=endpoint))
