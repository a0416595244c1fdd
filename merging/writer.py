"""Writing a model folder: offsets known in advance, complete or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch

from merging.checkpoint import INDEX
from merging.devices import to_host
from merging.errors import MergingError, OutputError
from merging.folders.atomic_folder import AtomicFolder
from merging.folders.header import TensorInfo, build_header, write_at

SHARD_BYTES = 5_000_000_000
MARKER = "mergescope.yaml"
"""The recipe inside a folder we wrote; only such a folder, or an empty one, is replaced."""


class CheckpointWriter:
    """Writes tensors by rows, in any order, into a hidden folder beside `out`; `commit` renames it to `out`.

    What a killed process leaves behind is mended by the next writer of the same `out`: see `AtomicFolder`.

    Raises:
        OutputError: `out` holds something that is not ours, or is being written by another process.
    """

    def __init__(
        self,
        out: str | Path,
        tensors: Iterable[TensorInfo],
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
        stem: str = "model",
    ):
        self.out = Path(os.path.abspath(out))
        self._stem = stem
        self._files: list[_File] = []
        self._place: dict[str, tuple[_File, TensorInfo]] = {}
        with self._explained("cannot be written"):
            self._folder = AtomicFolder(self.out, MARKER, ensure_replaceable)
            self.partial = self._folder.partial
        try:
            with self._explained("cannot be written"):
                self._layout(tensors, {"format": "pt", **(metadata or {})}, shard_bytes)
        except BaseException:
            self.abort()
            raise

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.out}: {what} ({error.strerror}).") from None

    def _layout(self, tensors: Iterable[TensorInfo], metadata: Mapping[str, str], shard_bytes: int) -> None:
        shards = _split(tensors, shard_bytes)
        names = [f"{self._stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        names = [f"{self._stem}.safetensors"] if len(shards) == 1 else names
        weight_map: dict[str, str] = {}
        for name, shard in zip(names, shards, strict=True):
            header, placed = build_header(shard, metadata)
            file = _File(self.partial / name)
            self._files.append(file)
            os.truncate(file.descriptor, placed[-1].stop if placed else len(header))
            write_at(file.descriptor, torch.frombuffer(bytearray(header), dtype=torch.uint8), 0)
            for tensor in placed:
                self._place[tensor.name] = (file, tensor)
                weight_map[tensor.name] = name
        if len(shards) > 1:
            total = sum(tensor.nbytes for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            self.add_text(INDEX, json.dumps(index, indent=2) + "\n")

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        """Write `rows` of a tensor, beginning with its row `start`; dtype and row shape are those announced.

        Raises:
            OutputError: it failed, or the writer has ended meanwhile.
        """
        file, tensor = self._place[name]
        assert tensor.torch_dtype == rows.dtype, f"{name}: announced {tensor.dtype}, given {rows.dtype}"
        values = to_host(rows.detach().contiguous()).reshape(-1).view(torch.uint8)
        offset = tensor.start + start * tensor.row_elements * tensor.torch_dtype.itemsize
        with self._explained(f"writing '{name}' failed"), file.used() as descriptor:
            write_at(descriptor, values, offset)

    def add_text(self, name: str, text: str) -> None:
        with self._explained(f"writing {name} failed"):
            (self.partial / name).write_text(text, encoding="utf-8")

    def add_file(self, source: Path) -> None:
        with self._explained(f"writing {source.name} failed"):
            shutil.copyfile(source, self.partial / source.name)

    def commit(self) -> Path:
        """Make everything durable and let it appear as `out`, replacing an earlier result of ours."""
        with self._explained("cannot be completed"):
            self._close_files()
            self._folder.commit()
        return self.out

    def abort(self) -> None:
        """Remove what was written; `out` stays as it was."""
        self._close_files()
        self._folder.abort()

    def _close_files(self) -> None:
        for file in self._files:
            file.leave()
        self._files.clear()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise


class _File:
    """A file that several threads write to. When a merge is given up, a piece may still be on its way: then the last one
    closes it, lest its number mean another file by then."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
        self._lock = Lock()
        self._users = 1

    @contextmanager
    def used(self) -> Iterator[int]:
        """The descriptor, open for as long as this lasts."""
        with self._lock:
            if not self._users:
                raise OSError(errno.EBADF, "it was given up")
            self._users += 1
        try:
            yield self.descriptor
        finally:
            self.leave()

    def leave(self) -> None:
        """One user less; the writer itself is the first."""
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self.descriptor)


def ensure_replaceable(out: Path) -> None:
    """Refuse an output that would destroy something we did not make.

    Raises:
        OutputError: `out` is a file, or a folder with content and without our recipe in it.
    """
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: is a file or link; choose the name of a new folder.")
        if out.is_dir() and not (out / MARKER).is_file() and any(out.iterdir()):
            raise OutputError(
                f"{out}: holds files that Mergescope did not write; choose a new or empty folder."
            )
    except OSError as error:
        raise OutputError(
            f"{str(out)[:300]}: cannot be used ({error.strerror}); choose another folder."
        ) from None


def require_merged(folder: Path) -> None:
    """Refuse a folder that no merge of ours wrote.

    Raises:
        MergingError: it is none.
    """
    if not (folder / MARKER).is_file():
        raise MergingError(f"{folder}: is no merged folder; name the OUT of `python -m merging merge`.")


def _split(tensors: Iterable[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    """Shards in the given order; inside each, wide dtypes first, so that every tensor is aligned to its own."""
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [sorted(shard, key=lambda tensor: -tensor.torch_dtype.itemsize) for shard in shards]
