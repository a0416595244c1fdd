"""Task suites and how well a model answers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.errors import MergingError
from merging.inference import LoadedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Item:
    """One question of a suite and the only answer that counts."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Suite:
    """A named list of questions with their answers."""

    name: str
    items: tuple[Item, ...]

    @classmethod
    def load(cls, path: str | Path) -> Suite:
        """Read a JSON-lines file of objects with `prompt` and `answer`; blank lines are skipped.

        The suite is named after the file's folder and stem: `math/test`.

        Raises:
            MergingError: the file is missing or empty, or a line is not such an object.
        """
        file = Path(path)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as cause:
            raise MergingError(f"The suite {file} cannot be read: {cause}") from cause
        items = tuple(
            _read_item(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
        )
        if not items:
            raise MergingError(f"The suite {file} holds no items.")
        return cls(f"{file.absolute().parent.name}/{file.stem}", items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class ItemResult:
    """What a model replied to one item."""

    prompt: str
    answer: str
    reply: str

    @property
    def correct(self) -> bool:
        """Whether reply and answer are equal but for blanks around them."""
        return self.reply.strip() == self.answer.strip()


@dataclass(frozen=True)
class SuiteResult:
    """Every reply of a model to a suite, in the suite's order."""

    suite: str
    items: tuple[ItemResult, ...]

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def score(self) -> float:
        """Share of correct replies, 0 to 1."""
        return sum(item.correct for item in self.items) / self.n if self.items else 0.0


def exact_match(
    model: LoadedModel, suite: Suite, *, batch_size: int = 128, progress: Progress | None = None
) -> SuiteResult:
    """Ask the model every prompt of `suite`, decode greedily, and compare with the answers.

    Prompts of similar length share a batch. A reply may be one token longer than the longest
    answer of the suite, room for its end token. `progress` is called with (items done, items).
    """
    prompts = [model.prompt_ids([{"role": "user", "content": item.prompt}]) for item in suite.items]
    limit = max((_token_count(model, item.answer) for item in suite.items), default=0) + 1
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies = [""] * len(prompts)
    for start in range(0, len(by_length), batch_size):
        indices = by_length[start : start + batch_size]
        for index, reply in zip(indices, _greedy(model, [prompts[i] for i in indices], limit), strict=True):
            replies[index] = reply
        if progress:
            progress(start + len(indices), len(prompts))
    return SuiteResult(
        suite.name,
        tuple(
            ItemResult(item.prompt, item.answer, reply)
            for item, reply in zip(suite.items, replies, strict=True)
        ),
    )


def _read_item(line: str, place: str) -> Item:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as cause:
        raise MergingError(f"{place}: not valid JSON ({cause.msg}).") from cause
    if not isinstance(record, dict):
        raise MergingError(
            f"{place}: expected an object with prompt and answer, found {line.strip()[:60]!r}."
        )
    for field in ("prompt", "answer"):
        if not isinstance(record.get(field), str):
            raise MergingError(f"{place}: {field!r} is missing or is not a string.")
    return Item(record["prompt"], record["answer"])


def _token_count(model: LoadedModel, text: str) -> int:
    return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def _greedy(model: LoadedModel, prompts: Sequence[Sequence[int]], limit: int) -> list[str]:
    """The most likely continuation of every prompt, at most `limit` tokens, without special tokens."""
    width = max(map(len, prompts))
    padded = [[model.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output = model.model.generate(
        torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=model.end_ids or None,
        pad_token_id=model.pad_id,
    )
    return model.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
