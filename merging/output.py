"""The folder around merged weights: config, tokenizer, recipe and model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from merging.block_config import origins, recut
from merging.checkpoint import Checkpoint
from merging.engine import Watch, run_plan
from merging.events import Event, Finished
from merging.header import DTYPE_WORDS
from merging.methods import METHODS
from merging.plan import Plan
from merging.subjects import SUBJECT, subject_of_plan
from merging.version import __version__
from merging.writer import MARKER, CheckpointWriter

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def write_merge(
    plan: Plan, out: Path, *, device: str = "auto", watches: Sequence[Watch] = ()
) -> Iterator[Event]:
    """Merge into the folder `out`, complete for transformers; it appears when everything in it is written.

    Closing the generator, or an error, leaves `out` as it was. `watches` look at every merged piece as it is written.
    """
    metadata = {
        "mergescope_version": __version__,
        "recipe": plan.recipe.to_yaml(),
        SUBJECT: subject_of_plan(plan),
    }
    with CheckpointWriter(out, [tensor.info for tensor in plan.tensors], metadata) as writer:
        for event in run_plan(plan, writer, device=device, watches=watches):
            if isinstance(event, Finished):
                finished = event
            else:
                yield event
        _add_files(plan, writer, finished)
    yield replace(finished, path=writer.out)


def _add_files(plan: Plan, writer: CheckpointWriter, finished: Finished) -> None:
    writer.add_text(MARKER, f"# made with Mergescope {__version__}\n{plan.recipe.to_yaml()}")
    writer.add_text("README.md", model_card(plan, finished))
    reference = plan.reference
    if not isinstance(reference, Checkpoint) or not reference.config:
        return
    writer.add_text("config.json", json.dumps(config_of(plan, reference), indent=2) + "\n")
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (file := reference.folder / name).is_file():
            writer.add_file(file)
    if plan.recipe.chat_template is not None:
        writer.add_text("chat_template.jinja", plan.recipe.chat_template)


def config_of(plan: Plan, reference: Checkpoint) -> dict[str, object]:
    """The config.json of a plan's output: the reference's, with the blocks and the dtype of the output."""
    stored = {DTYPE_WORDS[t.info.dtype] for t in plan.tensors if t.info.dtype in DTYPE_WORDS}
    dtype = plan.recipe.out_dtype or plan.recipe.dtype or (stored.pop() if len(stored) == 1 else "float32")
    config = dict(reference.config)
    if plan.recipe.slices:
        config, _ = recut(config, origins(plan.tensors))
    config.pop("_name_or_path", None)
    config["torch_dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    return config


def model_card(plan: Plan, finished: Finished) -> str:
    """The README of the result: parents, recipe, and what was attained."""
    method = METHODS[plan.recipe.merge_method]
    parents = [f"- {name}" for name in plan.names]
    if plan.base is not None:
        parents.insert(0, f"- {plan.recipe.base_model or plan.base.label} (base)")
    facts = []
    if finished.relative_change is not None:
        facts.append(f"- relative change of the merge, ‖Δ‖/‖θ0‖: {finished.relative_change:.4g}")
        facts.append(
            f"- changed weights that the output dtype rounds back to the base: {finished.lost_share:.1%}"
        )
    if finished.attained is not None:
        for name, kept, tied in zip(
            plan.names, finished.attained.nonzero, finished.attained.tied, strict=True
        ):
            share = kept / max(1, finished.attained.elements)
            facts.append(
                f"- density attained for {name}: {share:.4f} ({tied:,} elements tied at the threshold)"
            )
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [merge, mergescope]",
            "---",
            f"# A merge by {method.title}",
            "",
            f"Made with Mergescope {__version__}; method: {method.paper}",
            "",
            "## Parents",
            *parents,
            "",
            "## What was attained",
            *(facts or ["- no base, so no change was measured"]),
            *(
                ["", "## Warnings", *(f"- {warning}" for warning in finished.warnings)]
                if finished.warnings
                else []
            ),
            "",
            "## Recipe",
            "```yaml",
            plan.recipe.to_yaml().rstrip(),
            "```",
            "",
        ]
    )
