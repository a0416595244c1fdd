"""From a method's pydantic fields to widgets and back: the only place that knows both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from components.late_choice import LateDropdown, LateRadio
from merging import Method

STEP = 0.05
SHARE_STEP = 0.01
FREE_RANGE = (0.0, 2.0)
"""Where a slider for a number without limits begins; it widens to hold a value outside."""
RADIO_CHOICES = 3
TINY = 1e-3
"""A field whose usual values are smaller than this gets no slider."""
FINE = 1e-2
WIDEST = 100
"""Whole numbers with more choices than this get no slider."""
LARGEST_WHOLE = 2**53
"""Whole numbers beyond this are not exact in the browser, and lost on the way to it."""

Kind = Literal["switch", "choice", "slider", "number", "numbers"]


@dataclass(frozen=True)
class Shape:
    """What values a field takes, and the widget for it: a switch, one of `choices`, a number with its limits (None: no
    limit; `above` and `below`: the limit itself is out), or a list of such numbers."""

    kind: Kind
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    below: bool = False
    whole: bool = False
    step: float = STEP

    @property
    def bounded(self) -> bool:
        return self.minimum is not None and self.maximum is not None

    @property
    def range(self) -> str:
        """The limits in words; empty where the widget shows all there is to choose."""
        if self.kind in ("switch", "choice"):
            return ""
        low = None if self.minimum is None else f"{'above ' if self.above else ''}{self.minimum:g}"
        high = None if self.maximum is None else f"{'below ' if self.below else ''}{self.maximum:g}"
        if self.whole and (self.maximum is None or self.maximum > LARGEST_WHOLE):
            return f"whole number from {low}" if low else "whole number"
        if low and high:
            return f"{low} to {high}"
        if low:
            return low if self.above else f"{low} or more"
        return f"up to {high}" if high else "any number"


def shape_of(field: FieldInfo, method: type[Method] | None = None) -> Shape:
    """The shape of a field, from its annotation and limits; of a union, that of its first member, unless it is a list.

    Its step follows the field's defaults, in both profiles where the method is given.

    Raises:
        TypeError: an annotation no widget is known for.
    """
    defaults = [field.default]
    if method is not None:
        defaults += [
            method.MERGEKIT[n] for n, f in method.parameters().items() if f is field and n in method.MERGEKIT
        ]
    usual = [abs(value) for value in defaults if isinstance(value, float) and value]
    return _shape(field.annotation, list(field.metadata), min(usual, default=1.0))


def label_of(name: str, field: FieldInfo) -> str:
    """The name as it stands in the YAML, and the paper's symbol."""
    symbol = _extra(field).get("symbol")
    return f"{name} ({symbol})" if symbol and symbol != name else name


def help_of(method: type[Method], name: str) -> str:
    """What a parameter does, its range, and what it is in either profile."""
    field = method.parameters()[name]
    paper, mergekit = (words(default_of(method, name, profile)) for profile in ("paper", "mergekit"))
    usual = f"preset {paper}" if paper == mergekit else f"paper {paper}, mergekit {mergekit}"
    shape = shape_of(field, method)
    unlimited = name in for_each_expert(method) and not shape.bounded
    reach = f"{shape.range}, in the YAML also beyond the slider" if unlimited else shape.range
    facts = "; ".join(part for part in (reach, usual) if part)
    return f"{field.description} ({facts})"


def words(value: Any) -> str:
    """A parameter's value as help texts write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return write_numbers(value) if isinstance(value, list | tuple) else str(value)


def merge_wide(method: type[Method]) -> dict[str, FieldInfo]:
    """The parameters that have one value for the whole merge, by YAML name."""
    return {name: field for name, field in method.parameters().items() if not _extra(field).get("per_model")}


def for_each_expert(method: type[Method]) -> dict[str, FieldInfo]:
    """The parameters of which every expert has its own, by YAML name."""
    return {name: field for name, field in method.parameters().items() if _extra(field).get("per_model")}


def is_rare(field: FieldInfo) -> bool:
    """Whether few people change it, so that it need not be seen at once."""
    return bool(_extra(field).get("rare"))


def is_sequence(field: FieldInfo) -> bool:
    """Whether a list is one value of it, not a gradient over the blocks."""
    return bool(_extra(field).get("sequence"))


def default_of(method: type[Method], name: str, profile: str) -> Any:
    """The value a parameter has where a recipe of this profile does not set it."""
    given = method.MERGEKIT if profile == "mergekit" else {}
    return given.get(name, method.parameters()[name].default)


def widget(shape: Shape, value: Any = None, **options: Any) -> gr.components.Component:
    """The widget for values of a shape, holding one."""
    value = shown(value)
    if shape.kind == "switch":
        return gr.Checkbox(bool(value), **options)
    if shape.kind == "choice":
        few = len(shape.choices) <= RADIO_CHOICES
        return (LateRadio if few else LateDropdown)(list(shape.choices), value=value, **options)
    if shape.kind == "numbers":
        return gr.Textbox(value, max_lines=1, max_length=200, **options)
    if shape.kind == "slider":
        low, high = slider_range(shape, value or 0)
        return gr.Slider(low, high, value=value, step=shape.step, **{"buttons": [], **options})
    return gr.Number(value, step=shape.step, precision=0 if shape.whole else None, **options)


def refit(shape: Shape, value: Any) -> dict[str, Any]:
    """What to tell a widget of the same kind so that it takes another shape and value."""
    options: dict[str, Any] = {"value": shown(value)}
    if shape.kind == "choice":
        options["choices"] = [(choice, choice) for choice in shape.choices]
    elif shape.kind == "slider":
        options["minimum"], options["maximum"] = slider_range(shape, value)
    if shape.kind in ("slider", "number"):
        options["step"] = shape.step
    return options


def slider_range(shape: Shape, value: float) -> tuple[float, float]:
    """The ends of a slider, moved out as far as `value` needs where the shape sets no limit."""
    edge = shape.step
    low = (
        min(FREE_RANGE[0], math.floor(value)) if shape.minimum is None else shape.minimum + edge * shape.above
    )
    high = (
        max(FREE_RANGE[1], math.ceil(value)) if shape.maximum is None else shape.maximum - edge * shape.below
    )
    return low, high


def shown(value: Any) -> Any:
    """A parameter's value as its widget holds it."""
    return write_numbers(value) if isinstance(value, list | tuple) else value


def write_numbers(values: list[float] | tuple[float, ...]) -> str:
    """A list of numbers as a person types it; what is no number stays as it is."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def read_numbers(text: Any) -> Any:
    """The list of numbers in a text such as `0.9, 0.8`; the text itself where it is none, for the method to refuse."""
    if not isinstance(text, str):
        return text
    parts = [part for part in re.split(r"[,;\s]+", text.strip().strip("[]()")) if part]
    try:
        numbers = [tidy(float(part)) for part in parts]
    except ValueError:
        return text.strip()
    return numbers if all(isinstance(n, int) or math.isfinite(n) for n in numbers) else text.strip()


def explicit(method: type[Method], profile: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe has to say: the values that differ from the profile's defaults. A cleared field says nothing."""
    said = {}
    for name, value in values.items():
        value = read_numbers(value) if is_sequence(method.parameters()[name]) else tidy(value)
        if value is not None and value != "" and not same(value, default_of(method, name, profile)):
            said[name] = value
    return said


def tidy(value: Any) -> Any:
    """A number as a person would write it: without the float dust of a slider."""
    if isinstance(value, float) and math.isfinite(value):
        value = float(f"{value:.9g}")
        return int(value) if abs(value) < LARGEST_WHOLE and value == int(value) else value
    return value


def same(one: Any, other: Any) -> bool:
    """Equal, and a switch never equal to a number."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, Mapping) else {}


def _shape(annotation: Any, limits: list[Any], usual: float) -> Shape:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            limits += item.metadata if isinstance(item, FieldInfo) else [item]
        return _shape(inner, limits, usual)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return _shape(get_args(annotation)[0], limits, usual)
    if origin is tuple and get_args(annotation)[1:] == (...,):
        inside = _shape(get_args(annotation)[0], limits, usual)
        if inside.kind in ("slider", "number"):
            return _number(inside.whole, limits, usual, kind="numbers")
    if origin is Literal:
        return Shape("choice", choices=tuple(str(choice) for choice in get_args(annotation)))
    if annotation is bool:
        return Shape("switch")
    if annotation in (float, int):
        return _number(annotation is int, limits, usual)
    raise TypeError(f"no widget is known for {annotation!r}")


def _number(whole: bool, limits: list[Any], usual: float, kind: Kind | None = None) -> Shape:
    low = high = None
    above = below = False
    for limit in limits:
        if isinstance(limit, Ge):
            low = float(limit.ge)
        elif isinstance(limit, Gt):
            low, above = float(limit.gt), True
        elif isinstance(limit, Le):
            high = float(limit.le)
        elif isinstance(limit, Lt):
            high, below = float(limit.lt), True
        elif isinstance(limit, MultipleOf):
            raise TypeError("no widget is known for multiple_of")
    bounded = low is not None and high is not None
    if whole:
        step: float = 1
        slides = bounded and high - low <= WIDEST
    else:
        step = 10 ** math.floor(math.log10(usual)) if usual < FINE else SHARE_STEP if bounded else STEP
        slides = bounded and usual >= TINY
    return Shape(kind or ("slider" if slides else "number"), (), low, high, above, below, whole, step)
