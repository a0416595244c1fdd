"""A finished model as one zip file, made when somebody asks for it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from gradio.utils import get_upload_folder

from merging import MergingError
from merging.jobs import JobStore

ZIPS = "mergescope-"
"""What the names of the folders of our files begin with."""
GONE = "This model is no longer there. Merge again."

_zipping = Lock()
"""Held while a zip is written: who asks for the same one waits, and gets it."""


def zip_model(store: JobStore, owner: str, id: str, over: Mapping[str, bytes] | None = None) -> Path:
    """The zip of a job's model, in the folder the server may send files from; made once for what lies over it.

    The path is built from the job's own record, never from what the browser sent.

    Args:
        over: files that go in place of the folder's own or beside them, by name.

    Raises:
        MergingError: this owner has no such model, or there is no room for the zip.
    """
    folder, job = store.model(owner, id), store.get(owner, id)
    if folder is None or job is None:
        raise MergingError(GONE)
    name = re.sub(r"[^a-z0-9]+", "-", job.title.lower()).strip("-") or "merge"
    target = zip_folder(job.id) / _digest(over or {}) / f"{name[:60]}.zip"
    try:
        with _zipping:
            if not target.is_file():
                shutil.rmtree(zip_folder(job.id), ignore_errors=True)
                _write_zip(target, folder, over or {})
    except OSError as error:
        if store.model(owner, id) is None:
            forget_zip(id)
            raise MergingError(GONE) from None
        raise MergingError(f"The zip cannot be written ({error.strerror}). Free some disk space.") from None
    return target


def _write_zip(target: Path, folder: Path, over: Mapping[str, bytes]) -> None:
    """A folder's plain files and what lies over them, all in a folder of the zip's name; it appears when it is complete."""
    draft = target.with_name(f".{secrets.token_hex(4)}.partial")
    target.parent.mkdir(parents=True)
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            for file in sorted(folder.iterdir()):
                if file.name not in over and file.is_file() and not file.is_symlink():
                    archive.write(file, f"{target.stem}/{file.name}")
            for path, content in over.items():
                entry = zipfile.ZipInfo(f"{target.stem}/{path}", time.localtime()[:6])
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def forget_zip(id: str) -> None:
    """Remove the zip of a job that is deleted; `id` is that of a job that was found."""
    shutil.rmtree(zip_folder(id), ignore_errors=True)


def model_bytes(store: JobStore, owner: str, id: str) -> int:
    """What the download will weigh; 0 where there is nothing to download."""
    folder = store.model(owner, id)
    try:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder else 0
    except OSError:  # deleted meanwhile
        return 0


def zip_folder(id: str) -> Path:
    """Where the zip of a job lies."""
    return Path(get_upload_folder()) / f"{ZIPS}{id}"


def _digest(over: Mapping[str, bytes]) -> str:
    """What tells one overlay from another."""
    digest = hashlib.blake2b(digest_size=6)
    for name, content in sorted(over.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()
