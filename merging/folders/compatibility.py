"""Whether models can be merged at all, judged from their headers: problems stop a merge, warnings travel with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from merging.anatomy import in_block, locate
from merging.checkpoint import Checkpoint, TensorSource
from merging.errors import some
from merging.folders.header import MERGEABLE, TensorInfo
from merging.layout import Slot, taken
from merging.methods import Method
from merging.recipe import Recipe
from merging.sources import Member, Part
from merging.tokenizing.heads import stand_ins
from merging.tokenizing.special_tokens import Special, differences
from merging.tokenizing.tied import is_buffer
from merging.tokenizing.view import Lender, View

MUST_AGREE = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_head",
    "num_heads",
    "d_kv",
    "hidden_act",
    "activation_function",
)
SHOULD_AGREE = (
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "sliding_window",
)
FOREIGN_TOKENS = 0.01
"""Share of ids with another token in the other vocabulary from which on their rows are no longer comparable."""


def compare(base: TensorSource, model: TensorSource, label: str) -> tuple[list[str], list[str]]:
    """Problems and warnings of merging `model` with `base`, a sentence each, from headers, configs and vocabularies."""
    problems, warnings = _compare_models(base, model, label)
    if _foreign(base, model):
        return problems, warnings
    if isinstance(base, Checkpoint) and isinstance(model, Checkpoint):
        names = stand_ins([base, model])
        ours, theirs = (Special(name, one, one.vocabulary) for name, one in (("base", base), (label, model)))
        warnings += [text for one in differences([ours, theirs], ours, ours) for text in one.warnings]
        base, model = (View(Lender(one, names.get(id(one), {})), {}) for one in (base, model))
    return problems + _tensor_problems(base.tensors, model.tensors, label), warnings


def compare_parts(
    recipe: Recipe, reference: TensorSource, parts: Sequence[Part], slots: Sequence[Slot]
) -> tuple[list[str], list[str]]:
    """`compare` for all models of a recipe and the tensors that its parts take of them."""
    problems: list[str] = []
    warnings: list[str] = []
    seen = [reference]
    arranged = recipe.tokenizer_source is not None or recipe.tokenizer is not None
    for part in parts:
        mixes_rows = not arranged and (part is parts[0] or part is parts[-1])
        for member in part.members:
            if not any(member.source is source for source in seen):
                seen.append(member.source)
                found, noted = _compare_models(
                    reference, member.source, member.entry.model, vocabulary=mixes_rows
                )
                problems += found
                warnings += noted
            if member is part.reference or _foreign(reference, member.source):
                continue
            problems += _member_problems(part, member, parts, slots)
    return [*problems, *_width_problems(reference, parts, arranged)], warnings


def _member_problems(part: Part, member: Member, parts: Sequence[Part], slots: Sequence[Slot]) -> list[str]:
    """What a part misses in one of its models, or cannot use."""
    expected = {}
    for slot in slots:
        for one in slot.inputs:
            if slot.part is part and one.source is member.source and slot.reference.info is not None:
                expected[one.name] = slot.reference.info
    label = member.entry.model
    return _tensor_problems(expected, taken(part, member, parts), label)


def _width_problems(reference: TensorSource, parts: Sequence[Part], arranged: bool) -> Iterator[str]:
    """Blocks of one output must have the shapes of one model: a slice without a base is compared to the first. Where rows are
    `arranged`, the reference's own number of them says nothing."""
    if not parts or parts[0].length is None:
        return
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, info in reference.tensors.items():
        shapes.setdefault(in_block(name, 0), set()).add(info.shape)
    for part in parts:
        member = part.reference
        unlike = [
            f"'{name}' {list(info.shape)} against {list(next(iter(shapes[in_block(name, 0)])))}"
            for name, info in taken(part, member, parts).items()
            if info.shape not in shapes.get(in_block(name, 0), {info.shape})
            and not (arranged and locate(name).has_token_rows)
        ]
        if unlike:
            yield (
                f"{part.where}: {member.entry.model} has {some(unlike, 'shape')} unlike {reference.label}'s, so their "
                "blocks do not make one model."
            )


def _foreign(base: TensorSource, model: TensorSource) -> bool:
    """Whether both say that they are of different architectures."""
    names = [one.architecture if isinstance(one, Checkpoint) else None for one in (base, model)]
    return None not in names and names[0] != names[1]


def _compare_models(
    base: TensorSource, model: TensorSource, label: str, *, vocabulary: bool = True
) -> tuple[list[str], list[str]]:
    if not isinstance(base, Checkpoint) or not isinstance(model, Checkpoint):
        return [], []
    if _foreign(base, model):
        return [
            f"{label}: is a {model.architecture}, the base is a {base.architecture}; only models of one architecture "
            "can be merged. Choose a fine-tune of this base."
        ], []
    problems = list(_config_problems(base, model, label))
    warnings = [*model.remarks, *_config_warnings(base, model, label)]
    if vocabulary:
        found, noted = _compare_vocabularies(base, model, label)
        problems += found
        warnings += noted
    return problems, warnings


def _tensor_problems(
    base: Mapping[str, TensorInfo], model: Mapping[str, TensorInfo], label: str
) -> list[str]:
    problems = []
    missing = [name for name in base if name not in model]
    extra = [name for name in model if name not in base and not is_buffer(model[name])]
    if missing:
        problems.append(
            f"{label}: lacks {some(missing, 'tensor')} of the base. Is it a fine-tune of this base?"
        )
    if extra:
        problems.append(
            f"{label}: has {some(extra, 'tensor')} that the base lacks. Is it a fine-tune of this base?"
        )
    shapes, kinds = [], []
    for name, info in base.items():
        other = model.get(name)
        if other is None:
            continue
        if other.shape != info.shape:
            if locate(name).has_token_rows and other.shape[1:] == info.shape[1:]:
                problems.append(
                    f"{label}: '{name}' has {other.rows:,} rows (its vocabulary), the base {info.rows:,}; set "
                    "tokenizer_source (base, union or a model) to bring both to one vocabulary."
                )
            else:
                shapes.append(f"'{name}' {list(other.shape)} against {list(info.shape)}")
        if (other.dtype in MERGEABLE) != (info.dtype in MERGEABLE):
            kinds.append(f"'{name}' {other.dtype} against {info.dtype}")
    if shapes:
        problems.append(
            f"{label}: {some(shapes, 'shape')} unlike the base's. Only equal shapes can be merged."
        )
    if kinds:
        problems.append(f"{label}: {some(kinds, 'dtype')} unlike the base's.")
    return problems


def _config_problems(base: Checkpoint, model: Checkpoint, label: str) -> Iterable[str]:
    for key in MUST_AGREE:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours != theirs and ours is not None and theirs is not None:
            yield f"{label}: its config says {key} = {theirs}, the base's {ours}; such models do not fit together."


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
            f"example {foreign[0]!r}), so their embedding rows cannot be mixed as they lie. Set tokenizer_source (base, union or "
            "a model) to mix them token by token, or choose a fine-tune of this base."
        ], []
    added = [token for token in theirs if token not in ours]
    example = f", for example {added[0]!r}" if added else ""
    return [], [
        f"{label}: its tokenizer differs from the base's in {len(set(added) | set(foreign)):,} tokens{example}; the "
        "result takes the base's tokenizer; set tokenizer_source: union to keep all of them."
    ]


def recipe_problems(
    recipe: Recipe,
    method: type[Method],
    base: TensorSource | None,
    parts: Sequence[Part],
    earlier: Sequence[str] = (),
) -> Iterator[str]:
    """What a recipe lacks, or has too much of, for its method."""
    named = [recipe.base_model, *(part.base_model for part in recipe.slices)]
    if method.needs_base and base is None and not any(named):
        yield f"base_model: missing. {method.title} works on changes from a base; name the model all others were tuned from."
    if recipe.models and recipe.slices:
        yield "models and slices: a recipe has one of them; 'models' merges whole models, 'slices' names their blocks."
    nothing = not recipe.models and not recipe.slices
    if nothing and not any(problem.startswith(("models", "slices")) for problem in earlier):
        yield "models: missing. List at least one model to merge."
    for part in parts:
        yield from _count_problems(method, part)
    if recipe.slices:
        return
    only_base = recipe.models and all(entry.model == recipe.base_model for entry in recipe.models)
    if method.needs_base and only_base:
        yield "models: only the base is listed. Add a model that was tuned from it."
    listed = {member.entry.model for part in parts for member in part.experts}
    base_counts = recipe.profile == "mergekit" and not method.takes_base and recipe.base_model is not None
    if base_counts and recipe.base_model not in listed:
        yield (
            f"base_model: {method.name} counts it as one more model; list it under 'models' with its weight, or remove "
            "base_model."
        )


def _count_problems(method: type[Method], part: Part) -> Iterator[str]:
    wanted, given = method.experts_wanted, len(part.experts)
    if part.length is not None and method.needs_base and not given:
        yield f"{part.where}: only the base is among its sources; add a model that was tuned from it."
    elif wanted is not None and given > wanted:
        models = (
            f"the base and exactly {wanted} other model" if method.needs_base else f"exactly {wanted} model"
        )
        yield (
            f"{part.where}: {method.title} takes {models}{'s' if wanted > 1 else ''}, not {given}; remove some, or choose "
            "another method."
        )
