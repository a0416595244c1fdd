"""How differently two models predict one reply: against plain forward passes and against numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from merging import MergingError
from merging.answering import token_view as views
from merging.answering.token_view import token_view
from merging.inference import LoadedModel
from tests.conftest import edit_config, save_llama


@pytest.fixture(scope="module")
def own(family) -> LoadedModel:
    return LoadedModel.load(family / "one")


@pytest.fixture(scope="module")
def other(family) -> LoadedModel:
    return LoadedModel.load(family / "two")


def ids(model, text: str) -> list[int]:
    return model.tokenizer(text)["input_ids"]


def test_the_numbers_are_those_of_a_plain_forward_pass(own, other, monkeypatch):
    monkeypatch.setattr(views, "ROWS", 4)
    prompt, reply = ids(own, "a+b="), ids(own, "cd 09z x-")
    found = token_view(own, other, prompt, reply).tokens
    with torch.no_grad():
        logits = [model.model(torch.tensor([prompt + reply])).logits[0] for model in (own, other)]
    for number, token in enumerate(found):
        here, there = (each[len(prompt) + number - 1].log_softmax(-1) for each in logits)
        expected = torch.nn.functional.kl_div(there, here, reduction="sum", log_target=True)
        assert token.divergence == pytest.approx(float(expected), rel=1e-3, abs=1e-8)
        assert token.id == reply[number]
        for prediction, logs in ((token.own, here), (token.other, there)):
            order = logs.argsort(descending=True).tolist()
            assert prediction.rank == 1 + order.index(token.id)
            assert prediction.probability == pytest.approx(float(logs[token.id].exp()), rel=1e-5)
            values = [float(logs[id].exp()) for id in order[:5]]
            assert [one.probability for one in prediction.best] == pytest.approx(values, rel=1e-5)
    assert "".join(token.text for token in found) == "cd␣09z␣x-"


def test_a_model_agrees_with_itself(own):
    for token in token_view(own, own, ids(own, "ab"), ids(own, "cdef")).tokens:
        assert token.divergence == 0
        assert token.own == token.other


def steady(folder, odds: float) -> LoadedModel:
    """A model of two tokens that gives the first `odds` to 1 whatever it reads."""
    model = LoadedModel.load(save_llama(folder, vocab_size=2))
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.model.model.embed_tokens.weight.fill_(1)
        model.model.lm_head.weight.zero_()
        model.model.lm_head.weight[0] = math.log(odds) / 32
    return model


def test_two_tokens_by_hand(tmp_path):
    three, even = steady(tmp_path / "three", 3), steady(tmp_path / "even", 1)
    first, second = token_view(three, even, [0], [1, 0]).tokens
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    for token in (first, second):
        assert token.divergence == pytest.approx(expected, rel=1e-4)
        assert [one.probability for one in token.own.best] == pytest.approx([0.75, 0.25], rel=1e-4)
    assert (first.text, first.own.rank, first.other.rank) == ("<eos>", 2, 1)
    assert (second.text, second.own.rank, second.other.rank) == ("<pad>", 1, 1)
    assert first.own.probability == pytest.approx(0.25, rel=1e-4)


def test_rows_that_only_fill_up_a_head_do_not_count(own, tmp_path):
    wider = LoadedModel.load(save_llama(tmp_path / "wider", vocab_size=64))
    for model in (own, wider):
        with torch.no_grad():
            found = token_view(own, model, [2], [3]).tokens[0]
        assert found.divergence >= 0
    with torch.no_grad():
        plain = wider.model(torch.tensor([[2]])).logits[0, -1, :48].softmax(-1)
    assert found.other.probability == pytest.approx(float(plain[3]), rel=1e-5)


def test_what_is_never_said_counts_nothing():
    never = torch.tensor([[1.0, 0.0]]).log()
    assert views._divergence(never, torch.tensor([[0.5, 0.5]]).log()).tolist() == pytest.approx([math.log(2)])
    assert views._divergence(torch.tensor([[0.5, 0.5]]).log(), never).tolist() == [math.inf]


def test_a_long_reply_is_looked_at_from_its_beginning(own, other, monkeypatch):
    monkeypatch.setattr(views, "MOST_TOKENS", 3)
    found = token_view(own, other, ids(own, "ab"), ids(own, "cdefg" * 100))
    assert ([token.text for token in found.tokens], found.left_out) == (["c", "d", "e"], 497)


def test_other_tokenizers_are_refused(own, family, tmp_path):
    other = LoadedModel.load(save_llama(tmp_path / "other"))
    other.tokenizer.add_tokens(["<img>"])
    with pytest.raises(MergingError, match="token 42 is no token in one and '<img>' in the other"):
        token_view(own, other, [2], [3])


def test_what_cannot_be_read_is_refused_in_a_sentence(own, other, family, tmp_path):
    for prompt, reply, words in (
        ([2], [], "answer has no tokens"),
        ([], [2], "prompt has no tokens"),
        ([2] * 60, [3] * 5, "have 65 tokens, and a model here reads at most 64"),
        ([2], [48], "Token 48 .* beyond the 48"),
    ):
        with pytest.raises(MergingError, match=words):
            token_view(own, other, prompt, reply)
    broken = LoadedModel.load(save_llama(tmp_path / "broken"))
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(MergingError, match="predicts NaN"):
        token_view(own, broken, [2], [3])


def test_the_context_is_a_limit_to_the_last_token(tmp_path):
    folder = save_llama(tmp_path / "short", max_position_embeddings=4)
    with pytest.raises(MergingError, match="at most 4"):
        token_view(LoadedModel.load(folder), LoadedModel.load(folder), [2, 3], [4, 5, 6])
    edit_config(folder, max_position_embeddings=5)
    model = LoadedModel.load(folder)
    assert len(token_view(model, model, [2, 3], [4, 5, 6]).tokens) == 3
