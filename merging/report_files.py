"""A report as two files of a folder: `report.safetensors` holds the numbers, `report.json` all else.

Every field of the records is a column over the tensors, float64 or int64; `report.json` names the tensors and columns
of each table, and the digest of the numbers, so that files that do not belong together are noticed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save as as_safetensors

from merging.changes import TensorStatistics, bin_edges, pairs_of
from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError, MergingError, OutputError
from merging.fate import FATES, TensorFate
from merging.methods import Scope
from merging.record_columns import Columns, columns_of
from merging.report import Preview, Report, Sample, Trim, Trimmed
from merging.sign_conflict import Conflict
from merging.sums import Record
from merging.version import __version__

NUMBERS, DOCUMENT = "report.safetensors", "report.json"
VERSION = 1
MOST_BYTES = 256 << 20
"""A larger `report.json` is not read."""
SIZES: dict[type, dict[str, str]] = {
    TensorStatistics: {
        **dict.fromkeys(("change", "total", "mass", "nonzero", "largest"), "t"),
        "histogram": "tb",
        "dot": "p",
        "broken": "m",
    },
    Conflict: {"covered": "k", "shared": "p", "opposite": "p"},
    Trimmed: {"kept": "t", "threshold": "t"},
    TensorFate: {"energy": "tf", "along": "t", "gram": "tt"},
}
"""The lengths of lists: t experts, m models, p pairs, k numbers of experts from two on, b bins, f fates."""
R = TypeVar("R", bound=Record)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Table(_Strict):
    names: list[str]
    columns: list[str]


class _Sample(_Strict):
    share: float
    groups: list[_Table]


class _Trim(_Strict):
    density: float
    scope: Scope
    tensors: _Table
    sample: _Sample | None


class _Preview(_Strict):
    recipe: str
    method: str
    elementwise: bool
    tensors: _Table
    effective: dict[str, dict[str, Any]]
    dtypes: dict[str, str]
    copied: list[str]
    sample: _Sample | None


class _Document(_Strict):
    """All of `report.json`."""

    format: Literal["mergescope report"] = "mergescope report"
    version: Literal[1] = 1
    mergescope: str = __version__
    digest: str
    base: str
    experts: list[str]
    bin_edges: list[float]
    tensors: _Table
    trim: _Trim | None
    preview: _Preview | None
    warnings: list[str]
    sample: _Sample | None = None


def save_report(report: Report, folder: Path) -> None:
    """Write both files under other names, then rename them.

    Raises:
        OutputError: the folder cannot be written, or holds other things than a report.
    """
    columns: dict[str, torch.Tensor] = {}
    document = _describe(report, columns)
    numbers = as_safetensors({name: values.contiguous() for name, values in columns.items()})
    text = document.model_copy(update={"digest": _digest(numbers)}).model_dump_json(indent=1)
    mark = f".{secrets.token_hex(4)}.partial"
    parts = [(folder / f".{name}{mark}", folder / name) for name in (NUMBERS, DOCUMENT)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_ours(folder)
        for (part, _), content in zip(parts, (numbers, text.encode()), strict=True):
            part.write_bytes(content)
        for part, file in parts:
            part.replace(file)
    except OSError as error:
        raise OutputError(f"{folder}: the report cannot be written ({error.strerror}).") from None
    finally:
        for part, _ in parts:
            with suppress(OSError):
                part.unlink()


def load_report(folder: Path) -> Report:
    """The report of a folder.

    Raises:
        MergingError: there is none, it is damaged, or a newer version wrote it.
    """
    document = _read(folder)
    stored = Checkpoint.open(folder / NUMBERS)
    with (folder / NUMBERS).open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if digest != document.digest:
        raise _damaged(folder, f"{NUMBERS} is not the file that {DOCUMENT} describes")
    return _Reader(folder, stored, len(document.experts)).report(document)


def is_report(folder: Path) -> bool:
    """Whether a folder holds a report of any version."""
    try:
        return _content(folder).get("format") == "mergescope report"
    except MergingError:
        return False


def _describe(report: Report, columns: dict[str, torch.Tensor]) -> _Document:
    """The document; the numbers go into `columns`."""

    def table(prefix: str, records: Mapping[str, Record]) -> _Table:
        some = list(records.values())
        found = dict(columns_of(type(some[0]), some)) if some else {}
        columns.update({f"{prefix}/{path}": values for path, values in found.items()})
        return _Table(names=list(records), columns=list(found))

    def sampled(prefix: str, sample: Sample | None) -> _Sample | None:
        if sample is None:
            return None
        groups = [table(f"{prefix}/{number}", group) for number, group in enumerate(sample.groups)]
        return _Sample(share=sample.share, groups=groups)

    def trimmed(trim: Trim) -> _Trim:
        return _Trim(
            density=trim.density,
            scope=trim.scope,
            tensors=table("trim", trim.tensors),
            sample=sampled("trim", trim.sample),
        )

    def previewed(preview: Preview) -> _Preview:
        return _Preview(
            recipe=preview.recipe,
            method=preview.method,
            elementwise=preview.elementwise,
            tensors=table("preview", preview.tensors),
            effective={name: _as_json(values) for name, values in preview.effective.items()},
            dtypes=preview.dtypes,
            copied=list(preview.copied),
            sample=sampled("preview", preview.sample),
        )

    return _Document(
        digest="",
        base=report.base,
        experts=list(report.experts),
        bin_edges=bin_edges(),
        tensors=table("changes", report.tensors),
        trim=None if report.trim is None else trimmed(report.trim),
        preview=None if report.preview is None else previewed(report.preview),
        warnings=list(report.warnings),
        sample=sampled("changes", report.sample),
    )


class _Reader:
    """Makes records out of stored columns, and checks that they fit so many experts."""

    def __init__(self, folder: Path, stored: Checkpoint, experts: int):
        self.folder, self.stored = folder, stored
        lengths = {
            "t": experts,
            "m": experts + 1,
            "p": len(pairs_of(experts)),
            "k": max(0, experts - 1),
            "b": len(bin_edges()) - 1,
            "f": len(FATES),
        }
        self.lengths = {
            kind: {name: [lengths[letter] for letter in letters] for name, letters in table.items()}
            for kind, table in SIZES.items()
        }

    def report(self, document: _Document) -> Report:
        return Report(
            base=document.base,
            experts=tuple(document.experts),
            tensors=self.table("changes", TensorStatistics, document.tensors),
            trim=None if document.trim is None else self.trim(document.trim),
            preview=None if document.preview is None else self.preview(document.preview),
            warnings=tuple(document.warnings),
            sample=self.sample("changes", TensorStatistics, document.sample),
        )

    def trim(self, trim: _Trim) -> Trim:
        return Trim(
            trim.density,
            trim.scope,
            self.table("trim", Trimmed, trim.tensors),
            self.sample("trim", Trimmed, trim.sample),
        )

    def preview(self, preview: _Preview) -> Preview:
        return Preview(
            recipe=preview.recipe,
            method=preview.method,
            elementwise=preview.elementwise,
            tensors=self.table("preview", TensorFate, preview.tensors),
            effective={name: _from_json(values) for name, values in preview.effective.items()},
            dtypes=preview.dtypes,
            copied=tuple(preview.copied),
            sample=self.sample("preview", TensorFate, preview.sample),
        )

    def sample(self, prefix: str, kind: type[R], sample: _Sample | None) -> Sample | None:
        if sample is None:
            return None
        groups = (self.table(f"{prefix}/{n}", kind, group) for n, group in enumerate(sample.groups))
        return Sample(sample.share, tuple(groups))

    def table(self, prefix: str, kind: type[R], table: _Table) -> dict[str, R]:
        if not table.names:
            return {}
        if len(set(table.names)) < len(table.names):
            raise _damaged(self.folder, "a tensor is listed twice")
        columns = Columns(self.stored, prefix + "/", table.columns, len(table.names), self.lengths)
        try:
            return dict(zip(table.names, columns.records(kind), strict=True))
        except CheckpointError as error:
            raise _damaged(self.folder, str(error)) from None


def _as_json(value: Any) -> Any:
    """Tuples, which have a value for each expert, are told from lists."""
    if isinstance(value, tuple):
        return {"experts": [_as_json(one) for one in value]}
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"experts"} and isinstance(value["experts"], list):
            return tuple(_from_json(one) for one in value["experts"])
        return {name: _from_json(one) for name, one in value.items()}
    return value


def _content(folder: Path) -> dict[str, Any]:
    """What `report.json` says, of whatever version."""
    file = folder / DOCUMENT
    try:
        if file.stat().st_size > MOST_BYTES:
            raise _damaged(folder, f"{DOCUMENT} is too large")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise MergingError(f"{folder}: holds no report; {DOCUMENT} is missing.") from None
    except OSError as error:
        raise MergingError(f"{folder}: the report cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise _damaged(folder, f"{DOCUMENT} is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != "mergescope report":
        raise MergingError(f"{folder}: its {DOCUMENT} is not a report of Mergescope.")
    return content


def _read(folder: Path) -> _Document:
    content = _content(folder)
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise MergingError(f"{folder}: a newer Mergescope wrote this report; update Mergescope to read it.")
    try:
        return _Document.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _require_ours(folder: Path) -> None:
    if (folder / DOCUMENT).exists() and not is_report(folder):
        raise OutputError(f"{folder}: its {DOCUMENT} is not a report of ours; choose another folder.")
    others = [file.name for file in folder.iterdir() if not file.name.startswith(".")]
    if others and not is_report(folder):
        raise OutputError(
            f"{folder}: holds {sorted(others)[0]!r} and no report; choose a new or empty folder."
        )


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: the report is damaged ({what}). Inspect the models again.")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
