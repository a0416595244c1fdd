"""A model that is a base with a LoRA adapter on it: its changes are added as rows are read, and no merged copy is made."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from merging import ops
from merging.anatomy import locate, output_axis
from merging.checkpoint import HEAD_NAME, Checkpoint, bytes_of
from merging.errors import CheckpointError, some
from merging.folders.adapter_file import SETTINGS, AdapterFile, LowRank, Update
from merging.folders.header import TensorInfo

KEPT_FACTORS = 64 << 20
"""Bytes of factors that are kept from one block of rows to the next."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Change:
    """A tensor that an adapter changes: what it is then, whose rows it begins with, and what is added to them."""

    info: TensorInfo
    source: Checkpoint
    name: str
    low_rank: LowRank | None
    turned: bool = False


class Adapted(Checkpoint):
    """A base with a PEFT LoRA adapter on it, W + s·B·A; reads like any model, and nothing is written.

    A tensor with a low-rank change is float32, so that small changes are not rounded away; `kept_as` is what its base
    stores. Where the base ties head and embedding and the adapter changes one of them, the other stays as it was and they
    are tied no longer, which is how the adapter was trained. Differs from peft's `merge_and_unload`, which then changes
    both and gives another model.

    Raises:
        CheckpointError: the adapter was trained on a model of other names or shapes; with all that does not fit.
    """

    def __init__(self, base: Checkpoint, adapter: AdapterFile):
        self.base, self.adapter = base, adapter
        fitting = _Fitting(base, adapter)
        self._changes = fitting.changes()
        self._tied = base.tied and not fitting.unties
        self._factors: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._keeping = threading.Lock()
        changed = {name: change.info for name, change in self._changes.items()}
        super().__init__(Path(f"{base.path}+{adapter.folder}"), {**base.tensors, **changed}, {})
        self.label = adapter.label
        self.remarks = (*base.remarks, *adapter.remarks, *_doubts(base, adapter))

    @property
    def tied(self) -> bool:
        return self._tied

    @property
    def folder(self) -> Path:
        return self.base.folder

    @property
    def made_of(self) -> tuple[Checkpoint, ...]:
        return self.base, self.adapter.stored

    @cached_property
    def _digest(self) -> str:
        settings = (self.adapter.folder / SETTINGS).read_bytes()
        return hashlib.blake2b(settings, digest_size=16, person=b"adapted").hexdigest()

    @property
    def digest(self) -> str:
        return self._digest

    @property
    def tokenizer_folder(self) -> Path:
        own = any((self.adapter.folder / name).is_file() for name in TOKENIZER)
        return self.adapter.folder if own else self.base.tokenizer_folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's, with what the adapter changed of head and vocabulary."""
        config = dict(self.base.config)
        if self.base.tied and not self.tied:
            config["tie_word_embeddings"] = False
        embedding = self.base.embedding
        if embedding in self._changes and self.tensors[embedding].rows != self.base.tensors[embedding].rows:
            config["vocab_size"] = self.tensors[embedding].rows
        return config

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self.digest.encode(), digest_size=16)
        for one in self.made_of:
            digest.update(one.fingerprint.encode())
        return digest.hexdigest()

    def kept_as(self, name: str) -> str:
        if name in self.base.tensors:
            return self.base.kept_as(name)
        assert self.base.embedding is not None  # the head that it stood for
        return self.base.kept_as(self.base.embedding)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        change = self._changes.get(name)
        if change is None:
            return self.base.read(name, start, stop)
        values = change.source.read(change.name, start, stop)
        if change.low_rank is None:
            return values
        total = values.to(torch.float32)
        left, right = self._factors_of(name, change)
        ops.add_low_rank(total, left[start : start + len(total)], right, change.low_rank.scale)
        return total

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        info = self.tensors[name]
        if name not in self._changes:
            self.base.read_into(name, start, buffer)
        elif buffer:
            rows = len(buffer) // (info.row_elements * info.torch_dtype.itemsize)
            buffer[:] = bytes_of(self.read(name, start, start + rows).contiguous())

    def _factors_of(self, name: str, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
        """L [rows, rank] and R [rank, columns] of a change L·R in float32, from the last few that were read."""
        with self._keeping:
            if name not in self._factors:
                self._factors[name] = _factors(self.adapter.stored, change)
            self._factors.move_to_end(name)
            found = self._factors[name]
            while len(self._factors) > 1 and _bytes(self._factors.values()) > KEPT_FACTORS:
                self._factors.popitem(last=False)
            return found

    def close(self) -> None:
        """Let go of the adapter's file; the base is its opener's to close."""
        self.adapter.stored.close()


def _bytes(pairs: Any) -> int:
    return sum(left.nbytes + right.nbytes for left, right in pairs)


def _factors(stored: Checkpoint, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    assert change.low_rank is not None
    b = stored.read(change.low_rank.b).float()
    if change.low_rank.a is None:
        return b.reshape(-1, 1), torch.ones(1, 1)
    a = stored.read(change.low_rank.a).float().flatten(1)
    b = b.flatten(1)
    return (a.T.contiguous(), b.T.contiguous()) if change.turned else (b, a)


class _Fitting:
    """Which tensors of a base an adapter means, and whether it fits them."""

    def __init__(self, base: Checkpoint, adapter: AdapterFile):
        self.base, self.adapter = base, adapter
        self.misfits: list[str] = []
        self.unties = False

    def changes(self) -> dict[str, Change]:
        """The changed tensors by the base's names; with a head of its own where that is tied no longer.

        Raises:
            CheckpointError: some are missing in the base, or of another shape.
        """
        changes: dict[str, Change | None] = {}
        missing: list[str] = []
        for own, update in self.adapter.updates.items():
            name = self._name_in_base(own)
            if name is not None:
                changes[name] = self._change(name, update, name)
            elif not self._is_tied_head(own):
                missing.append(f"'{own}'")
            elif not self._stays_tied:
                changes[own] = self._change(own, update, self._embedding)
        if missing or self.misfits:
            raise self._unfit(missing)
        found = {name: change for name, change in changes.items() if change is not None}
        return self._with_head(found)

    def _with_head(self, changes: dict[str, Change]) -> dict[str, Change]:
        """Where the base ties them and one of embedding and head changes, the head as a tensor of its own."""
        if not self.base.tied or self._stays_tied:
            return changes
        head = next((name for name in changes if self._is_tied_head(name)), None)
        self.unties = head is not None or self._embedding in changes
        if self.unties and head is None:
            info = self.base.tensors[self._embedding]
            changes[HEAD_NAME] = Change(self._placed(HEAD_NAME, info), self.base, self._embedding, None)
        return changes

    @property
    def _stays_tied(self) -> bool:
        """Whether head and embedding were trained as one (peft's ensure_weight_tying): the embedding's change is both's."""
        return bool(self.adapter.settings.get("ensure_weight_tying"))

    @property
    def _embedding(self) -> str:
        """The embedding of a base that ties its head to it."""
        assert self.base.embedding is not None
        return self.base.embedding

    def _is_tied_head(self, name: str) -> bool:
        return self.base.tied and name not in self.base.tensors and locate(name).kind == "head"

    def _name_in_base(self, name: str) -> str | None:
        """The base's tensor of a name that may begin elsewhere: files of one model leave out or add what is around it.
        An output head is one by any name: GPT-NeoX stores its own as `embed_out`, and transformers calls it `lm_head`."""
        tensors = self.base.tensors
        for candidate in (name, name.partition(".")[2]):
            if candidate in tensors:
                return candidate
        if self.base.head is not None and locate(name).kind == "head":
            return self.base.head
        longer = [other for other in tensors if other.endswith(f".{name}")]
        return longer[0] if len(longer) == 1 else None

    def _change(self, name: str, update: Update, base_name: str) -> Change | None:
        """The change of one tensor; None, noted as a misfit, where it does not fit what the base has there."""
        info, source, start = self.base.tensors[base_name], self.base, base_name
        if update.stored is not None:
            stored = self.adapter.stored.tensors[update.stored]
            more_tokens = locate(name).has_token_rows and stored.shape[1:] == info.shape[1:]
            if stored.shape != info.shape and not more_tokens:
                self._misfit(name, list(stored.shape), info)
                return None
            info, source, start = stored, self.adapter.stored, update.stored
        if update.low_rank is None:
            return Change(self._placed(name, info), source, start, None)
        turned = self._turned(name, info, update.low_rank)
        if turned is None:
            return None
        return Change(self._placed(name, info, "F32"), source, start, update.low_rank, turned)

    def _turned(self, name: str, info: TensorInfo, low_rank: LowRank) -> bool | None:
        """Whether B·A is to be transposed for this tensor; None, noted as a misfit, where it has another shape."""
        tensors = self.adapter.stored.tensors
        outputs = tensors[low_rank.b].rows
        inputs = tensors[low_rank.a].row_elements if low_rank.a else 1
        own = (info.rows, info.row_elements)
        plain, turned = own == (outputs, inputs), own == (inputs, outputs)
        wanted = low_rank.turned
        if wanted is None:  # [inputs, outputs], as GPT-2 stores its weights
            flag = bool(self.adapter.settings.get("fan_in_fan_out"))
            wanted = flag and not (plain and not turned)
            wanted = wanted or output_axis(locate(name), info.shape, self.base.config) == 1
        if turned if wanted else plain:
            return wanted
        self._misfit(name, [inputs, outputs] if wanted else [outputs, inputs], info)
        return None

    def _placed(self, name: str, info: TensorInfo, dtype: str | None = None) -> TensorInfo:
        return TensorInfo(name, dtype or info.dtype, info.shape, self.adapter.stored.path)

    def _misfit(self, name: str, shape: list[int], info: TensorInfo) -> None:
        self.misfits.append(f"'{name}' {shape} against {list(info.shape)}")

    def _unfit(self, missing: list[str]) -> CheckpointError:
        what = [f"changes {some(missing, 'tensor')} that {self.base.label} lacks"] if missing else []
        if self.misfits:
            what.append(f"has {some(self.misfits, 'tensor')} of other shapes than {self.base.label}")
        named = self.adapter.base
        trained = f"It was trained on {named[:100]}" if named else "It was trained on another model"
        return CheckpointError(f"{self.adapter.folder}: {' and '.join(what)}. {trained}; put it on that one.")


def _doubts(base: Checkpoint, adapter: AdapterFile) -> Iterator[str]:
    """Whether the base is the one that an adapter names: by the last word of its folder, or of what its config was made of."""
    named = adapter.base.rstrip("/").rpartition("/")[2].lower()
    folder = base.folder.resolve()
    known = {folder.name, str(base.config.get("_name_or_path", "")).rstrip("/").rpartition("/")[2]}
    known |= {part.rpartition("--")[2] for part in folder.parts if part.startswith("models--")}
    if named and named not in {name.lower() for name in known}:
        yield (
            f"{adapter.label}: was trained on {adapter.base[:100]} by its own word; its shapes fit {base.label}, but its "
            "changes mean something only if that is the same model."
        )
