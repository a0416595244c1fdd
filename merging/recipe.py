"""The recipe: mergekit's YAML, and a little more.

What mergekit runs and we do not is refused by name; a key neither knows is an error with a suggestion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictInt, ValidationError

from merging.errors import RecipeError, did_you_mean, why_unread
from merging.methods import Profile, Scope
from merging.references import path_exists
from merging.values import ParameterValue, value_problem
from merging.yaml_text import load_yaml

MIXTURE = "mixtures of experts, as mergekit-moe makes them, are not supported yet"
NOT_YET = {
    "modules": "multi-module models are not supported yet",
    "experts": MIXTURE,
    "gate_mode": MIXTURE,
}
IGNORED_PARAMETERS = {"int8_mask"}
"""mergekit's parameters that change no number of ours; accepted so that old recipes run."""
IGNORED_KEYS = {"residual_weight"}
"""What mergekit's slices may hold and mergekit never reads."""

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPE_KEYS = ("dtype", "out_dtype")
Glob = Annotated[str, Field(max_length=500)]
"""Longer than any tensor's name: Python takes the square of the time to read one with many brackets."""


class ModelEntry(BaseModel):
    """One model of a recipe with its own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)


class SliceSource(ModelEntry):
    """One model of a slice: its blocks from the first number of `layer_range` up to, without, the second."""

    layer_range: tuple[StrictInt, StrictInt]

    @property
    def length(self) -> int:
        return self.layer_range[1] - self.layer_range[0]


class Slice(BaseModel):
    """A run of the output's blocks and the equally many blocks of every source that are merged into it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[SliceSource, ...] = ()
    base_model: str | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)


class Override(BaseModel):
    """Parameters for the tensors whose names match a glob, before all others; the first that matches wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: Glob
    model: str | None = None
    parameters: dict[str, ParameterValue]


class Keep(BaseModel):
    """What stays the base's, see `merging.keeping`: `modules`, and runs of the output's blocks, each from its first number
    up to, without, its second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: tuple[str, ...] = ()
    layers: tuple[tuple[StrictInt, StrictInt], ...] = ()


class RowSource(BaseModel):
    """What a token's row is made of: zeros, or a row of a model, by its token or its number there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["zero", "model_token"]
    model: str | None = None
    token: str | None = None
    token_id: StrictInt | None = Field(None, ge=0)

    @property
    def complete(self) -> bool:
        """Whether it names one row: model_token needs a model, and either its token or the token's number."""
        one = self.model is not None and (self.token is None) != (self.token_id is None)
        return self.kind == "zero" or one


class TokenRow(BaseModel):
    """The row of a token for the models that lack it; with `force`, for all. `source` may be a model that has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | RowSource | None = None
    force: bool = False


class TokenizerBlock(BaseModel):
    """mergekit's `tokenizer`: whose tokens the output has, where rows of single tokens are from, and how many rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "union"
    tokens: dict[str, TokenRow] = Field(default_factory=dict)
    pad_to_multiple_of: StrictInt | None = Field(None, ge=1, le=1 << 16)


class Recipe(BaseModel):
    """What to merge and how. Field names are the YAML's keys.

    Either `models` are merged whole, or `slices` say which of their blocks become the output's. A parameter's value
    is a number, a list (a gradient over the blocks), or a list of `{filter, value}`. A recipe without `profile` gives mergekit's weights; the app and `merge_state_dicts` use `paper`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge_method: str
    base_model: str | None = None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    profile: Profile = "mergekit"
    scope: Scope | None = None
    seed: int = Field(0, ge=0, lt=2**63, strict=True)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    importance: str | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerBlock | None = None
    special_tokens: str | None = None
    """The model whose end, beginning and padding tokens the output has; the one that gives the tokenizer by default."""
    chat_template: str | None = None
    exclude: tuple[Glob, ...] = ()
    keep: Keep = Keep()
    overrides: tuple[Override, ...] = ()

    _folder: Path | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file. Model paths are looked up from the working folder, then from the recipe's own.

        Raises:
            RecipeError: no file, no YAML, or keys that are unknown, malformed or not supported, all in one text.
        """
        path = Path(path)
        return cls.from_yaml(read_text(path), name=str(path), folder=path.parent)

    @classmethod
    def from_yaml(cls, text: str, *, name: str = "recipe", folder: Path | None = None) -> Recipe:
        """The recipe in a YAML text; see `load`."""
        recipe, problems = cls.parse(text, name=name, folder=folder)
        if problems or recipe is None:
            raise RecipeError("\n".join(f"{name}: {problem}" for problem in problems))
        return recipe

    @classmethod
    def parse(
        cls, text: str, *, name: str = "recipe", folder: Path | None = None
    ) -> tuple[Recipe | None, list[str]]:
        """As much of a recipe as makes sense, and a sentence for each thing that does not."""
        content, unreadable = load_yaml(text)
        if unreadable is not None:
            return None, [unreadable]
        if not isinstance(content, dict):
            return None, [
                "a recipe is a table of keys such as merge_method, base_model and models; this is none."
            ]
        content, problems = _without_unsupported(content)
        told: set[Any] = set()
        while True:
            try:
                recipe = cls.model_validate(content)
            except ValidationError as error:
                found = [problem for problem in error.errors() if _counts(problem)]
                wrong = {problem["loc"][0] for problem in found}
                problems += [_sentence(problem) for problem in found if problem["loc"][0] not in told]
                told |= wrong
                content, smaller = _without(wrong, content)
                if not smaller:
                    return None, list(dict.fromkeys(problems))
                continue
            recipe._folder = folder
            return recipe, list(dict.fromkeys(problems))

    @property
    def experts(self) -> tuple[ModelEntry, ...]:
        """The models that are merged whole, without the base where it is listed among them."""
        return tuple(entry for entry in self.models if entry.model != self.base_model)

    def vocabulary_models(self) -> Iterator[tuple[str, str]]:
        """Key and name of every model that is named for its tokens: tokenizer, rows, special tokens, chat template."""
        block = self.tokenizer or TokenizerBlock(source="base")
        plain = {
            "tokenizer_source": self.tokenizer_source,
            "tokenizer": block.source,
            "special_tokens": self.special_tokens,
            "chat_template": self.chat_template,
        }
        for key, name in plain.items():
            if name is not None and name not in {"base", "union", "auto"} and "{" not in name:
                yield key, name
        for token, row in block.tokens.items():
            name = row.source.model if isinstance(row.source, RowSource) else row.source
            if name is not None:
                yield f"tokenizer.tokens.{token}", name

    def to_yaml(self) -> str:
        """The recipe as YAML, without the keys that hold their default."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content = {"merge_method": self.merge_method, **content}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def to_mergekit(self, *, approximate: bool = False) -> str:
        """The recipe as YAML that mergekit runs, with every value that differs from its defaults written out.

        Args:
            approximate: leave out what mergekit cannot express, and say so in comments.

        Raises:
            MergingError: mergekit lacks the method or something that decides the weights.
        """
        from merging.export import to_mergekit

        return to_mergekit(self, approximate=approximate)

    def dump(self, path: str | Path) -> None:
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def locate(self, reference: str) -> Path:
        """The folder a model reference means: from the working folder, else beside the recipe."""
        try:
            path = Path(reference).expanduser()
        except RuntimeError:
            path = Path(reference)
        if not path.is_absolute() and not path_exists(path) and self._folder is not None:
            beside = self._folder / path
            if path_exists(beside):
                return beside
        return path


def read_text(path: Path) -> str:
    """A recipe file's text.

    Raises:
        RecipeError: no such file, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({why_unread(error)}).") from None


def _without_unsupported(content: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    problems, kept = [], {}
    for key, value in content.items():
        if key in NOT_YET:
            problems.append(f"{key}: {NOT_YET[key]}.")
        elif key not in Recipe.model_fields:
            problems.append(f"unknown key '{key}'.{did_you_mean(str(key), [*Recipe.model_fields, *NOT_YET])}")
        elif value is not None:
            kept[key] = (
                value.removeprefix("torch.") if key in DTYPE_KEYS and isinstance(value, str) else value
            )
    for table in _tables(kept):
        for key in IGNORED_KEYS & table.keys():
            del table[key]
        for key in ("model", "base_model"):
            if isinstance(table.get(key), dict):
                table[key] = _plain_reference(table[key])
        problems += _clean_parameters(table)
    return kept, problems


def _tables(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Every table of a recipe that may hold parameters."""
    slices = _entries(kept.get("slices"))
    sources = [
        source for part in slices if isinstance(part, dict) for source in _entries(part.get("sources"))
    ]
    parts = [*_entries(kept.get("models")), *slices, *sources, *_entries(kept.get("overrides"))]
    return [kept, *(part for part in parts if isinstance(part, dict))]


def _clean_parameters(table: dict[str, Any]) -> list[str]:
    """Take out of a table's parameters what changes nothing and what cannot be resolved; a sentence for the latter."""
    if table.get("parameters", ...) is None:
        del table["parameters"]
    if not isinstance(table.get("parameters"), dict):
        return []
    given = {name: value for name, value in table["parameters"].items() if name not in IGNORED_PARAMETERS}
    wrong = {name: problem for name, value in given.items() if (problem := value_problem(value))}
    table["parameters"] = {name: value for name, value in given.items() if name not in wrong}
    return [f"parameter {name}: {problem}." for name, problem in wrong.items()]


def _plain_reference(table: dict[Any, Any]) -> Any:
    """mergekit's long form of a model reference, {model: {path, revision}, lora: {path}}, as one text; itself if it is
    none."""
    model, adapter = table.get("model", table), table.get("lora")
    paths = [part.get("path") if isinstance(part, dict) else part for part in (model, adapter)]
    revision = model.get("revision") if isinstance(model, dict) else None
    if not isinstance(paths[0], str) or not isinstance(paths[1], str | None):
        return table
    return paths[0] + (f"@{revision}" if revision else "") + (f"+{paths[1]}" if paths[1] else "")


def _entries(models: Any) -> list[Any]:
    return models if isinstance(models, list) else []


def _without(keys: set[Any], content: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    kept = {key: value for key, value in content.items() if key not in keys}
    return kept, len(kept) < len(content)


MOST_QUOTED = 200
"""Characters of a wrong value that its message repeats."""
TABLES: dict[str, type[BaseModel]] = {
    "models": ModelEntry,
    "slices": Slice,
    "sources": SliceSource,
    "overrides": Override,
    "keep": Keep,
    "tokenizer": TokenizerBlock,
    "tokens": TokenRow,
}


KINDS = {
    "tuple_type": "must be a list",
    "dict_type": "must be a table of names and values",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
}
"""pydantic's words for what YAML holds, in those of who writes it."""
FORMS = ("str", "RowSource")
"""What pydantic calls the two forms of a row's source."""


def _counts(problem: Any) -> bool:
    """Whether it is about the form that was meant, where a value may have two."""
    last, kind = problem["loc"][-1] if problem["loc"] else "", problem["type"]
    other = last == "str" and kind == "string_type" and isinstance(problem["input"], dict)
    return not other and not (last == "RowSource" and kind == "model_type")


def _place(loc: Sequence[int | str]) -> list[str]:
    """Where in a recipe a problem is, counted from 1."""
    before = (None, *loc)
    named = [
        part for part, last in zip(loc, before, strict=False) if not (last == "source" and part in FORMS)
    ]
    return [str(part + 1) if isinstance(part, int) else part for part in named]


def _wanted(problem: Any, path: Sequence[int | str]) -> str:
    """What should stand there."""
    if problem["type"] == "model_type":
        table = next((TABLES[part] for part in reversed(path) if part in TABLES), Recipe)
        return f"must be a table of {', '.join(table.model_fields)}"
    return KINDS.get(problem["type"]) or problem["msg"].removeprefix("Input ")


def _sentence(problem: Any) -> str:
    *parents, key = problem["loc"] or ("recipe",)
    where = ".".join(_place(problem["loc"]))
    if problem["type"] == "extra_forbidden":
        table = next((TABLES[part] for part in reversed(parents) if part in TABLES), Recipe)
        inside = where.removesuffix(str(key)).rstrip(".") or "the recipe"
        return f"unknown key '{key}' in {inside}.{did_you_mean(str(key), list(table.model_fields))}"
    if problem["type"] == "missing":
        return f"{where}: missing."
    given = repr(problem["input"])
    given = given if len(given) <= MOST_QUOTED else f"{given[:MOST_QUOTED]}…"
    if "keep" in parents and (key == "layers" or "layers" in parents):
        return f"{where}: must be runs of blocks, each two whole numbers, such as [[0, 2], [22, 24]]; it is {given}."
    if key == "layer_range" or "layer_range" in parents:
        return (
            f"{where}: must be two whole numbers, the first block and the one after the last, such as [0, 8]; it is "
            f"{given}."
        )
    return f"{where}: {_wanted(problem, [*parents, key])}; it is {given}."
