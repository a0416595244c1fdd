"""The importance of a model's parts, as a file that methods and the app read.

One safetensors file: for every expert and tensor an entry that broadcasts to it, and a description in the header with
the fingerprints of the models it was made from. Importance as measured here is APL's, a reconstruction from the paper's
abstract and public digests (2408.09485); a mask or scores of any other origin would fit the same file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from merging.checkpoint import Checkpoint, StateDict, TensorSource
from merging.errors import CheckpointError, MergingError, OutputError
from merging.folders.header import TensorInfo, build_header, read_header, write_at
from merging.importances.agreement import Agreement
from merging.partitions import Granularity, Partitions, Scores, make_partitions

How = Literal["exact", "gradient"]
At = Literal["base", "expert", "midpoint", "trapezoid"]

ENTRY = "importance"
"""The header's key of the description."""
WRITE_ELEMENTS = 1 << 22
"""Elements written at once."""
HEAD_SETTINGS = (
    "model_type",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "hidden_size",
    "n_embd",
    "head_dim",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parent(_Strict):
    """A model that importance was measured on, known by the fingerprint of its weights."""

    name: str
    fingerprint: str


class ExpertFacts(Parent):
    """An expert, the fingerprint of its calibration data, and its losses: mean NLL of an answer token."""

    data: str
    base_loss: float
    expert_loss: float


class Description(_Strict):
    """All of an artefact but its numbers. `at` is None for exact importance."""

    version: Literal[1] = 1
    how: How
    at: At | None
    partition: Granularity
    elementwise: bool = False
    samples: int
    base: Parent
    experts: tuple[ExpertFacts, ...]
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    agreement: Agreement | None = None


@dataclass(frozen=True, eq=False)
class Importance:
    """How much each partition of each expert matters to that expert's task.

    `signed` float64 [experts, P]: what the partition's change δ_P does to the loss, negative where it helps;
    gradient Σ δᵢgᵢ (Σ|δᵢgᵢ| if `elementwise`), exact ℓ(θt) − ℓ(θt with P put back). NaN: not in the exact sample.
    `change` float64 [experts, P]: ‖δ_P‖². `sources`: per-element δᵢgᵢ of every expert, where it was asked for.
    """

    description: Description
    signed: torch.Tensor
    change: torch.Tensor
    sources: tuple[TensorSource, ...] | None = None
    partitions: Partitions = field(init=False)

    def __post_init__(self) -> None:
        known = self.description
        object.__setattr__(self, "partitions", make_partitions(known.shapes, known.config, known.partition))

    @property
    def how(self) -> How:
        return self.description.how

    @property
    def at(self) -> At | None:
        return self.description.at

    @property
    def partition(self) -> Granularity:
        return self.description.partition

    @property
    def experts(self) -> tuple[ExpertFacts, ...]:
        return self.description.experts

    @property
    def agreement(self) -> Agreement | None:
        return self.description.agreement

    @property
    def values(self) -> torch.Tensor:
        """Absolute importance, float64 [experts, P]."""
        return self.signed.abs()

    def require_models(self, base: TensorSource, experts: Sequence[TensorSource]) -> None:
        """Check that this artefact was made from these models; it may know more experts, in any order.

        Raises:
            MergingError: naming the model it does not belong to, and what it was made for.
        """
        self.places(base, experts)

    def scores(self, base: TensorSource, experts: Sequence[TensorSource]) -> Scores:
        """The absolute importance in the order of `experts`.

        Raises:
            MergingError: as `require_models`, or some partitions were never measured.
        """
        values = self.values[self.places(base, experts)]
        if missing := int(values.isnan().any(0).sum()):
            raise MergingError(
                f"importance: exact scores exist for a sample only, {missing:,} of {len(self.partitions):,} partitions have "
                "none. Use gradient scores, or measure every partition."
            )
        return Scores(self.partitions, values)

    def elements(self, expert: TensorSource) -> TensorSource | None:
        """Per-element δᵢgᵢ of one expert in float32, read by rows; None where the artefact does not hold them.

        Raises:
            MergingError: the artefact does not know this expert.
        """
        place = self._place(expert)
        return self.sources[place] if self.sources is not None else None

    def places(self, base: TensorSource, experts: Sequence[TensorSource]) -> list[int]:
        """Where the experts stand in this artefact; raises as `require_models`."""
        known = self.description.base
        found = fingerprint(base)
        if found != known.fingerprint:
            raise MergingError(
                f"importance: made with the base {known.name} (fingerprint {known.fingerprint[:8]}), but the base here is "
                f"{base.label} (fingerprint {found[:8]}). Measure importance again with this base."
            )
        return [self._place(expert) for expert in experts]

    def _place(self, expert: TensorSource) -> int:
        found = fingerprint(expert)
        for place, known in enumerate(self.experts):
            if known.fingerprint == found:
                return place
        names = ", ".join(f"{known.name} (fingerprint {known.fingerprint[:8]})" for known in self.experts)
        raise MergingError(
            f"importance: says nothing of the expert {expert.label} (fingerprint {found[:8]}); it was measured for {names}. "
            "Measure importance again with this expert."
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; it appears when it is complete.

        Raises:
            OutputError: it cannot be written, or would replace a file that holds no importance.
        """
        target = Path(path)
        ensure_place(target)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            self._write(partial)
            partial.replace(target)
        except OSError as error:
            raise OutputError(f"{target}: importance cannot be written ({error.strerror}).") from None
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        contents = dict(self._contents())
        infos = [
            TensorInfo(prefix + name, info.dtype, info.shape)
            for prefix, source in contents.items()
            for name, info in source.tensors.items()
        ]
        header, placed = build_header(infos, {ENTRY: self.description.model_dump_json()})
        places = {info.name: info.start for info in placed}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_at(descriptor, torch.frombuffer(bytearray(header), dtype=torch.uint8), 0)
            for prefix, source in contents.items():
                for name, info in source.tensors.items():
                    offset = places[prefix + name]
                    for start, stop in info.row_blocks(WRITE_ELEMENTS):
                        values = source.read(name, start, stop).contiguous()
                        data = values.reshape(-1).view(torch.uint8)
                        write_at(descriptor, data, offset)
                        offset += len(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _contents(self) -> Iterator[tuple[str, TensorSource]]:
        """Prefix -> the tensors stored under it."""
        for number in range(len(self.experts)):
            for word, table in (("importance", self.signed), ("change", self.change)):
                spread = {name: self.partitions.spread(table[number], name) for name in self.partitions.index}
                yield f"{word}/{number}/", StateDict(spread)
            if self.sources is not None:
                yield f"elements/{number}/", self.sources[number]

    @classmethod
    def load(cls, path: str | Path) -> Importance:
        """Open an artefact; per-element entries are read later, by rows.

        Raises:
            MergingError: there is no such file, or it is damaged or holds no importance.
        """
        file = Path(path)
        if not file.is_file():
            raise MergingError(
                f"importance: there is no file {file}. Measure it with `python -m merging importance`."
            )
        stored = Checkpoint(file, *read_header(file))
        if ENTRY not in stored.metadata:
            raise MergingError(f"{file}: a safetensors file, but it holds no importance.")
        try:
            description = Description.model_validate_json(stored.metadata[ENTRY])
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise MergingError(
                f"{file}: its description of importance is damaged or of another version ({place}: {first['msg']}). "
                "Measure it again."
            ) from None
        experts = range(len(description.experts))
        partitions = make_partitions(description.shapes, description.config, description.partition)
        signed, change = (
            torch.stack([_gather(stored, partitions, f"{word}/{number}/") for number in experts])
            for word in ("importance", "change")
        )
        views = tuple(_Under(stored, f"elements/{number}/") for number in experts)
        whole = all(view.tensors.keys() >= partitions.index.keys() for view in views)
        return cls(description, signed, change, views if whole else None)


class _Under:
    """The tensors of a file whose names begin with `prefix`, by the rest of their names."""

    def __init__(self, stored: Checkpoint, prefix: str):
        self.label = stored.label
        self._stored, self._prefix = stored, prefix
        self.tensors: Mapping[str, TensorInfo] = {
            name.removeprefix(prefix): info
            for name, info in stored.tensors.items()
            if name.startswith(prefix)
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._stored.read(self._prefix + name, start, stop)


def _gather(stored: Checkpoint, partitions: Partitions, prefix: str) -> torch.Tensor:
    """Values by partition number from the entries of every tensor; the reverse of `Partitions.spread`."""
    values = torch.full((len(partitions),), torch.nan, dtype=torch.float64)
    for name, index in partitions.index.items():
        info = stored.tensors.get(prefix + name)
        if info is None or info.shape != tuple(index.shape) or info.dtype != "F64":
            raise MergingError(
                f"{stored.label}: its entry '{prefix + name}' is missing or damaged. Measure it again."
            )
        values[index.flatten()] = stored.read(prefix + name).flatten()
    return values


def ensure_place(target: Path) -> None:
    """Make the folder for a file of importance; whoever measures asks before, lest the result be lost.

    Raises:
        OutputError: it cannot be written there, or would replace a file that holds no importance.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replaceable = not target.exists() or ENTRY in read_header(target)[1]
    except OSError as error:
        raise OutputError(f"{target}: importance cannot be written ({error.strerror}).") from None
    except CheckpointError:
        replaceable = False
    if not replaceable:
        raise OutputError(
            f"{target}: exists and is no importance file; it is not overwritten. Choose another name."
        )
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: importance cannot be written there; choose another place.")


def head_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that says where heads lie."""
    config = {**config, **(config.get("text_config") or {})}
    return {name: config[name] for name in HEAD_SETTINGS if config.get(name) is not None}


def fingerprint(source: TensorSource) -> str:
    """What a model is known by: `Checkpoint.fingerprint`, and the same hash for tensors in memory."""
    own = getattr(source, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(source.tensors):
        info = source.tensors[name]
        digest.update(f"{name}\0{info.dtype}{info.shape}".encode())
        data = source.read(name).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for part in range(16):
            begin = info.nbytes * part // 16
            digest.update(data[begin : begin + 256].numpy().tobytes())
    return digest.hexdigest()
