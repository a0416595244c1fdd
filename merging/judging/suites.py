"""Task suites: questions with their answers, and by which rule a reply counts as right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from merging.errors import MergingError, did_you_mean, why_unread

Scoring = Literal["exact", "normalised", "choice"]
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)

MOST_BYTES = 5_000_000
MOST_ITEMS = 20_000
NAMED = 3
"""Bad lines that an error names; the others are counted."""


@dataclass(frozen=True)
class Item:
    """One question of a suite, its answer, and what else it may be chosen from."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A named list of questions with their answers; `scoring` says when a reply is right (see `evaluation`)."""

    name: str
    items: tuple[Item, ...]
    scoring: Scoring = "exact"

    @classmethod
    def load(
        cls,
        path: str | Path,
        name: str | None = None,
        scoring: Scoring | None = None,
        *,
        limited: bool = False,
    ) -> Suite:
        """Read a JSON-lines file, see `parse`; without a name it is called after its folder and stem: `math/test`.

        Args:
            limited: refuse what is larger than an upload may be.

        Raises:
            MergingError: the file is missing, no text, too large, or no suite.
        """
        file = Path(path)
        try:
            if limited and file.stat().st_size > MOST_BYTES:
                raise MergingError(_too_large(f"The suite {name or file}"))
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as cause:
            raise MergingError(f"The suite {file} cannot be read ({why_unread(cause)}).") from cause
        return cls._of(
            text, name or f"{file.absolute().parent.name}/{file.stem}", scoring, name or str(file), limited
        )

    @classmethod
    def parse(cls, text: str, name: str, scoring: Scoring | None = None) -> Suite:
        """Read JSON lines that somebody uploaded or pasted: objects with `prompt`, `answer` and perhaps `choices`.

        Blank lines are skipped, and the same item may come twice. The scoring is what is asked for here; else what
        the first line names (`{"scoring": "normalised"}`); else `choice` where items have choices; else `exact`.

        Raises:
            MergingError: it is too large, holds no items, or has lines that are none; all of them are counted.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
            raise MergingError(_too_large(f"The suite {name}"))
        return cls._of(text.removeprefix("\ufeff"), name, scoring, name, limited=True)

    @classmethod
    def _of(cls, text: str, name: str, scoring: Scoring | None, place: str, limited: bool) -> Suite:
        lines = list(_lines(text))
        if not lines:
            raise MergingError(
                f'The suite {place} holds no items. Give one a line: {{"prompt": "2 + 3", "answer": "5"}}.'
            )
        if limited and len(lines) > MOST_ITEMS:
            raise MergingError(_too_large(f"The suite {place}"))
        named = _header(lines[0][1])
        if named is not None and len(lines) == 1:
            raise MergingError(f"The suite {place} names its scoring and holds no items. Add some.")
        wanted = _checked(scoring or named, place)
        items, problems = _read_items(lines[named is not None :], wanted)
        if problems:
            raise MergingError(_bad_lines(place, problems, len(lines)))
        return cls(name, tuple(items), wanted or ("choice" if items[0].choices else "exact"))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the scoring and the items in their order; the name does not matter."""
        digest = hashlib.blake2b(self.scoring.encode(), digest_size=8)
        for item in self.items:
            content = json.dumps([item.prompt, item.answer, item.choices])
            digest.update(f"\n{content}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)


def item_lines(text: str) -> list[int]:
    """The numbers of the lines, from 1, that hold the items of a suite."""
    lines = list(_lines(text.removeprefix("\ufeff")))
    return [number for number, _ in lines[bool(lines) and _header(lines[0][1]) is not None :]]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; only a line feed ends one, for others may stand in JSON."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _header(line: str) -> Any:
    """The scoring that a first line names; None where it is an item."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record.get("scoring") if isinstance(record, dict) and "prompt" not in record else None


def _checked(scoring: Any, place: str) -> Scoring | None:
    if scoring is None or scoring in SCORINGS:
        return scoring
    raise MergingError(
        f"The suite {place}: there is no scoring {str(scoring)[:60]!r}.{did_you_mean(str(scoring), SCORINGS)} "
        f"Use {', '.join(SCORINGS[:-1])} or {SCORINGS[-1]}."
    )


def _read_items(
    lines: list[tuple[int, str]], scoring: Scoring | None
) -> tuple[list[Item], list[tuple[int, str]]]:
    """The items, and what is wrong with each line that is none."""
    items: list[Item] = []
    problems: list[tuple[int, str]] = []
    for number, line in lines:
        read = _read_item(line)
        if isinstance(read, Item):
            by_choice = scoring == "choice" if scoring else bool(items and items[0].choices)
            if by_choice and not read.choices:
                read = "has no choices, and this suite is scored by choice"
            elif scoring is None and items and read.choices and not by_choice:
                read = "has choices, and the first item has none; name the suite's scoring"
        if isinstance(read, Item):
            items.append(read)
        else:
            problems.append((number, read))
    return items, problems


def _read_item(line: str) -> Item | str:
    """The item of a line, or what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as cause:
        return f"not valid JSON ({cause.msg})"
    except (ValueError, RecursionError):
        return "not valid JSON"
    if not isinstance(record, dict):
        return f"expected an object with prompt and answer, found {line.strip()[:60]!r}"
    for field in ("prompt", "answer"):
        if not isinstance(record.get(field), str):
            return f"{field!r} is missing or is not a string"
    prompt, answer, choices = record["prompt"], record["answer"], record.get("choices") or []
    if not answer.strip():
        return "its answer is empty"
    if not isinstance(choices, list) or not all(isinstance(one, str) and one for one in choices):
        return "'choices' is not a list of strings"
    if choices and answer not in choices:
        return f"its answer {answer[:60]!r} is not among its choices"
    if choices and (len(choices) < 2 or len(set(choices)) < len(choices)):
        return "it needs two or more choices that differ"
    if any("\ud800" <= letter <= "\udfff" for text in (prompt, *choices, answer) for letter in text):
        return "holds half a character (a lone surrogate)"
    return Item(prompt, answer, tuple(choices))


def _bad_lines(place: str, problems: list[tuple[int, str]], lines: int) -> str:
    if len(problems) == 1:
        return f"{place}, line {problems[0][0]}: {problems[0][1]}."
    named = "; ".join(f"line {number}: {reason}" for number, reason in problems[:NAMED])
    others = f"; and {len(problems) - NAMED:,} more" if len(problems) > NAMED else ""
    return f"{place}: {len(problems):,} of {lines:,} lines are no items of a suite ({named}{others})."


def _too_large(what: str) -> str:
    return (
        f"{what} is too large: at most {MOST_BYTES // 10**6} MB and {MOST_ITEMS:,} items are read. "
        "Give a part of it."
    )
