"""Folders that hold something else than one model's own weights, each refused by what it is, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merging.errors import CheckpointError

MODULES = [
    "vision_config",
    "vision_tower",
    "mm_vision_tower",
    "img_processor",
    "audio_config",
    "speech_config",
    "video_config",
    "qformer_config",
    "thinker_config",
    "talker_config",
    "encoder",
    "decoder",
    "text_encoder",
]
"""Entries of config.json that describe a model within the model."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Nothing where a folder with this `config.json` may hold one model's own weights.

    Raises:
        CheckpointError: it is quantised, made of several models, or a model whose code is in its folder alone.
    """
    if reason := next(_reasons(folder, config), None):
        raise CheckpointError(f"{folder}: {reason}")


def _reasons(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    if (folder / "model_index.json").is_file():
        yield (
            "is a diffusers pipeline, several models in folders of their own, which cannot be merged yet. Give the folder of "
            "one language, text or image model of transformers."
        )
    if quantisation := config.get("quantization_config"):
        kind = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
        yield (
            f"its weights are quantised ({kind}), and quantised weights cannot be merged. Use the original float16, bfloat16 "
            "or float32 model."
        )
    if several := _modules(config):
        yield (
            f"is made of several models ({_name(config)}: {', '.join(several)} in config.json); vision-language and other "
            "models of several modules cannot be merged yet. Use a model of text alone, or save its language model by "
            "itself with transformers: model.get_decoder().save_pretrained(new_folder)."
        )
    if config.get("auto_map") and not _known(config.get("model_type")):
        yield (
            f"is a {_name(config)} that runs only with Python code of its own (auto_map in config.json), which is never run "
            "here, and the installed transformers has no such model. Use a version made for transformers, or a newer "
            "transformers; to merge its weights alone, take auto_map out of a copy of config.json."
        )


def _modules(config: Mapping[str, Any]) -> list[str]:
    """The entries of a config that describe models within the model; one text model by itself is none."""
    nested = [key for key, value in config.items() if isinstance(value, dict) and value.get("model_type")]
    named = [
        key
        for key in MODULES
        if isinstance(value := config.get(key), dict) or (isinstance(value, str) and "tower" in key)
    ]
    found = list(dict.fromkeys([*named, *nested]))
    return [] if found == ["text_config"] else found


def _name(config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    return str(name or "model")[:80]


def _known(model_type: object) -> bool:
    """Whether transformers runs such a model without code from elsewhere."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def why_not_a_model(folder: Path) -> str:
    """What is in a folder without weights that could be read, and what to do."""
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(".gguf") for name in names):
        return f"{folder}: holds GGUF files, which cannot be merged. Use the model's safetensors folder."
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return (
            f"{folder}: holds pickle weights (.bin), which can run code when opened and are refused. Convert once with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    if "adapter_config.json" in names:
        return f"{folder}: is an adapter, not a model; write BASE+{folder.name} with the paths of both."
    if "diffusion_pytorch_model.safetensors" in names:
        return f"{folder}: is a part of a diffusers pipeline, which cannot be merged yet."
    return f"{folder}: has no {WEIGHTS} and no {INDEX}. Give the folder that holds them."
