"""Random Llama-shaped families of a chosen size, for measuring speed and memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from merging.checkpoint import Checkpoint
from merging.importances.artefact import Description, ExpertFacts, Importance, Parent, head_settings
from merging.importances.attribution import carried
from merging.partitions import make_partitions


def llama_shapes(width: int, blocks: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (width, width)
        for name in ("gate", "up"):
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = (width * 8 // 3, width)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, width * 8 // 3)
        for name in ("input", "post_attention"):
            shapes[f"{prefix}.{name}_layernorm.weight"] = (width,)
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def cached_family(*, experts: int = 3, **shape: int) -> tuple[Path, int]:
    """A family that is made once and found again in the system's folder for temporary files; and its parameters."""
    name = "-".join(str(number) for number in (*shape.values(), experts))
    folder = Path(tempfile.gettempdir()) / "mergescope-benchmarks" / name
    if not folder.exists():
        draft = folder.with_name(f"{name}.{os.getpid()}")
        make_family(draft, **shape, experts=experts)
        draft.rename(folder)
    return folder, Checkpoint.open(folder / "base").parameters


def cached_importance(family: Path) -> Path:
    """An importance file for a family with random numbers for every module, beside it."""
    file = family.with_name(f"{family.name}.importance.safetensors")
    if file.exists():
        return file
    base = Checkpoint.open(family / "base")
    experts = {expert.name: Checkpoint.open(expert) for expert in sorted(family.glob("expert-*"))}
    shapes, config = carried(base), head_settings(base.config)
    count = len(make_partitions(shapes, config, "module"))
    signed = torch.randn(len(experts), count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    facts = (
        ExpertFacts(name=name, fingerprint=one.fingerprint, data="random", base_loss=2.0, expert_loss=1.0)
        for name, one in experts.items()
    )
    description = Description(
        how="gradient",
        at="base",
        partition="module",
        samples=1,
        base=Parent(name="base", fingerprint=base.fingerprint),
        experts=tuple(facts),
        shapes=shapes,
        config=config,
    )
    Importance(description, signed, signed.square()).save(file)
    return file


def make_family(folder: Path, *, width: int, blocks: int, vocabulary: int, experts: int = 3) -> int:
    """Write `base` and `expert-1` ... as bfloat16 under `folder`; the number of parameters of one model."""
    shapes = llama_shapes(width, blocks, vocabulary)
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": False,
        "num_hidden_layers": blocks,
        "hidden_size": width,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
    }
    for number in range(experts + 1):
        tensors = base
        if number:
            tensors = {n: v + torch.randn(v.shape, generator=generator) * 5e-4 for n, v in base.items()}
        target = folder / (f"expert-{number}" if number else "base")
        target.mkdir(parents=True)
        save_file(
            {n: v.bfloat16() for n, v in tensors.items()}, target / "model.safetensors", {"format": "pt"}
        )
        (target / "config.json").write_text(json.dumps(config))
    return sum(value.numel() for value in base.values())
