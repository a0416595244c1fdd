"""The Merge tab's fields for partial merges: modules and blocks that stay the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from components.family import Family
from components.late_choice import LateDropdown
from components.preview.brush_globs import runs
from merging import MergingError, Recipe
from merging.anatomy import blocks, number_of
from merging.recipe import Keep
from merging.sources import open_model

ROLES = ("attention", "mlp", "norm", "embedding", "head")
"""What is offered; the YAML takes single modules too, such as q or down_proj."""


def build_keep(inputs: dict[str, Any], recipe: Recipe, family: Family) -> None:
    """The two fields, under their keys."""
    with gr.Row(elem_classes="mg-fields"):
        for key, label in (("keep_modules", "Modules that stay"), ("keep_blocks", "Blocks that stay")):
            given = {
                name: value
                for name, value in keep_update(key, recipe, family).items()
                if name in ("choices", "value")
            }
            inputs[key] = LateDropdown(
                **given,
                label=label,
                info="As they are in the base; none: all are merged.",
                multiselect=True,
                elem_id=f"merge-{key.replace('_', '-')}",
            )


def keep_update(key: str, recipe: Recipe, family: Family) -> dict[str, Any]:
    """The choices and the value of one of the fields."""
    value = to_fields(recipe)[key]
    offered = ROLES if key == "keep_modules" else _blocks(family)
    return gr.update(choices=list(dict.fromkeys([*offered, *value])), value=value)


def to_fields(recipe: Recipe) -> dict[str, list[str]]:
    """What the recipe keeps, as the fields show it: at most 1000 blocks, for it may say anything."""
    numbers = [
        number for first, stop in recipe.keep.layers for number in range(first, min(stop, first + 1000))
    ]
    return {
        "keep_modules": list(recipe.keep.modules),
        "keep_blocks": [str(number) for number in sorted(set(numbers))],
    }


def keep_of(previous: Recipe, form: Mapping[str, Any]) -> Keep:
    """What the fields say; the recipe's own ranges where they say the same."""
    said = {key: _texts(form[key]) for key in ("keep_modules", "keep_blocks")}
    if said == to_fields(previous):
        return previous.keep
    numbers = sorted({int(text) for text in said["keep_blocks"] if text.isdecimal() and len(text) < 7})
    return Keep(
        modules=tuple(dict.fromkeys(said["keep_modules"])),
        layers=tuple((first, last + 1) for first, last in runs(numbers)),
    )


def _texts(value: Any) -> list[str]:
    """The texts in what a dropdown of the browser sent."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list | tuple) else []


def _blocks(family: Family) -> list[str]:
    """The numbers of the base's blocks; none where it cannot be read."""
    try:
        names = open_model(family.base).tensors
    except (MergingError, OSError):
        return []
    return [str(number) for number in sorted({number_of(block) for block in blocks(names)})]
