"""The parameter widgets of the Merge tab: one for every name and kind of any method, shown and refitted as needed."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components.family import Family
from components.forms import (
    RADIO_CHOICES,
    Shape,
    default_of,
    for_each_expert,
    help_of,
    is_rare,
    label_of,
    merge_wide,
    refit,
    shape_of,
    widget,
)
from merging import METHODS, Method

MAX_EXPERTS = 8
SEED = "seed"
"""A key of the recipe, and a parameter of the methods that draw at random."""
IN_YAML = "Set in the YAML, which varies it over the model; change it there."


@dataclass(frozen=True)
class Fields:
    """`wide` are the widgets for the whole merge by slot, `own` the experts' by `PARAMETER.NUMBER`; each parameter of
    the experts has a section with a head that says what it does."""

    wide: dict[str, gr.components.Component]
    own: dict[str, gr.components.Component]
    sections: dict[str, gr.Column]
    heads: dict[str, gr.HTML]

    @property
    def inputs(self) -> dict[str, gr.components.Component]:
        return {**self.wide, **self.own}

    @property
    def outputs(self) -> list[Any]:
        return [*self.wide.values(), *self.own.values(), *self.sections.values(), *self.heads.values()]

    @property
    def marked(self) -> list[Any]:
        """What `mark` updates."""
        return [*self.wide.values(), *self.heads.values()]

    def show(
        self,
        method: type[Method],
        family: Family,
        chosen: Sequence[int],
        form: Mapping[str, Any],
        fixed: set[str],
    ) -> list[Any]:
        """Updates for `outputs`: the method's fields with the form's values, all others hidden."""
        slots = {slot_of(method, name): name for name in merge_wide(method)}
        own = for_each_expert(method)
        updates = [
            _wide_update(method, slots[slot], form[slots[slot]], slots[slot] in fixed)
            if slot in slots
            else gr.update(visible=False)
            for slot in self.wide
        ]
        for key in self.own:
            name, number = key.split(".")
            if name in own and int(number) in chosen:
                updates.append(_own_update(method, name, family.names[int(number)], form[key], key in fixed))
            else:
                updates.append(gr.update(visible=False))
        updates += [gr.update(visible=name in own and bool(chosen)) for name in self.sections]
        return [*updates, *(head_html(method, name) if name in own else "" for name in self.heads)]

    def mark(self, method: type[Method], problems: Sequence[str], fixed: set[str]) -> list[Any]:
        """Updates for `marked`: each problem at the field that it is about."""
        said = at_field(method, problems)
        slots = {slot_of(method, name): name for name in merge_wide(method)}
        updates: list[Any] = []
        for slot in self.wide:
            if slot not in slots:
                updates.append(gr.skip())
                continue
            name = slots[slot]
            help = IN_YAML if name in fixed else help_of(method, name)
            wrong = ["mg-wrong"] if name in said else []
            updates.append(gr.update(info=said.get(name, help), elem_classes=["mg-field", *wrong]))
        own = for_each_expert(method)
        return updates + [
            head_html(method, n, said.get(n, "")) if n in own else gr.skip() for n in self.heads
        ]


def slot_of(method: type[Method], name: str) -> str:
    """The widget that a parameter uses: methods share it where name and kind agree."""
    field = method.parameters()[name]
    shape = shape_of(field, method)
    kind = "menu" if len(shape.choices) > RADIO_CHOICES else shape.kind
    return f"{name}/{kind}{'/more' if is_rare(field) else ''}"


def wide_slots(*, rare: bool) -> dict[str, tuple[type[Method], str]]:
    """Every slot that some method needs, with the first method and parameter that does; numbers come first."""
    found: dict[str, tuple[type[Method], str]] = {}
    for method in METHODS.values():
        for name, field in merge_wide(method).items():
            if is_rare(field) == rare:
                found.setdefault(slot_of(method, name), (method, name))
    order = ("slider", "number", "numbers", "choice", "menu", "switch")
    return dict(sorted(found.items(), key=lambda item: order.index(item[0].split("/")[1])))


def slot_id(slot: str) -> str:
    """The id of a slot's widget on the page: the parameter's name alone for its first slot."""
    name = slot.partition("/")[0]
    slots = [*wide_slots(rare=False), *wide_slots(rare=True)]
    first = next(other for other in slots if other.partition("/")[0] == name)
    return f"merge-{name}" if slot == first else f"merge-{slot.replace('/', '-')}"


def own_fields() -> dict[str, type[Method]]:
    """Every parameter that experts have of their own in some method, with the first such method."""
    found: dict[str, type[Method]] = {}
    for method in METHODS.values():
        for name in for_each_expert(method):
            found.setdefault(name, method)
    return found


def build_wide(
    method: type[Method], form: Mapping[str, Any], new_seed: gr.Button, *, rare: bool
) -> dict[str, gr.components.Component]:
    """The widgets for the whole merge, those of the method visible; a seed's carries the button for another one."""
    mine = {slot_of(method, name): name for name in merge_wide(method)}
    built: dict[str, gr.components.Component] = {}
    for slot, (first, name) in wide_slots(rare=rare).items():
        here = method if slot in mine else first
        shape = shape_of(here.parameters()[name], here)
        built[slot] = widget(
            shape,
            form[name] if slot in mine else default_of(first, name, "paper"),
            **_texts(here, name),
            **({"buttons": [new_seed]} if name == SEED else {}),
            visible=slot in mine,
            elem_id=slot_id(slot),
            elem_classes=["mg-field"],
        )
    return built


def build_own(method: type[Method], family: Family, form: Mapping[str, Any], chosen: Sequence[int]) -> Fields:
    """A section for every parameter the experts have of their own: what it does, and a slider for each expert."""
    own: dict[str, gr.components.Component] = {}
    sections, heads = {}, {}
    for name, first in own_fields().items():
        mine = name in for_each_expert(method)
        here = method if mine else first
        with gr.Column(visible=mine, elem_classes="mg-own", elem_id=f"merge-{name}") as sections[name]:
            heads[name] = gr.HTML(head_html(here, name) if mine else "")
            with gr.Row(elem_classes="mg-sliders"):
                for number in range(MAX_EXPERTS):
                    key = f"{name}.{number}"
                    known = number < len(family.names)
                    own[key] = widget(
                        _own_shape(here, name),
                        form.get(key, default_of(here, name, "paper")),
                        label=family.names[number] if known else f"expert {number + 1}",
                        visible=mine and number in chosen,
                        min_width=150,
                        elem_id=f"merge-{name}-{number}",
                    )
    return Fields({}, own, sections, heads)


def head_html(method: type[Method], name: str, problem: str = "") -> str:
    """What an expert's parameter does, and what is wrong with its values."""
    label = label_of(name, method.parameters()[name])
    wrong = f'<p class="mg-fault" role="alert">{html.escape(problem)}</p>' if problem else ""
    return f'<div class="mg-head"><h4>{html.escape(label)}</h4><p>{html.escape(help_of(method, name))}</p>{wrong}</div>'


def at_field(method: type[Method], problems: Sequence[str]) -> dict[str, str]:
    """Parameter -> the first problem that names it; a problem belongs to the parameter it names first."""
    said: dict[str, str] = {}
    for problem in problems:
        text = problem.removeprefix(f"{method.name}: ")
        places = {}
        for name in method.parameters():
            if found := re.search(rf"\b{re.escape(name)}s?\b", text):
                places[name] = found.start()
        if places:
            said.setdefault(min(places, key=places.__getitem__), text[:1].upper() + text[1:])
    return said


def _texts(method: type[Method], name: str) -> dict[str, Any]:
    return {"label": label_of(name, method.parameters()[name]), "info": help_of(method, name)}


def _wide_update(method: type[Method], name: str, value: Any, fixed: bool) -> dict[str, Any]:
    texts = _texts(method, name) | ({"info": IN_YAML} if fixed else {})
    shape = shape_of(method.parameters()[name], method)
    return gr.update(
        **refit(shape, value), **texts, visible=True, interactive=not fixed, elem_classes=["mg-field"]
    )


def _own_shape(method: type[Method], name: str) -> Shape:
    """Experts are compared by sliders, also where a parameter has no limits."""
    return replace(shape_of(method.parameters()[name], method), kind="slider")


def _own_update(method: type[Method], name: str, expert: str, value: Any, fixed: bool) -> dict[str, Any]:
    label = expert + (", set in the YAML" if fixed else "")
    return gr.update(
        **refit(_own_shape(method, name), value), label=label, visible=True, interactive=not fixed
    )
