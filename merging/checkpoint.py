"""Reading models: lazily, by rows, from headers where headers are enough."""

from __future__ import annotations

import hashlib
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from merging.cards.licences import UNSTATED, licences_in
from merging.errors import CheckpointError
from merging.folders.config_check import config_problems
from merging.folders.header import DTYPE_NAMES, TensorInfo, read_at, read_header
from merging.folders.refusals import INDEX, WEIGHTS, refuse, why_not_a_model
from merging.folders.small_files import config_in, read_json, read_kept, read_text
from merging.tokenizing.tied import SAID_TO_BE_TIED, copies, embedding_of, head_of, is_buffer, is_tied
from merging.tokenizing.union import tokens_of

MOST_UNUSED = 100_000
"""Ids between the tokens of a vocabulary that may belong to none."""
MOST_NAMED = 3
"""Problems of a config that are told at once."""
HEAD_NAME = "lm_head.weight"


class TensorSource(Protocol):
    """What the engine reads from: a model on disk or a dictionary of tensors."""

    @property
    def label(self) -> str: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor, in its own dtype, on the CPU; a scalar has one row."""
        ...


class StateDict:
    """A dictionary of tensors in memory, read like a checkpoint."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], label: str = "state dict"):
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{label}: is a {type(tensors).__name__}; give a dictionary of tensors.")
        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.is_meta:
                kind = "a tensor without values" if isinstance(value, torch.Tensor) else type(value).__name__
                raise CheckpointError(f"{label}: {name!r} is {kind}; give names and torch tensors.")
        self.label = label
        self._values = tensors
        self.tensors = {
            name: TensorInfo(name, _dtype_name(name, value.dtype), tuple(value.shape))
            for name, value in tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        value = self._values[name].detach()
        return value[start:stop] if value.ndim else value


def _dtype_name(name: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"'{name}' is {dtype}, which cannot be merged; convert it to float32 first.")
    return DTYPE_NAMES[dtype]


class Checkpoint:
    """A model folder (or one safetensors file), opened from its headers; weights are read when asked for.

    `tensors` lists the stored tensors in file order. Where the config ties the output head to the embedding, a
    stored copy of the head is left out: tied weights are one tensor. So are masks that old checkpoints store. A subclass may compute its values from others.
    `remarks` is what a user should know of it, a sentence each.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], metadata: dict[str, str]):
        self.path = path
        self.label = path.name or str(path)
        self.metadata = metadata
        self._descriptors: dict[Path, int] = {}
        self._opening = threading.Lock()
        self._stored = tensors
        left_out = copies(tensors, tied=self.tied)
        self.tensors: Mapping[str, TensorInfo] = {
            name: tensor for name, tensor in tensors.items() if name not in left_out and not is_buffer(tensor)
        }

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder with `model.safetensors` or a sharded index, or a single `.safetensors` file.

        Raises:
            CheckpointError: nothing there, a format we refuse (pickle, GGUF, quantised), or a damaged file.
        """
        path = Path(path)
        try:
            return cls._open(path)
        except OSError as error:
            raise CheckpointError(f"{str(path)[:300]}: cannot be read ({error.strerror}).") from None
        except ValueError:
            raise CheckpointError(f"{str(path)[:300]!r}: cannot be the name of a folder.") from None

    @classmethod
    def _open(cls, path: Path) -> Checkpoint:
        if path.is_file() and path.suffix == ".safetensors":
            return cls(path, *read_header(path))
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: there is no such folder. Give the path of a model folder on this machine."
            )
        refuse(path, config_in(path))
        if (path / INDEX).is_file():
            return cls(path, *read_shards(path, _read_shard))
        if (path / WEIGHTS).is_file():
            return cls(path, *read_header(path / WEIGHTS))
        raise CheckpointError(why_not_a_model(path))

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def origin(self) -> Checkpoint:
        """The model that a user named: what is asked and scored by itself."""
        return self

    @property
    def made_of(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that values are computed from; none for one that lies on the disk as it is."""
        return ()

    @property
    def digest(self) -> str:
        """How they are computed from those."""
        return ""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that it is read from, its own first."""
        return self.folder, *(folder for one in self.made_of for folder in one.folders)

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer and chat template are."""
        return self.folder

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences that its card states; for what is made of several models, those of all, `unknown` among them where
        one states none."""
        if not self.made_of:
            return licences_in(self.folder)
        return tuple(dict.fromkeys(said for one in self.made_of for said in one.licences or (UNSTATED,)))

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`; an empty dictionary for weights without one."""
        config = config_in(self.path)
        if problems := config_problems(config, len(self._stored)):
            raise CheckpointError(
                f"{self.path / 'config.json'}: is no config of a model: {'; '.join(problems[:MOST_NAMED])}. Download it again."
            )
        return config

    @property
    def architecture(self) -> str | None:
        """The transformers class that runs the model, such as `LlamaForCausalLM`."""
        listed = self.config.get("architectures")
        return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None

    @property
    def tied(self) -> bool:
        """Whether embedding and output head are one tensor."""
        return is_tied(self.config, self._stored) and not self._has_own_head

    @cached_property
    def _has_own_head(self) -> bool:
        """Whether a stored head holds other values than the embedding, where the config cannot say so."""
        head, embedding = head_of(self._stored), embedding_of(self._stored)
        if self.config.get("model_type") not in SAID_TO_BE_TIED or head is None or embedding is None:
            return False
        one, other = self._stored[head], self._stored[embedding]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return True
        try:
            return any(map(operator.ne, self._samples(one), self._samples(other)))
        except CheckpointError:  # its values are elsewhere
            return False

    @property
    def embedding(self) -> str | None:
        """The tensor with a row for every token."""
        return embedding_of(self.tensors)

    @property
    def head(self) -> str | None:
        """The output head over the vocabulary; None where the embedding stands for it, or there is none."""
        return head_of(self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, added tokens included, from `tokenizer.json`; None where the folder has none."""
        file = self.tokenizer_folder / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            found = read_kept(file, tokens_of)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            raise CheckpointError(
                f"{file}: its vocabulary is malformed. Copy the file from the model again."
            ) from None
        least, most = min(found.values(), default=0), max(found.values(), default=0)
        if least < 0 or most > len(found) + MOST_UNUSED:
            raise CheckpointError(
                f"{file}: its {len(found):,} tokens have ids from {least} to {most}, which no embedding has rows for. Copy the "
                "file from the model again."
            )
        return found

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text that turns messages into a prompt; None where the folder has none."""
        file = self.tokenizer_folder / "chat_template.jinja"
        if file.is_file():
            return read_text(file)
        config = self.tokenizer_folder / "tokenizer_config.json"
        template = read_json(config).get("chat_template") if config.is_file() else None
        if isinstance(template, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default", next(iter(named.values()), None))
        return None if template is None else str(template)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the headers and of 16 × 256 bytes of every tensor: a few edited weights of a large one may escape."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"{name}\0{tensor.dtype}{tensor.shape}".encode())
            for sample in self._samples(tensor):
                digest.update(sample)
        return digest.hexdigest()

    def _samples(self, tensor: TensorInfo) -> Iterator[bytes]:
        """16 × 256 bytes of a tensor, spread over all of it."""
        for part in range(16):
            begin = tensor.start + tensor.nbytes * part // 16
            yield self._bytes(tensor, begin, min(begin + 256, tensor.stop)).numpy().tobytes()

    def kept_as(self, name: str) -> str:
        """The dtype that a tensor has where the model is stored; `tensors` may give it with more digits."""
        return self.tensors[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor in its stored dtype, on the CPU, in memory of its own.

        Raises:
            CheckpointError: the file became shorter since it was opened.
        """
        tensor = self.tensors[name]
        stop = tensor.rows if stop is None else min(stop, tensor.rows)
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        values = torch.empty(shape, dtype=tensor.torch_dtype)
        self.read_into(name, start, bytes_of(values))
        return values

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """The same from row `start` on, into the memory of a tensor that is there already; see `bytes_of`."""
        tensor = self.tensors[name]
        row_bytes = tensor.row_elements * tensor.torch_dtype.itemsize
        self._fill(tensor, tensor.start + start * row_bytes, buffer)

    def _bytes(self, tensor: TensorInfo, begin: int, end: int) -> torch.Tensor:
        values = torch.empty(end - begin, dtype=torch.uint8)
        self._fill(tensor, begin, bytes_of(values))
        return values

    def _fill(self, tensor: TensorInfo, begin: int, buffer: memoryview) -> None:
        assert tensor.file is not None
        if not buffer:
            return
        with self._opening:
            descriptor = self._descriptors.get(tensor.file)
            if descriptor is None:
                descriptor = self._descriptors[tensor.file] = os.open(tensor.file, os.O_RDONLY)
        if read_at(descriptor, buffer, begin) < len(buffer):
            raise CheckpointError(
                f"{tensor.file}: ended inside '{tensor.name}'; it changed while it was read."
            )

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()


def bytes_of(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(values.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


Header = tuple[dict[str, TensorInfo], dict[str, str]]
"""What a safetensors header holds: tensors by name, and free-text metadata."""


def _read_shard(file: Path) -> Header:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing, though the index names it. Download the missing shard.")
    return read_header(file)


def read_shards(folder: Path, read: Callable[[Path], Header]) -> Header:
    """The tensors of a sharded model by its index; `read` gives the header of a shard.

    Raises:
        CheckpointError: an index that is damaged, leaves the folder, or does not fit the shards.
    """
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map. Download it again.")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in {str(value): value for value in weight_map.values()}.values():
        if (
            not isinstance(shard, str)
            or shard in {"", ".", ".."}
            or "/" in shard
            or "\\" in shard
            or "\0" in shard
        ):
            raise CheckpointError(
                f"{index}: names the file {shard!r}, which is not a plain file name inside the folder; "
                "this index is refused."
            )
        found, shard_metadata = read(folder / shard)
        metadata.update(shard_metadata)
        for name, tensor in found.items():
            if weight_map.get(name) == shard:
                tensors[name] = tensor
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{index}: '{missing[0]}' is not in the shard it names ({len(missing)} such); download the model again."
        )
    return tensors, metadata
