"""The bar under a map: which cells are chosen, and what is set for them."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.clickable_plot import EVERY, brushed_cells, outlined
from components.figures.metrics import row_name
from components.forms import Shape, default_of, for_each_expert, label_of, shape_of
from components.late_choice import LateDropdown
from components.preview.brush import Action, BackToRecipe, KeepBase, SetParameter, apply
from components.preview.brush_choice import (
    EMPTY,
    NOTHING,
    BrushSource,
    Chosen,
    in_words,
    named,
    of_names,
    of_rectangle,
    rectangles,
    tensors_chosen,
)
from merging import METHODS, Recipe
from merging.anatomy import Block

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
KEEP, BACK = " keep", " back"
"""What is set where it is no parameter; the space keeps them apart from the names of parameters."""
ALL_EXPERTS = ""
SWITCH = {"on": True, "off": False}
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class BrushBar:
    """The components of the bar; `chosen` holds a `Chosen`, `offered` what the fields beside `what` are for."""

    chosen: gr.State
    offered: gr.State
    line: gr.HTML
    blocks: gr.Dropdown
    kinds: gr.Dropdown
    what: gr.Dropdown
    expert: gr.Dropdown
    number: gr.Number
    option: gr.Dropdown
    set: gr.Button
    clear: gr.Button
    said: gr.HTML


@dataclass(frozen=True)
class Taken:
    """What becomes of the changed recipe: `handler(recipe, *inputs)` gives the values of `outputs`; `options` go to the
    event."""

    handler: Callable[..., Sequence[Any]]
    inputs: Sequence[gr.components.Component] = ()
    outputs: Sequence[gr.components.Component] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def build_brush_bar(prefix: str) -> BrushBar:
    """Build the bar; it fills itself once its source is known. Element ids begin with `prefix`."""
    parts: dict[str, Any] = {"chosen": gr.State(NOTHING), "offered": gr.State(None)}
    with gr.Column(elem_classes="brush-bar", elem_id=f"{prefix}-brush"):
        parts["line"] = gr.HTML(_line(EMPTY), elem_id=f"{prefix}-brush-line")
        with gr.Row(elem_classes="brush-fields"):
            for name, label in (("blocks", "Blocks"), ("kinds", "Modules")):
                parts[name] = LateDropdown(
                    [], label=label, multiselect=True, min_width=120, elem_id=f"{prefix}-brush-{name}"
                )
            parts["what"] = LateDropdown(
                [], label="What to set", min_width=140, elem_id=f"{prefix}-brush-what"
            )
        with gr.Row(elem_classes="brush-buttons"):
            _build_set(parts, prefix)
        parts["said"] = gr.HTML(elem_id=f"{prefix}-brush-said")
    return BrushBar(**parts)


def _build_set(parts: dict[str, Any], prefix: str) -> None:
    """For whom, to what value, and the buttons."""
    parts["expert"] = LateDropdown(
        [], label="For which expert", min_width=120, visible=False, elem_id=f"{prefix}-brush-expert"
    )
    parts["number"] = gr.Number(label="Value", min_width=110, visible=False, elem_id=f"{prefix}-brush-number")
    parts["option"] = LateDropdown(
        [], label="Value", min_width=110, visible=False, elem_id=f"{prefix}-brush-option"
    )
    usual: dict[str, Any] = {"size": "sm", "scale": 0, "interactive": False}
    parts["set"] = gr.Button("Set", variant="primary", min_width=60, elem_id=f"{prefix}-brush-set", **usual)
    parts["clear"] = gr.Button("Clear selection", min_width=100, elem_id=f"{prefix}-brush-clear", **usual)


def wire_brush_bar(bar: BrushBar, plot: gr.HTML, source: gr.State, recipe: gr.State, taken: Taken) -> Any:
    """Connect the bar with the map above it.

    Args:
        plot: the map, a `clickable_plot` whose payload says `brush`.
        source: holds a `BrushSource`, or None while there is no map; whoever draws the map fills it.
        recipe: holds the recipe that a brush changes.

    Returns:
        The event of setting something, for what is to follow it.
    """
    view = [bar.chosen, bar.line, bar.set, bar.clear, plot]
    fields = [bar.blocks, bar.kinds]
    offer = [bar.offered, bar.expert, bar.number, bar.option]
    latest: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}

    def brush(event: gr.EventData, source: BrushSource | None) -> list[Any]:
        return on_brush(event, source)

    plot.brush(brush, source, [*view, *fields], concurrency_limit=1, **PRIVATE, **EVERY)
    gr.on([bar.blocks.input, bar.kinds.input], on_names, [source, *fields], view, **latest)
    bar.clear.click(on_clear, source, [*view, *fields, bar.said], **PRIVATE)
    source.change(
        on_source, [source, bar.chosen, bar.what], [*view, *fields, bar.what, *offer, bar.said], **latest
    )
    # the second of its two events must see what the first one offered
    bar.what.input(on_what, [source, bar.what, bar.offered], offer, concurrency_limit=1, **latest)
    inputs = [recipe, source, bar.chosen, bar.what, bar.expert, bar.number, bar.option, *taken.inputs]
    return gr.on(
        [bar.set.click, bar.number.submit],
        partial(on_set, taken),
        inputs,
        [bar.said, *taken.outputs],
        **PRIVATE,
        **taken.options,
    )


def on_brush(event: object, source: BrushSource | None) -> list[Any]:
    """Cells were chosen on the map, or cleared."""
    chosen = of_rectangle(source, brushed_cells(event))
    return [*_view(source, chosen), *_fields(source, chosen)]


def on_names(source: BrushSource | None, blocks: Any, kinds: Any) -> list[Any]:
    """Blocks or kinds were named."""
    return _view(source, of_names(source, *read_names(source, blocks, kinds)))


def read_names(source: BrushSource | None, blocks: Any, kinds: Any) -> tuple[list[Block | None], list[str]]:
    """Blocks and kinds as the two dropdowns name them; what the map does not have is left out."""
    rows = {row_name(block): block for block in (source.rows if source else ())}
    return [rows[name] for name in _texts(blocks) if name in rows], _texts(kinds)


def _texts(values: Any) -> list[str]:
    """The texts in what a dropdown of the browser sent."""
    return [value for value in values if isinstance(value, str)] if isinstance(values, list | tuple) else []


def on_clear(source: BrushSource | None) -> list[Any]:
    """Nothing is chosen any more."""
    return [*_view(source, NOTHING), *_fields(source, NOTHING), ""]


def on_source(source: BrushSource | None, chosen: Chosen, what: Any) -> list[Any]:
    """Another map, method or family: what is still there stays chosen."""
    kept = of_names(source, chosen.blocks, chosen.kinds) if chosen else NOTHING
    choices = what_choices(source)
    what = what if what in [value for _, value in choices] else next((value for _, value in choices), None)
    return [
        *_view(source, kept),
        *_fields(source, kept, choices=True),
        gr.update(choices=choices, value=what, interactive=source is not None),
        what,
        *_offer(source, what),
        "",
    ]


def on_what(source: BrushSource | None, what: Any, offered: Any) -> list[Any]:
    """What is to be set, and its fields; nothing where they are offered already: Gradio tells of one choice twice, and
    again when the dropdown is left, and a number may have been typed since."""
    if what == offered:
        return [gr.skip() for _ in range(4)]
    return [what, *_offer(source, what)]


def _offer(source: BrushSource | None, what: Any) -> list[Any]:
    """The fields that belong to what is to be set: which expert, a number, or one of some choices."""
    hidden = gr.update(visible=False)
    if source is None or what not in source.parameters:
        return [hidden, hidden, hidden]
    method = METHODS[source.method]
    field = method.parameters()[what]
    shape, usual = shape_of(field, method), default_of(method, what, source.profile)
    several = what in for_each_expert(method) and len(source.models) > 1
    experts = [("all experts", ALL_EXPERTS), *zip(source.names, source.models, strict=True)]
    number = option = hidden
    if shape.kind in ("slider", "number"):
        label = f"{label_of(what, field)}: {shape.range}"
        number = gr.update(visible=True, label=label, value=usual, step=shape.step)
    else:
        choices, value = _choices(shape, usual)
        option = gr.update(visible=True, label=label_of(what, field), choices=choices, value=value)
    return [gr.update(visible=several, choices=experts, value=ALL_EXPERTS), number, option]


def on_set(
    taken: Taken,
    recipe: Recipe,
    source: BrushSource | None,
    chosen: Chosen,
    *values: Any,
) -> list[Any]:
    """Do it to the recipe: what was done in words, and what the page makes of the changed recipe."""
    what, expert, number, option, *rest = values
    unchanged = [gr.skip() for _ in taken.outputs]
    action = action_of(source, what, expert, number, option)
    if source is None or action is None:
        return [said_html("Choose what to set first."), *unchanged]
    changed, sentence = apply(recipe, tensors_chosen(source, chosen), source.tensors, action)
    if changed == recipe:
        return [said_html(sentence), *unchanged]
    return [said_html(sentence), *taken.handler(changed, *rest)]


def action_of(source: BrushSource | None, what: Any, expert: Any, number: Any, option: Any) -> Action | None:
    """What the fields ask for; None where they name nothing the method has."""
    if what == KEEP:
        return KeepBase()
    if what == BACK:
        return BackToRecipe()
    if source is None or what not in source.parameters:
        return None
    method = METHODS[source.method]
    shape = shape_of(method.parameters()[what], method)
    value = number if shape.kind in ("slider", "number") else option
    if shape.kind == "switch":
        value = SWITCH.get(option) if isinstance(option, str) else None
    own = what in for_each_expert(method)
    return SetParameter(what, value, expert if own and isinstance(expert, str) and expert else None)


def what_choices(source: BrushSource | None) -> list[tuple[str, str]]:
    """What can be set: the method's own parameters, the base where there is one, and the way back."""
    if source is None:
        return []
    fields = METHODS[source.method].parameters()
    parameters = [(label_of(name, fields[name]), name) for name in source.parameters]
    keep = [("keep the base here", KEEP)] if source.has_base else []
    return [*parameters, *keep, ("back to the recipe's own values", BACK)]


def said_html(sentence: str) -> str:
    """What came of a brush."""
    return f'<p class="brush-said" role="status">{html.escape(sentence)}</p>' if sentence else ""


def _line(text: str) -> str:
    return f'<p class="brush-line">{html.escape(text)}</p>'


def _view(source: BrushSource | None, chosen: Chosen) -> list[Any]:
    """The choice itself, its words, the two buttons, and the map with its outline."""
    there = bool(tensors_chosen(source, chosen))
    return [
        chosen,
        _line(in_words(source, chosen)),
        gr.update(interactive=there),
        gr.update(interactive=bool(chosen)),
        outlined(rectangles(source, chosen)),
    ]


def _fields(source: BrushSource | None, chosen: Chosen, *, choices: bool = False) -> list[Any]:
    """The two dropdowns; with the `choices` of another map where asked for."""
    if source is None:
        return [gr.update(choices=[], value=[], interactive=False) for _ in range(2)]
    blocks, kinds = named(source, chosen)
    found = []
    for options, value in ((map(row_name, source.rows), map(row_name, blocks)), (source.columns, kinds)):
        more = {"choices": [(name, name) for name in options], "interactive": True} if choices else {}
        found.append(gr.update(value=list(value), **more))
    return found


def _choices(shape: Shape, usual: Any) -> tuple[list[str], str | None]:
    """The choices of a field that takes no number, and the usual one."""
    if shape.kind == "switch":
        return list(SWITCH), "on" if usual else "off"
    return list(shape.choices), usual if isinstance(usual, str) else None
