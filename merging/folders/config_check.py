"""What a config.json must not say: sizes that no model has, and code of somebody else's.

A config comes from strangers. transformers builds what it names before it looks at a weight: 10¹² layers would never end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST = 1 << 28
"""Of anything that is counted in a config."""
MOST_LABELS = 1_000_000
LEAST_LAYERS = 256
"""As many layers may be named whatever the weights are: some models use one layer again and again."""
MOST_LETTERS = 200
DEEPEST = 3

LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
LAYERS |= {"num_decoder_layers", "num_encoder_layers"}
AT_LEAST_ONE = {"hidden_size", "n_embd", "d_model", "num_attention_heads", "num_key_value_heads", "n_head"}
AT_LEAST_ONE |= {"num_heads", "head_dim", "vocab_size"}
COUNTED = {"intermediate_size", "ffn_dim", "d_ff", "d_kv", "n_inner", "moe_intermediate_size", "num_experts"}
COUNTED |= {"num_local_experts", "n_routed_experts"}
POSITIONS = {"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"}
TEXTS = ("model_type", "torch_dtype", "dtype", "_name_or_path")
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def config_problems(config: Mapping[str, Any], tensors: int) -> list[str]:
    """A sentence for each entry of a config that no model can have.

    Args:
        tensors: how many the weights have; every layer takes at least one.
    """
    return list(_problems(config, max(tensors, LEAST_LAYERS), DEEPEST))


def _problems(config: Mapping[str, Any], layers: int, depth: int) -> Iterator[str]:
    limits = dict.fromkeys(AT_LEAST_ONE, (1, MOST)) | dict.fromkeys(COUNTED, (0, MOST))
    limits |= dict.fromkeys(POSITIONS, (-1, MOST)) | dict.fromkeys(LAYERS, (0, layers))
    limits["num_labels"] = (0, MOST_LABELS)
    for name, value in config.items():
        if name in limits and not _fits(value, *limits[name]):
            least, most = limits[name]
            yield f"{name} is {_shown(value)}, and must be a whole number from {least} to {most:,}"
        elif name in PARTS and not isinstance(value, Mapping | None):
            yield f"{name} is {_shown(value)}, and must be a table"
        elif name in TEXTS and not isinstance(value, Mapping | str | None):
            yield f"{name} is {_shown(value)}, and must be a text"
        elif (
            name in TEXTS and isinstance(value, str) and name != "_name_or_path" and len(value) > MOST_LETTERS
        ):
            yield f"{name} has {len(value):,} letters; {MOST_LETTERS} are the most"
        elif name in KERNELS and "/" in str(value):
            yield f"{name} is {_shown(value)}, which is code from the Hub and is never run here; delete the entry"
        elif isinstance(value, Mapping) and depth:
            yield from (f"{name}: {problem}" for problem in _problems(value, layers, depth - 1))


def _fits(value: Any, least: int, most: int) -> bool:
    """Whether a number, each of a list of numbers (one for each layer), or nothing."""
    if isinstance(value, list):
        return len(value) <= MOST_LABELS and all(
            not isinstance(one, list) and _fits(one, least, most) for one in value
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value is None or (type(value) is int and least <= value <= most)


def _shown(value: Any) -> str:
    text = (
        ascii(value)
        if not isinstance(value, int) or abs(value) < 10**40
        else "a number of more than 40 digits"
    )
    return text if len(text) <= 40 else f"{text[:40]}…"
