"""Real families that the page offers beside its demo: examples/presets.yaml, read and shown."""

from __future__ import annotations

import html
import math
import sys
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from components.numbers import count, size
from components.server.settings import Settings
from merging import MergingError
from merging.references import Reference
from merging.yaml_text import load_yaml

FILE = "presets.yaml"
MOST_PARAMETERS = 1_000_000_000
BYTES_A_SECOND = 12.5e6
"""What a line of 100 Mbit/s brings; the waiting time that is shown is for that."""

Words = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PresetModel(_Strict):
    """A model of the Hub at a commit, and the bytes of its weights there."""

    model: str
    bytes: int = Field(gt=0)

    @field_validator("model")
    @classmethod
    def _on_the_hub(cls, text: str) -> str:
        reference = Reference.parse(text, lambda path: False)
        if not reference.looks_like_hub or reference.adapter is not None:
            raise ValueError("write org/name@revision, a model of the Hub")
        return text


class Preset(_Strict):
    """A family: what it is good for, its models, and what they cost."""

    title: Words
    purpose: Words
    base: PresetModel
    experts: tuple[PresetModel, ...] = Field(min_length=1, max_length=8)
    speaks_as: str | None = None
    parameters: int = Field(gt=0, le=MOST_PARAMETERS)
    licence: Words

    @model_validator(mode="after")
    def _speaks_as_one_of_them(self) -> Preset:
        if self.speaks_as not in (None, *self.typed):
            raise ValueError("speaks_as has to name one of the family's models, with its revision")
        return self

    @property
    def typed(self) -> list[str]:
        """What a visitor would type for the models, the base first."""
        return [one.model for one in (self.base, *self.experts)]

    @property
    def words(self) -> dict[str, str]:
        """What is decided where the models differ in tokens, by recipe key."""
        return (
            {}
            if self.speaks_as is None
            else dict.fromkeys(("special_tokens", "chat_template"), self.speaks_as)
        )


_PRESETS = TypeAdapter(tuple[Preset, ...])


def read_presets(file: Path) -> tuple[Preset, ...]:
    """The presets of a file; none where there is no file.

    Raises:
        MergingError: it is malformed.
    """
    if not file.is_file():
        return ()
    try:
        content, problem = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        problem = "it cannot be read as text."
    if problem is not None:
        raise MergingError(f"{file}: {problem}")
    try:
        return _PRESETS.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        raise MergingError(
            f"{file}: {where or 'the file'}: {first['msg'].removeprefix('Value error, ')}."
        ) from None


def presets(settings: Settings) -> tuple[Preset, ...]:
    """The families that this server may download; a malformed file is said where the server was started, and offers none."""
    if not settings.hub:
        return ()
    return tuple(one for one in _told(settings.demo.parent / FILE) if _allowed(one, settings))


def _allowed(preset: Preset, settings: Settings) -> bool:
    most = settings.largest_model
    if most is not None and preset.parameters > most:
        return False
    most = settings.largest_download
    return most is None or all(model.bytes <= most for model in (preset.base, *preset.experts))


@cache
def _told(file: Path) -> tuple[Preset, ...]:
    try:
        return read_presets(file)
    except MergingError as error:
        print(f"{error} No presets are offered.", file=sys.stderr)
        return ()


def preset_html(preset: Preset) -> str:
    """What a family is, what it takes to get it, and how long that is."""
    models = (preset.base, *preset.experts)
    nbytes = sum(model.bytes for model in models)
    minutes = math.ceil(nbytes / BYTES_A_SECOND / 60)
    facts = (
        f"{len(models)} models of {count(preset.parameters)} parameters",
        preset.licence,
        f"{size(nbytes)} to download, about {minutes} min at 100 Mbit/s",
    )
    return (
        f'<p class="preset-say"><strong>{html.escape(preset.title)}</strong>: {html.escape(preset.purpose)}'
        f"<small>{html.escape(' · '.join(facts))}</small></p>"
    )
