"""The folder of a report: it appears when everything in it is written, and replaces only an earlier report."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from merging.errors import OutputError
from merging.folders.atomic_folder import LOCK, AtomicFolder
from merging.reports.document import DOCUMENT, NUMBERS
from merging.reports.report import Report

PAGE, TABLE = "report.html", "tensors.csv"
OURS = frozenset({PAGE, TABLE, DOCUMENT, NUMBERS})
PATIENCE = 10.0
"""Seconds to wait for another report that is being written to the same folder."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def ensure_report_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier report.

    Raises:
        OutputError: naming what is in the way.
    """
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: is a file or link; choose the name of a new folder.")
        others = sorted(file.name for file in out.iterdir() if file.name not in {*OURS, LOCK})
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{str(out)[:300]}: cannot be used ({error.strerror}); choose another folder."
        ) from None
    if others:
        raise OutputError(
            f"{out}: holds {others[0]!r}, which is no part of a report; choose a new or empty folder."
        )


def write_report(report: Report, page: str, out: Path) -> list[str]:
    """Write numbers, table and page into `out`, all or nothing; the names of the files.

    Raises:
        OutputError: `out` holds something else, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    try:
        folder = AtomicFolder(out, DOCUMENT, ensure_report_folder, PATIENCE)
        try:
            report.save(folder.partial)
            (folder.partial / PAGE).write_text(page, encoding="utf-8")
            with (folder.partial / TABLE).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows(report))
            folder.commit()
        except BaseException:
            folder.abort()
            raise
    except OSError as error:
        raise OutputError(f"{out}: the report cannot be written ({error.strerror}).") from None
    return sorted(OURS)


def rows(report: Report) -> Iterable[list[Any]]:
    """A line for each tensor, after one of headings; a text that a spreadsheet would run gets an apostrophe."""
    for line in _rows(report):
        yield [f"'{v}" if isinstance(v, str) and v.startswith(FORMULA_STARTS) else v for v in line]


def _rows(report: Report) -> Iterable[list[Any]]:
    experts = range(len(report.experts))
    pairs = [f"{report.experts[a]} × {report.experts[b]}" for a, b in combinations(experts, 2)]
    yield [
        "tensor",
        "elements",
        *(f"relative change of {name}" for name in report.experts),
        *(f"changed share of {name}" for name in report.experts),
        *(f"NaN or infinite in {name}" for name in ("the base", *report.experts)),
        *(f"opposite signs of {pair}" for pair in pairs),
        *(f"cosine of {pair}" for pair in pairs),
    ]
    for name, found in report.tensors.items():
        yield [
            name,
            found.elements,
            *(found.relative_change(expert) for expert in experts),
            *(found.changed_share(expert) for expert in experts),
            *found.broken,
            *(found.signs.opposite_share(pair) for pair in range(len(pairs))),
            *(found.cosine(pair) for pair in range(len(pairs))),
        ]
