"""What a PEFT LoRA folder holds: its settings, and which of its tensors change which weight of a model.

Source: Hu et al. 2021, LoRA, W + s·B·A with s = α/r; Kalajdzievski 2023, rsLoRA, s = α/√r; the files as peft writes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError
from merging.folders.header import MERGEABLE, read_header
from merging.folders.small_files import read_json
from merging.references import path_exists

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before the name of a module of the model."""
REFUSED = {
    "use_dora": "is a DoRA adapter, whose change depends on the norms of the base's weights",
    "use_qalora": "is a QA-LoRA adapter, made for quantised weights",
    "alora_invocation_tokens": "is an Activated LoRA adapter, which acts only after certain tokens",
    "use_bdlora": "is a block-diagonal LoRA adapter",
    "arrow_config": "is an Arrow router between adapters",
    "kasa_config": "is a KaSA adapter, which changes the base's own weights",
    "monteclora_config": "is a Monte Carlo LoRA adapter",
    "layer_replication": "repeats blocks of its base (layer_replication)",
    "target_parameters": "changes parameters that are no weight of a module (target_parameters)",
    "trainable_token_indices": "holds single rows of the embedding (trainable_token_indices)",
}
"""Settings that make an adapter something else than W + s·B·A, and what it is then."""
READ = frozenset(
    {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights"}
    | {"base_model_name_or_path", "ensure_weight_tying"}
)
TOLD_BY_TENSORS = frozenset(
    {"r", "rank_pattern", "bias", "lora_bias", "modules_to_save", "target_modules", "exclude_modules"}
    | {"layers_to_transform", "layers_pattern"}
)
FOR_TRAINING = frozenset(
    {"auto_mapping", "corda_config", "eva_config", "inference_mode", "loftq_config", "lora_dropout"}
    | {"lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision"}
    | {"runtime_config", "task_type", "velora_config"}
)
KEEPS_BASE = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica"})
"""Ways to begin a training (init_lora_weights) that leave the base's weights as they are."""
SAFE_PATTERN = re.compile(r"(?:[\w.^$|()*+?-]|\\[.dw-])*")
QUANTIFIERS = "*+?"
MOST_LETTERS, MOST_QUANTIFIERS = 300, 2
"""Of an alpha_pattern: a stranger's regular expression with more, or with one after a bracket, can take for ever."""


@dataclass(frozen=True)
class LowRank:
    """s·B·A, added to a tensor; the names of its factors in the adapter's file. Without `a` it is s·B, of a vector.

    `turned`: whether the tensor is stored as [inputs, outputs], so that (s·B·A)ᵀ is added; None: its shape tells.
    """

    a: str | None
    b: str
    scale: float
    turned: bool | None = None


@dataclass(frozen=True)
class Update:
    """What an adapter does to one tensor: puts `stored` of its file in its place, adds `low_rank`, or both."""

    stored: str | None = None
    low_rank: LowRank | None = None


class AdapterFile:
    """A PEFT LoRA folder, opened from its settings and its header.

    `updates` say what becomes of which tensor, by the tensor's name in the model that was trained; `remarks` what a user
    should know, a sentence each.

    Args:
        stored: its tensors, where they are not in the folder yet.
        label: what to call it, if not by its folder.

    Raises:
        CheckpointError: another kind of adapter, pickle weights, or a damaged file; with all that is wrong.
    """

    def __init__(self, folder: str | Path, stored: Checkpoint | None = None, label: str | None = None):
        self.folder = Path(folder)
        self.label = label or self.folder.name or str(folder)
        if not path_exists(self.folder):
            raise CheckpointError(f"{folder}: there is no such folder. Give the path of an adapter's folder.")
        self.settings = read_json(self.folder / SETTINGS)
        if refused := [*self._refused(), *self._malformed()]:
            raise CheckpointError(" ".join(refused))
        self.stored = stored or _open_weights(self.folder)
        problems: list[str] = []
        self.updates = self._updates(problems)
        if problems:
            raise CheckpointError(" ".join(problems))
        self.remarks = tuple(self._remarks())

    @property
    def base(self) -> str:
        """The model it was trained on, by the name it had there; empty where the settings do not say."""
        named = self.settings.get("base_model_name_or_path")
        return named if isinstance(named, str) else ""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its changes, each once, ascending."""
        factors = [update.low_rank.a for update in self.updates.values() if update.low_rank]
        return tuple(sorted({self.stored.tensors[name].shape[0] for name in factors if name}))

    @property
    def alphas(self) -> tuple[float, ...]:
        """The α that its settings name, each once, ascending."""
        return tuple(sorted({self.settings.get("lora_alpha", 8), *self._alpha_pattern.values()}))

    @property
    def targets(self) -> tuple[str, ...]:
        """The last words of the modules it changes, each once."""
        return tuple(dict.fromkeys(name.rpartition(".")[0].rpartition(".")[2] for name in self.updates))

    @property
    def _alpha_pattern(self) -> dict[str, float]:
        return self.settings.get("alpha_pattern") or {}

    def _refused(self) -> Iterator[str]:
        kind = self.settings.get("peft_type")
        if kind != "LORA":
            yield (
                f"{self.folder}: is an adapter of the kind {str(kind)[:40]}, and only LoRA adapters are read; merge it into "
                "its base with peft (merge_and_unload), and name that model."
            )
        for key, what in REFUSED.items():
            if self.settings.get(key):
                yield (
                    f"{self.folder}: {what}, which cannot be read as a plain LoRA; merge it into its base with peft "
                    "(merge_and_unload) where that can be done, and name that model."
                )
        began = str(self.settings.get("init_lora_weights", True)).lower()
        if began not in KEEPS_BASE:
            yield (
                f"{self.folder}: init_lora_weights is {began[:40]}, which changes the base's own weights; save it from peft "
                "with path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
            )

    def _malformed(self) -> Iterator[str]:
        pattern = self.settings.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            yield f"{self.folder / SETTINGS}: alpha_pattern is no table of names and numbers."
            return
        for key, value in (("lora_alpha", self.settings.get("lora_alpha", 8)), *pattern.items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                yield f"{self.folder / SETTINGS}: {key[:80]} is {str(value)[:40]}, which is no number."
        for key in pattern:
            if not _is_safe(key):
                yield (
                    f"{self.folder / SETTINGS}: the alpha_pattern {key[:80]!r} is a regular expression that is not read "
                    f"here; write the names of the modules, or one with at most {MOST_QUANTIFIERS} of {QUANTIFIERS}."
                )

    def _remarks(self) -> Iterator[str]:
        known = READ | TOLD_BY_TENSORS | FOR_TRAINING | REFUSED.keys()
        for key in sorted(key for key, value in self.settings.items() if value and key not in known):
            yield f"{self.label}: its setting {key[:80]} is unknown here and was not used."

    def _updates(self, problems: list[str]) -> dict[str, Update]:
        found: dict[str, Update] = {}

        def add(target: str, **what: Any) -> None:
            found[target] = replace(found.get(target, Update()), **what)

        for name, info in self.stored.tensors.items():
            own = name.removeprefix(PREFIX)
            if info.dtype not in MERGEABLE:
                problems.append(f"{self.folder}: '{name}' is stored as {info.dtype}, which is no float.")
            elif own.endswith((".lora_A.weight", ".lora_embedding_A")):
                self._require_partner(name, "A", "B", problems)
            elif own.endswith(".lora_B.weight"):
                if a := self._require_partner(name, "B", "A", problems):
                    module = own.removesuffix(".lora_B.weight")
                    add(f"{module}.weight", low_rank=LowRank(a, name, self._scale(module, a)))
            elif own.endswith(".lora_embedding_B"):
                if a := self._require_partner(name, "B", "A", problems):
                    module = own.removesuffix(".lora_embedding_B")
                    add(f"{module}.weight", low_rank=LowRank(a, name, self._scale(module, a), turned=True))
            elif own.endswith(".lora_B.bias"):
                a = name.removesuffix("B.bias") + "A.weight"
                module = own.removesuffix(".lora_B.bias")
                if a in self.stored.tensors:
                    add(f"{module}.bias", low_rank=LowRank(None, name, self._scale(module, a)))
            elif ".original_module." in own:
                continue  # what `modules_to_save` replaced, kept beside it by `bias: all`
            elif ".lora_" in own or ".token_adapter." in own:
                problems.append(f"{self.folder}: holds '{name}', which is no part of a plain LoRA.")
            else:
                add(own.replace(".base_layer.", ".").replace(".modules_to_save.", "."), stored=name)
        if not found and not problems:
            problems.append(f"{self.folder / WEIGHTS}: holds no change of any tensor.")
        return found

    def _require_partner(self, name: str, own: str, other: str, problems: list[str]) -> str | None:
        """The other factor of a pair; None, with the problem noted, where it is missing or of another rank."""
        front, _, back = name.rpartition(own)
        partner = front + other + back
        tensors = self.stored.tensors
        if partner not in tensors:
            problems.append(f"{self.folder}: has '{name}' but not '{partner}'; download it again.")
            return None
        a, b = (tensors[one].shape for one in ((name, partner) if own == "A" else (partner, name)))
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0]:
            if own == "B":
                problems.append(
                    f"{self.folder}: '{name}' {list(b)} and its partner {list(a)} do not fit together."
                )
            return None
        return partner

    def _scale(self, module: str, a: str) -> float:
        """s of a module: its α by the rank, or by the root of it."""
        rank = self.stored.tensors[a].shape[0]
        matching = (alpha for key, alpha in self._alpha_pattern.items() if _matches(key, module))
        alpha = next(matching, self.settings.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / SETTINGS).is_file() and not any(folder.glob("model*.safetensors*"))


def _matches(pattern: str, module: str) -> bool:
    """peft's rule: the pattern is the module's whole name, or what stands after one of its dots."""
    return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None


def _is_safe(pattern: str) -> bool:
    quantifiers = sum(pattern.count(letter) for letter in QUANTIFIERS)
    nested = any(f"){letter}" in pattern for letter in QUANTIFIERS)
    if len(pattern) > MOST_LETTERS or quantifiers > MOST_QUANTIFIERS or nested:
        return False
    try:
        return SAFE_PATTERN.fullmatch(pattern) is not None and bool(re.compile(pattern))
    except re.error:
        return False


def _open_weights(folder: Path) -> Checkpoint:
    file = folder / WEIGHTS
    if file.is_file():
        return Checkpoint(file, *read_header(file))
    if any(folder.glob("adapter_model*.bin")):
        raise CheckpointError(
            f"{folder}: holds pickle weights (adapter_model.bin), which can run code when opened and are refused. Convert "
            "once with peft: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)."
        )
    raise CheckpointError(f"{file}: missing. Download the adapter again.")
