"""Models of the Hub that are on this machine: huggingface_hub's cache, read without a word to the network.

Source: huggingface.co/docs/huggingface_hub/guides/manage-cache (blobs, refs, snapshots).
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from merging.checkpoint import INDEX
from merging.errors import MergingError
from merging.folders.adapter_file import WEIGHTS as ADAPTER_WEIGHTS
from merging.folders.small_files import read_json
from merging.references import COMMIT, Reference

WEIGHTS = "model.safetensors"


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads (HF_HOME and HF_HUB_CACHE move it)."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def repository_folder(model: str, cache: Path | None = None) -> Path:
    """The folder of all revisions of a Hub model."""
    return (cache or cache_folder()) / f"models--{model.replace('/', '--')}"


def snapshot_folder(model: str, commit: str, cache: Path | None = None) -> Path:
    """The folder of a Hub model at a commit, be it there or not."""
    return repository_folder(model, cache) / "snapshots" / commit


def cached_commit(reference: Reference, cache: Path | None = None) -> str | None:
    """The commit that a reference meant when it was last looked up; None where that is not known here."""
    revision = reference.revision or constants.DEFAULT_REVISION
    if COMMIT.fullmatch(revision):
        return revision
    file = ref_file(reference.model, revision, cache)
    try:
        commit = file.read_text(encoding="ascii").strip() if file else ""
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def ref_file(model: str, revision: str, cache: Path | None = None) -> Path | None:
    """The file that says which commit a branch or tag means; None for what cannot be the name of one."""
    refs = repository_folder(model, cache) / "refs"
    try:
        inside = (refs / revision).resolve().is_relative_to(refs.resolve())
    except (OSError, ValueError):
        return None
    return refs / revision if inside and refs / revision != refs else None


def cached_model(reference: Reference, cache: Path | None = None) -> Path | None:
    """The folder of a model or adapter whose weights are all here; None where they are not."""
    commit = cached_commit(reference, cache)
    folder = snapshot_folder(reference.model, commit, cache) if commit else None
    return folder if folder is not None and has_weights(folder) else None


def has_weights(folder: Path) -> bool:
    """Whether a snapshot holds all weights of its model or adapter; a file appears in it when it is complete."""
    index = folder / INDEX
    if not index.is_file():
        return any((folder / name).is_file() for name in (WEIGHTS, ADAPTER_WEIGHTS))
    try:
        shards = set(read_json(index)["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (MergingError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # its own reader says what is wrong with it
