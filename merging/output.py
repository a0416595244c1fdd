"""The folder around merged weights: config, tokenizer, recipe and model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merging.anatomy import locate
from merging.block_config import origins, recut
from merging.cards.lineage import LINEAGE, lineage_of_plan, to_text
from merging.cards.model_card import model_card
from merging.checkpoint import Checkpoint
from merging.engine import Watch, run_plan
from merging.events import Event, Finished
from merging.folders.header import DTYPE_WORDS
from merging.judging.subjects import SUBJECT, subject_of_plan
from merging.plan import Plan
from merging.tokenizing.special_tokens import GENERATION
from merging.version import __version__
from merging.writer import MARKER, SHARD_BYTES, CheckpointWriter

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""How images and sounds become a model's input."""


@dataclass(frozen=True)
class Files:
    """What a merge writes: the size its files of weights stay below where they can, and whether tokenizer and model card
    go with them."""

    shard_bytes: int = SHARD_BYTES
    tokenizer: bool = True
    card: bool = True


USUAL = Files()


def write_merge(
    plan: Plan, out: Path, *, device: str = "auto", watches: Sequence[Watch] = (), files: Files = USUAL
) -> Iterator[Event]:
    """Merge into the folder `out`, complete for transformers; it appears when everything in it is written.

    Closing the generator, or an error, leaves `out` as it was. `watches` look at every merged piece as it is written.
    """
    metadata = {
        "mergescope_version": __version__,
        "recipe": plan.public.to_yaml(),
        SUBJECT: subject_of_plan(plan),
        LINEAGE: to_text(lineage_of_plan(plan)),
    }
    tensors = [tensor.info for tensor in plan.tensors]
    with CheckpointWriter(out, tensors, metadata, files.shard_bytes) as writer:
        for event in run_plan(plan, writer, device=device, watches=watches):
            if isinstance(event, Finished):
                finished = event
            else:
                yield event
        _add_files(plan, writer, finished, files)
    yield replace(finished, path=writer.out)


def _add_files(plan: Plan, writer: CheckpointWriter, finished: Finished, files: Files) -> None:
    writer.add_text(MARKER, f"# made with Mergescope {__version__}\n{plan.record.to_yaml()}")
    reference = plan.reference if isinstance(plan.reference, Checkpoint) else None
    config = config_of(plan, reference) if reference is not None and reference.config else {}
    if files.card:
        writer.add_text("README.md", model_card(plan, finished, lineage_of_plan(plan), config))
    if reference is None or not config:
        return
    writer.add_text("config.json", json.dumps(config, indent=2) + "\n")
    for name in PROCESSORS:
        if (reference.folder / name).is_file():
            writer.add_file(reference.folder / name)
    for name, content in (plan.tokens.files() if plan.tokens else {}).items():
        if not files.tokenizer and name != GENERATION:
            continue
        if isinstance(content, Path):
            writer.add_file(content)
        else:
            writer.add_text(name, content)


def placeless(content: Any) -> Any:
    """A config, and every config inside it, without the path that a model was loaded from."""
    if isinstance(content, dict):
        return {key: placeless(value) for key, value in content.items() if key != "_name_or_path"}
    return [placeless(value) for value in content] if isinstance(content, list) else content


def config_of(plan: Plan, reference: Checkpoint) -> dict[str, object]:
    """The config.json of a plan's output: the reference's, with the blocks, the vocabulary and the dtype of the output."""
    stored = {DTYPE_WORDS[t.info.dtype] for t in plan.tensors if t.info.dtype in DTYPE_WORDS}
    dtype = plan.recipe.out_dtype or plan.recipe.dtype or (stored.pop() if len(stored) == 1 else "float32")
    config = dict(reference.config)
    if plan.recipe.slices:
        config, _ = recut(config, origins(plan.tensors))
    if plan.tokens is not None:
        head = any(locate(tensor.info.name).kind == "head" for tensor in plan.tensors)
        config = plan.tokens.config(config, head)
    config = placeless(config)
    config.pop("auto_map", None)  # its code stays behind, and transformers knows the model without
    config["torch_dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    return config
