"""A report as two files of a folder: `report.safetensors` holds the numbers, `report.json` all else.

Every field of the records is a column over the tensors, float64 or int64; `report.json` names the tensors and columns
of each table, and the digest of the numbers, so that files that do not belong together are noticed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save as as_safetensors

from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError, OutputError
from merging.inspecting.changes import TensorStatistics, bin_edges
from merging.inspecting.fate import FATES, Cast, TensorFate
from merging.inspecting.record_columns import Columns, columns_of
from merging.inspecting.sign_conflict import Conflict
from merging.inspecting.sums import Record
from merging.reports.document import (
    DOCUMENT,
    NUMBERS,
    Document,
    PreviewTable,
    SampleTable,
    Table,
    TrimTable,
    damaged,
    is_report,
    read_document,
)
from merging.reports.report import Preview, Report, Sample, Trim, Trimmed

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
NEVER_NEGATIVE: dict[type, frozenset[str]] = {
    TensorStatistics: frozenset({"base", "change", "mass", "largest"}),
    Conflict: frozenset({"gross", "net", "chance"}),
    Trimmed: frozenset({"threshold"}),
    TensorFate: frozenset({"energy", "change"}),
    Cast: frozenset({"energy"}),
}
"""The fields that are sums of squares or of magnitudes."""
R = TypeVar("R", bound=Record)


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
    document = read_document(folder)
    try:
        with (folder / NUMBERS).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError:
        raise damaged(folder, f"{NUMBERS} is missing") from None
    except OSError as error:
        raise damaged(folder, f"{NUMBERS} cannot be read: {error.strerror}") from None
    if digest != document.digest:
        raise damaged(folder, f"{NUMBERS} is not the file that {DOCUMENT} describes")
    try:
        stored = Checkpoint.open(folder / NUMBERS)
    except CheckpointError:
        raise damaged(folder, f"{NUMBERS} is no safetensors file") from None
    return _Reader(folder, stored, len(document.experts)).report(document)


def _describe(report: Report, columns: dict[str, torch.Tensor]) -> Document:
    """The document; the numbers go into `columns`."""

    def table(prefix: str, records: Mapping[str, Record]) -> Table:
        some = list(records.values())
        found = dict(columns_of(type(some[0]), some)) if some else {}
        columns.update({f"{prefix}/{path}": values for path, values in found.items()})
        return Table(names=list(records), columns=list(found))

    def sampled(prefix: str, sample: Sample | None) -> SampleTable | None:
        if sample is None:
            return None
        groups = [table(f"{prefix}/{number}", group) for number, group in enumerate(sample.groups)]
        return SampleTable(share=sample.share, groups=groups)

    def trimmed(trim: Trim) -> TrimTable:
        return TrimTable(
            density=trim.density,
            scope=trim.scope,
            tensors=table("trim", trim.tensors),
            sample=sampled("trim", trim.sample),
        )

    def previewed(preview: Preview) -> PreviewTable:
        return PreviewTable(
            recipe=preview.recipe,
            method=preview.method,
            elementwise=preview.elementwise,
            tensors=table("preview", preview.tensors),
            effective={name: _as_json(values) for name, values in preview.effective.items()},
            dtypes=preview.dtypes,
            copied=list(preview.copied),
            sample=sampled("preview", preview.sample),
        )

    return Document(
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
            "p": experts * (experts - 1) // 2,
            "k": max(0, experts - 1),
            "b": len(bin_edges()) - 1,
            "f": len(FATES),
        }
        self.lengths = {
            kind: {name: [lengths[letter] for letter in letters] for name, letters in table.items()}
            for kind, table in SIZES.items()
        }

    def report(self, document: Document) -> Report:
        return Report(
            base=document.base,
            experts=tuple(document.experts),
            tensors=self.table("changes", TensorStatistics, document.tensors),
            trim=None if document.trim is None else self.trim(document.trim),
            preview=None if document.preview is None else self.preview(document.preview),
            warnings=tuple(document.warnings),
            sample=self.sample("changes", TensorStatistics, document.sample),
        )

    def trim(self, trim: TrimTable) -> Trim:
        return Trim(
            trim.density,
            trim.scope,
            self.table("trim", Trimmed, trim.tensors),
            self.sample("trim", Trimmed, trim.sample),
        )

    def preview(self, preview: PreviewTable) -> Preview:
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

    def sample(self, prefix: str, kind: type[R], sample: SampleTable | None) -> Sample | None:
        if sample is None:
            return None
        groups = (self.table(f"{prefix}/{n}", kind, group) for n, group in enumerate(sample.groups))
        return Sample(sample.share, tuple(groups))

    def table(self, prefix: str, kind: type[R], table: Table) -> dict[str, R]:
        if not table.names:
            return {}
        if len(set(table.names)) < len(table.names):
            raise damaged(self.folder, "a tensor is listed twice")
        columns = Columns(
            self.stored, prefix + "/", table.columns, len(table.names), self.lengths, NEVER_NEGATIVE
        )
        try:
            return dict(zip(table.names, columns.records(kind), strict=True))
        except CheckpointError as error:
            raise damaged(self.folder, str(error)) from None


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


def _require_ours(folder: Path) -> None:
    if (folder / DOCUMENT).exists() and not is_report(folder):
        raise OutputError(f"{folder}: its {DOCUMENT} is not a report of ours; choose another folder.")
    others = [file.name for file in folder.iterdir() if not file.name.startswith(".")]
    if others and not is_report(folder):
        raise OutputError(
            f"{folder}: holds {sorted(others)[0]!r} and no report; choose a new or empty folder."
        )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
