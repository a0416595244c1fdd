"""What is made once and then kept by this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Make = TypeVar("Make", bound=Callable[..., Any])
_kept: list[Any] = []


def kept(make: Make) -> Make:
    """Have what a function makes of its arguments kept, until `begin_anew`."""
    found = cache(make)
    _kept.append(found)
    return found  # type: ignore[return-value]


def begin_anew() -> None:
    """Forget all of it, models and locks included. Whoever has some of it goes on with that."""
    for one in _kept:
        one.cache_clear()
