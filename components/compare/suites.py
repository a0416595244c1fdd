"""What is measured: the demo's tasks, suites that a visitor uploaded, and texts for the perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from components.chat.models import is_demo
from components.compare.board import Column
from components.family import Family
from components.server.settings import Settings
from merging import MergingError
from merging.judging.history import text_fingerprint
from merging.judging.suites import MOST_BYTES, Suite

Split = Literal["test", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
MOST_OWN = 12
"""Suites and texts that one page keeps."""
MOST_NAME = 40
MOST_TEXT = 200_000
"""Letters of a text whose perplexity is measured."""
LEAST_TEXT = 40
DEMO = "demo:"


@dataclass(frozen=True)
class Text:
    """A text whose perplexity is measured."""

    name: str
    content: str

    @cached_property
    def fingerprint(self) -> str:
        """What stands for the content."""
        return text_fingerprint(self.content)


@dataclass(frozen=True)
class Ruler:
    """What models are measured by."""

    suites: tuple[Suite, ...] = ()
    texts: tuple[Text, ...] = ()

    def __len__(self) -> int:
        return len(self.suites) + len(self.texts)

    @property
    def columns(self) -> tuple[Column, ...]:
        suites = (Column(one.fingerprint, one.name, one.scoring, len(one)) for one in self.suites)
        return (*suites, *(Column(one.fingerprint, one.name) for one in self.texts))

    def adding(self, other: Ruler) -> Ruler:
        """Both, each thing once: what is there already takes the new name.

        Raises:
            MergingError: there are too many.
        """
        suites = {one.fingerprint: one for one in (*self.suites, *other.suites)}
        texts = {one.fingerprint: one for one in (*self.texts, *other.texts)}
        if len(suites) + len(texts) > MOST_OWN:
            raise MergingError(
                f"This page keeps {MOST_OWN} suites and texts of yours at most. Reload it to start anew."
            )
        return Ruler(tuple(suites.values()), tuple(texts.values()))


def demo_tasks(settings: Settings, family: Family) -> list[str]:
    """The names of the tasks that come with a family, those of its experts first; none but the demo has any."""
    if not family.experts or not is_demo(settings, family):
        return []
    tasks = sorted(file.parent.name for file in settings.demo.glob("data/*/test.jsonl"))
    own = [name for name in family.names if name in tasks]
    return [*own, *(task for task in tasks if task not in own)]


def demo_suite(settings: Settings, task: str, split: Split = "test") -> Suite:
    """A task of the demo.

    Raises:
        MergingError: there is no such task.
    """
    return _demo_suite(settings.demo, task, split)


@lru_cache(maxsize=16)
def _demo_suite(demo: Path, task: str, split: Split) -> Suite:
    return Suite.load(demo / "data" / task / f"{split}.jsonl")


def options(settings: Settings, family: Family, own: Ruler) -> list[tuple[str, str]]:
    """Label and key of everything that can be measured."""
    tasks = [(task, DEMO + task) for task in demo_tasks(settings, family)]
    suites = [(f"{one.name} ({len(one):,})", one.fingerprint) for one in own.suites]
    return [*tasks, *suites, *((f"perplexity of {one.name}", one.fingerprint) for one in own.texts)]


def chosen(settings: Settings, family: Family, own: Ruler, keys: Any, split: Any) -> Ruler:
    """What the keys name, in the order of `options`; keys that name nothing are left out."""
    wanted = set(filter(lambda key: isinstance(key, str), keys if isinstance(keys, list) else []))
    file: Split = split if split in SPLITS else "test"
    demo = [task for task in demo_tasks(settings, family) if DEMO + task in wanted]
    suites = [demo_suite(settings, task, file) for task in demo]
    suites += [one for one in own.suites if one.fingerprint in wanted]
    return Ruler(tuple(suites), tuple(one for one in own.texts if one.fingerprint in wanted))


def upload_name(path: str | Path) -> str:
    """A short name of an uploaded file."""
    name = "".join(letter for letter in Path(path).stem if letter.isprintable()).strip()
    return name[:MOST_NAME] or "upload"


def read_suite(path: str | Path) -> Suite:
    """A suite that somebody uploaded.

    Raises:
        MergingError: it is too large, or no suite; says in one sentence what is wrong.
    """
    name = upload_name(path)
    return Suite.parse(_read(path, name), name)


def read_text(path: str | Path) -> Text:
    """A text file that somebody uploaded.

    Raises:
        MergingError: it is no text, or too long or too short.
    """
    name = upload_name(path)
    return pasted(_read(path, name), name)


def _read(path: str | Path, name: str) -> str:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError):
        raise MergingError(f"{name}: cannot be read as text in UTF-8. Save it as plain text.") from None


def pasted(content: object, name: str = "") -> Text:
    """A text that somebody pasted; without a name it is called after its beginning.

    Raises:
        MergingError: it is too long or too short.
    """
    text = content.strip() if isinstance(content, str) else ""
    if len(text) < LEAST_TEXT:
        raise MergingError(
            f"A text of {len(text)} letters says too little; paste at least {LEAST_TEXT}, better a few thousand."
        )
    if len(text) > MOST_TEXT:
        raise MergingError(
            f"The text has {len(text):,} letters; at most {MOST_TEXT:,} are read. Give a part of it."
        )
    return Text(name or f"“{' '.join(text.split()[:3])[:24]}…”", text)
