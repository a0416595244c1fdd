"""When a reply counts as right."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exactly(reply: str, answer: str) -> bool:
    """Whether they are equal but for blanks around them."""
    return reply.strip() == answer.strip()


def loosely(reply: str, answer: str) -> bool:
    """Whether they are equal once `normalised`."""
    return normalised(reply) == normalised(answer)


def normalised(text: str) -> str:
    """A text without what seldom matters to an answer. In this order:

    1. Unicode's compatibility form (NFKC), and no difference between capitals and small letters;
    2. punctuation is dropped (Unicode's categories P), but not a hyphen, point or comma right before a digit: -5 is not
       5, and 3.5 not 35;
    3. the English articles a, an and the are dropped;
    4. blanks and line breaks become single blanks, none at the ends.

    A step that would leave nothing is left out, so that the answers "A" and "?" keep their meaning.
    Source: SQuAD's evaluation (Rajpurkar et al. 2016), which drops all ASCII punctuation; the digits' signs stay here.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _unless_empty(_without_punctuation(text), text)
    text = _unless_empty(_ARTICLES.sub(" ", text), text)
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    following = (text + " ")[1:]
    return "".join(
        letter
        for letter, after in zip(text, following, strict=True)
        if not unicodedata.category(letter).startswith("P") or (letter in "-.," and after.isdigit())
    )


def _unless_empty(text: str, before: str) -> str:
    return text if text.strip() else before
