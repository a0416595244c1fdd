"""How the next token is chosen: as transformers' own processors do it, and within limits."""

from __future__ import annotations

import pytest
import torch

from merging import MergingError
from merging.answering.drawing import LIMITS, Draw, Sampling


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(1, 200, generator=torch.Generator().manual_seed(0)) * 4


IDS = torch.tensor([[3, 7, 7, 199]])


def test_the_repetition_penalty_is_transformers_own(scores):
    from transformers import RepetitionPenaltyLogitsProcessor

    ours = Draw(Sampling(repetition_penalty=1.3))(IDS, scores)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.3)(IDS, scores.clone()))
    assert not torch.equal(ours, scores)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (20, 0.5), (200, 1.0), (1000, 0.3)])
def test_the_tokens_that_may_be_drawn_are_transformers_own(scores, top_k, top_p):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    warm = scores / 1.5
    if top_k:
        warm = TopKLogitsWarper(top_k)(IDS, warm)
    if top_p < 1:
        warm = TopPLogitsWarper(top_p)(IDS, warm)
    ours = Draw(Sampling(temperature=1.5, top_k=top_k, top_p=top_p))(IDS, scores)
    assert torch.equal(ours.isinf(), warm.isinf())


def test_one_candidate_is_greedy(scores):
    for seed in range(20):
        drawn = Draw(Sampling(temperature=2.0, top_k=1, seed=seed))(IDS, scores)
        assert drawn.argmax() == scores.argmax()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, low - 1) for name, (low, _) in LIMITS.items()]
    + [(name, high + 1) for name, (_, high) in LIMITS.items()]
    + [("temperature", float("nan"))],
)
def test_a_value_beyond_its_limits_is_named(name, value):
    with pytest.raises(MergingError, match=f"{name} is .*; it must lie between"):
        Sampling(**{name: value})


def test_values_are_brought_into_their_limits():
    assert Sampling.within_limits(temperature=9, seed=-1, top_k=None) == Sampling(temperature=2.0)
