"""Fields become widgets, and widgets become the recipe's parameters again."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import gradio as gr
import pytest
from pydantic import Field

from components.forms import (
    default_of,
    explicit,
    for_each_expert,
    help_of,
    is_rare,
    label_of,
    merge_wide,
    read_numbers,
    refit,
    shape_of,
    shown,
    slider_range,
    tidy,
    widget,
    write_numbers,
)
from components.late_choice import LateDropdown, LateRadio
from merging import METHODS, Method
from merging.methods.base import GROUPS, Share, parameter
from merging.methods.dppa import Dppa
from merging.methods.ties import Ties


class Everything(Method):
    """One field of every kind."""

    name: ClassVar[str] = "everything"
    MERGEKIT: ClassVar[dict] = {"share": 0.75}
    switch: bool = parameter(True, "", "A switch.")
    few: Literal["a", "b"] = parameter("a", "c", "Two choices.")
    many: Literal["a", "b", "c", "d"] = parameter("d", "", "Four choices.")
    share: Share = parameter(0.25, "p", "From 0 to 1.")
    free: float = parameter(1.5, "x", "Any number.")
    above: float = parameter(1.0, "", "Above nothing.", gt=0, le=4)
    whole: int = parameter(3, "", "A whole number.", ge=1, le=9)
    large: int = parameter(0, "", "A seed.", ge=0, lt=2**63)
    tiny: Share = parameter(1e-8, "", "A tolerance.", rare=True)
    maybe: Annotated[float, Field(ge=-1, le=1)] | None = parameter(0.0, "", "May be left out.")
    several: tuple[Share, ...] = parameter((0.9, 0.8), "", "A list.", sequence=True)
    lambda_: float = parameter(1.0, "λ", "Has an alias.", alias="lambda")
    own: Share | tuple[Share, ...] = parameter(0.5, "k", "One for each expert.", per_model=True)


FIELDS = Everything.parameters()


def made(name: str, **options) -> gr.components.Component:
    return widget(shape_of(FIELDS[name], Everything), FIELDS[name].default, **options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("switch", gr.Checkbox),
        ("few", LateRadio),
        ("many", LateDropdown),
        ("share", gr.Slider),
        ("free", gr.Number),
        ("above", gr.Slider),
        ("whole", gr.Slider),
        ("large", gr.Number),
        ("tiny", gr.Number),
        ("maybe", gr.Slider),
        ("lambda", gr.Number),
    ],
)
def test_every_kind_of_field_has_its_widget(name, kind):
    component = made(name, label=name)
    assert type(component) is kind
    assert component.value == FIELDS[name].default


def test_a_list_is_typed_as_text():
    component = made("several")
    assert type(component) is gr.Textbox
    assert component.value == "0.9, 0.8"


def test_limits_and_steps_reach_the_widget():
    share, above, whole = (made(name) for name in ("share", "above", "whole"))
    assert (share.minimum, share.maximum, share.step) == (0, 1, 0.01)
    assert 0 < above.minimum < 0.1
    assert above.maximum == 4
    assert (whole.minimum, whole.maximum, whole.step) == (1, 9, 1)
    assert made("tiny").step == pytest.approx(1e-8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("share", "From 0 to 1. (0 to 1; paper 0.25, mergekit 0.75)"),
        ("free", "Any number. (any number; preset 1.5)"),
        ("above", "Above nothing. (above 0 to 4; preset 1)"),
        ("large", "A seed. (whole number from 0; preset 0)"),
        ("several", "A list. (0 to 1; preset 0.9, 0.8)"),
        ("switch", "A switch. (preset on)"),
        ("few", "Two choices. (preset a)"),
    ],
)
def test_help_gives_effect_range_and_the_values_of_both_profiles(name, said):
    assert help_of(Everything, name) == said


def test_labels_are_the_yaml_name_and_the_symbol():
    assert label_of("lambda", FIELDS["lambda"]) == "lambda (λ)"
    assert label_of("switch", FIELDS["switch"]) == "switch"
    assert label_of("t", METHODS["slerp"].parameters()["t"]) == "t"


def test_experts_parameters_are_apart():
    assert list(for_each_expert(Everything)) == ["own"]
    assert "own" not in merge_wide(Everything)
    assert set(for_each_expert(Ties)) == {"weight", "density"}


def test_what_few_people_change_is_declared_at_the_class():
    assert is_rare(FIELDS["tiny"])
    assert {name for name, field in merge_wide(Ties).items() if not is_rare(field)} == {
        "lambda",
        "normalize",
        "scope",
    }


def test_sliders_widen_for_values_outside():
    weight, density = (shape_of(Ties.parameters()[name], Ties) for name in ("weight", "density"))
    assert slider_range(weight, 1.0) == (0, 2)
    assert slider_range(weight, -0.5) == (-1, 2)
    assert slider_range(weight, 3.2) == (0, 4)
    assert slider_range(density, 0.5) == (0, 1)


def test_a_widget_is_refitted_for_another_method():
    nu = refit(shape_of(Dppa.parameters()["nu"], Dppa), 0.5)
    assert nu == {"value": 0.5, "minimum": 0, "maximum": 1, "step": 0.01}
    assert refit(shape_of(Dppa.parameters()["levels"], Dppa), (0.9, 0.5)) == {"value": "0.9, 0.5"}
    assert refit(shape_of(FIELDS["few"]), "b")["choices"] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.9, 0.8", [0.9, 0.8]),
        ("[1.8, 0]", [1.8, 0]),
        ("0.9;0.8  0.5", [0.9, 0.8, 0.5]),
        ("", []),
        ("0.9, x", "0.9, x"),
        ("nan", "nan"),
        ("1e999", "1e999"),
    ],
)
def test_lists_are_read_as_people_type_them(text, values):
    assert read_numbers(text) == values
    if isinstance(values, list) and values:
        assert read_numbers(write_numbers(values)) == values


def test_an_unknown_annotation_is_refused_at_build_time():
    class Odd(Method):
        field: dict[str, float] = parameter({}, "", "No widget shows this.")

    with pytest.raises(TypeError, match="no widget"):
        shape_of(Odd.parameters()["field"])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_all_a_form_needs(method):
    assert method.group in GROUPS
    assert method.group != "other"
    for name, field in method.parameters().items():
        text = help_of(method, name)
        assert len(field.description) > 25, (name, field.description)
        assert len(text) < 270, (name, len(text))
        assert shape_of(field, method).kind
    for title, values in method.presets.items():
        assert method.configure("paper", values), title


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_untouched_widgets_say_nothing(method, profile):
    held = {
        name: widget(shape_of(field, method), default_of(method, name, profile)).value
        for name, field in merge_wide(method).items()
    }
    assert explicit(method, profile, held) == {}


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_round_trip_through_widgets_keeps_the_method(profile):
    wanted = {"scope": "layer", "normalize": False, "lambda": 0.7, "sign": "frequency"}
    values = {name: default_of(Ties, name, profile) for name in merge_wide(Ties)} | wanted
    held = {name: widget(shape_of(f, Ties), values[name]).value for name, f in merge_wide(Ties).items()}
    said = explicit(Ties, profile, held)
    assert said == wanted
    assert Ties.configure(profile, said) == Ties.configure(profile, values)


def test_lists_reach_the_method():
    said = explicit(Dppa, "paper", {"levels": "0.9, 0.5", "amplify": shown((1.0, 1.0))})
    assert said == {"levels": [0.9, 0.5]}
    assert Dppa.configure("paper", said).levels == (0.9, 0.5)


def test_what_equals_the_other_profiles_default_is_said():
    assert explicit(Ties, "mergekit", {"scope": "model"}) == {"scope": "model"}
    assert explicit(Ties, "paper", {"scope": "model"}) == {}


def test_cleared_fields_and_float_dust():
    assert explicit(Ties, "paper", {"lambda": None}) == {}
    assert explicit(Ties, "paper", {"lambda": 0.30000000000000004}) == {"lambda": 0.3}
    assert tidy(2.0) == 2
    assert isinstance(tidy(2.0), int)
    assert tidy(True) is True
    assert tidy(1e-8) == 1e-8
