"""The recipe: mergekit's YAML, and a little more.

What mergekit runs and we do not is refused by name; a key neither knows is an error with a suggestion.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from merging.errors import RecipeError, did_you_mean
from merging.methods import Profile, Scope
from merging.values import ParameterValue, value_problem

NOT_YET = {
    "slices": "the slices form is not supported yet; list whole models under 'models'",
    "modules": "multi-module models are not supported yet",
    "tokenizer": "the tokenizer block is not supported yet; all models must share the base's vocabulary",
    "importance": "importance files are not supported yet",
}
IGNORED_PARAMETERS = {"int8_mask"}
"""mergekit's parameters that change no number of ours; accepted so that old recipes run."""

MOST_VALUES = 20_000

Dtype = Literal["float32", "float16", "bfloat16"]


class ModelEntry(BaseModel):
    """One model of a recipe with its own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)


class Override(BaseModel):
    """Parameters for the tensors whose names match a glob, before all others; the first that matches wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: str
    model: str | None = None
    parameters: dict[str, ParameterValue]


class Recipe(BaseModel):
    """What to merge and how. Field names are the YAML's keys.

    A parameter's value is a number, a list (a gradient over the blocks), or a list of `{filter, value}`. A recipe
    without `profile` gives mergekit's weights; the app and `merge_state_dicts` use `paper`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge_method: str
    base_model: str | None = None
    models: tuple[ModelEntry, ...] = ()
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    profile: Profile = "mergekit"
    scope: Scope | None = None
    seed: int = Field(0, ge=0, lt=2**63, strict=True)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    exclude: tuple[str, ...] = ()
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
        try:
            content = yaml.load(text, _Loader)
        except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError, TypeError) as error:
            return None, [_yaml_problem(error)]
        if _too_large(content):
            return None, [
                f"it holds, or its aliases expand to, more than {MOST_VALUES:,} values; write it plainly."
            ]
        if not isinstance(content, dict):
            return None, [
                "a recipe is a table of keys such as merge_method, base_model and models; this is none."
            ]
        content, problems = _without_unsupported(content)
        while True:
            try:
                recipe = cls.model_validate(content)
            except ValidationError as error:
                found = [(problem["loc"], _sentence(problem)) for problem in error.errors()]
                problems += dict.fromkeys(sentence for _, sentence in found)
                content, smaller = _without({loc[0] for loc, _ in found}, content)
                if not smaller:
                    return None, problems
                continue
            recipe._folder = folder
            return recipe, problems

    def to_yaml(self) -> str:
        """The recipe as YAML, without the keys that hold their default."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content = {"merge_method": self.merge_method, **content}
        for entry in content.get("models", []):
            if not entry.get("parameters"):
                entry.pop("parameters", None)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

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
        raise RecipeError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def path_exists(path: Path) -> bool:
    """Whether there is such a path; a name that cannot be one does not exist."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Loader(yaml.SafeLoader):
    """YAML in which a key cannot be repeated (one would silently win) and 1e-3 is a number, as in YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key_node.value}' appears twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _too_large(content: Any) -> bool:
    """Whether walking the content meets too many values; aliases count wherever they are used."""
    count, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = (
        "nested too deeply"
        if isinstance(error, RecursionError)
        else "a value or character that is not allowed"
    )
    return f"not valid YAML{where}: {getattr(error, 'problem', None) or reason}."


def _without_unsupported(content: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    problems, kept = [], {}
    for key, value in content.items():
        if key in NOT_YET:
            problems.append(f"{key}: {NOT_YET[key]}.")
        elif key not in Recipe.model_fields:
            problems.append(f"unknown key '{key}'.{did_you_mean(str(key), [*Recipe.model_fields, *NOT_YET])}")
        elif value is not None:
            kept[key] = value
    parts = [part for key in ("models", "overrides") for part in _entries(kept.get(key))]
    tables = [kept, *(part for part in parts if isinstance(part, dict))]
    for table in tables:
        if isinstance(table.get("parameters"), dict):
            table["parameters"] = {
                name: value for name, value in table["parameters"].items() if name not in IGNORED_PARAMETERS
            }
            for name, value in table["parameters"].items():
                if problem := value_problem(value):
                    problems.append(f"parameter {name}: {problem}.")
                    table["parameters"] = {k: v for k, v in table["parameters"].items() if k != name}
        elif "parameters" in table and table["parameters"] is None:
            del table["parameters"]
    return kept, problems


def _entries(models: Any) -> list[Any]:
    return models if isinstance(models, list) else []


def _without(keys: set[Any], content: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    kept = {key: value for key, value in content.items() if key not in keys}
    return kept, len(kept) < len(content)


def _sentence(problem: Any) -> str:
    *parents, key = problem["loc"] or ("recipe",)
    where = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list((Override if parents and parents[0] == "overrides" else ModelEntry).model_fields)
        return f"unknown key '{key}' in {'.'.join(map(str, parents[:1])) or 'the recipe'}.{did_you_mean(str(key), known)}"
    if problem["type"] == "missing":
        return f"{where}: missing."
    return f"{where}: {problem['msg'].removeprefix('Input ')}; it is {problem['input']!r}."
