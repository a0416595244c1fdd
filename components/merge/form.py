"""The Merge tab's widgets for a recipe: the method and what it is, who takes part, and that method's parameters."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components.family import Family
from components.forms import merge_wide, words
from components.late_choice import LateCheckboxGroup, LateDropdown, LateRadio
from components.merge.fields import Fields, build_own, build_wide, slot_of
from components.merge.keep_fields import build_keep, keep_update
from components.merge.picker import picked, picker_value
from components.merge.recipe import AS_STORED, chosen_experts, default_recipe, to_form
from merging import METHODS, Method, Recipe

DTYPES = (AS_STORED, "float32", "bfloat16", "float16")
PROFILES = [("paper", "paper"), ("mergekit", "mergekit")]
PROFILE_HELP = "Whose values hold for what you leave alone."
IN_TURN: dict[str, Any] = {"concurrency_id": "recipe", "concurrency_limit": 1}
"""For every event that makes a recipe of the one before, or that says whether a merge runs: they run in the order in which
they were sent and are answered in it, so that none writes over what a later one did."""


@dataclass(frozen=True)
class MergeForm:
    """The form's components. `inputs` are the widgets by key, those of parameters by slot; `preset` resets to the
    paper's values, `published` offers others."""

    inputs: dict[str, gr.components.Component]
    fields: Fields
    more: gr.Accordion
    about: gr.HTML
    note: gr.HTML
    preset: gr.Button
    published: gr.Dropdown
    new_seed: gr.Button

    @property
    def outputs(self) -> list[Any]:
        shown = [self.inputs[key] for key in self.inputs if key not in self.fields.inputs]
        return [*shown, *self.fields.outputs, self.more, self.about, self.note, self.published]

    @property
    def structure(self) -> list[Any]:
        """The widgets whose change alters which others are shown."""
        return [self.inputs[key] for key in ("method", "profile", "experts", "partner")]

    @property
    def numbers(self) -> list[Any]:
        """The parameters that are numbers: dragged or typed, they are on their way for a while."""
        return [field for field in self.fields.inputs.values() if isinstance(field, gr.Slider | gr.Number)]

    @property
    def details(self) -> list[Any]:
        """The other widgets that change one thing at a time."""
        apart = [*self.structure, *self.lists.values(), *self.numbers]
        return [component for component in self.inputs.values() if component not in apart]

    @property
    def lists(self) -> dict[str, gr.Textbox]:
        """The texts that hold lists of numbers, by parameter. Their `input` misses pasting and deleting."""
        wide = self.fields.wide.items()
        return {slot.partition("/")[0]: text for slot, text in wide if isinstance(text, gr.Textbox)}

    def read(self, values: Sequence[Any], recipe: Recipe) -> dict[str, Any]:
        """The values of `inputs` as a form, while they show the parameters of a recipe's method."""
        given = dict(zip(self.inputs, values, strict=True))
        form = {key: value for key, value in given.items() if key not in self.fields.wide}
        form |= {name: given[slot] for name, slot in _slots(METHODS[recipe.merge_method]).items()}
        return {**form, "method": picked(form["method"], recipe.merge_method)}

    def show(self, recipe: Recipe, family: Family, note: str = "") -> list[Any]:
        """Updates for `outputs` that make the form show a recipe."""
        form, fixed = to_form(recipe, family)
        method = METHODS[recipe.merge_method]
        chosen = chosen_experts(method, form, len(family.experts))
        updates = [_update(key, recipe, family, form) for key in self.inputs if key not in self.fields.inputs]
        updates += self.fields.show(method, family, chosen, form, fixed)
        more = gr.update(visible=any(slot.endswith("/more") for slot in _slots(method).values()))
        choices = [(f"{title}: {_values(given)}", title) for title, given in method.presets.items()]
        published = gr.update(choices=choices, value=None, visible=bool(choices))
        return [*updates, more, about_html(method), note, published]

    def mark(self, recipe: Recipe, family: Family, problems: Sequence[str]) -> list[Any]:
        """Updates for `fields.marked`: every problem at its field."""
        return self.fields.mark(METHODS[recipe.merge_method], problems, to_form(recipe, family)[1])


def build_merge_form(family: Family, picker: gr.HTML) -> MergeForm:
    """The form for a family's default merge; call inside the tab's layout."""
    recipe = default_recipe(family)
    form, _ = to_form(recipe, family)
    method = METHODS[recipe.merge_method]
    chosen = chosen_experts(method, form, len(family.experts))
    inputs: dict[str, Any] = {"method": picker}
    about = gr.HTML(about_html(method), elem_id="merge-about")
    with gr.Row(elem_classes="mg-values"):
        inputs["profile"] = gr.Radio(
            PROFILES,
            value=recipe.profile,
            label="Values",
            info=PROFILE_HELP,
            elem_id="merge-profile",
            min_width=200,
        )
        published = LateDropdown(
            [], value=None, label="Also published", visible=False, elem_id="merge-published", min_width=200
        )
        preset = gr.Button("Preset of the paper", size="sm", scale=0, min_width=170, elem_id="merge-preset")
    note = gr.HTML("", elem_id="merge-note")
    _build_experts(inputs, method, family, form)
    fields = build_own(method, family, form, chosen)
    new_seed = gr.Button("New seed", size="sm", render=False, elem_id="merge-new-seed")
    with gr.Row(elem_classes="mg-fields"):
        wide = build_wide(method, form, new_seed, rare=False)
    with gr.Accordion("More", open=False, elem_classes="mg-more") as more, gr.Row(elem_classes="mg-fields"):
        wide |= build_wide(method, form, new_seed, rare=True)
    with gr.Accordion("Output, and what stays the base's", open=False, elem_classes="mg-more"):
        inputs["out_dtype"] = gr.Dropdown(
            list(DTYPES), value=AS_STORED, label="out_dtype", info="Number format of the merged weights."
        )
        build_keep(inputs, recipe, family)
    fields = replace(fields, wide=wide)
    return MergeForm({**inputs, **fields.inputs}, fields, more, about, note, preset, published, new_seed)


def _build_experts(
    inputs: dict[str, Any], method: type[Method], family: Family, form: Mapping[str, Any]
) -> None:
    """Who takes part: several experts, or the one of a method that takes one, and whether the base counts."""
    choices = [(name, number) for number, name in enumerate(family.names)]
    inputs["experts"] = LateCheckboxGroup(
        choices, value=form["experts"], label="Experts that take part", elem_id="merge-experts"
    )
    inputs["partner"] = LateRadio(
        choices, value=form["partner"], label="The other model", visible=False, elem_id="merge-partner"
    )
    inputs["with_base"] = gr.Checkbox(
        False,
        label="Work on the changes from the base",
        info="Off, the models themselves are merged, and the base plays no part.",
        visible=False,
        elem_id="merge-with-base",
    )


def _slots(method: type[Method]) -> dict[str, str]:
    return {name: slot_of(method, name) for name in merge_wide(method)}


def _update(key: str, recipe: Recipe, family: Family, form: Mapping[str, Any]) -> dict[str, Any]:
    method = METHODS[recipe.merge_method]
    one = method.experts_wanted == 1
    if key == "method":
        return gr.update(value=picker_value(recipe, family))
    if key == "with_base":
        return gr.update(value=form[key], visible=method.takes_base and not method.needs_base)
    if key.startswith("keep_"):
        return keep_update(key, recipe, family)
    if key not in ("experts", "partner"):
        return gr.update(value=form[key])
    choices = [(name, number) for number, name in enumerate(family.names)]
    if key == "partner":
        whom = "The expert at the other end" if method.needs_base else "The model"
        return gr.update(choices=choices, value=form[key], label=whom, visible=one)
    label = "Experts that take part"
    if method.experts_wanted:
        label += f", exactly {method.experts_wanted}"
    return gr.update(choices=choices, value=form[key], label=label, visible=not one)


def about_html(method: type[Method]) -> str:
    """A method's name, when to use it, what it does, what to beware of, and where it is from."""
    what = html.escape(" ".join((method.__doc__ or "").strip().split("\n\n")[0].split()))
    link = html.escape(method.paper, quote=True)
    where = html.escape(
        method.paper.split("://")[-1].split("/")[-1]
        if "arxiv" in method.paper
        else method.paper.split("/")[2]
    )
    source = "arXiv " + where if "arxiv" in method.paper else where
    caveat = f'<p class="mg-caveat">{html.escape(method.caveat)}</p>' if method.caveat else ""
    return (
        f'<div class="mg-about"><h3>{html.escape(method.title)}</h3><p>{html.escape(method.when_to_use)}</p>'
        f'<p class="mg-what">{what} <a href="{link}" target="_blank" rel="noopener noreferrer">Read it: {source}</a></p>'
        f"{caveat}</div>"
    )


def _values(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in parameters.items())


def preset_note(recipe: Recipe, published: str | None) -> str:
    """What the preset button, or the choice of other published values, did."""
    given = _values(recipe.parameters)
    text = "Every parameter is back at its paper's value."
    if given:
        text = f"Now {published}: {given}. Everything else is at its paper's value."
    return f'<p class="mg-said" role="status">{html.escape(text)}</p>'


def profile_note(profile: str, changed: Mapping[str, tuple[Any, Any]], kept: Sequence[str]) -> str:
    """What a switch of the profile did, in words."""
    whose = "the paper's" if profile == "paper" else "mergekit's"
    moves = ", ".join(f"{name} {words(a)} → {words(b)}" for name, (a, b) in changed.items())
    text = (
        f"Now {whose} values: {moves}." if moves else f"Now {whose} values; nothing you left alone differs."
    )
    if kept:
        text += f" As you set it: {', '.join(kept)}."
    return f'<p class="mg-said" role="status">{html.escape(text)}</p>'
