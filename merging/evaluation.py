"""How well a model answers task suites."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from merging.answering.batched import by_length, greedy_replies, interruptible, log_probabilities
from merging.errors import MergingError
from merging.heartbeats import Stopped
from merging.inference import LoadedModel
from merging.judging.intervals import Interval, bootstrap, wilson
from merging.judging.scoring import exactly, loosely
from merging.judging.suites import Item, Scoring, Suite

Progress = Callable[[int, int], None]

TOO_LONG = "too long"
NO_END = "no end"
NO_TOKENS = "no tokens"
NOT_FINITE = "not finite"

MOST_NEW_TOKENS = 512
"""The longest reply that is waited for, in tokens."""
SLACK = 8
"""Tokens that a reply may have more than the longest answer where punctuation and articles do not count."""
WINDOW = 1024
"""Tokens that perplexity looks at together, where the model reads so many; one half of them is context."""
BLOCKS = 1000
"""At most so many stretches of text are drawn anew for perplexity's interval, each of at least `BLOCK` tokens."""
BLOCK = 32
FEWEST_BLOCKS = 8
BATCH_WINDOWS = 8


@dataclass(frozen=True)
class ItemResult:
    """What a model replied to one item, and whether that is right; `note` says what else there is to know."""

    prompt: str
    answer: str
    reply: str
    correct: bool
    note: str = ""


@dataclass(frozen=True)
class SuiteResult:
    """Every reply of a model to a suite, in the suite's order.

    `plain`: the model has no chat template and was given the prompts as they are.
    """

    suite: str
    items: tuple[ItemResult, ...]
    scoring: Scoring = "exact"
    plain: bool = False

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def correct(self) -> int:
        """Number of correct replies."""
        return sum(item.correct for item in self.items)

    @property
    def score(self) -> float:
        """Share of correct replies, 0 to 1."""
        return self.correct / self.n if self.items else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the score."""
        return wilson(self.correct, self.n)

    @property
    def too_long(self) -> int:
        """Prompts that the model cannot read whole; they count as wrong."""
        return sum(item.note == TOO_LONG for item in self.items)

    @property
    def unended(self) -> int:
        """Replies that were cut off because they did not end."""
        return sum(item.note == NO_END for item in self.items)


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is by a text: `nll` is the mean negative log-likelihood of its `tokens` in nats, `value` its
    exponential. `interval` covers 95 %, from stretches of the text drawn anew; None for a text too short for that."""

    name: str
    tokens: int
    nll: float
    value: float
    interval: Interval | None


def evaluate(
    model: LoadedModel,
    suite: Suite,
    *,
    batch_size: int = 128,
    progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None,
) -> SuiteResult:
    """Ask a model every prompt of a suite.

    `exact` and `normalised` compare the greedy reply with the answer (`scoring`). It may have one token more than the
    longest answer of the suite (`SLACK` where normalised), room for its end token. A model without a chat template
    gets the prompt as it is, and its reply ends with its first line, unless an answer has several.

    `choice` takes the choice with the largest log-likelihood given the prompt, divided by its length in UTF-8 bytes, which
    favours neither short choices nor a tokenizer; the first of equals. Source: Gao 2021, "Multiple choice normalization
    in LM evaluation" (byte-length normalised; acc_norm in lm-evaluation-harness). A choice follows the prompt as it is.

    Args:
        progress: is called with (items done, items).
        stopped: once true, the evaluation ends at the model's next layer.

    Raises:
        MergingError: an answer is longer than any reply that is waited for.
        Stopped: because `stopped` said so.
    """
    prompts = [_prompt(model, item) for item in suite.items]
    found: dict[int, ItemResult] = {}
    ask = _choices if suite.scoring == "choice" else _replies
    with interruptible(model, stopped):
        for batch in ask(model, suite, prompts, batch_size):
            if stopped is not None and stopped():
                raise Stopped
            found |= batch
            if progress:
                progress(len(found), len(suite))
    items = tuple(found[index] for index in range(len(suite)))
    return SuiteResult(suite.name, items, suite.scoring, not model.tokenizer.chat_template)


def perplexity(
    model: LoadedModel,
    text: str,
    *,
    name: str = "text",
    progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Perplexity:
    """How well a model predicts a text, which it gets as it is, without a chat template.

    Windows of `WINDOW` tokens, or of the model's context, move on by half their length; each counts the half that no
    window before it has counted, so that every token but the first counts once, given at least half a window.

    Args:
        progress: is called with (tokens done, tokens).
        stopped: once true, it ends at the model's next layer.

    Raises:
        MergingError: the text has fewer than two tokens, or the model's logits are not finite.
        Stopped: because `stopped` said so.
    """
    ids = model.tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise MergingError(
            f"The text {name} has {len(ids)} tokens; perplexity needs at least two. Give more text."
        )
    windows = _windows(len(ids), max(2, min(WINDOW, model.context or WINDOW)))
    losses: dict[int, torch.Tensor] = {}
    done = 0
    sequences = [(ids[begin:end], first - begin) for begin, first, end in windows]
    with interruptible(model, stopped):
        for number, found in log_probabilities(model, sequences, BATCH_WINDOWS):
            losses[number] = -found.double()
            done += len(found)
            if progress:
                progress(done, len(ids) - 1)
    every = torch.cat([losses[number] for number in range(len(windows))])
    if not bool(every.isfinite().all()):
        raise MergingError(f"{model.path.name}: its logits are not finite, so {name} has no perplexity.")
    mean = float(every.mean())
    return Perplexity(name, len(every), mean, _exp(mean), _interval(every))


def _windows(tokens: int, width: int) -> list[tuple[int, int, int]]:
    """Where each window begins, where it begins to count, and where it ends."""
    stride = max(1, width // 2)
    found = [(0, 1, min(width, tokens))]
    while found[-1][2] < tokens:
        counted = found[-1][2]
        end = min(counted + stride, tokens)
        found.append((max(0, end - width), counted, end))
    return found


def _interval(losses: torch.Tensor) -> Interval | None:
    blocks = min(BLOCKS, len(losses) // BLOCK)
    if blocks < FEWEST_BLOCKS:
        return None
    interval = bootstrap([float(block.mean()) for block in losses.tensor_split(blocks)])
    return Interval(_exp(interval.low), _exp(interval.high))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _replies(
    model: LoadedModel, suite: Suite, prompts: list[list[int]], batch_size: int
) -> Iterator[dict[int, ItemResult]]:
    """Replies to all items, a batch at a time."""
    limit = _limit(model, suite)
    rooms = [min(limit, (model.context or len(ids) + limit) - len(ids)) for ids in prompts]
    unread = {
        index: _unread(item, TOO_LONG if ids else NO_TOKENS)
        for index, (item, ids, room) in enumerate(zip(suite.items, prompts, rooms, strict=True))
        if not ids or room < 1
    }
    if unread:
        yield unread
    asked = [index for index in range(len(prompts)) if index not in unread]
    lengths = [len(prompts[index]) + rooms[index] for index in asked]
    only_first_line = not model.tokenizer.chat_template and all(
        "\n" not in i.answer.strip() for i in suite.items
    )
    for batch in by_length(lengths, batch_size, [rooms[index] for index in asked]):
        indices = [asked[place] for place in batch]
        room = rooms[indices[0]]
        replies = greedy_replies(model, [prompts[index] for index in indices], room)
        texts = model.tokenizer.batch_decode(replies, skip_special_tokens=True)
        yield {
            index: _judged(model, suite, index, (ids, text, only_first_line))
            for index, ids, text in zip(indices, replies, texts, strict=True)
        }


def _judged(model: LoadedModel, suite: Suite, index: int, reply: tuple[list[int], str, bool]) -> ItemResult:
    item = suite.items[index]
    ids, text, only_first_line = reply
    ended = bool(ids) and ids[-1] in model.end_ids
    if only_first_line:
        first, line_break, _ = text.lstrip("\n").partition("\n")
        text, ended = first, ended or bool(line_break)
    equal = loosely if suite.scoring == "normalised" else exactly
    return ItemResult(item.prompt, item.answer, text, equal(text, item.answer), "" if ended else NO_END)


def _limit(model: LoadedModel, suite: Suite) -> int:
    """How many tokens a reply may have."""
    counts = [_token_count(model, item.answer) for item in suite.items]
    if long := sum(count >= MOST_NEW_TOKENS for count in counts):
        raise MergingError(
            f"The suite {suite.name}: {long:,} of its answers have {MOST_NEW_TOKENS} tokens or more, and replies are not "
            "waited for so long. Leave them out, or give choices."
        )
    return max(counts, default=0) + (SLACK if suite.scoring == "normalised" else 1)


def _choices(
    model: LoadedModel, suite: Suite, prompts: list[list[int]], batch_size: int
) -> Iterator[dict[int, ItemResult]]:
    """The likeliest choice of all items, a group of items at a time."""
    for start in range(0, len(suite), batch_size):
        found = {}
        sequences: list[tuple[list[int], int]] = []
        owners: list[int] = []
        for index in range(start, min(start + batch_size, len(suite))):
            item, prompt = suite.items[index], prompts[index]
            tokens = [_ids(model, choice) for choice in item.choices]
            if not prompt or not all(tokens):
                found[index] = _unread(item, NO_TOKENS)
            elif model.context is not None and len(prompt) + max(map(len, tokens)) > model.context:
                found[index] = _unread(item, TOO_LONG)
            else:
                sequences += [(prompt + ids, len(prompt)) for ids in tokens]
                owners += [index] * len(tokens)
        totals: dict[int, list[float]] = {index: [] for index in owners}
        likelihoods = dict(log_probabilities(model, sequences, batch_size))
        for number, index in enumerate(owners):
            totals[index].append(float(likelihoods[number].double().sum()))
        for index, values in totals.items():
            found[index] = _chosen(suite.items[index], values)
        yield found


def _chosen(item: Item, log_likelihoods: list[float]) -> ItemResult:
    if not all(map(math.isfinite, log_likelihoods)):
        return _unread(item, NOT_FINITE)
    shares = [
        value / len(choice.encode()) for value, choice in zip(log_likelihoods, item.choices, strict=True)
    ]
    reply = item.choices[shares.index(max(shares))]
    return ItemResult(item.prompt, item.answer, reply, reply == item.answer)


def _unread(item: Item, note: str) -> ItemResult:
    return ItemResult(item.prompt, item.answer, "", False, note)


def _prompt(model: LoadedModel, item: Item) -> list[int]:
    """An item's prompt as the model reads it; without a chat template that may be no tokens at all."""
    if not model.tokenizer.chat_template:
        return model.tokenizer(item.prompt)["input_ids"]
    return model.prompt_ids([{"role": "user", "content": item.prompt}])


def _ids(model: LoadedModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _token_count(model: LoadedModel, text: str) -> int:
    return len(_ids(model, text))
