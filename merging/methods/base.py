"""What a merge method is: a frozen value whose fields are its parameters."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merging import ops
from merging.errors import ParameterError, did_you_mean
from merging.partitions import Scores
from merging.pieces import Explained, Piece
from merging.statistics import Accumulator, Attained

Profile = Literal["paper", "mergekit"]
Scope = Literal["tensor", "layer", "model"]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
GROUPS = {
    "baseline": "Baselines",
    "sign": "Size and sign",
    "random": "Random dropping",
    "importance": "Importance and competition",
    "average": "Averages and stacks",
    "two": "Two models",
    "other": "Others",
}
"""The kinds of merge methods and their headings, in the order they are presented."""
Survey = Generator[Accumulator, Any, Any]
"""Yields accumulators to run over the scope, is sent their results, returns what `coefficients` must know."""


@dataclass(frozen=True)
class Group:
    """The tensors that are looked at together: all of a model, a block, or one tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    experts: int
    scores: Scores | None = None
    """The importance of every partition, for a method that needs it."""

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def parameter(
    default: Any,
    symbol: str,
    description: str,
    *,
    per_model: bool = False,
    sequence: bool = False,
    rare: bool = False,
    **limits: Any,
) -> Any:
    """A pydantic field that also knows the paper's symbol, whether each model may have its own value, whether a list is
    the value itself (`sequence`) rather than a gradient over the blocks, and whether few people change it (`rare`)."""
    extra: dict[str, Any] = {"symbol": symbol, "per_model": per_model, "sequence": sequence, "rare": rare}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Method(BaseModel):
    """A configured merge method. A subclass's fields are its parameters with the paper's defaults.

    A parameter marked `per_model` is a number, or a tuple with one number for each expert. An instance belongs to one
    tensor: a recipe may give every tensor other values.

    An elementwise method defines `coefficients`; the merge is θ0 + λ·Σ_t coefficient_t·δ_t. What it must know
    beforehand about its scope it gathers in `survey`, and about a part of the scope in `refine`. One that holds an
    election defines `explain` too, so that a map can tell the out-voted from the dropped. A method that is no such sum
    sets `elementwise = False` and overrides `merge`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: ClassVar[str]
    title: ClassVar[str]
    when_to_use: ClassVar[str]
    paper: ClassVar[str]
    group: ClassVar[str] = "other"
    """What kind of method it is, one of `GROUPS`."""
    caveat: ClassVar[str] = ""
    """What somebody should know before using it, in a sentence or two."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Other published values than the defaults: whose they are -> the parameters that differ."""
    elementwise: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    takes_base: ClassVar[bool] = True
    """Whether it works on changes from a base where one is named; otherwise a base is one more model, or unused."""
    experts_wanted: ClassVar[int | None] = None
    """The exact number of models beside the base, where a method is made for just so many."""
    scans: ClassVar[int] = 0
    """How often `survey` and `refine` go over the scope at most; only for the estimate of the time left."""
    reduces: ClassVar[bool] = True
    """Whether one expert at weight 1, density 1 and λ 1 comes out as it is."""
    whole_vectors: ClassVar[bool] = False
    """Whether a 1-D tensor must be one piece, because it is ranked like a row."""
    needs_importance: ClassVar[bool] = False
    """Whether the method reads an importance file."""
    MERGEKIT: ClassVar[dict[str, Any]] = {}
    """Values that differ from the field defaults under `profile: mergekit`."""

    @classmethod
    def configure(cls, profile: Profile, parameters: Mapping[str, Any]) -> Self:
        """The method with the profile's defaults and the given parameters over them, by their YAML names.

        Raises:
            ParameterError: an unknown name (with a suggestion) or a value out of range, all of them in one text.
        """
        try:
            return cls.model_validate({**(cls.MERGEKIT if profile == "mergekit" else {}), **parameters})
        except ValidationError as error:
            raise ParameterError(" ".join(dict.fromkeys(cls._sentences(error)))) from None

    @classmethod
    @cache
    def parameters(cls) -> Mapping[str, Any]:
        """YAML name -> pydantic field."""
        return MappingProxyType({field.alias or name: field for name, field in cls.model_fields.items()})

    @classmethod
    def defaults(cls, profile: Profile) -> dict[str, Any]:
        """YAML name -> what a parameter is where nothing sets it."""
        fields = {name: field.default for name, field in cls.parameters().items()}
        return {**fields, **cls.MERGEKIT} if profile == "mergekit" else fields

    @classmethod
    def per_model(cls) -> set[str]:
        return {name for name, field in cls.parameters().items() if field.json_schema_extra["per_model"]}

    @classmethod
    def _sentences(cls, error: ValidationError) -> list[str]:
        sentences = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                known = list(cls.parameters())
                sentences.append(
                    f"{cls.name} has no parameter '{name}'.{did_you_mean(name, known)} It has: {', '.join(known)}."
                )
            elif cls.parameters()[name].json_schema_extra["sequence"] and len(problem["loc"]) == 1:
                sentences.append(
                    f"{name}: {problem['input']!r} is no list of numbers, such as {list(cls.parameters()[name].default)}."
                )
            elif problem["type"] != "tuple_type" and not isinstance(problem["input"], tuple):
                message = problem["msg"].removeprefix("Input ").removesuffix(".")
                sentences.append(f"{name}: {problem['input']!r} {message}.")
        return sentences

    def for_experts(self, parameter: str, experts: int) -> tuple[float, ...]:
        """The values of a per-model parameter, one for each expert."""
        value = getattr(self, parameter)
        return value if isinstance(value, tuple) else (value,) * experts

    def problems(self, experts: int, profile: Profile) -> list[str]:
        """Why these values cannot be used with so many experts, a sentence without its full stop each."""
        return []

    @property
    def ranked_within(self) -> Scope:
        """What is looked at together before merging."""
        return getattr(self, "scope", "tensor")

    @property
    def needs_saliency(self) -> bool:
        """Whether the method reads the element scores of an importance file."""
        return False

    def survey(self, group: Group) -> Survey:
        """What `coefficients` must know about the whole scope; by default nothing."""
        return
        yield

    def part_of(self, tensor: str, known: Any) -> str | None:
        """The part of its scope that a tensor is refined with; None: the method has no `refine`."""
        return None

    def refine(self, part: Group, known: Any) -> Survey:
        """What `coefficients` must know about one part of the scope, given what the survey found."""
        return known
        yield

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        """The factor of every expert's change at every element: [experts, *shape] (or broadcastable to it)."""
        raise NotImplementedError(f"{type(self).__name__} defines neither coefficients nor merge")

    def explain(self, piece: Piece, known: Any) -> Explained:
        """The coefficients, and the factors there were before an election, for a method that holds one.

        Without one whatever has a coefficient of 0 was dropped, also by a weight that the method computes: the ratio 0 of
        Model Stock, all or nothing in Arcee Fusion, a change that RAM takes for none.
        """
        coefficients = self.coefficients(piece, known)
        return Explained(coefficients, coefficients)

    def sweep(self, piece: Piece, known: Any) -> ops.Sweep | None:
        """How a merge adds up, so that it is one sweep over the models as they are stored (these themselves without a base):
        what `change` makes of the `coefficients`, bit by bit. None: it is no sum of scaled changes."""
        if not self.elementwise:
            return None
        return ops.Sweep(self.coefficients(piece, known), getattr(self, "lambda_", 1.0))

    def change(self, coefficients: torch.Tensor, piece: Piece) -> torch.Tensor:
        """λ·Σ_t coefficient_t·δ_t in float32: [*shape]."""
        return ops.weighted_sum(coefficients, piece.deltas, getattr(self, "lambda_", 1.0))

    def attained(self, known: Any) -> Attained | None:
        """What the survey's trimming came to, for the methods that trim."""
        return None

    def remarks(self, known: Any, names: Sequence[str]) -> list[str]:
        """What a user should know of what the survey found, a sentence each; `names` are the experts'."""
        return []

    def cautions(self, changes: Sequence[float], names: Sequence[str]) -> list[str]:
        """Why this method may fail with experts whose relative changes ‖δ‖/‖θ0‖ are these, a sentence each."""
        return []

    def merge(self, piece: Piece, known: Any) -> torch.Tensor:
        """The merged rows in float32 of a method that is no sum of scaled changes: [*shape]."""
        raise NotImplementedError(f"{type(self).__name__} defines neither coefficients nor merge")


METHODS: dict[str, type[Method]] = {}
"""Every merge method by its YAML name, in the order they are presented."""


def register(method: type[Method]) -> type[Method]:
    METHODS[method.name] = method
    return method


def get_method(name: str) -> type[Method]:
    """The method class of a YAML name.

    Raises:
        ParameterError: no such method, with a suggestion.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ParameterError(
            f"There is no merge method '{name}'.{did_you_mean(str(name), list(METHODS))} Known: {', '.join(METHODS)}."
        )
    return METHODS[name]
