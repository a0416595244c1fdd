"""The recipes that both programs run, as people write them: `$base`, `$one` ... stand for the family's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template


@dataclass(frozen=True)
class Case:
    """A recipe over one family. Deterministic unless `seeds` says with how many seeds it is run."""

    name: str
    family: str
    text: str
    seeds: int = 0

    def write(self, folder: Path, models: dict[str, Path]) -> Path:
        file = folder / f"{self.name}.yml"
        file.write_text(Template(self.text).substitute({name: str(path) for name, path in models.items()}))
        return file


def case(name: str, family: str, text: str, **keys) -> Case:
    return Case(name, family, text.strip() + "\ndtype: float32\n", **keys)
