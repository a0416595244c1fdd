"""Every element in exactly one partition, named and shaped as its module is."""

from __future__ import annotations

import pytest
import torch

from merging.errors import MergingError
from merging.partitions import make_partitions

LLAMA = {
    "model.embed_tokens.weight": (10, 8),
    **{
        f"model.layers.{block}.{name}": shape
        for block in (0, 1)
        for name, shape in {
            "input_layernorm.weight": (8,),
            "self_attn.q_proj.weight": (8, 8),
            "self_attn.q_proj.bias": (8,),
            "self_attn.k_proj.weight": (4, 8),
            "self_attn.v_proj.weight": (4, 8),
            "self_attn.o_proj.weight": (8, 8),
            "mlp.gate_proj.weight": (6, 8),
            "mlp.up_proj.weight": (6, 8),
            "mlp.down_proj.weight": (8, 6),
        }.items()
    },
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
}
LLAMA_CONFIG = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {
    "wte.weight": (10, 8),
    "h.0.ln_1.weight": (8,),
    "h.0.attn.c_attn.weight": (8, 24),
    "h.0.attn.c_attn.bias": (24,),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.attn.c_proj.bias": (8,),
    "h.0.mlp.c_fc.weight": (8, 16),
    "h.0.mlp.c_fc.bias": (16,),
}
GPT2_CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_head": 2}
OUTSIDE = {
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.1.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
}


def numbers(partitions, shapes):
    return {name: partitions.index[name].expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "head", "row"])
@pytest.mark.parametrize(("shapes", "config"), [(LLAMA, LLAMA_CONFIG), (GPT2, GPT2_CONFIG)])
def test_every_element_counts_once(granularity, shapes, config):
    partitions = make_partitions(shapes, config, granularity)
    flat = torch.cat([index.flatten() for index in numbers(partitions, shapes).values()])
    assert torch.equal(flat.bincount(minlength=len(partitions)), partitions.sizes)
    assert (partitions.sizes > 0).all()
    keys = [partition.key for partition in partitions]
    assert len(set(keys)) == len(keys)
    assert partitions[len(keys) - 1] == partitions[-1] == list(partitions)[-1]
    for number, partition in enumerate(partitions):
        assert partition.elements == partitions.sizes[number]
        assert partition.outside == bool(partitions.outside[number])
        assert all(
            (index == number).any() for name, index in partitions.index.items() if name in partition.tensors
        )


@pytest.mark.parametrize(
    ("granularity", "inside"), [("model", 1), ("layer", 2), ("module", 14), ("head", 30), ("row", 88)]
)
def test_the_outside_is_the_same_everywhere(granularity, inside):
    partitions = make_partitions(LLAMA, LLAMA_CONFIG, granularity)
    assert {partition.key for partition in partitions if partition.outside} == OUTSIDE
    assert int((~partitions.outside).sum()) == inside


def test_a_module_is_a_weight_with_its_bias():
    partitions = make_partitions(LLAMA, LLAMA_CONFIG, "module")
    [q] = [partition for partition in partitions if partition.key == "layers.1/q"]
    assert q.tensors == ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias")
    assert (q.block, q.kind, q.elements, q.outside) == (1, "q", 72, False)


def test_heads_are_rows_of_q_and_columns_of_o():
    partitions = make_partitions(LLAMA, LLAMA_CONFIG, "head")
    keys = [partition.key for partition in partitions]
    index = numbers(partitions, LLAMA)
    q = keys.index("layers.0/q/head 2")
    assert torch.equal(
        (index["model.layers.0.self_attn.q_proj.weight"] == q).nonzero()[:, 0].unique(), torch.tensor([4, 5])
    )
    assert torch.equal(
        (index["model.layers.0.self_attn.q_proj.bias"] == q).nonzero()[:, 0], torch.tensor([4, 5])
    )
    assert partitions[q].elements == 18
    assert partitions[keys.index("layers.0/k/head 1")].elements == 16
    assert "layers.0/k/head 2" not in keys
    o = (index["model.layers.0.self_attn.o_proj.weight"] == keys.index("layers.0/o/head 3")).nonzero()
    assert torch.equal(o[:, 1].unique(), torch.tensor([6, 7]))
    assert torch.equal(o[:, 0].unique(), torch.arange(8))
    assert "layers.0/gate" in keys


def test_gpt2_heads_lie_along_the_columns_of_the_fused_weight():
    partitions = make_partitions(GPT2, GPT2_CONFIG, "head")
    keys = [partition.key for partition in partitions]
    index = numbers(partitions, GPT2)
    k = keys.index("layers.0/k/head 1")
    assert torch.equal((index["h.0.attn.c_attn.weight"][0] == k).nonzero()[:, 0], torch.arange(12, 16))
    assert torch.equal((index["h.0.attn.c_attn.bias"] == k).nonzero()[:, 0], torch.arange(12, 16))
    o = keys.index("layers.0/o/head 1")
    assert torch.equal((index["h.0.attn.c_proj.weight"][:, 0] == o).nonzero()[:, 0], torch.arange(4, 8))
    assert partitions[keys.index("layers.0/o/bias")].tensors == ("h.0.attn.c_proj.bias",)
    assert not partitions[keys.index("layers.0/o/bias")].outside


def test_a_row_takes_its_element_of_the_bias():
    llama = make_partitions(LLAMA, LLAMA_CONFIG, "row")
    row = [partition.key for partition in llama].index("layers.1/q/row 3")
    assert llama[row].elements == 9
    assert int(llama.index["model.layers.1.self_attn.q_proj.bias"][3]) == row
    gpt2 = make_partitions(GPT2, GPT2_CONFIG, "row")
    column = [partition.key for partition in gpt2].index("layers.0/up/row 15")
    assert gpt2.index["h.0.mlp.c_fc.weight"].shape == (1, 16)
    assert gpt2[column].elements == 9


def test_experts_of_one_kind_in_a_block_keep_their_own_names():
    shapes = {f"model.layers.0.mlp.experts.{n}.gate_proj.weight": (4, 4) for n in range(3)}
    partitions = make_partitions(shapes, {}, "module")
    assert [partition.key for partition in partitions] == [
        f"model.layers.0.mlp.experts.{n}.gate_proj" for n in range(3)
    ]


def test_names_outside_any_block_are_modules():
    partitions = make_partitions({"w1": (), "w2": (3,)}, {}, "layer")
    assert [(p.key, p.elements, p.outside) for p in partitions] == [("w1", 1, False), ("w2", 3, False)]


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "head", "row"])
def test_sums_by_blocks_of_rows(granularity):
    partitions = make_partitions(LLAMA, LLAMA_CONFIG, granularity)
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in LLAMA.items()}
    totals = torch.zeros(len(partitions), dtype=torch.float64)
    expected = torch.zeros(len(partitions), dtype=torch.float64)
    for name, value in values.items():
        expected.index_add_(0, partitions.index[name].expand(value.shape).flatten(), value.double().flatten())
        for start in range(0, len(value), 3):
            partitions.add(totals, name, value[start : start + 3], start)
    torch.testing.assert_close(totals, expected)
    for name, value in values.items():
        assert torch.broadcast_shapes(partitions.spread(totals, name).shape, value.shape) == value.shape


def test_a_million_rows_are_made_when_asked_for():
    partitions = make_partitions({"model.layers.0.mlp.up_proj.weight": (1_000_000, 1)}, {}, "row")
    assert len(partitions) == 1_000_000
    assert partitions[999_999].key == "layers.0/up/row 999999"
    assert partitions[5:7] == (partitions[5], partitions[6])


def test_an_unknown_granularity_is_named():
    with pytest.raises(MergingError, match=r"partition 'modul': unknown.*Did you mean 'module'"):
        make_partitions(LLAMA, LLAMA_CONFIG, "modul")
