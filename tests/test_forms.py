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
    label_of,
    merge_wide,
    shape_of,
    slider,
    slider_range,
    tidy,
    widget,
)
from merging import METHODS, Method
from merging.methods.base import Share, parameter
from merging.methods.ties import Ties


class Everything(Method):
    """One field of every kind."""

    name: ClassVar[str] = "everything"
    switch: bool = parameter(True, "", "A switch.")
    few: Literal["a", "b"] = parameter("a", "c", "Two choices.")
    many: Literal["a", "b", "c", "d"] = parameter("d", "", "Four choices.")
    share: Share = parameter(0.25, "p", "From 0 to 1.")
    free: float = parameter(1.5, "x", "Any number.")
    above: float = parameter(1.0, "", "Above nothing.", gt=0, le=4)
    whole: int = parameter(3, "", "A whole number.", ge=1, le=9)
    maybe: Annotated[float, Field(ge=-1, le=1)] | None = parameter(0.0, "", "May be left out.")
    lambda_: float = parameter(1.0, "λ", "Has an alias.", alias="lambda")
    own: Share | tuple[Share, ...] = parameter(0.5, "k", "One for each expert.", per_model=True)


FIELDS = Everything.parameters()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("switch", gr.Checkbox),
        ("few", gr.Radio),
        ("many", gr.Dropdown),
        ("share", gr.Slider),
        ("free", gr.Number),
        ("above", gr.Slider),
        ("whole", gr.Slider),
        ("maybe", gr.Slider),
        ("lambda", gr.Number),
    ],
)
def test_every_kind_of_field_has_its_widget(name, kind):
    made = widget(name, FIELDS[name])
    assert type(made) is kind
    assert made.value == FIELDS[name].default
    assert made.info == FIELDS[name].description


def test_limits_reach_the_widget():
    share, above, whole = (widget(name, FIELDS[name]) for name in ("share", "above", "whole"))
    assert (share.minimum, share.maximum) == (0, 1)
    assert 0 < above.minimum < 0.1
    assert above.maximum == 4
    assert (whole.minimum, whole.maximum, whole.step) == (1, 9, 1)


def test_labels_are_the_yaml_name_and_the_symbol():
    assert label_of("lambda", FIELDS["lambda"]) == "lambda (λ)"
    assert label_of("switch", FIELDS["switch"]) == "switch"


def test_experts_parameters_are_apart():
    assert list(for_each_expert(Everything)) == ["own"]
    assert "own" not in merge_wide(Everything)
    assert set(for_each_expert(Ties)) == {"weight", "density"}


def test_sliders_widen_for_values_outside():
    weight, density = (Ties.parameters()[name] for name in ("weight", "density"))
    assert slider_range(weight, 1.0) == (0, 2)
    assert slider_range(weight, -0.5) == (-1, 2)
    assert slider_range(weight, 3.2) == (0, 4)
    assert slider_range(density, 0.5) == (0, 1)
    made = slider(weight, 2.5, label="math")
    assert (made.value, made.maximum, made.label) == (2.5, 3, "math")


def test_an_unknown_annotation_is_refused_at_build_time():
    class Odd(Method):
        field: dict[str, float] = parameter({}, "", "No widget shows this.")

    with pytest.raises(TypeError, match="no widget"):
        shape_of(Odd.parameters()["field"])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_untouched_widgets_say_nothing(method, profile):
    shown = {
        name: widget(name, field, default_of(method, name, profile)).value
        for name, field in merge_wide(method).items()
    }
    assert explicit(method, profile, shown) == {}


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_round_trip_through_widgets_keeps_the_method(profile):
    wanted = {"scope": "layer", "normalize": False, "lambda": 0.7, "sign": "frequency"}
    shown = {name: default_of(Ties, name, profile) for name in merge_wide(Ties)} | wanted
    said = explicit(
        Ties,
        profile,
        {name: widget(name, field, shown[name]).value for name, field in merge_wide(Ties).items()},
    )
    assert said == wanted
    assert Ties.configure(profile, said) == Ties.configure(profile, shown)


def test_what_equals_the_other_profiles_default_is_said():
    assert explicit(Ties, "mergekit", {"scope": "model"}) == {"scope": "model"}
    assert explicit(Ties, "paper", {"scope": "model"}) == {}


def test_cleared_fields_and_float_dust():
    assert explicit(Ties, "paper", {"lambda": None}) == {}
    assert explicit(Ties, "paper", {"lambda": 0.30000000000000004}) == {"lambda": 0.3}
    assert tidy(2.0) == 2
    assert isinstance(tidy(2.0), int)
    assert tidy(True) is True
