"""Suites, and exact match on them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from merging.errors import MergingError
from merging.evaluation import Item, ItemResult, Suite, SuiteResult, exact_match
from merging.inference import LoadedModel

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
    result = SuiteResult("s", (ItemResult("a", "1", " 1 "), ItemResult("b", "2", "3")))
    assert (result.score, result.n) == (0.5, 2)


class Echo(torch.nn.Module):
    """Stands in for a language model: repeats the prompt's tokens (1 to 9), then the end token 0."""

    generation_config = SimpleNamespace(eos_token_id=0)

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
    result = exact_match(model, suite, batch_size=2, progress=lambda done, of: seen.append((done, of)))
    assert [item.reply for item in result.items] == ["1234", "5", "67", "8", "99"]
    assert result.score == 1.0
    assert model.model.widths == [1, 2, 4]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_reply_longer_than_the_longest_answer_is_wrong() -> None:
    model = LoadedModel(Echo(), Digits(), Path("echo"))
    result = exact_match(model, Suite("s", (Item("123456", "12"),)))
    assert result.items[0].reply == "123"
    assert not result.items[0].correct


def test_batching_and_padding_do_not_change_a_reply() -> None:
    model = LoadedModel.load(DEMO_BASE)
    suite = Suite("s", tuple(Item(prompt, "x" * 12) for prompt in PROMPTS))
    alone = exact_match(model, suite, batch_size=1)
    together = exact_match(model, suite, batch_size=len(PROMPTS))
    assert together == alone


def test_it_is_the_greedy_decoding_of_the_model_step_by_step() -> None:
    model = LoadedModel.load(DEMO_BASE)
    ids = model.prompt_ids([{"role": "user", "content": "spell cat"}])
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 13 and ids[-1] not in model.end_ids:
            ids = [*ids, int(model.model(torch.tensor([ids])).logits[0, -1].argmax())]
    expected = model.tokenizer.decode(ids[start:], skip_special_tokens=True)
    result = exact_match(model, Suite("s", (Item("spell cat", "x" * 12),)))
    assert result.items[0].reply == expected
