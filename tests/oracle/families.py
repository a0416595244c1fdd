"""Three small families of six blocks: continuous changes, tied magnitudes, and biases."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import save_llama, tune

BLOCKS = 6
EXPERTS = ("one", "two", "three")


def save_qwen(folder: Path) -> Path:
    """A random Qwen2: its query, key and value projections have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def build_families(root: Path) -> dict[str, dict[str, Path]]:
    """Family -> model -> folder. `smooth` has no equal magnitudes; `coarse` is bfloat16 with a tied head."""
    bases = {
        "smooth": save_llama(root / "smooth" / "base", num_hidden_layers=BLOCKS),
        "coarse": save_llama(
            root / "coarse" / "base", num_hidden_layers=BLOCKS, dtype=torch.bfloat16, tied=True
        ),
        "biased": tune(save_qwen(root / "biased" / "start"), root / "biased" / "base", seed=9),
    }
    families = {}
    for family, base in bases.items():
        scale = 0.001 if family == "coarse" else 0.01
        folders = {"base": base}
        for seed, name in enumerate(EXPERTS, 1):
            folders[name] = tune(base, root / family / name, seed=seed, scale=scale)
        families[family] = folders
    return families
