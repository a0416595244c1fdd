"""From a method's pydantic fields to widgets and back: the only place that knows both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from merging import Method

STEP = 0.05
FREE_RANGE = (0.0, 2.0)
"""Where a slider for a number without limits begins; it widens to hold a value outside."""
RADIO_CHOICES = 3
LARGEST_WHOLE = 2**53
"""Whole numbers beyond this are not exact in the browser, and lost on the way to it."""


@dataclass(frozen=True)
class Shape:
    """What values a field takes: a switch, one of `choices`, or a number with its limits (None: no limit)."""

    kind: Literal["switch", "choice", "number"]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False

    @property
    def bounded(self) -> bool:
        return self.minimum is not None and self.maximum is not None


def shape_of(field: FieldInfo) -> Shape:
    """The shape of a field, from its annotation and limits; of a union, that of its first member.

    Raises:
        TypeError: an annotation no widget is known for.
    """
    return _shape(field.annotation, list(field.metadata))


def label_of(name: str, field: FieldInfo) -> str:
    """The name as it stands in the YAML, and the paper's symbol."""
    symbol = _extra(field).get("symbol")
    return f"{name} ({symbol})" if symbol else name


def merge_wide(method: type[Method]) -> dict[str, FieldInfo]:
    """The parameters that have one value for the whole merge, by YAML name."""
    return {name: field for name, field in method.parameters().items() if not _extra(field).get("per_model")}


def for_each_expert(method: type[Method]) -> dict[str, FieldInfo]:
    """The parameters of which every expert has its own, by YAML name."""
    return {name: field for name, field in method.parameters().items() if _extra(field).get("per_model")}


def default_of(method: type[Method], name: str, profile: str) -> Any:
    """The value a parameter has where a recipe of this profile does not set it."""
    given = method.MERGEKIT if profile == "mergekit" else {}
    return given.get(name, method.parameters()[name].default)


def widget(name: str, field: FieldInfo, value: Any = None, **options: Any) -> gr.components.Component:
    """The widget of one field, holding `value` or the field's default."""
    shape = shape_of(field)
    value = field.default if value is None else value
    texts = {"label": label_of(name, field), "info": field.description, **options}
    if shape.kind == "switch":
        return gr.Checkbox(value, **texts)
    if shape.kind == "choice":
        few = len(shape.choices) <= RADIO_CHOICES
        return (gr.Radio if few else gr.Dropdown)(list(shape.choices), value=value, **texts)
    if shape.bounded:
        return gr.Slider(shape.minimum, shape.maximum, value=value, step=_step(shape), **texts)
    return gr.Number(value, step=_step(shape), minimum=shape.minimum, maximum=shape.maximum, **texts)


def slider(field: FieldInfo, value: float | None = None, **options: Any) -> gr.Slider:
    """A slider for one expert's value of a field; the label is the caller's."""
    value = field.default if value is None else value
    low, high = slider_range(field, value)
    return gr.Slider(low, high, value=value, step=_step(shape_of(field)), **options)


def slider_range(field: FieldInfo, value: float) -> tuple[float, float]:
    """The ends of an expert's slider, moved out as far as `value` needs."""
    shape = shape_of(field)
    low = shape.minimum if shape.minimum is not None else min(FREE_RANGE[0], math.floor(value))
    high = shape.maximum if shape.maximum is not None else max(FREE_RANGE[1], math.ceil(value))
    return low, high


def explicit(method: type[Method], profile: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe has to say: the values that differ from the profile's defaults. A cleared field says nothing."""
    said = {}
    for name, value in values.items():
        value = tidy(value)
        if value is not None and not same(value, default_of(method, name, profile)):
            said[name] = value
    return said


def tidy(value: Any) -> Any:
    """A number as a person would write it: without the float dust of a slider."""
    if isinstance(value, float) and math.isfinite(value):
        value = round(value, 6)
        return int(value) if abs(value) < LARGEST_WHOLE and value == int(value) else value
    return value


def same(one: Any, other: Any) -> bool:
    """Equal, and a switch never equal to a number."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, Mapping) else {}


def _shape(annotation: Any, limits: list[Any]) -> Shape:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            limits += item.metadata if isinstance(item, FieldInfo) else [item]
        return _shape(inner, limits)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return _shape(get_args(annotation)[0], limits)
    if origin is Literal:
        return Shape("choice", choices=tuple(str(choice) for choice in get_args(annotation)))
    if annotation is bool:
        return Shape("switch")
    if annotation in (float, int):
        return _number(annotation is int, limits)
    raise TypeError(f"no widget is known for {annotation!r}")


def _number(whole: bool, limits: list[Any]) -> Shape:
    step = 1 if whole else STEP
    low = high = None
    for limit in limits:
        if isinstance(limit, Ge):
            low = float(limit.ge)
        elif isinstance(limit, Gt):
            low = float(limit.gt) + step
        elif isinstance(limit, Le):
            high = float(limit.le)
        elif isinstance(limit, Lt):
            high = float(limit.lt) - step
        elif isinstance(limit, MultipleOf):
            raise TypeError("no widget is known for multiple_of")
    return Shape("number", minimum=low, maximum=high, whole=whole)


def _step(shape: Shape) -> float:
    return 1 if shape.whole else STEP
