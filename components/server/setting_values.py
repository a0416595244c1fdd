"""What the environment's variables may say: how each kind of value is written and read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "MERGESCOPE_"
NO_LIMIT = "any"
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Told:
    """How a variable sets a field: `read` makes a value of its text, `form` says what may be written, `meaning` what for.

    `shared` is the default on a server that several people use, where that is another; `alone` the usual one as the README
    writes it, where the value is no text for people.
    """

    name: str
    read: Callable[[str], Any]
    form: str
    meaning: str
    alone: str = ""
    shared: str = ""

    @property
    def variable(self) -> str:
        return PREFIX + self.name


def switch(text: str) -> bool:
    """`1` or `0`."""
    return {"1": True, "0": False}[text]


def opposite(text: str) -> bool:
    """False for `1`."""
    return not switch(text)


def whole(least: int, most: int = 10**18) -> Callable[[str], int]:
    """A whole number within limits, also written as `5e9`."""

    def read(text: str) -> int:
        number = float(text)
        if number != int(number) or not least <= number <= most:
            raise ValueError
        return int(number)

    return read


def limit(least: int) -> Callable[[str], int | None]:
    """A whole number, or `any` for no limit."""
    return lambda text: None if text == NO_LIMIT else whole(least)(text)


def span(text: str) -> int | None:
    """Seconds of `90m`, `24h`, `7d`, or of a plain number; `any` for no end."""
    if text == NO_LIMIT:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if found is None or int(found[1]) == 0:
        raise ValueError
    return int(found[1]) * SPANS[found[2] or "s"]


def a_device(text: str) -> str:
    """The name of a device."""
    if not DEVICE.fullmatch(text):
        raise ValueError
    return text


def a_folder(text: str) -> Path:
    """A folder; `~` is the home."""
    if "\0" in text:
        raise ValueError
    return Path(text).expanduser()
