"""A model of the Hub at one commit: which of its files a merge can use, and why others cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from huggingface_hub import ModelInfo

from merging.checkpoint import INDEX
from merging.errors import HubError
from merging.hub.cache import ADAPTER_WEIGHTS, WEIGHTS
from merging.references import COMMIT
from merging.tokenizing.tokenizer_plan import TOKENIZER_FILES

SMALL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model_index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "*.jinja",
    INDEX,
    *TOKENIZER_FILES,
)
"""What a model's folder needs beside its weights, as globs."""
MOST_SMALL = 64 << 20
"""Bytes of one of them at most."""
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_IDENTITY = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a model: its size and what it is called by its content, git's id or the SHA-256."""

    name: str
    nbytes: int
    identity: str


@dataclass(frozen=True)
class Pinned:
    """A model of the Hub at one commit, and its files that a merge can use."""

    id: str
    commit: str
    revision: str
    """What was asked for: a branch, a tag, or the commit itself."""
    gated: bool
    private: bool
    licence: str | None
    base: str | None
    """The model that its card says it was made from."""
    files: tuple[HubFile, ...]

    @property
    def reference(self) -> str:
        return f"{self.id}@{self.commit}"

    @property
    def weights(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if file.name.endswith(".safetensors"))

    @property
    def small(self) -> tuple[HubFile, ...]:
        """All but the weights."""
        return tuple(file for file in self.files if file not in self.weights)

    @property
    def is_adapter(self) -> bool:
        return [file.name for file in self.weights] == [ADAPTER_WEIGHTS]

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def tagged(model: ModelInfo, prefix: str) -> str | None:
    """What a model's first tag of a kind says, such as `license:mit`."""
    tags = (tag.removeprefix(prefix) for tag in model.tags or [] if tag.startswith(prefix))
    return next(tags, None)


def pinned_model(model: ModelInfo, id: str, revision: str) -> Pinned:
    """A model as the Hub describes it, with the files that a merge can use.

    Raises:
        HubError: it has no weights that can be merged, or a file of unlikely size.
        ValueError: no description of the Hub's.
    """
    if not COMMIT.fullmatch(model.sha or ""):
        raise ValueError("no commit")
    names = {sibling.rfilename: sibling for sibling in model.siblings or []}
    files = []
    for name in sorted(_wanted(set(names)), key=lambda name: (name.endswith(".safetensors"), name)):
        sibling = names[name]
        identity = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if identity is None or not _IDENTITY.fullmatch(identity) or not isinstance(sibling.size, int):
            if model.gated:
                raise HubError(
                    f"{id}: is gated, and the Hub does not tell its files to you. Accept its conditions on its page there and "
                    "give a token of that account."
                )
            raise ValueError("no size")
        if _is_small(name) and sibling.size > MOST_SMALL:
            raise HubError(
                f"{id}: its {name} has {sibling.size:,} bytes, more than any model needs; it is refused."
            )
        files.append(HubFile(name, sibling.size, identity))
    if not any(file.name.endswith(".safetensors") for file in files):
        raise HubError(f"{id}: {_why_not_a_model(set(names))}")
    return Pinned(
        id=id,
        commit=str(model.sha),
        revision=revision,
        gated=bool(model.gated),
        private=bool(model.private),
        licence=tagged(model, "license:"),
        base=tagged(model, "base_model:adapter:") or tagged(model, "base_model:finetune:"),
        files=tuple(files),
    )


def _wanted(names: set[str]) -> set[str]:
    """The files of a model that a merge can use: no copies of the weights in another layout, no other format."""
    shards = {name for name in names if _SHARD.fullmatch(name)}
    weights = (INDEX in names and shards) or names & {WEIGHTS}
    return {name for name in names if _is_small(name)} | (weights or names & {ADAPTER_WEIGHTS})


def is_model_file(name: str) -> bool:
    """Whether a file is of a model: its weights, or what they need."""
    return _is_small(name) or ("/" not in name and name.endswith(".safetensors"))


def _is_small(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, known) for known in SMALL_FILES)


def _why_not_a_model(names: set[str]) -> str:
    if "model_index.json" in names:
        return "holds several models that work together (a pipeline), which cannot be merged."
    if any(name.endswith(".gguf") for name in names):
        return "holds GGUF files, which cannot be merged. Use the model it was made from."
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return (
            "holds pickle weights (.bin), which can run code when opened and are refused. Ask its author for safetensors, "
            "or look for a copy that has them."
        )
    return f"has neither {WEIGHTS} nor {INDEX}, so it holds no weights that can be merged."
