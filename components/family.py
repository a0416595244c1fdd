"""The models a visitor works with: one base and its experts, shared by all tabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging import METHODS, Recipe
from merging.recipe import ModelEntry
from merging.references import Reference

DEMO_EXPERTS = ("math", "code", "words")


@dataclass(frozen=True)
class Family:
    """`base` and `experts` are model references as a recipe names them: folders, and models of the Hub at a commit.

    `words` are the recipe's keys that decide tokens, head and chat template where the models differ in them; where the value
    is a model it is one of these.
    """

    base: str
    experts: tuple[str, ...]
    words: tuple[tuple[str, str], ...] = ()

    @classmethod
    def demo(cls, folder: Path, experts: Sequence[str] = DEMO_EXPERTS) -> Family:
        """The family that comes with the project."""
        return cls(str(folder / "base"), tuple(str(folder / name) for name in experts))

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the experts: the last part of each path, with as much before it as tells them apart."""
        paths = [_parts(expert) for expert in self.experts]
        names = []
        for parts in paths:
            length = 1
            while length < len(parts) and sum(other[-length:] == parts[-length:] for other in paths) > 1:
                length += 1
            names.append("/".join(parts[-length:]))
        return tuple(names)

    @property
    def base_name(self) -> str:
        return _parts(self.base)[-1] if self.base else ""

    def recipe(
        self,
        method: str = "task_arithmetic",
        parameters: Mapping[str, Any] | None = None,
        per_model: Sequence[Mapping[str, Any]] | None = None,
        **keys: Any,
    ) -> Recipe:
        """A recipe over this family under the paper profile; `per_model` holds each expert's own parameters."""
        own = per_model or [{} for _ in self.experts]
        needs_base = METHODS[method].needs_base
        return Recipe(
            merge_method=method,
            base_model=self.base if needs_base else None,
            models=tuple(
                ModelEntry(model=e, parameters=dict(p)) for e, p in zip(self.experts, own, strict=True)
            ),
            parameters=dict(parameters or {}),
            **{"profile": "paper", **dict(self.words), **keys},
        )


def _parts(model: str) -> tuple[str, ...]:
    """The names of a model from the outermost: of its adapter, where it has one, without a revision."""
    named = Reference.parse(model)
    named = named.adapter or named
    return Path(named.model).parts or (named.model,)
