"""Token by token, how differently two models predict one reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from merging.answering.reply_logits import reply_logits
from merging.errors import MergingError
from merging.inference import LoadedModel
from merging.tokenizing.vocabulary import readable

MOST_TOKENS = 512
"""Tokens of a reply that are looked at, from its beginning."""
TOP = 5
"""Candidates of each model that are told."""
ROWS = 32
"""Tokens whose whole distributions are in memory at once, as float32."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token a model could have said: its text with blanks made visible, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model made of the token that was said: probability, rank (1 = likeliest), and its likeliest candidates."""

    probability: float
    rank: int
    best: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class ComparedToken:
    """A token of the reply as its own model and another one predicted it; `divergence` is KL(own ‖ other) in nats."""

    id: int
    text: str
    divergence: float
    own: Prediction
    other: Prediction


@dataclass(frozen=True)
class TokenView:
    """The tokens of a reply, and how many behind them were not looked at."""

    tokens: tuple[ComparedToken, ...]
    left_out: int = 0


def token_view(
    own: LoadedModel, other: LoadedModel, prompt: Sequence[int], reply: Sequence[int]
) -> TokenView:
    """One forward pass of each model over prompt and reply; no temperature and no other rule of drawing plays a part.

    Rows of the head beyond the narrower one of both, which only fill it up, are left out of the softmax.

    Raises:
        MergingError: the tokenizers differ, or a model cannot read prompt and reply.
    """
    same_tokens(own, other)
    seen = list(reply[:MOST_TOKENS])
    first, second = (reply_logits(model, prompt, seen) for model in (own, other))
    width = min(first.shape[-1], second.shape[-1])
    told = _texts(own)
    found: list[ComparedToken] = []
    for start in range(0, len(seen), ROWS):
        ids = seen[start : start + ROWS]
        pair = [
            logits[start : start + ROWS, :width].to(first.device, torch.float32).log_softmax(-1)
            for logits in (first, second)
        ]
        predictions = [_predictions(each, ids, told) for each in pair]
        divergences = _divergence(*pair).tolist()
        found += map(ComparedToken, ids, map(told, ids), divergences, *predictions)
    return TokenView(tuple(found), len(reply) - len(seen))


def same_tokens(own: LoadedModel, other: LoadedModel) -> None:
    """Nothing where every id means the same text to both.

    Raises:
        MergingError: one does not; the first such id is named.
    """
    first, second = (_by_id(model.tokenizer.get_vocab()) for model in (own, other))
    if first == second:
        return
    id = min(id for id in first.keys() | second.keys() if first.get(id) != second.get(id))
    texts = [f"'{readable(ids[id])}'" if id in ids else "no token" for ids in (first, second)]
    raise MergingError(
        f"The two models have different tokenizers (token {id} is {texts[0]} in one and {texts[1]} in the other), so their "
        "predictions cannot be compared. Choose models with one tokenizer."
    )


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {id: text for text, id in vocabulary.items()}


def _texts(model: LoadedModel) -> Callable[[int], str]:
    """From an id to the token's text as it can be shown."""
    pieces = _by_id(model.tokenizer.get_vocab())
    added = set(model.tokenizer.get_added_vocab())
    byte_level = any(text.startswith("Ġ") for text in pieces.values())

    def told(id: int) -> str:
        if id not in pieces:
            return f"#{id}"
        return readable(pieces[id], byte_level=byte_level and pieces[id] not in added)

    return told


def _divergence(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(own ‖ other) of every row of log-probabilities; what `own` never says counts nothing."""
    terms = own.exp() * (own - other)
    return terms.where(own > -torch.inf, 0).sum(-1, dtype=torch.float64).clamp(min=0)


def _predictions(logs: torch.Tensor, ids: Sequence[int], told: Callable[[int], str]) -> Iterator[Prediction]:
    """Of log-probabilities [tokens, vocabulary]; a token's rank is one more than the number of likelier ones."""
    said = logs.gather(1, torch.tensor(ids, device=logs.device)[:, None])
    ranks = 1 + (logs > said).sum(1)
    best = logs.topk(min(TOP, logs.shape[1]))
    columns = (said.exp()[:, 0], ranks, best.values.exp(), best.indices)
    for probability, rank, values, places in zip(*(column.tolist() for column in columns), strict=True):
        candidates = tuple(Candidate(told(id), value) for id, value in zip(places, values, strict=True))
        yield Prediction(probability, rank, candidates)
