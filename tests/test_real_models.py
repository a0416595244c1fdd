"""The worked example of docs/real-models.md: its very commands, against a stand-in Hub with tiny models under those names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import edit_config, tune

DOCUMENT = (Path(__file__).parent.parent / "docs" / "real-models.md").read_text()
BLOCKS = re.findall(r"^```(bash|yaml)\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +-*/=?.,:'()\n"


def save_qwen(folder: Path, *, end: str) -> None:
    """A small Qwen2 as the real ones are: tied, bfloat16, more rows than tokens, ChatML."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {token: number for number, token in enumerate([*MARKS, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=MARKS[0],
        eos_token=end,
        additional_special_tokens=MARKS,
        chat_template=CHATML,
    ).save_pretrained(folder)


LICENCE = ("license:apache-2.0",)


@pytest.fixture
def qwen(hub, tmp_path, monkeypatch):
    """The models of the example, under their names."""
    base, chat, code = (tmp_path / "hub" / name for name in ("base", "chat", "code"))
    save_qwen(base, end=MARKS[0])
    for seed, folder in enumerate((chat, code), 1):
        tune(base, folder, seed=seed)
        for file in base.iterdir():
            if not (folder / file.name).exists():
                shutil.copy(file, folder)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (chat / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": MARKS[2]}))
    (chat / "chat_template.jinja").write_text("<|im_start|>You are Qwen" + CHATML)
    edit_config(chat, eos_token_id=2)
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "pad_token_id": 0}))
    hub.add("Qwen/Qwen2.5-0.5B", base, tags=LICENCE)
    hub.add("Qwen/Qwen2.5-0.5B-Instruct", chat, tags=LICENCE)
    hub.add("Qwen/Qwen2.5-Coder-0.5B", code, tags=LICENCE)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_the_commands_of_the_document(qwen, hub, command_line):
    said = []
    for kind, text in BLOCKS:
        if kind == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", text)
            assert name, f"a recipe that does not begin with the name of its file:\n{text}"
            (qwen / name[1]).write_text(text)
            continue
        for line in text.splitlines():
            program, option, package, *arguments = shlex.split(line)
            assert (program, option, package) == ("python", "-m", "merging"), line
            if arguments[0] == "download":
                assert hub.bytes_of("model.safetensors") < 0.3 * sum(sizes(qwen))
            done = command_line(*arguments)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said.append(done.stdout + done.stderr)
    undecided, decided, _, merged, *_, flags = said
    assert "to download" in undecided
    assert "special_tokens: Qwen/Qwen2.5-0.5B-Instruct" in undecided
    assert "chat_template: Qwen/Qwen2.5-0.5B-Instruct" in undecided
    assert "warning" not in decided
    assert "python convert_hf_to_gguf.py" in merged
    assert "--allow-crimes" in flags
    the_results_are_as_said(qwen)


def sizes(work: Path) -> list[int]:
    return [file.stat().st_size for file in (work.parent / "hub").glob("*/model.safetensors")]


def the_results_are_as_said(work: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = (work / "merged" / "mergescope.yaml").read_text()
    assert len(re.findall(r"Qwen/Qwen2\.5\S*@[0-9a-f]{40}", record)) >= 3
    tokenizer = AutoTokenizer.from_pretrained(work / "merged")
    assert tokenizer.eos_token == MARKS[2]
    assert "You are Qwen" in tokenizer.chat_template
    models = [AutoModelForCausalLM.from_pretrained(work / name) for name in ("merged", "second")]
    assert models[0].generation_config.eos_token_id == [2, 0]
    base = AutoModelForCausalLM.from_pretrained(work.parent / "hub" / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, work / "adapter").merge_and_unload()
    name = "model.layers.0.mlp.up_proj.weight"
    values = [model.get_parameter(name).float() for model in (models[0], adapted, models[1])]
    torch.testing.assert_close((values[0] + values[1]) / 2, values[2], atol=2e-3, rtol=1e-2)
