"""Whether this machine has room for a merge: an output folder that may be written, memory, disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from merging.errors import MergingError, OutputError
from merging.folders.atomic_folder import hidden_names
from merging.references import path_exists
from merging.writer import ensure_replaceable

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_bytes(size: str | int | None) -> int | None:
    """A number of bytes as people write it: `512MB`, `1.5 GiB`; None stays None.

    Raises:
        MergingError: it is none.
    """
    if size is None:
        return None
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*", str(size))
    units = {unit.lower(): count for unit, count in UNITS.items()}
    if found is None or (found[2] or "B").lower() not in units:
        raise MergingError(
            f"memory: {str(size)[:40]!r} is no number of bytes; write for example 512MB or 2GB."
        )
    return int(float(found[1]) * units[(found[2] or "B").lower()])


def bytes_text(count: float) -> str:
    """A number of bytes with a unit, such as `98.3 kB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def output_problem(out: Path, inputs: Iterable[Path]) -> list[str]:
    """Why `out` cannot be the output folder: it is an input, holds one, lies in one, or holds foreign files."""
    taken = input_problem(out, inputs)
    if taken:
        return taken
    try:
        ensure_replaceable(out)
    except OutputError as error:
        return [str(error)]
    return []


def input_problem(out: Path, inputs: Iterable[Path]) -> list[str]:
    """Why `out` cannot be an output folder beside these inputs: it is one, holds one, or lies in one."""
    try:
        target = Path(os.path.realpath(out))
    except (OSError, ValueError):
        return [f"{str(out)[:200]}: cannot be the name of a folder; choose another."]
    for folder in inputs:
        source = folder.resolve()
        taken = (target, *hidden_names(target))
        if source in target.parents or any(one == source or one in source.parents for one in taken):
            return [
                f"{out}: the output would overwrite or enclose the input {folder}; choose another folder."
            ]
    return []


def free_memory() -> int | None:
    """Bytes of memory that nobody uses; None where the system does not tell."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        return max(
            free,
            *(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith("MemAvailable")),
        )
    except (OSError, ValueError, TypeError):
        return None


def memory_problem(needed: int) -> list[str]:
    """Too little free memory for `needed` bytes; nothing where the system does not tell."""
    free = free_memory()
    if free is not None and needed > free:
        return [
            f"this merge needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; close something."
        ]
    return []


def disk_problem(out: Path, needed: int, what: str = "the result") -> list[str]:
    """Too little free space for `needed` bytes where `out` will lie."""
    folder = out.absolute()
    while not path_exists(folder):
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + (32 << 20) > free:
        return [
            f"{out}: {what} needs {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free; make room."
        ]
    return []
