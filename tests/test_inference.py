"""Loading a model and turning a conversation into token ids."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from merging.errors import CheckpointError
from merging.inference import LoadedModel

DEMO_BASE = Path(__file__).parent.parent / "examples" / "demo" / "base"


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return LoadedModel.load(DEMO_BASE)


def test_weights_are_float32_on_the_cpu(base: LoadedModel) -> None:
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert not base.model.training


def test_it_cannot_be_changed(base: LoadedModel) -> None:
    with pytest.raises(FrozenInstanceError):
        base.device = "cuda"  # type: ignore[misc]


def test_prompt_goes_through_the_chat_template(base: LoadedModel) -> None:
    ids = base.prompt_ids([{"role": "user", "content": "12+7="}])
    assert base.tokenizer.convert_ids_to_tokens(ids) == ["<user>", "1", "2", "+", "7", "=", "<assistant>"]


def test_without_a_chat_template_the_prompt_is_plain_text() -> None:
    base = LoadedModel.load(DEMO_BASE)
    base.tokenizer.chat_template = None
    ids = base.prompt_ids([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}])
    assert base.tokenizer.decode(ids) == "ab\nc" or base.tokenizer.convert_ids_to_tokens(ids)[:2] == [
        "a",
        "b",
    ]


def test_end_ids_may_be_one_or_many(base: LoadedModel) -> None:
    changed = LoadedModel.load(DEMO_BASE)
    changed.model.generation_config.eos_token_id = [1, 5]
    assert changed.end_ids == [1, 5]
    assert base.end_ids == [base.tokenizer.eos_token_id]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        LoadedModel.load(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for file in DEMO_BASE.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        LoadedModel.load(tmp_path)
