"""From a tensor's name to its place in the model: the axes of every map.

Names are matched by patterns, never by model class, so a model nobody has seen still gets a map: its block number
is the first number in the name, its kind the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["attention", "mlp", "norm", "embedding", "head", "other"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_ANY_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")

# Module path inside a block (or whole path outside the blocks) -> kind, role. The first pattern that ends the path wins.
_KINDS: tuple[tuple[str, str, Role], ...] = (
    (r"q_norm", "q norm", "norm"),
    (r"k_norm", "k norm", "norm"),
    (r"input_layernorm|ln_1", "attention norm", "norm"),
    (r"post_attention_layernorm|ln_2", "mlp norm", "norm"),
    (r"pre_feedforward_layernorm", "pre-mlp norm", "norm"),
    (r"post_feedforward_layernorm", "post-mlp norm", "norm"),
    (r"model\.norm|ln_f|final_layernorm|final_layer_norm", "final norm", "norm"),
    (r"q_proj", "q", "attention"),
    (r"k_proj", "k", "attention"),
    (r"v_proj", "v", "attention"),
    (r"attn\.o_proj|attn\.c_proj|attn\.dense|attn\.out_proj", "o", "attention"),
    (r"qkv_proj|attn\.c_attn|query_key_value|Wqkv", "qkv", "attention"),
    (r"gate_up_proj", "gate+up", "mlp"),
    (r"gate_proj", "gate", "mlp"),
    (r"up_proj|mlp\.c_fc|mlp\.fc1", "up", "mlp"),
    (r"down_proj|mlp\.c_proj|mlp\.fc2", "down", "mlp"),
    (r"embed_tokens|wte|word_embeddings", "embedding", "embedding"),
    (r"wpe|embed_positions|position_embeddings", "positions", "embedding"),
    (r"lm_head|embed_out", "head", "head"),
)
_PATTERNS = [(re.compile(rf"(?:^|\.|_)(?:{pattern})$"), kind, role) for pattern, kind, role in _KINDS]
_ORDER = [kind for _, kind, _ in _KINDS]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor sits: its block (None outside the blocks), the kind of module, and what that module does."""

    name: str
    block: int | None
    kind: str
    role: Role


def locate(name: str) -> Place:
    """The place of one tensor, from its name alone."""
    match = _block(name)
    block = int(match.group(1)) if match else None
    path = name[match.end() :] if match else name
    module, _, leaf = path.rpartition(".")
    if leaf not in {"weight", "bias"}:
        module = path
    suffix = " bias" if leaf == "bias" else ""
    if match:  # the parent's name tells GPT-2's attn.c_proj from its mlp.c_proj
        module = module or path
    for pattern, kind, role in _PATTERNS:
        if pattern.search(module):
            return Place(name, block, kind + suffix, role)
    last = module.rpartition(".")[2] or path
    role = "norm" if "norm" in last or last.startswith("ln") else "other"
    return Place(name, block, last + suffix, role)


def in_block(name: str, block: int) -> str:
    """The name of the same tensor in another block; a name outside the blocks stays as it is."""
    match = _block(name)
    return f"{name[: match.start(1)]}{block}{name[match.end(1) :]}" if match else name


def after_blocks(place: Place) -> bool:
    """Whether a tensor outside the blocks is used after them: the final norm and the head."""
    return place.role == "head" or (place.role == "norm" and "embed" not in place.name)


def _block(name: str) -> re.Match[str] | None:
    return _BLOCK.search(name) or _ANY_NUMBER.search(name)


@dataclass(frozen=True, slots=True)
class Heads:
    """Equal groups of rows (axis 0) or columns (axis 1) of a weight, one for each attention head.

    `count` groups of `size` along `axis`, starting at index `offset`; q, k and v of a fused weight are three of these.
    """

    part: str
    axis: int
    offset: int
    count: int
    size: int


def heads(place: Place, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[Heads]:
    """Head groups of an attention weight or bias; empty where the config does not fit the shape.

    GPT-2 stores its weights as [inputs, outputs], so its heads lie along the other axis.
    """
    config = {**config, **(config.get("text_config") or {})}
    count = config.get("num_attention_heads") or config.get("n_head")
    width = config.get("hidden_size") or config.get("n_embd")
    if place.role != "attention" or not count or not width or not shape:
        return []
    size = config.get("head_dim") or width // count
    groups = config.get("num_key_value_heads") or count
    kind = place.kind.removesuffix(" bias")
    if kind == "o" and len(shape) == 1:
        return []
    transposed = config.get("model_type") == "gpt2" and len(shape) == 2
    axis = int((kind == "o") != transposed)
    parts = {
        "q": [("q", count)],
        "k": [("k", groups)],
        "v": [("v", groups)],
        "o": [("o", count)],
        "qkv": [("q", count), ("k", groups), ("v", groups)],
    }.get(kind, [])
    found, offset = [], 0
    for part, number in parts:
        found.append(Heads(part, axis, offset, number, size))
        offset += number * size
    interleaved = place.kind.startswith("qkv") and config.get("model_type") in {"gpt_neox", "bloom", "falcon"}
    return found if not interleaved and found and offset == shape[axis] else []


def output_axis(place: Place, shape: tuple[int, ...], config: Mapping[str, Any]) -> int:
    """The dimension of a weight that numbers its outputs; GPT-2 has them along the columns."""
    transposed = config.get("model_type") == "gpt2" and place.role in {"attention", "mlp"}
    return int(transposed and len(shape) == 2)


def blocks(names: Iterable[str]) -> list[int]:
    """The block numbers that occur, ascending."""
    return sorted({place.block for place in map(locate, names) if place.block is not None})


def kinds(names: Iterable[str]) -> list[str]:
    """The module kinds that occur: known kinds in reading order (norms, attention, MLP), unknown ones after them."""
    found = dict.fromkeys(locate(name).kind for name in names)

    def order(kind: str) -> tuple[int, int]:
        plain = kind.removesuffix(" bias")
        return (_ORDER.index(plain) if plain in _ORDER else len(_ORDER), int(kind != plain))

    return sorted(found, key=order)
