"""Small real models that tests share: built with transformers' config classes, saved as people save theirs."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file, save_file

LLAMA = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def save_llama(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = False, **config
) -> Path:
    """A random Llama in `folder`, with a tokenizer of one token a letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "tie_word_embeddings": tied, **config})).to(dtype)
    model.save_pretrained(folder)
    vocabulary = {
        token: number
        for number, token in enumerate(["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz0123456789+-= "])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )
    return folder


def tune(
    base: Path,
    folder: Path,
    *,
    seed: int,
    scale: float = 0.01,
    only: Callable[[str], bool] = lambda name: True,
) -> Path:
    """A stand-in for a fine-tune: the base's folder with random changes in the tensors that `only` chooses."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name in sorted(tensors):
        noise = torch.randn(tensors[name].shape, generator=generator) * scale
        if only(name):
            tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for file in base.iterdir():
        if file.suffix == ".json" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit_config(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Path:
    """A folder with `base` and the experts `one`, `two`, `three` in float32."""
    root = tmp_path_factory.mktemp("family")
    save_llama(root / "base")
    for seed, name in enumerate(("one", "two", "three"), 1):
        tune(root / "base", root / name, seed=seed)
    return root


@pytest.fixture(scope="session")
def bf16_family(tmp_path_factory) -> Path:
    """The same in bfloat16 with a tied head: few distinct magnitudes, so ties are the rule."""
    root = tmp_path_factory.mktemp("bf16_family")
    save_llama(root / "base", dtype=torch.bfloat16, tied=True)
    for seed, name in enumerate(("one", "two", "three"), 1):
        tune(root / "base", root / name, seed=seed, scale=0.001)
    return root


@pytest.fixture
def write_recipe(tmp_path) -> Callable[..., Path]:
    """Write a recipe over a family's folders: `write_recipe(family, 'ties', parameters={...})`."""

    def write(family: Path, method: str, experts=("one", "two"), name: str = "recipe.yaml", **keys) -> Path:
        entries = [entry if isinstance(entry, dict) else {"model": entry} for entry in experts]
        models = [{**entry, "model": str(family / entry["model"])} for entry in entries]
        content = {"merge_method": method, "base_model": str(family / "base"), "models": models, **keys}
        file = tmp_path / name
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return file

    return write


@pytest.fixture
def command_line(monkeypatch, capsys) -> Callable[..., CompletedProcess[str]]:
    """What `python -m merging` does in a process of its own, done in this one: `command_line("check", recipe)`.

    A process takes two seconds to load torch; tests of what a process alone can show start one.
    """
    from merging import cli

    def run(*arguments: object) -> CompletedProcess[str]:
        words = [*map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["merging", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return CompletedProcess(words, ended.value.code or 0, said.out, said.err)

    return run


def threads_of_another() -> int:
    """torch's number of threads as a thread finds it that is started now."""
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    return found[0]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in Hub on localhost that HF_ENDPOINT names, and an empty cache; see `hub_server.HubServer`."""
    from huggingface_hub import constants

    from tests.hub_server import HubServer

    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.close()
    assert not server.leaks, "a token went to the storage host"
