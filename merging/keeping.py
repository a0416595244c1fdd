"""Partial merges: which tensors a recipe keeps as the base's, by globs, by modules, and by blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from merging.anatomy import block_words, blocks, kinds, locate, number_of
from merging.errors import did_you_mean
from merging.recipe import Recipe


def keepers(recipe: Recipe, name: str) -> set[str]:
    """The entries of the recipe that keep a tensor, as `exclude: 'GLOB'`, `keep.modules: 'WORD'`, `keep.layers: [0, 2]`;
    none of a tensor that is merged.

    A module's word is its kind (`q`, `mlp norm`), what it does (`attention`, `mlp`, `norm`, `embedding`, `head`), or a part
    of the tensor's name (`q_proj`). Both stacks of an encoder-decoder have the blocks that a range names.
    """
    found = {f"exclude: '{glob}'" for glob in recipe.exclude if fnmatchcase(name, glob)}
    if recipe.keep.modules:
        words = _words(name)
        found |= {f"keep.modules: '{word}'" for word in recipe.keep.modules if word in words}
    block = locate(name).block
    if block is not None:
        number = number_of(block)
        found |= {_layers(one) for one in recipe.keep.layers if one[0] <= number < one[1]}
    return found


def keeping_problems(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """A sentence for each entry that keeps none of the output's tensors, or blocks that it does not have."""
    used = {entry for name in names for entry in keepers(recipe, name)}
    problems = [
        f"exclude: '{glob}' matches no tensor."
        for glob in sorted(set(recipe.exclude))
        if f"exclude: '{glob}'" not in used
    ]
    for word in dict.fromkeys(recipe.keep.modules):
        if f"keep.modules: '{word}'" not in used:
            known = list(dict.fromkeys([*_roles(names), *kinds(names)]))
            problems.append(
                f"keep.modules: '{word}' is no module of the output.{did_you_mean(word, known)} It has: "
                f"{', '.join(known)}; parts of tensor names such as q_proj are known as well."
            )
    present = blocks(names)
    numbers = {number_of(block) for block in present}
    for first, stop in dict.fromkeys(recipe.keep.layers):
        if not 0 <= first < stop or stop - 1 > max(numbers, default=-1):
            problems.append(
                f"{_layers((first, stop))} must be the first block and the one after the last; the output has "
                f"{block_words(present) or 'no blocks'}."
            )
    return problems


def _layers(one: tuple[int, int]) -> str:
    return f"keep.layers: [{one[0]}, {one[1]}]"


def _words(name: str) -> set[str]:
    place = locate(name)
    parts = {part for part in name.split(".") if not part.isdecimal()}
    return {place.kind, place.kind.removesuffix(" bias"), place.role, *parts}


def _roles(names: Iterable[str]) -> list[str]:
    return [role for role in dict.fromkeys(locate(name).role for name in names) if role != "other"]
