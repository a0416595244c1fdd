"""A model's change from its base as a LoRA adapter of a chosen rank, and what that loses of every tensor.

Source: LoRA's W + s·B·A (Hu et al. 2021) of the nearest change of that rank (Eckart & Young 1936); peft's files.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from merging.anatomy import locate, output_axis
from merging.cards.licences import licence_of_merge
from merging.cards.lineage import Ancestor, licensed, lineage_of_model
from merging.checkpoint import HEAD_NAME, Checkpoint
from merging.errors import MergingError
from merging.events import Progress
from merging.folders.adapter_file import PREFIX, SETTINGS
from merging.folders.compatibility import compare
from merging.folders.header import MERGEABLE, TensorInfo
from merging.folders.renamed import named_like
from merging.folders.room import input_problem
from merging.inspecting.extraction_report import TABLE, Extracted, TensorError, Way, card, table
from merging.inspecting.low_rank import nearest
from merging.version import __version__
from merging.writer import MARKER, CheckpointWriter

BLOCK = 4 << 20
"""Elements of a tensor that are read at once."""
WEIGHTS_STEM = "adapter_model"
MIXTURE = re.compile(r"\.experts\.|block_sparse_moe|\.mlp\.gate\.")
"""Experts and routers, which transformers runs under other names and shapes than files have."""
Embeddings = Literal["low-rank", "whole", "leave"]
EMBEDDINGS: tuple[Embeddings, ...] = get_args(Embeddings)


@dataclass(frozen=True)
class Part:
    """A changed tensor and how it is kept: as factors of `rank`, whole, or not at all."""

    info: TensorInfo
    change: float
    way: Way
    rank: int | None = None
    why: str = ""

    @property
    def module(self) -> str:
        return self.info.name.rpartition(".")[0]

    @property
    def is_embedding(self) -> bool:
        return locate(self.info.name).role == "embedding"

    @property
    def is_bias(self) -> bool:
        """Whether it is the bias of a module that is not kept whole."""
        return self.info.name.endswith(".bias") and locate(self.info.name).role != "norm"


def extract(
    base: Checkpoint,
    model: Checkpoint,
    out: Path,
    rank: int,
    *,
    embeddings: Embeddings = "low-rank",
    base_name: str | None = None,
) -> Iterator[Progress | Extracted]:
    """Write `model` minus `base` as a PEFT LoRA folder, one tensor at a time, read in blocks of rows.

    Weights of attention and MLP become factors of at most `rank`; norms, biases and what else is small are kept whole.
    Embedding and head: `low-rank` (but whole where they are tied: peft adds such a change twice when it merges), `whole`,
    or `leave` them out.

    Args:
        base_name: what the adapter calls its base; None: the base's path.

    Raises:
        MergingError: the models do not fit together, nothing differs, or `out` cannot be written.
    """
    model = named_like(base, model)
    _check(base, model, out, rank)
    started, names = time.monotonic(), list(base.tensors)
    work = _Extraction(base, model, rank, embeddings)
    parts: list[Part] = []
    for number, name in enumerate(names):
        yield _progress("comparing", number, len(names), 0.0, 0.2, started)
        if part := work.part(name):
            parts.append(part)
    if not any(part.way == "low rank" for part in parts):
        raise MergingError(
            f"{model.label}: no weight that a LoRA can hold differs from {base.label}'s, so there is nothing to extract."
        )
    layout = work.layout(parts)
    errors: list[TensorError] = []
    with CheckpointWriter(out, layout, {}, shard_bytes=1 << 62, stem=WEIGHTS_STEM) as writer:
        for number, part in enumerate(parts):
            yield _progress("extracting", number, len(parts), 0.2, 0.8, started)
            errors.append(work.write(part, parts, writer))
        settings = work.settings(parts, base_name or str(base.path))
        writer.add_text(SETTINGS, json.dumps(settings, indent=2) + "\n")
        writer.add_text(TABLE, table(errors))
        writer.add_text(MARKER, f"# an adapter extracted with Mergescope {__version__}\n")
        done = Extracted(
            path=writer.out,
            rank=rank,
            tensors=tuple(errors),
            unchanged=len(names) - len(parts),
            bytes_written=sum(info.nbytes for info in layout),
            seconds=time.monotonic() - started,
        )
        licence = licence_of_merge(licensed(Ancestor("", parents=(lineage_of_model(model),))))
        writer.add_text(
            "README.md", card(done, str(settings["base_model_name_or_path"]), model.label, licence)
        )
    yield done


def _progress(stage: str, done: int, of: int, begin: float, share: float, started: float) -> Progress:
    return Progress(stage, done, of, 0, begin + share * done / max(1, of), time.monotonic() - started)


def _check(base: Checkpoint, model: Checkpoint, out: Path, rank: int) -> None:
    problems, _ = compare(base, model, model.label)
    if rank < 1:
        problems.append(f"rank: is {rank}; it must be 1 or more.")
    for name, info in base.tensors.items():
        other = model.tensors.get(name)
        if other is not None and other.shape != info.shape:
            problems.append(
                f"{model.label}: '{name}' is {list(other.shape)}, the base's {list(info.shape)}; an adapter cannot change a "
                "shape. Give the base the same vocabulary first."
            )
    problems += input_problem(out, [*base.folders, *model.folders])
    if problems:
        raise MergingError("\n".join(dict.fromkeys(problems)))


class _Extraction:
    """What becomes of every tensor, and the writing of it."""

    def __init__(self, base: Checkpoint, model: Checkpoint, rank: int, embeddings: Embeddings):
        self.base, self.model, self.rank, self.embeddings = base, model, rank, embeddings
        # files of the Hub leave out what transformers puts before their names
        bare = base.config.get("model_type") == "gpt2" and "wte.weight" in base.tensors
        self.prefix = PREFIX + ("transformer." if bare else "")

    def part(self, name: str) -> Part | None:
        """How a tensor is kept; None where it did not change."""
        info = self.model.tensors[name]
        if info.dtype not in MERGEABLE:
            return None
        change = math.sqrt(sum(float(block.double().square().sum()) for _, block in self._change(name)))
        if not math.isfinite(change):
            raise MergingError(
                f"'{name}': the change of {self.model.label} is not finite. Use an intact model."
            )
        return self._kept(info, change) if change else None

    def _kept(self, info: TensorInfo, change: float) -> Part:
        place, vocabulary = locate(info.name), False
        if not info.name.endswith((".weight", ".bias")) or MIXTURE.search(info.name):
            return Part(info, change, "left out", why="is no module of its own that peft could name")
        if place.has_token_rows and len(info.shape) == 2:
            vocabulary = True
            if self.embeddings == "leave":
                return Part(info, change, "left out", why="embeddings: leave")
            if self.embeddings == "whole" or (self.base.tied and info.name == self.base.embedding):
                return Part(info, change, "whole")
        if len(info.shape) == 2 and (vocabulary or place.role in {"attention", "mlp"}):
            return Part(info, change, "low rank", min(self.rank, *info.shape))
        return Part(info, change, "whole")

    def _change(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in self.base.tensors[name].row_blocks(BLOCK):
            ours, theirs = (one.read(name, start, stop).float() for one in (self.base, self.model))
            yield start, theirs - ours

    def layout(self, parts: Sequence[Part]) -> list[TensorInfo]:
        """The tensors of the adapter's file."""
        infos: list[TensorInfo] = []
        for part in parts:
            if part.way == "low rank":
                assert part.rank is not None
                rows, columns = part.info.shape
                inputs, outputs = (rows, columns) if self._turned(part) else (columns, rows)
                a, b = self._factor_names(part)
                infos += [
                    TensorInfo(a, "F32", (part.rank, inputs)),
                    TensorInfo(b, "F32", (outputs, part.rank)),
                ]
            elif part.way == "whole":
                infos += [replace(info, name=key) for key, info in self._stored(part, parts)]
        return list({info.name: info for info in infos}.values())

    def _turned(self, part: Part) -> bool:
        """Whether the tensor is stored as [inputs, outputs]: an embedding, and every weight of GPT-2."""
        place = locate(part.info.name)
        return part.is_embedding or output_axis(place, part.info.shape, self.base.config) == 1

    def _factor_names(self, part: Part) -> tuple[str, str]:
        front = self.prefix + part.module
        if part.is_embedding:
            return f"{front}.lora_embedding_A", f"{front}.lora_embedding_B"
        return f"{front}.lora_A.weight", f"{front}.lora_B.weight"

    def _stored(self, part: Part, parts: Sequence[Part]) -> Iterator[tuple[str, TensorInfo]]:
        """What is kept of a whole part: a bias, or all tensors of its module; by their names in the adapter's file."""
        tensors = self.model.tensors
        if part.is_bias:
            adapted = any(one.way == "low rank" and one.module == part.module for one in parts)
            layer = ".base_layer" if adapted else ""
            yield f"{self.prefix}{part.module}{layer}.bias", tensors[part.info.name]
            return
        for leaf in ("weight", "bias"):
            if info := tensors.get(f"{part.module}.{leaf}"):
                yield f"{self.prefix}{info.name}", info
        if self._is_tied(part):
            yield PREFIX + HEAD_NAME, part.info

    def _is_tied(self, part: Part) -> bool:
        return self.base.tied and part.info.name == self.base.embedding

    def write(self, part: Part, parts: Sequence[Part], writer: CheckpointWriter) -> TensorError:
        """Write one part, and measure what it loses."""
        error = part.change
        if part.way == "low rank":
            error = self._write_factors(part, writer)
        elif part.way == "whole":
            for key, info in self._stored(part, parts):
                for start, stop in info.row_blocks(BLOCK):
                    writer.write(key, self.model.read(info.name, start, stop), start)
            error = 0.0
        return TensorError(part.info.name, part.way, part.rank, part.change, error, part.why)

    def _write_factors(self, part: Part, writer: CheckpointWriter) -> float:
        assert part.rank is not None
        name, (rows, columns) = part.info.name, part.info.shape
        left, values, right = nearest(lambda: self._change(name), (rows, columns), part.rank)
        left, right = left * values.sqrt(), right * values.sqrt()
        a, b = self._factor_names(part)
        turned = self._turned(part)
        writer.write(a, (left if turned else right).T)
        writer.write(b, right if turned else left)
        lost = 0.0
        for start, block in self._change(name):
            kept = left[start : start + len(block)] @ right.T
            lost += float((block - kept).double().square().sum())
        return math.sqrt(lost)

    def settings(self, parts: Sequence[Part], base_name: str) -> dict[str, Any]:
        """adapter_config.json: α is the rank, so that s is 1."""
        factored = [part for part in parts if part.way == "low rank"]
        whole = [part for part in parts if part.way == "whole" and not part.is_bias]
        smaller = {part.module: part.rank for part in factored if part.rank != self.rank}
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": base_name,
            "task_type": "CAUSAL_LM" if (self.base.architecture or "").endswith("ForCausalLM") else None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": smaller,
            "alpha_pattern": smaller,
            "lora_dropout": 0.0,
            "target_modules": [part.module for part in factored],
            "modules_to_save": list(dict.fromkeys(part.module for part in whole)) or None,
            "bias": "all" if any(part.way == "whole" and part.is_bias for part in parts) else "none",
            "fan_in_fan_out": any(self._turned(part) and not part.is_embedding for part in factored),
            "ensure_weight_tying": any(self._is_tied(part) for part in whole),
            "use_rslora": False,
            "use_dora": False,
        }
