"""A merge that is never written: made in memory of a family that is there already, and asked from there."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from merging.checkpoint import Checkpoint
from merging.engine import MemorySink
from merging.errors import CheckpointError, MergingError
from merging.executors import quietly
from merging.inference import LoadedModel
from merging.memory.replay import write
from merging.memory.whatif import Residents
from merging.output import config_of
from merging.plan import Plan

TOO_LARGE = "These models are too large to be merged in memory. Merge the recipe first, then ask the result."


def merge_in_memory(plan: Plan, residents: Residents) -> dict[str, torch.Tensor]:
    """The tensors that `merging.run` writes for a plan, bit for bit.

    Raises:
        MergingError: the family does not fit into memory, or the merge itself would fail.
    """
    if not residents.fits(plan):
        raise MergingError(TOO_LARGE)
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    quietly(write, plan, residents.family(plan), sink)
    return sink.tensors


def load_unsaved(plan: Plan, residents: Residents, device: str = "cpu") -> LoadedModel:
    """The merged model of a plan, ready to answer as `LoadedModel.load` would make it of the written folder.

    Raises:
        MergingError: as `merge_in_memory`, or config and tokenizer make no model of the tensors.
    """
    reference = plan.reference
    if not isinstance(reference, Checkpoint) or not reference.config:
        raise CheckpointError(f"{reference.label}: has no config.json, so its merge cannot be asked. Add it.")
    with tempfile.TemporaryDirectory() as name:  # transformers reads a tokenizer from files alone
        folder = Path(name)
        config = config_of(plan, reference)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file, content in (plan.tokens.files() if plan.tokens else {}).items():
            if isinstance(content, Path):
                (folder / file).symlink_to(content.resolve())
            else:
                (folder / file).write_text(content, encoding="utf-8")
        loaded = LoadedModel.of(merge_in_memory(plan, residents), config, folder, device=device)
    return replace(loaded, path=reference.folder)
