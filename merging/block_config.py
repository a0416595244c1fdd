"""The config of a model whose blocks come from elsewhere: how many there are, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merging.anatomy import locate
from merging.checkpoint import Checkpoint
from merging.tensor_plan import TensorPlan

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
NESTED = "text_config"
Origin = tuple[Mapping[str, Any], int]
"""Where a block of the output is from: its model's config and the block's number there."""


def origins(tensors: Sequence[TensorPlan]) -> list[Origin]:
    """The origin of every block of the output, in order."""
    found: dict[int, Origin] = {}
    for tensor in tensors:
        block, before = locate(tensor.info.name).block, locate(tensor.reference.name).block
        source = tensor.reference.source
        if isinstance(block, int) and isinstance(before, int):
            found.setdefault(block, (source.config if isinstance(source, Checkpoint) else {}, before))
    return [found[block] for block in sorted(found)]


def recut(config: Mapping[str, Any], blocks: Sequence[Origin]) -> tuple[dict[str, Any], list[str]]:
    """The config for these blocks, and a warning for each entry about blocks that cannot be cut anew.

    A list with an entry for each block, such as `layer_types`, takes the entries of the blocks that are used.
    """
    made: dict[str, Any] = dict(config)
    warnings: list[str] = []
    if isinstance(config.get(NESTED), Mapping):
        inner = [(before.get(NESTED) or {}, number) for before, number in blocks]
        made[NESTED], warnings = recut(config[NESTED], inner)
    count = next((config[key] for key in COUNTS if isinstance(config.get(key), int)), None)
    if count is None:
        return made, warnings
    for key, value in config.items():
        if key in COUNTS:
            made[key] = len(blocks)
        elif "layer" in key and isinstance(value, list) and len(value) == count:
            made[key] = [_entry(before, key, number, value) for before, number in blocks]
        elif "layers" in key and _names_blocks(config, key, value):
            warnings.append(
                f"config.json: {key} = {value} names blocks by their old numbers and is copied as it is; mend it in the "
                "result if it no longer fits."
            )
    return made, warnings


def _entry(config: Mapping[str, Any], key: str, block: int, otherwise: list[Any]) -> Any:
    own = config.get(key)
    entries = own if isinstance(own, list) and block < len(own) else otherwise
    return entries[min(block, len(entries) - 1)]


def _names_blocks(config: Mapping[str, Any], key: str, value: Any) -> bool:
    if key == "max_window_layers":
        return bool(config.get("use_sliding_window"))
    return isinstance(value, list) and bool(value) and all(type(entry) is int for entry in value)
