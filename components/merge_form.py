"""The Merge tab's widgets for a recipe: method cards, that method's parameters, and a row for each expert."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.family import Family
from components.forms import default_of, for_each_expert, label_of, merge_wide, slider, slider_range, widget
from components.merge_recipe import AS_STORED, chosen_experts, default_recipe, to_form
from merging import METHODS, Method, Recipe

MAX_EXPERTS = 8
DTYPES = (AS_STORED, "float32", "bfloat16", "float16")
PROFILES = [("paper's values", "paper"), ("mergekit's values", "mergekit")]


@dataclass(frozen=True)
class MergeForm:
    """The form's components. `inputs` are the widgets by key (see `merge_recipe`), `groups` one per method."""

    inputs: dict[str, gr.components.Component]
    groups: dict[str, gr.Column]
    rows: tuple[gr.Row, ...]
    about: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [*self.inputs.values(), *self.groups.values(), *self.rows, self.about]

    @property
    def structure(self) -> list[Any]:
        """The widgets whose change alters which others are shown."""
        return [self.inputs[key] for key in ("method", "profile", "experts", "partner")]

    @property
    def details(self) -> list[Any]:
        return [component for component in self.inputs.values() if component not in self.structure]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The values of `inputs` as a form."""
        return dict(zip(self.inputs, values, strict=True))

    def show(self, recipe: Recipe, family: Family) -> list[Any]:
        """Updates for `outputs` that make the form show a recipe."""
        form, fixed = to_form(recipe, family)
        method = METHODS[recipe.merge_method]
        chosen = chosen_experts(method, form, len(family.experts))
        names = list(family.names)
        updates = [self._update(key, form, fixed, names, chosen) for key in self.inputs]
        updates += [gr.update(visible=name == method.name) for name in self.groups]
        updates += [
            gr.update(visible=bool(for_each_expert(method)) and n in chosen) for n in range(len(self.rows))
        ]
        return [*updates, about_html(method)]

    def _update(
        self, key: str, form: dict[str, Any], fixed: set[str], names: list[str], chosen: list[int]
    ) -> dict[str, Any]:
        method = METHODS[form["method"]]
        one = method.experts_wanted == 1
        if key in ("experts", "partner"):
            choices = [(name, number) for number, name in enumerate(names)]
            value = list(range(len(names))) if one and key == "experts" else form[key]
            return gr.update(choices=choices, value=value, visible=one == (key == "partner"))
        owner, _, rest = key.partition(".")
        if not rest or owner in METHODS:
            return gr.update(value=form[key], **({"interactive": key not in fixed} if rest else {}))
        fields = for_each_expert(method)
        number = int(rest)
        if owner not in fields or number >= len(names):
            return gr.update(visible=False)
        low, high = slider_range(fields[owner], form[key])
        label = f"{names[number]} · {label_of(owner, fields[owner])}"
        if key in fixed:
            label += ", set in the YAML"
        return gr.update(
            value=form[key],
            label=label,
            minimum=low,
            maximum=high,
            visible=number in chosen,
            interactive=key not in fixed,
        )


def build_merge_form(family: Family) -> MergeForm:
    """The form for a family's default merge; call inside the tab's layout."""
    recipe = default_recipe(family)
    form, _ = to_form(recipe, family)
    method = METHODS[recipe.merge_method]
    inputs: dict[str, Any] = {}
    inputs["method"] = gr.Radio(
        [(f"{m.title}\n{m.when_to_use}", name) for name, m in METHODS.items()],
        value=method.name,
        label="Method",
        elem_id="merge-method",
        elem_classes="mg-cards",
    )
    about = gr.HTML(about_html(method), elem_id="merge-about")
    choices = [(name, number) for number, name in enumerate(family.names)]
    inputs["experts"] = gr.CheckboxGroup(
        choices, value=form["experts"], label="Experts that take part", elem_id="merge-experts"
    )
    inputs["partner"] = gr.Radio(
        choices,
        value=form["partner"],
        label="Expert at the other end",
        info="This method goes from the base to exactly one expert. Choose which.",
        visible=False,
        elem_id="merge-partner",
    )
    own, rows = _expert_rows(method, family, form)
    groups = {}
    for name, each in METHODS.items():
        with gr.Column(
            visible=name == method.name, elem_id=f"merge-parameters-{name}", elem_classes="mg-fields"
        ) as group:
            for parameter, field in merge_wide(each).items():
                key = f"{name}.{parameter}"
                inputs[key] = widget(parameter, field, form[key], elem_id=f"merge-{name}-{parameter}")
        groups[name] = group
    with gr.Accordion("Defaults and output", open=False, elem_classes="mg-more"):
        inputs["profile"] = gr.Radio(
            PROFILES,
            value=recipe.profile,
            label="profile",
            info="Whose values a parameter takes while you leave it alone.",
            elem_id="merge-profile",
        )
        inputs["out_dtype"] = gr.Dropdown(
            list(DTYPES), value=AS_STORED, label="out_dtype", info="Number format of the merged weights."
        )
    return MergeForm({**inputs, **own}, groups, rows, about)


def _expert_rows(
    method: type[Method], family: Family, form: dict[str, Any]
) -> tuple[dict[str, gr.Slider], tuple[gr.Row, ...]]:
    """A row of sliders for each expert there may be: one for every parameter any method has per expert."""
    fields = {name: field for each in METHODS.values() for name, field in for_each_expert(each).items()}
    own, rows = {}, []
    for number in range(MAX_EXPERTS):
        known = number < len(family.experts)
        with gr.Row(visible=known, elem_classes="mg-expert") as row:
            for name, field in fields.items():
                key = f"{name}.{number}"
                expert = family.names[number] if known else f"expert {number + 1}"
                own[key] = slider(
                    field,
                    form.get(key, default_of(method, name, "paper") if name in method.parameters() else None),
                    label=f"{expert} · {label_of(name, field)}",
                    visible=known and name in for_each_expert(method),
                    min_width=180,
                    elem_id=f"merge-{name}-{number}",
                )
        rows.append(row)
    return own, tuple(rows)


def about_html(method: type[Method]) -> str:
    """What a method does, in its own words, and the paper."""
    what = html.escape((method.__doc__ or "").strip().split("\n\n")[0])
    link = html.escape(method.paper, quote=True)
    where = html.escape(method.paper.split("://")[-1])
    return (
        f'<p class="mg-about">{what} '
        f'<a href="{link}" target="_blank" rel="noopener noreferrer">Paper: {where}</a></p>'
    )
