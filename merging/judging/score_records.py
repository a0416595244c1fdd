"""Scores as the run history keeps them: a suite's questions once, and of every result only what the model gave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from merging.evaluation import ItemResult, Perplexity, SuiteResult
from merging.judging.intervals import Interval, wilson
from merging.judging.suites import Scoring

APART = {"suite", "items", "scoring"}
"""What of a result is not kept in its content."""


@dataclass(frozen=True)
class Score:
    """What a model scored on a suite, without its replies; `seconds` is what that took, `created` since the epoch."""

    subject: str
    suite_fingerprint: str
    suite: str
    scoring: Scoring
    n: int
    value: float
    seconds: float | None
    created: float

    @property
    def correct(self) -> int:
        """Number of correct replies."""
        return round(self.value * self.n)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the score."""
        return wilson(self.correct, self.n)


def questions_of(result: SuiteResult) -> tuple[str, str]:
    """An id of the questions with their answers, and they themselves."""
    content = _json([[item.prompt, item.answer] for item in result.items])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), content


def pack(result: SuiteResult) -> str:
    """Replies, which of them are correct, and notes."""
    content: dict[str, Any] = {
        field.name: getattr(result, field.name) for field in fields(result) if field.name not in APART
    }
    content["replies"] = [item.reply for item in result.items]
    content["correct"] = "".join("01"[item.correct] for item in result.items)
    content["notes"] = {number: item.note for number, item in enumerate(result.items) if item.note}
    return _json(content)


def unpack(suite: str, scoring: Scoring, questions: str, content: str) -> SuiteResult | None:
    """The result as it was packed; None where a record is damaged."""
    try:
        known = json.loads(content)
        notes = known.pop("notes")
        columns = zip(_asked(questions), known.pop("replies"), known.pop("correct"), strict=True)
        items = tuple(
            ItemResult(prompt, answer, reply, correct == "1", notes.get(str(number), ""))
            for number, ((prompt, answer), reply, correct) in enumerate(columns)
        )
        return SuiteResult(suite, items, scoring, **known)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@lru_cache(maxsize=8)
def _asked(questions: str) -> tuple[tuple[str, str], ...]:
    """Prompts and answers, which many results have in common."""
    return tuple((prompt, answer) for prompt, answer in json.loads(questions))


def text_fingerprint(text: str) -> str:
    """What the perplexity of a text is kept under."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def pack_perplexity(result: Perplexity) -> str:
    """All of it."""
    return _json(asdict(result))


def unpack_perplexity(content: str) -> Perplexity | None:
    """The perplexity as it was packed; None where a record is damaged."""
    try:
        known = json.loads(content)
        interval = known.pop("interval")
        return Perplexity(**known, interval=None if interval is None else Interval(**interval))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))
