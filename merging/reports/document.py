"""`report.json`: what it says, and what is wrong with one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from merging.errors import CheckpointError, MergingError
from merging.inspecting.changes import bin_edges
from merging.methods import Scope
from merging.version import __version__

NUMBERS, DOCUMENT = "report.safetensors", "report.json"
VERSION = 1
MOST_BYTES = 256 << 20
"""A larger `report.json` is not read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Table(_Strict):
    names: list[str]
    columns: list[str]


class SampleTable(_Strict):
    share: float
    groups: list[Table]


class TrimTable(_Strict):
    density: float
    scope: Scope
    tensors: Table
    sample: SampleTable | None


class PreviewTable(_Strict):
    recipe: str
    method: str
    elementwise: bool
    tensors: Table
    effective: dict[str, dict[str, Any]]
    dtypes: dict[str, str]
    copied: list[str]
    sample: SampleTable | None


class Document(_Strict):
    """All of `report.json`."""

    format: Literal["mergescope report"] = "mergescope report"
    version: Literal[1] = 1
    mergescope: str = __version__
    digest: str
    base: str
    experts: list[str]
    bin_edges: list[float]
    tensors: Table
    trim: TrimTable | None
    preview: PreviewTable | None
    warnings: list[str]
    sample: SampleTable | None = None


def _content(folder: Path) -> dict[str, Any]:
    """What `report.json` says, of whatever version."""
    file = folder / DOCUMENT
    try:
        if file.stat().st_size > MOST_BYTES:
            raise damaged(folder, f"{DOCUMENT} is too large")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MergingError(f"{folder}: holds no report; {DOCUMENT} is missing.") from None
    except OSError as error:
        raise MergingError(f"{folder}: the report cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise damaged(folder, f"{DOCUMENT} is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != "mergescope report":
        raise MergingError(f"{folder}: its {DOCUMENT} is not a report of Mergescope.")
    return content


def read_document(folder: Path) -> Document:
    """The document of a folder.

    Raises:
        MergingError: there is none, it is damaged, or a newer version wrote it.
    """
    content = _content(folder)
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise MergingError(f"{folder}: a newer Mergescope wrote this report; update Mergescope to read it.")
    try:
        document = Document.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if document.bin_edges != bin_edges():
        raise damaged(folder, "its histograms have other bins")
    return document


def is_report(folder: Path) -> bool:
    """Whether a folder holds a report of any version."""
    try:
        return _content(folder).get("format") == "mergescope report"
    except MergingError:
        return False


def damaged(folder: Path, what: str) -> CheckpointError:
    """The error of a report that cannot be trusted."""
    return CheckpointError(f"{folder}: the report is damaged ({what}). Inspect the models again.")
