"""How recipes, the command line and the page name a model: a path, or a Hub id with a revision; each with an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

_HUB_ID = re.compile(r"(?=.{3,96}$)[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def path_exists(path: Path) -> bool:
    """Whether there is such a path; a name that cannot be one does not exist."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _here(text: str) -> bool:
    try:
        return bool(text) and path_exists(Path(text).expanduser())
    except RuntimeError:
        return False


@dataclass(frozen=True)
class Reference:
    """A model as people name it: `PATH`, `org/name` or `org/name@revision`, each with an optional `+ADAPTER`."""

    model: str
    revision: str | None = None
    adapter: Reference | None = None

    @classmethod
    def parse(cls, text: str, exists: Callable[[str], bool] = _here) -> Reference:
        """Read a reference; a path that exists is that path, whatever signs are in it.

        Args:
            exists: whether a text is a path of this machine; recipes look beside themselves too.
        """
        if exists(text):
            return cls(text)
        for place in (found.start() for found in re.finditer(r"\+", text)):
            if exists(text[:place]):
                return cls(text[:place], None, cls.parse(text[place + 1 :], exists))
        model, _, adapter = text.rstrip("+").partition("+")
        name, _, revision = model.partition("@")
        found = cls(name, revision) if revision and is_hub_id(name) else cls(model)
        return replace(found, adapter=cls.parse(adapter, exists)) if adapter else found

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.model}{revision}" + (f"+{self.adapter}" if self.adapter else "")

    @property
    def looks_like_hub(self) -> bool:
        """Whether the model's name can be one of the Hub; a relative path of two parts can be one, too."""
        return is_hub_id(self.model)

    @property
    def alone(self) -> Reference:
        """The model without its adapter."""
        return replace(self, adapter=None)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `org/name`."""
    return (
        _HUB_ID.fullmatch(text) is not None
        and not any(bad in text for bad in ("--", ".."))
        and not text.endswith((".git", ".", "-", ".safetensors"))
    )
