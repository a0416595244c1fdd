"""The bar under a map: cells by rectangle and by name, what may be set, and what a browser may send."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from components.preview.brush import NOTHING_CHOSEN, BackToRecipe, KeepBase, SetParameter
from components.preview.brush_bar import (
    BACK,
    KEEP,
    Taken,
    action_of,
    on_brush,
    on_clear,
    on_names,
    on_set,
    on_source,
    on_what,
    what_choices,
)
from components.preview.brush_choice import (
    EMPTY,
    NOTHING,
    Chosen,
    brush_source,
    in_words,
    of_names,
    of_rectangle,
    rectangles,
    tensors_chosen,
)
from merging import METHODS, Recipe
from merging.anatomy import blocks, kinds
from merging.plan import make_plan


class Event:
    def __init__(self, data):
        self._data = data


@pytest.fixture(scope="module")
def recipe(family: Path) -> Recipe:
    models = [{"model": str(family / name)} for name in ("one", "two")]
    content = {"merge_method": "ties", "base_model": str(family / "base"), "models": models}
    return Recipe.model_validate({**content, "profile": "paper", "parameters": {"density": 0.5}})


@pytest.fixture(scope="module")
def source(recipe):
    names = [tensor.info.name for tensor in make_plan(recipe).tensors]
    return brush_source(recipe, [*blocks(names), None], kinds(names), names)


def usual_value(shown):
    """A parameter's value as a field holds it."""
    return {"on": True, "off": False}.get(shown, shown)


def told(found) -> str:
    """The words of the line above the fields."""
    return found[1].removeprefix('<p class="brush-line">').removesuffix("</p>")


def test_rectangles_rows_and_columns_in_words(source):
    q = source.columns.index("q")
    chosen = of_rectangle(source, (0, 1, q, q + 2))
    assert chosen == Chosen((0, 1), ("q", "k", "v"))
    assert in_words(source, chosen) == "6 cells chosen: blocks 0–1 × q, k, v"
    assert rectangles(source, chosen) == [(0, 1, q, q + 2)]
    row = of_rectangle(source, (1, 1, 0, len(source.columns) - 1))
    assert in_words(source, row) == "9 cells chosen: block 1 × all modules"
    column = of_rectangle(source, (0, 3, q, q))
    assert in_words(source, column) == "3 cells chosen: all blocks × q"
    last = len(source.columns) - 1
    everything = of_rectangle(source, (0, 3, 0, last))
    assert len(tensors_chosen(source, everything)) == len(source.tensors)
    corner = of_rectangle(source, (2, 3, last, last))
    assert in_words(source, corner) == "1 cell chosen: block 2 and outside the blocks × head"
    assert in_words(source, of_rectangle(source, (3, 3, q, q))).startswith(
        "There is nothing at the chosen place"
    )
    assert in_words(source, NOTHING) == in_words(None, NOTHING) == EMPTY


def test_names_choose_what_a_rectangle_chooses(source):
    q = source.columns.index("q")
    assert of_names(source, [1], []) == of_rectangle(source, (1, 1, 0, len(source.columns) - 1))
    assert of_names(source, [], ["q"]) == of_rectangle(source, (0, 3, q, q))
    scattered = of_names(source, [2, 0], ["v", "q"])
    assert scattered == Chosen((0, 2), ("q", "v"))
    assert rectangles(source, scattered) == [(b, b, c, c) for b in (0, 2) for c in (q, q + 2)]
    assert of_names(source, [], []) == of_names(None, [1], ["q"]) == of_names(source, [77], ["q"]) == NOTHING


def test_mouse_and_dropdowns_keep_in_step(source):
    q = source.columns.index("q")
    chosen, _, set_button, clear, outline, rows, columns = on_brush(Event({"cells": [0, 1, q, q]}), source)
    assert (rows["value"], columns["value"]) == (["0", "1"], ["q"])
    assert set_button["interactive"]
    assert clear["interactive"]
    assert outline["brushed"] == [[0, 1, q, q]]
    assert on_names(source, ["0", "1"], ["q"]) == [
        chosen,
        *on_brush(Event({"cells": [0, 1, q, q]}), source)[1:5],
    ]
    whole = on_brush(Event({"cells": [0, 0, 0, len(source.columns) - 1]}), source)
    assert (whole[5]["value"], whole[6]["value"]) == (["0"], [])
    cleared = on_clear(source)
    assert cleared[0] == NOTHING
    assert told(cleared) == EMPTY
    assert (cleared[2]["interactive"], cleared[4]["brushed"]) == (False, [])


@pytest.mark.parametrize(
    "cells", [None, "all", [0, 99, 0, 0], [0, 0, 0, 10**30], [0, 0], [1, 0, 0, 0], [0, 0, 0, True]]
)
def test_a_brush_that_is_no_part_of_the_map_chooses_nothing(source, cells):
    found = on_brush(Event({"cells": cells}), source)
    assert found[0] == NOTHING
    assert found[4]["brushed"] == []
    assert on_brush(Event({"cells": [0, 0, 0, 0]}), None)[0] == NOTHING


def test_names_from_the_browser_that_are_none(source):
    assert on_names(source, ["9", None, 3, ["0"]], [{"q": 1}])[0] == NOTHING
    assert on_names(source, None, None)[0] == NOTHING
    assert on_names(source, ["outside"], ["<b>"])[0] == NOTHING
    for odd in (5, 1.5, True, {"0": 1}, "0"):
        assert on_names(source, odd, odd)[0] == NOTHING


def test_another_map_keeps_what_it_still_has(source):
    chosen = Chosen((0, 1), ("q", "attention norm"))
    smaller = replace(source, rows=(0, 1, 2), columns=("q", "k"))
    found = on_source(smaller, chosen, KEEP)
    assert found[0] == Chosen((0, 1), ("q",))
    assert [name for name, _ in found[5]["choices"]] == ["0", "1", "2"]
    assert found[7]["value"] == KEEP
    gone = on_source(None, chosen, KEEP)
    assert gone[0] == NOTHING
    assert gone[7]["choices"] == []


def test_only_the_methods_parameters_are_offered(source):
    assert [value for _, value in what_choices(source)][:2] == ["weight", "density"]
    assert [value for _, value in what_choices(source)][-2:] == [KEEP, BACK]
    assert "scope" not in [value for _, value in what_choices(source)]
    baseless = replace(source, method="linear", has_base=False)
    assert [value for _, value in what_choices(baseless)] == ["weight", "normalize", BACK]
    assert what_choices(None) == []
    offered, expert, number, option = on_what(source, "density", "weight")
    assert offered == "density"
    assert [label for label, _ in expert["choices"]] == ["all experts", "one", "two"]
    assert (expert["visible"], number["visible"], option["visible"]) == (True, True, False)
    assert (number["label"], number["value"]) == ("density (k): 0 to 1", 0.2)
    _, expert, number, option = on_what(source, "rescale", "density")
    assert (expert["visible"], number["visible"], option["visible"]) == (False, False, True)
    assert all(not update["visible"] for update in on_what(source, KEEP, "rescale")[1:])


def test_what_is_offered_already_is_not_offered_over_what_was_typed(source):
    assert on_what(source, "density", "density") == [gr.skip()] * 4


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_every_method_has_its_field(source, method):
    shown = replace(source, method=method)
    for name in shown.parameters:
        _, _, number, option = on_what(shown, name, None)
        assert number["visible"] != option["visible"], name
        usual = number["value"] if number["visible"] else option["value"]
        action = action_of(shown, name, "", usual, usual)
        assert isinstance(action, SetParameter)
        given = {name: action.value} if action.value is not None else {}
        assert METHODS[method].configure("paper", given).model_dump(by_alias=True)[name] == usual_value(usual)


def test_what_the_fields_ask_for(source):
    one = source.models[0]
    assert action_of(source, "weight", one, 0.5, None) == SetParameter("weight", 0.5, one)
    assert action_of(source, "weight", "", 0.5, None) == SetParameter("weight", 0.5)
    assert action_of(source, "lambda", one, 0.5, None) == SetParameter("lambda", 0.5)
    assert action_of(source, "normalize", "", 0.5, "on") == SetParameter("normalize", True)
    assert action_of(source, "normalize", "", 0.5, ["on"]) == SetParameter("normalize", None)
    assert action_of(source, KEEP, one, 1, None) == KeepBase()
    assert action_of(source, BACK, one, 1, None) == BackToRecipe()
    for unknown in ("epsilon", "scope", None, ["weight"], {"a": 1}):
        assert action_of(source, unknown, "", 0.5, None) is None
    assert action_of(None, "weight", "", 0.5, None) is None


def test_set_hands_on_the_changed_recipe_and_leaves_alone_one_that_stays(source, recipe):
    handed = []
    taken = Taken(lambda changed, more: handed.append((changed, more)) or ["shown"], [None], [None])
    chosen = Chosen((1,), ("up",))
    said, shown = on_set(taken, recipe, source, chosen, "weight", "", 0.25, None, "more")
    assert (
        said
        == '<p class="brush-said" role="status">weight is 0.25 for all experts in 1 tensor (block 1 up).</p>'
    )
    [(changed, more)] = handed
    assert (shown, more) == ("shown", "more")
    assert [(o.tensors, o.parameters) for o in changed.overrides] == [
        ("model.layers.1.mlp.up_proj.weight", {"weight": 0.25})
    ]
    said, shown = on_set(taken, recipe, source, NOTHING, "weight", "", 0.25, None, "more")
    assert NOTHING_CHOSEN in said
    said, _ = on_set(taken, recipe, source, chosen, "weight", "<script>", 0.25, None, "more")
    assert "none of the recipe&#x27;s models" in said
    said, _ = on_set(taken, recipe, source, chosen, "<b>", "", 0.25, None, "more")
    assert "Choose what to set first." in said
    said, _ = on_set(taken, recipe, source, chosen, "weight", "", None, None, "more")
    assert "weight needs a value" in said
    assert len(handed) == 1
