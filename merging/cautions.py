"""What a recipe and its models' headers already show to be other than most people expect: warnings, not problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from merging.folders.header import DTYPE_WORDS
from merging.recipe import Recipe
from merging.tensor_plan import TensorPlan
from merging.values import ParameterValue

WIDE = frozenset({"F32", "F64"})
NARROW = frozenset({"float16", "bfloat16"})


def recipe_cautions(recipe: Recipe, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    """A sentence for each filter that misses or catches too much, for inputs that are rounded before the merge, and for
    a model that is merged with no other."""
    names = {tensor.info.name for tensor in tensors} | {one.name for t in tensors for one in t.inputs}
    for text in dict.fromkeys(_filters(recipe)):
        yield from _filter_cautions(text, names)
    yield from _rounding(recipe, tensors)
    if any(t.method and t.method.experts_wanted is None and len(t.experts) == 1 for t in tensors):
        yield (
            "only one model to merge: the result is its own change, pruned and scaled by the method. Add another expert."
        )


def _filters(recipe: Recipe) -> Iterator[str]:
    models = [*recipe.models, *(source for part in recipe.slices for source in part.sources)]
    tables = [recipe.parameters, *(part.parameters for part in recipe.slices)]
    tables += [model.parameters for model in models] + [override.parameters for override in recipe.overrides]
    for table in tables:
        for value in table.values():
            yield from _of_value(value)


def _of_value(value: ParameterValue) -> Iterator[str]:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict) and part.get("filter") not in (None, "", "*"):
            yield str(part["filter"])


def _filter_cautions(text: str, names: set[str]) -> Iterator[str]:
    """A filter is a part of a name: one that ends in a number also finds longer numbers."""
    found = [name for name in names if text in name]
    if not found:
        yield f"filter '{text}': is part of no tensor's name, so its value is never used."
    elif text[-1].isdigit():
        longer = {name for name in found if name.partition(text)[2][:1].isdigit()}
        if longer and len(longer) < len(found):
            yield (
                f"filter '{text}': also matches longer numbers ({min(longer)} and {len(longer) - 1} more); write "
                f"'{text}.' for that number alone."
            )


def _rounding(recipe: Recipe, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    """`dtype` rounds the inputs in mergekit's profile, so that small changes are lost before they are merged."""
    if recipe.profile != "mergekit" or recipe.dtype not in NARROW:
        return
    wide = {
        one.model: DTYPE_WORDS[one.info.dtype]
        for tensor in tensors
        if tensor.method is not None
        for one in tensor.inputs
        if one.info is not None and one.info.dtype in WIDE
    }
    for model, stored in wide.items():
        yield (
            f"{model}: dtype: {recipe.dtype} rounds its {stored} weights before they are merged, as mergekit does; write "
            f"dtype: float32 and out_dtype: {recipe.dtype} to round only the result."
        )
