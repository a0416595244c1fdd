"""Whether models can be merged at all, judged from their headers: problems stop a merge, warnings travel with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from merging.anatomy import locate
from merging.checkpoint import Checkpoint, TensorSource
from merging.errors import OutputError
from merging.header import MERGEABLE
from merging.methods import Method
from merging.recipe import ModelEntry, Recipe, path_exists
from merging.writer import ensure_replaceable, hidden_names

BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
"""Tensors that old checkpoints store though they are no weights; an extra one does no harm."""
MUST_AGREE = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_head",
    "hidden_act",
    "activation_function",
)
SHOULD_AGREE = (
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "sliding_window",
    "eos_token_id",
)
FOREIGN_TOKENS = 0.01
"""Share of ids with another token in the other vocabulary from which on their rows are no longer comparable."""


def compare(base: TensorSource, model: TensorSource, label: str) -> tuple[list[str], list[str]]:
    """Problems and warnings of merging `model` with `base`, a sentence each, from headers, configs and vocabularies."""
    problems: list[str] = []
    warnings: list[str] = []
    if isinstance(base, Checkpoint) and isinstance(model, Checkpoint):
        if base.architecture and model.architecture and base.architecture != model.architecture:
            problems.append(
                f"{label}: is a {model.architecture}, the base is a {base.architecture}; only models of one architecture "
                "can be merged. Choose a fine-tune of this base."
            )
            return problems, warnings
        problems += _config_problems(base, model, label)
        warnings += _config_warnings(base, model, label)
        found, noted = _compare_vocabularies(base, model, label)
        problems += found
        warnings += noted
        if base.chat_template != model.chat_template:
            warnings.append(
                f"{label}: its chat template differs from the base's; the result takes the base's."
            )
    return problems + _tensor_problems(base, model, label), warnings


def _tensor_problems(base: TensorSource, model: TensorSource, label: str) -> list[str]:
    problems = []
    missing = [name for name in base.tensors if name not in model.tensors]
    extra = [name for name in model.tensors if name not in base.tensors and not name.endswith(BUFFERS)]
    if missing:
        problems.append(
            f"{label}: lacks {_some(missing, 'tensor')} of the base. Is it a fine-tune of this base?"
        )
    if extra:
        problems.append(
            f"{label}: has {_some(extra, 'tensor')} that the base lacks. Is it a fine-tune of this base?"
        )
    shapes, kinds = [], []
    for name, info in base.tensors.items():
        other = model.tensors.get(name)
        if other is None:
            continue
        if other.shape != info.shape:
            role = locate(name).role
            if role in {"embedding", "head"} and other.shape[1:] == info.shape[1:]:
                problems.append(
                    f"{label}: '{name}' has {other.rows:,} rows (its vocabulary), the base {info.rows:,}; models with "
                    "unequal vocabularies are not supported yet. Trim or pad its embedding to the base's rows."
                )
            else:
                shapes.append(f"'{name}' {list(other.shape)} against {list(info.shape)}")
        if (other.dtype in MERGEABLE) != (info.dtype in MERGEABLE):
            kinds.append(f"'{name}' {other.dtype} against {info.dtype}")
    if shapes:
        problems.append(
            f"{label}: {_some(shapes, 'shape')} unlike the base's. Only equal shapes can be merged."
        )
    if kinds:
        problems.append(f"{label}: {_some(kinds, 'dtype')} unlike the base's.")
    return problems


def _some(items: Sequence[str], noun: str) -> str:
    shown = ", ".join(item if item.startswith("'") else f"'{item}'" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''} ({shown}{more})"


def _config_problems(base: Checkpoint, model: Checkpoint, label: str) -> Iterable[str]:
    for key in MUST_AGREE:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours != theirs and ours is not None and theirs is not None:
            yield f"{label}: its config says {key} = {theirs}, the base's {ours}; such models do not fit together."
    if base.tied != model.tied:
        with_head, without = (label, "the base") if base.tied else ("the base", label)
        yield (
            f"{label}: {with_head} has an output head of its own, while {without} shares it with the embedding (tied); "
            "merging tied with untied models is not supported yet. Save both the same way first."
        )


def _config_warnings(base: Checkpoint, model: Checkpoint, label: str) -> Iterable[str]:
    for key in SHOULD_AGREE:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours != theirs:
            yield f"{label}: its config says {key} = {theirs}, the base's {ours}; the result takes the base's."


def _compare_vocabularies(base: Checkpoint, model: Checkpoint, label: str) -> tuple[list[str], list[str]]:
    ours, theirs = base.vocabulary, model.vocabulary
    if ours is None or theirs is None or ours == theirs:
        return [], []
    by_id = {number: token for token, number in ours.items()}
    foreign = [token for token, number in theirs.items() if number in by_id and by_id[number] != token]
    if len(foreign) > FOREIGN_TOKENS * len(ours):
        return [
            f"{label}: its tokenizer means other tokens than the base's at {len(foreign):,} of {len(ours):,} ids (for "
            f"example {foreign[0]!r}), so their embedding rows cannot be mixed. Choose a fine-tune of this base."
        ], []
    added = [token for token in theirs if token not in ours]
    example = f", for example {added[0]!r}" if added else ""
    return [], [
        f"{label}: its tokenizer differs from the base's in {len(set(added) | set(foreign)):,} tokens{example}; the "
        "result takes the base's tokenizer."
    ]


def output_problem(out: Path, inputs: Iterable[Path]) -> list[str]:
    """Why `out` cannot be the output folder: it is an input, holds one, lies in one, or holds foreign files."""
    try:
        target = Path(os.path.realpath(out))
    except (OSError, ValueError):
        return [f"{str(out)[:200]}: cannot be the name of a folder; choose another."]
    for folder in inputs:
        source = folder.resolve()
        taken = (target, *hidden_names(target))
        if source in target.parents or any(one == source or one in source.parents for one in taken):
            return [
                f"{out}: the output would overwrite or enclose the input {folder}; choose another folder."
            ]
    try:
        ensure_replaceable(out)
    except OutputError as error:
        return [str(error)]
    return []


def recipe_problems(
    recipe: Recipe,
    method: type[Method],
    base: TensorSource | None,
    entries: Sequence[ModelEntry],
    earlier: Sequence[str] = (),
) -> Iterator[str]:
    """What a recipe lacks, or has too much of, for its method."""
    if method.needs_base and recipe.base_model is None and base is None:
        yield f"base_model: missing. {method.title} works on changes from a base; name the model all others were tuned from."
    if not recipe.models and not any(problem.startswith("models") for problem in earlier):
        yield "models: missing. List at least one model to merge."
    elif (
        method.needs_base
        and recipe.models
        and all(entry.model == recipe.base_model for entry in recipe.models)
    ):
        yield "models: only the base is listed. Add a model that was tuned from it."
    if method.experts_wanted is not None and len(recipe.models) and len(entries) > method.experts_wanted:
        yield (
            f"models: {method.title} takes the base and exactly {method.experts_wanted} other model, not {len(entries)}; "
            "remove some, or choose another method."
        )
    listed = {entry.model for entry in entries}
    base_counts = recipe.profile == "mergekit" and not method.needs_base and recipe.base_model is not None
    if base_counts and recipe.base_model not in listed:
        yield (
            f"base_model: {method.name} counts it as one more model; list it under 'models' with its weight, or remove "
            "base_model."
        )


def tokenizer_problems(
    recipe: Recipe, reference: TensorSource | None, experts: Sequence[tuple[ModelEntry, TensorSource]]
) -> Iterator[str]:
    """What the recipe asks of tokenizer and chat template beyond copying the base's."""
    vocabularies = [getattr(source, "vocabulary", None) for _, source in experts]
    ours = getattr(reference, "vocabulary", None)
    if recipe.tokenizer_source not in (None, "base") and any(other != ours for other in vocabularies):
        yield (
            f"tokenizer_source: {recipe.tokenizer_source} over unequal vocabularies is not supported yet; write "
            "tokenizer_source: base, or use models with one vocabulary."
        )
    if recipe.chat_template is not None and "{" not in recipe.chat_template:
        yield (
            f"chat_template: the name '{recipe.chat_template}' is not supported yet; give the Jinja text itself, or leave "
            "it out to keep the base's."
        )


def memory_problem(needed: int) -> list[str]:
    """Too little free memory for `needed` bytes; nothing where the system does not tell."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        free = max(
            free,
            *(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith("MemAvailable")),
        )
    except (OSError, ValueError, TypeError):
        return []
    if needed > free:
        return [
            f"this merge needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; close something."
        ]
    return []


def disk_problem(out: Path, needed: int) -> list[str]:
    """Too little free space for `needed` bytes where `out` will lie."""
    folder = out.absolute()
    while not path_exists(folder):
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + (32 << 20) > free:
        return [
            f"{out}: the result needs {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free; make room."
        ]
    return []
