"""What was asked on a page and what every model replied, in the order it happened: for another try and for a record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from components.chat.loading import Asked
from components.chat.replies import Reply
from components.chat.views import Talk, told
from merging.answering.drawing import Sampling
from merging.tokenizing.prompts import TokenIds


@dataclass(frozen=True)
class Said:
    """What became of a question in one column, counted from 0.

    `notes` are those under the reply, `ids` its exact tokens and those of its prompt, `error` why there is none.
    """

    column: int
    key: str
    model: str
    recipe: str
    text: str
    ids: TokenIds
    tokens: int
    rate: float | None
    notes: tuple[str, ...]
    error: str = ""

    @classmethod
    def of(cls, column: int, asked: Asked, reply: Reply) -> Said:
        """What a reply has come to."""
        notes = tuple(told(reply))
        facts = (reply.text, reply.ids, reply.tokens, reply.rate, notes, reply.error)
        return cls(column, asked.key, asked.name, asked.recipe, *facts)


@dataclass(frozen=True)
class Turn:
    """One question to all columns, and how the replies were drawn. `when` is in seconds since the epoch."""

    question: str
    system: str
    sampling: Sampling
    replies: tuple[Said, ...]
    when: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls, asked: tuple[str, str, Sampling], models: Mapping[int, Asked], replies: Mapping[int, Reply]
    ) -> Turn:
        """The turn of a question, its system prompt and sampling."""
        return cls(*asked, tuple(Said.of(column, models[column], reply) for column, reply in replies.items()))


Log = Sequence[Turn]


def before_last(talk: Talk, log: Log) -> Talk:
    """The conversations without the last question and what was said to it, in the columns that answered."""
    question = log[-1].question
    return [said[:-2] if len(said) > 1 and said[-2]["content"] == question else said for said in talk]
