"""The examples that importance is measured on: the demo's own, or what a visitor pastes or uploads, within limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.family import Family
from components.server.settings import Settings
from merging import MergingError
from merging.judging.suites import Item, Suite

MOST_EXAMPLES = 64
MOST_BYTES = 200_000
MOST_LETTERS = 8_000
"""Letters of one example, prompt and answer together."""
MOST_SAMPLES = 64
DEMO, OWN = "demo", "own"
LIMITS = f"At most {MOST_EXAMPLES} examples and {MOST_BYTES // 1000} kB for each expert, {MOST_LETTERS:,} letters for each example."
FORMAT = (
    'One example a line: {"prompt": "2 + 3", "answer": "5"} as JSON, or the prompt, a tab, and the answer.'
)


@dataclass(frozen=True)
class Source:
    """Where one expert's examples come from: its demo file, or `text`."""

    kind: str
    text: str = ""


def demo_file(settings: Settings, expert: str) -> Path | None:
    """The calibration file that comes with an expert of the demo family; None for any other model."""
    folder = Path(expert)
    if folder.parent.resolve() != settings.demo.resolve():
        return None
    tasks = (folder.name, folder.name.split("-")[0])
    files = [settings.demo / "data" / task / "calibration.jsonl" for task in tasks]
    return next((file for file in files if file.is_file()), None)


def usual_source(settings: Settings, expert: str) -> Source:
    """Where a visitor begins: the demo's examples where there are some."""
    return Source(OWN if demo_file(settings, expert) is None else DEMO)


def read_all(settings: Settings, family: Family, sources: Sequence[Source]) -> dict[str, Suite]:
    """Examples of every expert, by its path.

    Raises:
        MergingError: naming the expert, the line, and what is wrong there.
    """
    found = {}
    for name, expert, source in zip(family.names, family.experts, sources, strict=True):
        file = demo_file(settings, expert)
        if source.kind == DEMO and file is not None:
            found[expert] = Suite.load(file)
        else:
            found[expert] = read_examples(source.text, name)
    return found


def read_examples(text: str, name: str) -> Suite:
    """Examples in a pasted or uploaded text.

    Raises:
        MergingError: there are none or too many, or a line is no example.
    """
    if not text.strip():
        raise MergingError(f"{name}: no examples yet. Paste some of its task, or upload a JSONL file.")
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise MergingError(
            f"{name}: more than {MOST_BYTES // 1000} kB of examples. Give fewer or shorter ones."
        )
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > MOST_EXAMPLES:
        raise MergingError(
            f"{name}: {len(lines)} examples; at most {MOST_EXAMPLES} are read. Leave some out."
        )
    return Suite(name, tuple(_example(line, f"{name}, line {number}") for number, line in lines))


def read_upload(path: Any, name: str) -> str:
    """The text of an uploaded file.

    Raises:
        MergingError: it is too large, or no text.
    """
    file = Path(str(path))
    try:
        if file.stat().st_size > MOST_BYTES:
            raise MergingError(
                f"{name}: the file has more than {MOST_BYTES // 1000} kB. Give fewer or shorter examples."
            )
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        raise MergingError(f"{name}: the file cannot be read as text. Save it as UTF-8.") from None


def _example(line: str, place: str) -> Item:
    prompt, answer = _json(line, place) if line.lstrip().startswith("{") else _tabbed(line, place)
    if not prompt.strip() or not answer.strip():
        raise MergingError(f"{place}: prompt and answer must not be empty.")
    if len(prompt) + len(answer) > MOST_LETTERS:
        raise MergingError(
            f"{place}: {len(prompt) + len(answer):,} letters; at most {MOST_LETTERS:,} are read."
        )
    return Item(prompt, answer)


def _tabbed(line: str, place: str) -> tuple[str, str]:
    prompt, tab, answer = line.partition("\t")
    if not tab:
        raise MergingError(f"{place}: no example. {FORMAT}")
    return prompt.strip(), answer.strip()


def _json(line: str, place: str) -> tuple[str, str]:
    try:
        table = json.loads(line)
    except (ValueError, RecursionError):
        raise MergingError(f"{place}: begins like JSON but is none. {FORMAT}") from None
    texts = [table.get(key) for key in ("prompt", "answer")]
    if not all(isinstance(text, str) for text in texts):
        raise MergingError(f"{place}: needs the texts 'prompt' and 'answer'. {FORMAT}")
    return texts[0], texts[1]
