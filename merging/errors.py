"""What can go wrong, in one tree.

```
MergingError              anything a user can mend; its text says what, where and how
├── CheckpointError       a model folder or file cannot be read as it is
│   └── HubError           a model of the Hub cannot be looked up or downloaded
├── RecipeError           a recipe is not well formed, or asks for what we do not do
│   └── ParameterError    a method's parameter is unknown or out of range
├── PlanError             recipe and models do not fit; `.problems` lists every reason
└── OutputError           the result cannot be written where it was asked for
```
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class MergingError(Exception):
    """Anything a user can mend. The text names the cause, the place and the remedy."""


class CheckpointError(MergingError):
    """A model folder or file cannot be read as it is."""


class HubError(CheckpointError):
    """A model of the Hub cannot be looked up or downloaded."""


class RecipeError(MergingError):
    """A recipe is not well formed, or asks for something that is not supported."""


class ParameterError(RecipeError):
    """A parameter of a method is unknown or out of range."""


class PlanError(MergingError):
    """Recipe and models do not fit together; `problems` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"This recipe cannot run, {len(self.problems)} {noun}:\n{lines}")

    def __reduce__(self) -> tuple[type[PlanError], tuple[list[str]]]:
        return type(self), (self.problems,)


class OutputError(MergingError):
    """The result cannot be written where it was asked for."""


def why_unread(cause: OSError | ValueError) -> str:
    """Why a text file could not be read, in words: `No such file or directory`."""
    if isinstance(cause, UnicodeError):
        return "it is no text in UTF-8; save it as such"
    return str(getattr(cause, "strerror", None) or cause)


def some(items: Sequence[str], noun: str) -> str:
    """`5 tensors ('a', 'b', 'c' and 2 more)`."""
    shown = ", ".join(item if item.startswith("'") else f"'{item}'" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''} ({shown}{more})"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`" Did you mean 'density'?"` where something known is close to `word`, else an empty string."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
