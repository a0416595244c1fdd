"""How the next token of a reply is chosen from a model's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch

from merging.errors import MergingError

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0.0, 2.0),
        "top_p": (0.0, 1.0),
        "max_new_tokens": (1, 32768),
        "seed": (0, 2**53 - 1),
        "top_k": (0, 1000),
        "repetition_penalty": (1.0, 2.0),
    }
)
"""Smallest and largest value of every field of `Sampling`; seeds are whole numbers that a browser knows exactly."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn: temperature 0 takes the likeliest token; the same seed gives the same reply.

    `top_p` keeps the likeliest tokens that together have this probability, `top_k` so many of them (0: all). Scores of
    tokens that the conversation has already are divided by `repetition_penalty`, or multiplied where they are negative.

    Raises:
        MergingError: a value is beyond its `LIMITS`.

    Source: Holtzman et al. 2020 (top-p), Fan et al. 2018 (top-k), Keskar et al. 2019, section 4.1 (repetition penalty).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise MergingError(f"{name} is {value}; it must lie between {low:g} and {high:.16g}.")

    @classmethod
    def within_limits(cls, **values: Any) -> Sampling:
        """Sampling with every value brought into its limits; what is no number becomes the default."""
        return cls(**{field.name: _within(field, values.get(field.name)) for field in fields(cls)})


def _within(field: Any, value: Any) -> Any:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    low, high = LIMITS[field.name]
    return type(field.default)(min(high, max(low, value))) if known else field.default


class Draw:
    """Turns the search for the largest score into a draw from the softmax, by adding Gumbel noise.

    It has a generator of its own: replies on several threads neither share nor disturb random state, and all models
    that answer with one seed see the same noise.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = self._penalised(ids, scores.float())
        if self.sampling.temperature == 0:
            return scores
        scores = self._likeliest(scores / self.sampling.temperature)
        noise = torch.empty(scores.shape).exponential_(generator=self.generator).log().neg()
        return scores + noise.to(scores.device)

    def _penalised(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return scores
        said = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(said < 0, said * penalty, said / penalty))

    def _likeliest(self, scores: torch.Tensor) -> torch.Tensor:
        """Without the tokens outside the top k and, of what is left, outside the top p."""
        if 0 < self.sampling.top_k < scores.shape[-1]:
            least = scores.topk(self.sampling.top_k).values[..., -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.sampling.top_p < 1:
            ordered, places = scores.softmax(-1).sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= max(self.sampling.top_p, 1e-6)
            scores = scores.masked_fill(outside.scatter(-1, places, outside), -torch.inf)
        return scores
