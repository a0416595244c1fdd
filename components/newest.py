"""Tables that keep what was asked for last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Newest(Generic[V]):
    """A table that keeps what was asked for last, at most so many entries."""

    def __init__(self, most: int):
        self._most = most
        self._kept: OrderedDict[str, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> V | None:
        """What is kept under a key."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def keep(self, key: str, value: V) -> None:
        """Keep a value in place of the one that was not asked for longest."""
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def find(self, fits: Callable[[V], bool]) -> V | None:
        """The value asked for last of those that fit."""
        with self._lock:
            return next((value for value in reversed(self._kept.values()) if fits(value)), None)
