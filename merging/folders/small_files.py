"""The small files of a model folder: JSON and text of strangers, read only as far as memory and sense allow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from merging.errors import CheckpointError

Made = TypeVar("Made")

MOST_BYTES = 64 << 20
"""A larger file is not read; the largest tokenizers in use have about 35 MB."""
MOST_LISTS = 4_000_000
"""Lists and tables in a file; a pair of texts for each merge makes 0.6 million of the largest. More fill the memory."""
MOST_KEPT = 12
"""Vocabularies that are kept; one of 150,000 tokens takes 20 MB."""

_kept: dict[bytes, Any] = {}
_keeping = Lock()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table from a model folder.

    Raises:
        CheckpointError: missing, too large, not JSON, or not a table.
    """
    return _parsed(path, _read(path))


def read_kept(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What `make` makes of a JSON table: one and the same, not to be changed, for all files with the same bytes. Parsing a
    real tokenizer takes a hundred times as long as looking whether it is one that is known.

    Raises:
        CheckpointError: as `read_json`; and whatever `make` raises.
    """
    content = _read(path)
    key = hashlib.blake2b(content, key=make.__qualname__.encode()[:64]).digest()
    with _keeping:
        if key in _kept:
            found: Made = _kept.pop(key)
            _kept[key] = found
            return found
    made = make(_parsed(path, content))
    with _keeping:
        _kept[key] = made
        while len(_kept) > MOST_KEPT:
            del _kept[next(iter(_kept))]
    return made


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    if len(content) > MOST_LISTS and content.count(b"[") + content.count(b"{") > MOST_LISTS:
        raise CheckpointError(
            f"{path}: is made of more lists than a model's file can have; it was not read. Download it again."
        )
    try:
        table = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}). Download it again.") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: holds no JSON table. Download it again.")
    return table


def read_text(path: Path) -> str:
    """A text from a model folder; bytes that are no text are replaced.

    Raises:
        CheckpointError: missing or too large.
    """
    return _read(path).decode("utf-8", errors="replace")


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise CheckpointError(
                f"{path}: has {size:,} bytes, too many for a file of its kind; it was not read. Download it again."
            )
        return path.read_bytes()
    except PermissionError:
        raise CheckpointError(f"{path}: cannot be read; its permissions do not allow it.") from None
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing. A model folder needs this file; copy it from the model."
        ) from None


def config_in(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`; an empty dictionary where it has none.

    Raises:
        CheckpointError: as `read_json`.
    """
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}
