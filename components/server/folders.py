"""What lies in folders that others write to meanwhile: what is gone is as if it had never been there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def inside(folder: Path) -> list[Path]:
    """All that a folder holds."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def changed(path: Path) -> float:
    """When it changed last, in seconds since the epoch; infinity for what is gone."""
    try:
        return path.stat(follow_symlinks=False).st_mtime
    except OSError:
        return float("inf")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, links not followed; 0 where there is none."""
    return sum(state.st_size for state in states(folder))


def states(folder: Path) -> Iterator[os.stat_result]:
    """Size and times of all files in a folder, links not followed."""
    try:
        found = list(os.scandir(folder))
    except OSError:
        return
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from states(Path(entry.path))
            elif not entry.is_symlink():
                yield entry.stat(follow_symlinks=False)
        except OSError:
            continue
