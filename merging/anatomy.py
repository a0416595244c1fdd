"""From a tensor's name to its place in the model: the axes of every map.

Names are matched by patterns, never by model class, so a model nobody has seen still gets a map: its block number
is the first number in the name, its kind the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

Role = Literal["attention", "mlp", "norm", "embedding", "head", "other"]
Block = int | str
"""A block's number. Where a model has two stacks of them, the name of the stack and the number: 'encoder 3'."""

_BLOCK = re.compile(
    r"(?:^|\.)(?:(?P<stack>encoder|decoder)\.block|(?P<encoder>encoder)\.layers|layers|layer|h|blocks|block)\.(?P<number>\d+)\."
)
_ANY_NUMBER = re.compile(r"(?:^|\.)(?P<number>\d+)\.")
INTERLEAVED = ("gpt_neox", "bloom")
_ROUTED = re.compile(r"(?<=\.experts)\.\d+(?=\.)")

# Module path, with # for the block's number and none for the network's in a mixture of experts -> kind, role. The first
# pattern that ends the path wins, and in this order they are the columns of a map.
_KINDS: tuple[tuple[str, str, Role], ...] = (
    (r"q_norm", "q norm", "norm"),
    (r"k_norm", "k norm", "norm"),
    (
        r"input_layernorm|ln_1|self_attn_layer_norm|layernorm_before|#\.layer\.0\.layer_norm|attention\.output\.LayerNorm",
        "attention norm",
        "norm",
    ),
    (r"encoder_attn_layer_norm|decoder\.block\.#\.layer\.1\.layer_norm", "cross norm", "norm"),
    (
        r"post_attention_layernorm|ln_2|layernorm_after|#\.final_layer_norm|#\.layer\.[12]\.layer_norm|#\.output\.LayerNorm",
        "mlp norm",
        "norm",
    ),
    (r"pre_feedforward_layernorm", "pre-mlp norm", "norm"),
    (r"post_feedforward_layernorm", "post-mlp norm", "norm"),
    (r"embeddings\.LayerNorm|embeddings\.layernorm|layernorm_embedding", "embedding norm", "norm"),
    (r"encoder\.final_layer_norm", "encoder norm", "norm"),
    (r"model\.norm|^norm|(?:vit\.|^)layernorm|ln_f|final_layernorm|final_layer_norm", "final norm", "norm"),
    (r"transform\.LayerNorm|lm_head\.layer_norm", "head norm", "norm"),
    (r"EncDecAttention\.q|encoder_attn\.q_proj", "cross q", "attention"),
    (r"EncDecAttention\.k|encoder_attn\.k_proj", "cross k", "attention"),
    (r"EncDecAttention\.v|encoder_attn\.v_proj", "cross v", "attention"),
    (r"EncDecAttention\.o|encoder_attn\.out_proj", "cross o", "attention"),
    (r"qkv_proj|attn\.c_attn|query_key_value|Wqkv", "qkv", "attention"),
    (r"q_proj|query|q_lin|SelfAttention\.q", "q", "attention"),
    (r"k_proj|key|k_lin|SelfAttention\.k", "k", "attention"),
    (r"v_proj|value|v_lin|SelfAttention\.v", "v", "attention"),
    (
        r"attn\.(?:o_proj|c_proj|dense|out_proj)|attention\.(?:dense|o_proj|output\.dense|out_lin)|SelfAttention\.o",
        "o",
        "attention",
    ),
    (r"relative_attention_bias", "relative positions", "embedding"),
    (r"(?:moe|mlp)\.gate|router", "router", "mlp"),
    (r"experts\.gate_up_proj", "routed gate+up", "mlp"),
    (r"experts\.(?:gate_proj|w1)", "routed gate", "mlp"),
    (r"experts\.(?:up_proj|w3)", "routed up", "mlp"),
    (r"experts\.(?:down_proj|w2)", "routed down", "mlp"),
    (r"shared_expert_gate", "shared router", "mlp"),
    (r"shared_experts?\.gate_proj", "shared gate", "mlp"),
    (r"shared_experts?\.up_proj", "shared up", "mlp"),
    (r"shared_experts?\.down_proj", "shared down", "mlp"),
    (r"gate_up_proj", "gate+up", "mlp"),
    (r"gate_proj|wi_0", "gate", "mlp"),
    (r"up_proj|mlp\.c_fc|fc1|dense_h_to_4h|wi|wi_1|intermediate\.dense|ffn\.lin1", "up", "mlp"),
    (r"down_proj|mlp\.c_proj|fc2|dense_4h_to_h|wo|#\.output\.dense|ffn\.lin2", "down", "mlp"),
    (r"embed_tokens|wte|word_embeddings|embed_in|^shared", "embedding", "embedding"),
    (r"project_in", "embedding projection", "embedding"),
    (r"wpe|embed_positions|position_embeddings", "positions", "embedding"),
    (r"token_type_embeddings", "token types", "embedding"),
    (r"patch_embeddings\.projection", "patches", "embedding"),
    (r"cls_token", "class token", "embedding"),
    (r"pooler\.dense", "pooler", "head"),
    (r"transform\.dense|lm_head\.dense", "head transform", "head"),
    (r"project_out", "head projection", "head"),
    (r"lm_head|embed_out|predictions|(?:predictions|lm_head)\.decoder", "head", "head"),
    (r"classifier|score|qa_outputs", "classifier", "head"),
)
_PATTERNS = [(re.compile(rf"(?:^|\.|_)(?:{pattern})$"), kind, role) for pattern, kind, role in _KINDS]
_ORDER = [kind for _, kind, _ in _KINDS]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor sits: its block (None outside the blocks), the kind of module, and what that module does."""

    name: str
    block: Block | None
    kind: str
    role: Role

    @property
    def has_token_rows(self) -> bool:
        """Whether each row belongs to a token of the vocabulary."""
        return self.kind.removesuffix(" bias") in {"embedding", "head"}


@lru_cache(maxsize=1 << 16)
def locate(name: str) -> Place:
    """The place of one tensor, from its name alone."""
    match = _block(name)
    path = f"{name[: match.start('number')]}#{name[match.end('number') :]}" if match else name
    path = _ROUTED.sub("", path)
    module, _, leaf = path.rpartition(".")
    if leaf not in {"weight", "bias"}:
        module = path
    suffix = " bias" if leaf == "bias" else ""
    block = _named(match) if match else None
    for pattern, kind, role in _PATTERNS:
        if pattern.search(module):
            return Place(name, block, kind + suffix, role)
    last = module.rpartition(".")[2]
    last = path.rpartition(".")[2] if last == "#" else last
    role = "norm" if "norm" in last.lower() or last.startswith("ln") else "other"
    return Place(name, block, last + suffix, role)


def in_block(name: str, block: int) -> str:
    """The name of the same tensor in another block; a name outside the blocks stays as it is."""
    match = _block(name)
    return f"{name[: match.start('number')]}{block}{name[match.end('number') :]}" if match else name


def after_number(name: str) -> str:
    """What follows the block's number in a name; the whole name outside the blocks."""
    match = _block(name)
    return name[match.end() :] if match else name


def after_blocks(place: Place) -> bool:
    """Whether a tensor outside the blocks is used after them: the final norm and the head."""
    return place.role == "head" or (place.role == "norm" and "embed" not in place.name)


def _block(name: str) -> re.Match[str] | None:
    return _BLOCK.search(name) or _ANY_NUMBER.search(name)


def _named(match: re.Match[str]) -> Block:
    found = match.groupdict()
    stack = found.get("stack") or found.get("encoder")
    return f"{stack} {int(match['number'])}" if stack else int(match["number"])


def stack_of(block: Block) -> str:
    """The stack a block is in; empty where the model has only one."""
    return "" if isinstance(block, int) else block.partition(" ")[0]


def number_of(block: Block) -> int:
    """The block's number in its stack."""
    return block if isinstance(block, int) else int(block.rpartition(" ")[2])


def block_order(block: Block | None) -> tuple[bool, bool, int]:
    """What blocks are sorted by: the encoder's, then the decoder's or only ones, then what lies outside the blocks."""
    return (True, True, 0) if block is None else (False, stack_of(block) != "encoder", number_of(block))


def block_words(ordered: Iterable[Block], dash: str = "-") -> str:
    """`blocks 0-3, 7` in words; `encoder blocks 0-3, decoder block 0` where there are two stacks of them."""
    parts = []
    for stack, found in groupby(ordered, stack_of):
        runs: list[list[int]] = []
        for number in map(number_of, found):
            if runs and runs[-1][-1] + 1 == number:
                runs[-1].append(number)
            else:
                runs.append([number])
        noun = "block" if sum(map(len, runs)) == 1 else "blocks"
        shown = ", ".join(f"{run[0]}{dash}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
        parts.append(f"{stack} {noun} {shown}".strip())
    return ", ".join(parts)


def block_name(block: Block) -> str:
    """`block 3`, or `encoder block 3`."""
    return block_words([block])


@dataclass(frozen=True, slots=True)
class Heads:
    """Equal groups of rows (axis 0) or columns (axis 1) of a weight, one for each attention head.

    `count` groups of `size` along `axis`, the first at index `offset`, each `stride` after the one before it; q, k and v
    of a fused weight are three of these.
    """

    part: str
    axis: int
    offset: int
    count: int
    size: int
    stride: int


def heads(place: Place, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[Heads]:
    """Head groups of an attention weight or bias; empty where the config does not fit the shape.

    GPT-2 stores its weights as [inputs, outputs], so its heads lie along the other axis. GPT-NeoX and BLOOM store q, k
    and v of one head together: [heads, 3, size].
    """
    inner = config.get("text_config")
    config = {**config, **(inner if isinstance(inner, Mapping) else {})}
    count = _first(config, "num_attention_heads", "n_head", "num_heads")
    width = _first(config, "hidden_size", "n_embd", "d_model")
    if place.role != "attention" or not count or not width or not shape:
        return []
    size = _first(config, "head_dim", "d_kv") or width // count
    groups = _first(config, "num_key_value_heads") or count
    kind = place.kind.removesuffix(" bias").removeprefix("cross ")
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
    if axis >= len(shape) or sum(number for _, number in parts) * size != shape[axis]:
        return []
    if kind == "qkv" and config.get("model_type") in INTERLEAVED:
        return [Heads(part, axis, at * size, n, size, 3 * size) for at, (part, n) in enumerate(parts)]
    if kind == "qkv" and config.get("model_type") == "falcon":
        return []
    found, offset = [], 0
    for part, number in parts:
        found.append(Heads(part, axis, offset, number, size, size))
        offset += number * size
    return found


def heads_along(groups: Sequence[Heads], first: Sequence[int]) -> list[int]:
    """The head of every row or column; `first` is the number of the first head of each group."""
    found = [0] * sum(group.count * group.size for group in groups)
    for group, number in zip(groups, first, strict=True):
        for head in range(group.count):
            start = group.offset + head * group.stride
            found[start : start + group.size] = [number + head] * group.size
    return found


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these entries that is a number above 0."""
    return next((config[key] for key in keys if type(config.get(key)) is int and config[key] > 0), None)


def output_axis(place: Place, shape: tuple[int, ...], config: Mapping[str, Any]) -> int:
    """The dimension of a weight that numbers its outputs; GPT-2 has them along the columns."""
    transposed = config.get("model_type") == "gpt2" and place.role in {"attention", "mlp"}
    return int(transposed and len(shape) == 2)


def blocks(names: Iterable[str]) -> list[Block]:
    """The blocks that occur, in the order of the model."""
    return sorted({place.block for place in map(locate, names) if place.block is not None}, key=block_order)


def kinds(names: Iterable[str]) -> list[str]:
    """The module kinds that occur: known kinds in reading order (norms, attention, MLP), unknown ones after them."""
    found = dict.fromkeys(locate(name).kind for name in names)

    def order(kind: str) -> tuple[int, int]:
        plain = kind.removesuffix(" bias")
        return (_ORDER.index(plain) if plain in _ORDER else len(_ORDER), int(kind != plain))

    return sorted(found, key=order)
