"""Loading a model and turning a conversation into token ids."""

from __future__ import annotations

import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from merging.errors import CheckpointError
from merging.inference import LoadedModel
from tests.conftest import edit_config

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
    with pytest.raises(CheckpointError, match="pickle weights"):
        LoadedModel.load(tmp_path)


@pytest.fixture
def folder(family: Path, tmp_path: Path) -> Path:
    """A copy of a good model, to be damaged."""
    return Path(shutil.copytree(family / "one", tmp_path / "damaged"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        LoadedModel.load(folder)
    return str(caught.value)


def test_a_folder_without_a_tokenizer_says_what_to_add(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == f"The model in {folder} has no tokenizer: add its tokenizer.json."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 64}, "the shapes of its weights are not those that config.json names"),
        (
            {"num_hidden_layers": 4},
            "config.json asks for weights that are not there (9, such as model.layers.3.",
        ),
        ({"model_type": "never-heard-of"}, "never-heard-of"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_one_sentence(
    folder: Path, change: dict, reason: str
) -> None:
    edit_config(folder, **change)
    said = refusal(folder)
    assert reason in said
    assert "\n" not in said
