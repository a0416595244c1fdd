"""The command that makes a GGUF file of a merged folder, with the script that comes with llama.cpp."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONVERTS = frozenset(
    {
        "BertForMaskedLM",
        "BertModel",
        "BloomForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "StableLmForCausalLM",
        "T5ForConditionalGeneration",
    }
)
"""Architectures that llama.cpp's script is known to convert."""
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def gguf_lines(folder: str | Path, config: Mapping[str, Any]) -> list[str]:
    """What to tell of llama.cpp: where to run the command that converts `folder`, and the command; or that there is none for
    the architecture. Nothing for weights without a config."""
    listed = config.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(architecture, str):
        return []
    if architecture not in CONVERTS:
        return [f"llama.cpp is not known to convert {architecture[:80]}, so there is no command for it."]
    command = gguf_command(folder, OUTTYPES.get(str(config.get("torch_dtype")), "auto"))
    return ["to make a GGUF file, where llama.cpp was cloned:", command]


def gguf_command(folder: str | Path, outtype: str = "auto") -> str:
    """The command itself; the weights keep their format unless `outtype` names another, `auto` takes the stored one."""
    name = os.fspath(folder)
    name = f"./{name}" if name.startswith("-") else name
    outfile = f"{name.rstrip('/')}.gguf"
    return f"python convert_hf_to_gguf.py {shlex.quote(name)} --outfile {shlex.quote(outfile)} --outtype {outtype}"
