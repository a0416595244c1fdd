"""The table of facts that a model's README begins with, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from merging.yaml_text import dump_yaml, load_yaml

README = "README.md"
MOST_BYTES = 64 << 10
"""Of a README; what is further down is no front matter."""
MARK = "---\n"


def front_matter(folder: Path) -> dict[str, Any]:
    """The facts in a folder's README, not to be changed; none where it has none, or what is no such table."""
    file = folder / README
    try:
        known = file.stat()
        return _facts(file, known.st_mtime_ns, known.st_size)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=64)
def _facts(file: Path, changed: int, size: int) -> dict[str, Any]:
    """Read once while the file is the same: a page asks again at every move of a slider."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        start = opened.read(MOST_BYTES)
    if not start.startswith(MARK):
        return {}
    content, _ = load_yaml(start[len(MARK) :].split("\n---", 1)[0])
    return content if isinstance(content, dict) else {}


def as_front_matter(facts: Mapping[str, Any]) -> str:
    """Facts as the first lines of a README; those without a value are left out."""
    return f"{MARK}{dump_yaml({key: value for key, value in facts.items() if value})}{MARK}"


def words_in(facts: Mapping[str, Any], key: str, most_letters: int = 60) -> tuple[str, ...]:
    """The words a stranger's table has under a key, be it one or a list of them; each on one line."""
    value = facts.get(key)
    listed = value if isinstance(value, list) else [value]
    words = (" ".join(word.split())[:most_letters] for word in listed[:MOST_WORDS] if isinstance(word, str))
    return tuple(dict.fromkeys(word for word in words if word))


MOST_WORDS = 200
"""Words under one key; the longest lists are of languages."""
