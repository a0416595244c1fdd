"""What goes to the Hub: the files of a merged folder, read so that their upload can be followed and stopped."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from merging.errors import HubError
from merging.heartbeats import Stopped


class Meter:
    """How many bytes of all files were sent. Once `stop` is set, every further read raises `Stopped`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.moved = time.monotonic()
        """When a byte moved last."""
        self.files: list[WatchedFile] = []

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def bytes_done(self) -> int:
        return sum(file.done for file in self.files)

    @property
    def quiet(self) -> float:
        """Seconds without a byte."""
        return time.monotonic() - self.moved

    @property
    def files_done(self) -> int:
        return sum(file.done == file.nbytes for file in self.files)

    def begin(self) -> None:
        """Count from nothing: what was read so far was only to know what the files are."""
        self.beat()
        for file in self.files:
            file.done = 0

    def beat(self) -> None:
        """Something moved.

        Raises:
            Stopped: nobody wants it any more.
        """
        if self.stop.is_set():
            raise Stopped
        self.moved = time.monotonic()


class WatchedFile(io.BufferedIOBase):
    """A file to be uploaded; `done` is how much of it was ever read.

    huggingface_hub sends such an object by HTTP to the Hub's large file storage, not by Xet: only there does an upload tell
    how far it is and stop when it is asked to. The Hub takes both ways.
    Source: huggingface.co/docs/hub/xet/legacy-git-lfs.
    """

    def __init__(self, name: str, file: BinaryIO, meter: Meter):
        self.name = name
        self.nbytes = file.seek(0, io.SEEK_END)
        self.done = 0
        self._file, self._meter = file, meter
        file.seek(0)
        meter.files.append(self)

    def read(self, size: int | None = -1, /) -> bytes:
        self._meter.beat()
        found = self._file.read(-1 if size is None else size)
        self.done = max(self.done, self._file.tell())
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def open_files(folder: Path, over: Mapping[str, bytes], meter: Meter, stack: ExitStack) -> list[WatchedFile]:
    """The folder's own plain files, and what lies over them.

    Raises:
        HubError: there is nothing to push, or a file cannot be read.
    """
    try:
        own = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.is_symlink()]
        found = [
            WatchedFile(file.name, stack.enter_context(file.open("rb")), meter)
            for file in own
            if file.name not in over
        ]
    except OSError as error:
        raise HubError(f"{folder.name}: cannot be read ({error.strerror}). Merge again.") from None
    if not any(file.name.endswith(".safetensors") for file in found):
        raise HubError(f"{folder.name}: holds no weights, so there is nothing to push.")
    return [*found, *(WatchedFile(name, io.BytesIO(content), meter) for name, content in over.items())]
