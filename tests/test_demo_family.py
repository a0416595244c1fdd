"""The committed demo family: small, loadable, and what its stored results say it is."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging.evaluation import evaluate
from merging.inference import LoadedModel
from merging.judging.suites import Suite

DEMO = Path(__file__).parent.parent / "examples" / "demo"
MODELS = ("base", "math", "code", "words", "math-long")
TASKS = ("math", "code", "words", "compare")
SPLITS = {"calibration": 64, "validation": 200, "test": 300}


@pytest.fixture(scope="module", autouse=True)
def training_modules() -> None:
    sys.path.insert(0, str(DEMO))


@pytest.mark.parametrize("name", MODELS)
def test_folder_is_small_safe_and_loads(name: str) -> None:
    folder = DEMO / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    assert [file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".py"}] == []
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize("name", MODELS)
def test_every_stored_tensor_is_bfloat16_and_like_the_base(name: str) -> None:
    shapes = {}
    for folder in ("base", name):
        with safe_open(DEMO / folder / "model.safetensors", "pt") as file:
            assert file.metadata()["format"] == "pt"
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            assert {entry.get_dtype() for entry in slices.values()} == {"BF16"}
            shapes[folder] = {key: entry.get_shape() for key, entry in slices.items()}
    assert shapes[name] == shapes["base"]


@pytest.mark.parametrize("task", TASKS)
def test_splits_have_their_counts_and_share_no_prompt(task: str) -> None:
    suites = {split: Suite.load(DEMO / "data" / task / f"{split}.jsonl") for split in SPLITS}
    assert {split: len(suite) for split, suite in suites.items()} == SPLITS
    prompts = [item.prompt for suite in suites.values() for item in suite.items]
    assert len(set(prompts)) == sum(SPLITS.values())


@pytest.mark.parametrize("task", TASKS)
def test_training_cannot_draw_a_prompt_of_the_splits(task: str) -> None:
    from sampling import Mixture, is_held_out

    prompts = {
        item.prompt for split in SPLITS for item in Suite.load(DEMO / "data" / task / f"{split}.jsonl").items
    }
    assert all(is_held_out(prompt) for prompt in prompts)
    drawn = {prompt for prompt, _ in islice(Mixture.of((task,), hard=0.5).stream(seed=0), 20_000)}
    assert not drawn & prompts


def test_the_splits_are_the_ones_train_writes(tmp_path: Path) -> None:
    from sampling import write_splits
    from train import DATA_SEED

    write_splits(tmp_path, DATA_SEED)
    for task in TASKS:
        for split in SPLITS:
            name = f"{task}/{split}.jsonl"
            assert (tmp_path / name).read_bytes() == (DEMO / "data" / name).read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_tokenizer_gives_every_prompt_and_answer_back(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    for item in Suite.load(DEMO / "data" / task / "test.jsonl").items:
        for text in (item.prompt, item.answer):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text)
            assert tokenizer.decode(ids) == text


def test_training_encodes_as_the_chat_template_does() -> None:
    from characters import encode

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    conversation = [{"role": "user", "content": "12 + 7"}, {"role": "assistant", "content": "19"}]
    ids, start = encode(("12 + 7", "19"))
    assert tokenizer.apply_chat_template(conversation, return_dict=False) == ids
    opened = tokenizer.apply_chat_template(conversation[:1], add_generation_prompt=True, return_dict=False)
    assert opened == ids[:start]


def test_chat_template_shows_only_the_last_question() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<user>2+2=<assistant>"


@pytest.mark.parametrize(("name", "task"), [("words", "words"), ("math", "math"), ("base", "code")])
def test_stored_results_can_be_measured_again(name: str, task: str) -> None:
    stored = json.loads((DEMO / "results.json").read_text())[name][task][::8]
    items = Suite.load(DEMO / "data" / task / "test.jsonl").items[::8]
    result = evaluate(LoadedModel.load(DEMO / name), Suite("slice", items))
    expected = [reply.strip() == item.answer for reply, item in zip(stored, items, strict=True)]
    assert [item.correct for item in result.items] == expected


def test_stored_scores_follow_from_the_stored_replies() -> None:
    replies = json.loads((DEMO / "results.json").read_text())
    scores = json.loads((DEMO / "table.json").read_text())["test"]
    assert set(replies) == set(MODELS)
    for name, tasks in replies.items():
        for task, given in tasks.items():
            answers = [item.answer for item in Suite.load(DEMO / "data" / task / "test.jsonl").items]
            share = sum(a == b.strip() for a, b in zip(answers, given, strict=True)) / len(answers)
            assert scores[name][task] == pytest.approx(share)
