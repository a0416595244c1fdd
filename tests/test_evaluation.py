"""Suites, and exact match on them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from merging.answering.batched import BATCH_TOKENS, by_length
from merging.errors import MergingError
from merging.evaluation import (
    NO_END,
    NO_TOKENS,
    NOT_FINITE,
    TOO_LONG,
    ItemResult,
    SuiteResult,
    evaluate,
    perplexity,
)
from merging.heartbeats import Stopped
from merging.inference import LoadedModel, stream
from merging.judging.scoring import exactly, loosely
from merging.judging.suites import Item, Suite

DEMO_BASE = Path(__file__).parent.parent / "examples" / "demo" / "base"
PROMPTS = ["1+1=", "spell cat", "sorted([3,1,2])", "'abc'.upper()", "plural of fox", "fox", "12 plus 30"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_suite_reads_items_in_order_and_is_named_after_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    file = write(
        folder / "test.jsonl", '{"prompt": "1+1=", "answer": "2"}', "", '{"prompt": "é", "answer": "f"}'
    )
    suite = Suite.load(file)
    assert suite.name == "math/test"
    assert suite.items == (Item("1+1=", "2"), Item("é", "f"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ('{"prompt": "1+1="}', "'answer' is missing"),
        ('{"prompt": 3, "answer": "4"}', "'prompt' is missing or is not a string"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, line: str, reason: str) -> None:
    file = write(tmp_path / "broken.jsonl", '{"prompt": "1+1=", "answer": "2"}', line)
    with pytest.raises(MergingError, match=rf"broken\.jsonl, line 2: .*{reason}"):
        Suite.load(file)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match=r"missing\.jsonl cannot be read"):
        Suite.load(tmp_path / "missing.jsonl")
    with pytest.raises(MergingError, match="holds no items"):
        Suite.load(write(tmp_path / "empty.jsonl", ""))


def test_score_is_the_share_of_correct_replies_and_blanks_do_not_count() -> None:
    result = SuiteResult("s", (ItemResult("a", "1", " 1 ", True), ItemResult("b", "2", "3", False)))
    assert (result.score, result.n) == (0.5, 2)


class Echo(torch.nn.Module):
    """Stands in for a language model: repeats the prompt's tokens (1 to 9), then the end token 0."""

    generation_config = SimpleNamespace(eos_token_id=0)
    config = SimpleNamespace(is_encoder_decoder=False)

    def get_input_embeddings(self):
        return torch.nn.Embedding(10, 1)

    def generate(self, ids, attention_mask, max_new_tokens, eos_token_id, pad_token_id, **_):
        self.widths = [*getattr(self, "widths", []), ids.shape[1]]
        rows = [row[mask.bool()].tolist() for row, mask in zip(ids, attention_mask, strict=True)]
        replies = [(row + [0] * max_new_tokens)[:max_new_tokens] for row in rows]
        return torch.cat([ids, torch.tensor(replies)], dim=1)


class Digits:
    """Stands in for a tokenizer of the digits 1 to 9."""

    chat_template = None
    pad_token_id = 0
    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int(digit) for digit in text]}

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(str(int(token)) for token in row if token) for row in rows]


def test_results_keep_the_order_of_the_suite_and_batches_share_a_length() -> None:
    model = LoadedModel(Echo(), Digits(), Path("echo"))
    suite = Suite("s", tuple(Item(prompt, prompt) for prompt in ("1234", "5", "67", "8", "99")))
    seen: list[tuple[int, int]] = []
    result = evaluate(model, suite, batch_size=2, progress=lambda done, of: seen.append((done, of)))
    assert [item.reply for item in result.items] == ["1234", "5", "67", "8", "99"]
    assert result.score == 1.0
    assert model.model.widths == [1, 2, 4]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_reply_longer_than_the_longest_answer_is_wrong() -> None:
    model = LoadedModel(Echo(), Digits(), Path("echo"))
    result = evaluate(model, Suite("s", (Item("123456", "12"),)))
    assert result.items[0].reply == "123"
    assert not result.items[0].correct


def test_batching_and_padding_do_not_change_a_reply() -> None:
    model = LoadedModel.load(DEMO_BASE)
    suite = Suite("s", tuple(Item(prompt, "x" * 12) for prompt in PROMPTS))
    alone = evaluate(model, suite, batch_size=1)
    together = evaluate(model, suite, batch_size=len(PROMPTS))
    assert together == alone


def test_it_is_the_greedy_decoding_of_the_model_step_by_step() -> None:
    model = LoadedModel.load(DEMO_BASE)
    ids = model.prompt_ids([{"role": "user", "content": "spell cat"}])
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 13 and ids[-1] not in model.end_ids:
            ids = [*ids, int(model.model(torch.tensor([ids])).logits[0, -1].argmax())]
    expected = model.tokenizer.decode(ids[start:], skip_special_tokens=True)
    result = evaluate(model, Suite("s", (Item("spell cat", "x" * 12),)))
    assert result.items[0].reply == expected


def demo(name: str = "words") -> LoadedModel:
    return LoadedModel.load(DEMO_BASE.parent / name)


@pytest.mark.parametrize(
    ("reply", "answer", "equal"),
    [
        ("The Cat.", "cat", True),
        ("  an   apple,\n please! ", "Apple please", True),
        ("don't", "dont", True),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("1,000", "1000", False),
        ("5.", "5", True),
        ("(A)", "a", True),
        ("the", "a", False),
        ("?", "!", False),
        ("ｆｉｎｅ", "fine", True),
        ("theatre", "atre", False),
        ("", "a", False),
        ("STRASSE", "straße", True),
    ],
)
def test_what_normalised_match_forgives(reply: str, answer: str, equal: bool) -> None:
    assert loosely(reply, answer) is equal
    assert exactly(f" {reply}\n", reply)


def test_normalised_replies_have_room_for_articles() -> None:
    suite = Suite("s", (Item("123456", "12"),), "normalised")
    result = evaluate(LoadedModel(Echo(), Digits(), Path("echo")), suite)
    assert result.items[0].reply == "123456"
    assert (result.scoring, result.plain, result.unended) == ("normalised", True, 0)


def test_a_reply_that_does_not_end_is_counted() -> None:
    items = (Item("123456", "12"), Item("12", "12"))
    result = evaluate(LoadedModel(Echo(), Digits(), Path("echo")), Suite("s", items))
    assert [item.note for item in result.items] == [NO_END, ""]
    assert (result.unended, result.too_long, result.correct) == (1, 0, 1)
    assert result.interval.low < 0.5 < result.interval.high


def test_prompts_that_cannot_be_read_are_told_and_the_others_asked() -> None:
    model = demo()
    room = model.context - len(model.prompt_ids([{"role": "user", "content": ""}]))
    items = (Item("x" * room, "y"), Item("plural of fox", "foxes"), Item("x" * (room - 1), "y"))
    seen: list[tuple[int, int]] = []
    result = evaluate(model, Suite("s", items), progress=lambda done, of: seen.append((done, of)))
    assert [item.note for item in result.items][:2] == [TOO_LONG, ""]
    assert (result.too_long, result.items[1].correct, result.plain) == (1, True, False)
    assert len(model.tokenizer(result.items[2].reply)["input_ids"]) <= 1
    assert seen[-1] == (3, 3)


@pytest.mark.parametrize("choices", [(), ("foxes", "x")])
def test_a_prompt_without_tokens_is_told_and_the_others_are_asked(choices: tuple[str, ...]) -> None:
    model = demo()
    model.tokenizer.chat_template = None
    items = (Item("", "foxes", choices), Item("plural of fox", "foxes", choices))
    result = evaluate(model, Suite("s", items, "choice" if choices else "exact"))
    assert [item.note == NO_TOKENS for item in result.items] == [True, False]


def test_answers_longer_than_any_reply_are_refused() -> None:
    with pytest.raises(MergingError, match="1 of its answers have 512 tokens or more"):
        evaluate(demo(), Suite("s", (Item("a", "b" * 600), Item("a", "b"))))


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    model = demo()
    model.tokenizer.add_tokens(["<new>"])
    with pytest.raises(MergingError, match="makes token 100 of this, and the model knows 100"):
        evaluate(model, Suite("s", (Item("a <new>", "b"),)))
    with pytest.raises(MergingError, match="makes token 100"):
        evaluate(model, Suite("s", (Item("a", "b", ("b", "<new>")),), "choice"))
    with pytest.raises(MergingError, match="makes token 100"):
        perplexity(model, "a <new> b")
    with pytest.raises(MergingError, match="makes token 100"):
        next(stream(model, [{"role": "user", "content": "<new>"}]))


def test_batches_are_bounded_by_tokens() -> None:
    assert by_length([5, 1, 3, 9000, 9000], 2, [0] * 5) == [[1, 2], [0], [3], [4]]
    assert by_length([1, 2, 3], 9, [0, 0, 1]) == [[0, 1], [2]]
    assert by_length([BATCH_TOKENS * 2], 9, [0]) == [[0]]


CHOICES = Suite(
    "s",
    tuple(
        Item(prompt, answer, (answer, wrong, "no " * 7))
        for prompt, answer, wrong in (
            ("plural of fox", "foxes", "cats"),
            ("spell cat", "c-a-t", "catcatcat"),
            ("1+1=", "2", "twenty"),
        )
    ),
    "choice",
)


def test_choices_are_weighed_by_their_likelihood_a_byte() -> None:
    model = demo()
    result = evaluate(model, CHOICES)
    for item, found in zip(CHOICES.items, result.items, strict=True):
        prompt = model.prompt_ids([{"role": "user", "content": item.prompt}])
        rates = []
        for choice in item.choices:
            ids = torch.tensor([prompt + model.tokenizer(choice)["input_ids"]])
            with torch.no_grad():
                logs = model.model(ids).logits[0].log_softmax(-1)
            each = [float(logs[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1])]
            rates.append(sum(each) / len(choice.encode()))
        assert found.reply == item.choices[rates.index(max(rates))]
    assert result.items[0].correct
    assert evaluate(model, CHOICES, batch_size=1) == result


def test_logits_that_do_not_fit_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo()
    together = evaluate(model, CHOICES)
    monkeypatch.setattr("merging.answering.batched.BATCH_LOGITS", 1)
    assert evaluate(model, CHOICES) == together


def test_a_choice_beyond_the_context_or_without_logits_is_wrong() -> None:
    model = demo()
    items = (Item("a", "b", ("b", "c" * 300)), Item("a", "b", ("b", "c")))
    assert [item.note for item in evaluate(model, Suite("s", items, "choice")).items] == [TOO_LONG, ""]
    with torch.no_grad():
        model.model.model.norm.weight.fill_(float("nan"))
    assert evaluate(model, Suite("s", items, "choice")).items[1].note == NOT_FINITE
    with pytest.raises(MergingError, match="words: its logits are not finite"):
        perplexity(model, "plural")


def test_an_evaluation_ends_within_a_second() -> None:
    model = demo()
    suite = Suite("s", (Item("spell " + "cat" * 30, "x" * 100),) * 600)
    for ask in (
        lambda stop: evaluate(model, suite, stopped=stop),
        lambda stop: perplexity(model, "ab" * 90_000, stopped=stop),
    ):
        begun, worked = time.monotonic(), time.process_time()
        with pytest.raises(Stopped):
            ask(lambda begun=begun: time.monotonic() > begun + 0.1)
        assert time.process_time() - worked < 1, "of this process's own time, whatever else the machine does"
    assert not any(part._forward_pre_hooks for part in model.model.modules())


def test_perplexity_counts_every_token_once_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo()
    text = "plural of fox is foxes. spell cat: c-a-t. " * 3
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(model.model(ids).logits[0, :-1], ids[0, 1:])
    found = perplexity(model, text, name="t")
    assert (found.name, found.tokens) == ("t", ids.shape[1] - 1)
    assert found.nll == pytest.approx(float(whole), rel=1e-5)
    assert found.value == pytest.approx(math.exp(found.nll))
    assert found.interval is None
    monkeypatch.setattr("merging.evaluation.WINDOW", 16)
    monkeypatch.setattr("merging.evaluation.BLOCK", 8)
    seen: list[tuple[int, int]] = []
    parts = perplexity(model, text, progress=lambda *seen_now: seen.append(seen_now))
    ids = ids[0]
    each = []
    for at in range(1, len(ids)):
        begin = 0 if at < 16 else (min(16 + (at - 16) // 8 * 8 + 8, len(ids)) - 16)
        with torch.no_grad():
            logits = model.model(ids[None, begin:at]).logits[0, -1]
        each.append(float(torch.nn.functional.cross_entropy(logits, ids[at])))
    assert parts.nll == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert parts.interval.low < parts.value < parts.interval.high
    assert seen[-1] == (len(ids) - 1, len(ids) - 1)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_fewer_than_two_tokens_has_no_perplexity(text: str) -> None:
    with pytest.raises(MergingError, match=rf"text has {len(text)} tokens; perplexity needs at least two"):
        perplexity(demo(), text)
