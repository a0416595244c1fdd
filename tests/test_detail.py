"""Heads and rows of one tensor against plain NumPy, and against the statistics of the whole tensor."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import merging
from merging.checkpoint import StateDict
from merging.errors import MergingError
from merging.heartbeats import Stopped
from merging.inspecting.detail import tensor_detail
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe

LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
GPT2 = {"model_type": "gpt2", "n_head": 4, "n_embd": 16}
ATTENTION, H = "model.layers.0.self_attn.", "transformer.h.0."
# name, shape, config, axis of the rows, axis of the heads, first index and size of every head
CASES = {
    "q": (ATTENTION + "q_proj.weight", (32, 32), LLAMA, 0, 0, [(8 * h, 8) for h in range(4)]),
    "k of grouped queries": (ATTENTION + "k_proj.weight", (16, 32), LLAMA, 0, 0, [(0, 8), (8, 8)]),
    "o": (ATTENTION + "o_proj.weight", (32, 32), LLAMA, 0, 1, [(8 * h, 8) for h in range(4)]),
    "fused": (ATTENTION + "qkv_proj.weight", (64, 32), LLAMA, 0, 0, [(8 * h, 8) for h in range(8)]),
    "q bias": (ATTENTION + "q_proj.bias", (32,), LLAMA, 0, 0, [(8 * h, 8) for h in range(4)]),
    "gpt2 qkv": (H + "attn.c_attn.weight", (16, 48), GPT2, 1, 1, [(4 * h, 4) for h in range(12)]),
    "gpt2 o": (H + "attn.c_proj.weight", (16, 16), GPT2, 1, 0, [(4 * h, 4) for h in range(4)]),
    "gpt2 up": (H + "mlp.c_fc.weight", (16, 64), GPT2, 1, None, []),
    "gpt2 embedding": ("transformer.wte.weight", (40, 16), GPT2, 0, None, []),
    "down": ("model.layers.0.mlp.down_proj.weight", (32, 48), LLAMA, 0, None, []),
    "a stack of matrices": ("model.layers.0.mlp.experts.up", (3, 8, 5), LLAMA, 0, None, []),
    "a number": ("model.scale", (), LLAMA, 0, None, []),
    "no columns": ("model.layers.0.mlp.up_proj.weight", (4, 0), LLAMA, 0, None, []),
    "no rows": ("model.layers.0.mlp.up_proj.weight", (0, 4), LLAMA, 0, None, []),
}


def family(name, shape, dtype=torch.float32, experts=3, seed=0):
    """A base and experts with one tensor, a third of which each expert leaves as it is."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    models = []
    for _ in range(experts):
        change = 0.05 * torch.randn(shape, generator=generator)
        keep = torch.rand(shape, generator=generator) < 1 / 3
        models.append(torch.where(keep, base, (base.float() + change).to(dtype)))
    return {name: base}, [{name: model} for model in models]


def plan_of(base, models, method="task_arithmetic"):
    sources = [StateDict(model, f"e{number}") for number, model in enumerate(models)]
    entries = [ModelEntry(model=source.label) for source in sources]
    recipe = Recipe(merge_method=method, base_model="base", models=tuple(entries), profile="paper")
    return plan_sources(recipe, StateDict(base, "base"), list(zip(entries, sources, strict=True)))


def expected(base, deltas, axis):
    """Every sum of `PartSums` over all but one axis, in float64."""
    pairs = list(combinations(range(len(deltas)), 2))

    def along(values):
        values = np.asarray(values)
        others = tuple(a for a in range(values.ndim) if a != axis)
        return values.sum(others) if values.ndim else values.reshape(1)

    nonzero = np.stack([d != 0 for d in deltas])
    several = nonzero.sum(0) >= 2
    positive, negative = (np.stack([compare(d) for d in deltas]).any(0) for compare in (_up, _down))
    shared = [nonzero[a] & nonzero[b] for a, b in pairs]
    return {
        "elements": along(np.ones(base.shape, dtype=int)),
        "base": along(base**2),
        "covered": along(several),
        "split": along(several & positive & negative),
        "gross": along(np.abs(deltas).sum(0) * several),
        "net": along(np.abs(deltas.sum(0)) * several),
        "change": np.stack([along(d**2) for d in deltas]),
        "mass": np.stack([along(np.abs(d)) for d in deltas]),
        "nonzero": np.stack([along(n) for n in nonzero]),
        "broken": np.stack([along(np.zeros(d.shape, dtype=int)) for d in deltas]),
        "shared": np.stack([along(s) for s in shared]),
        "opposite": np.stack(
            [
                along(s & (np.sign(deltas[a]) != np.sign(deltas[b])))
                for s, (a, b) in zip(shared, pairs, strict=True)
            ]
        ),
        "dot": np.stack([along(deltas[a] * deltas[b]) for a, b in pairs]),
    }


def _up(values):
    return values > 0


def _down(values):
    return values < 0


def check(sums, wanted):
    for name, values in wanted.items():
        found = getattr(sums, name)
        assert found.shape == values.shape, name
        if np.issubdtype(values.dtype, np.floating):
            assert found.dtype == torch.float64
            np.testing.assert_allclose(found.numpy(), values, rtol=1e-12, atol=1e-15, err_msg=name)
        else:
            assert found.dtype == torch.int64
            assert found.tolist() == values.tolist(), name


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_and_heads_are_numpy_s(case, dtype, monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 4 * 4 * 3 * 32)
    name, shape, config, row_axis, head_axis, groups = case
    base, models = family(name, shape, dtype)
    detail = tensor_detail(plan_of(base, models), name, config)
    theta = base[name].double().numpy()
    # changes are made in float32, as they are merged
    deltas = np.stack([(m[name].float() - base[name].float()).double().numpy() for m in models])
    assert detail.row_axis == row_axis
    check(detail.rows, expected(theta, deltas, row_axis))
    if head_axis is None:
        assert detail.heads is None
        return
    per_index = expected(theta, deltas, head_axis)
    check(
        detail.heads,
        {
            key: np.stack([values[..., start : start + size].sum(-1) for start, size in groups], -1)
            for key, values in per_index.items()
        },
    )


def test_head_names_tell_the_parts_of_a_fused_weight():
    name = CASES["fused"][0]
    detail = tensor_detail(plan_of(*family(name, (64, 32))), name, LLAMA)
    assert detail.head_names == ("q 0", "q 1", "q 2", "q 3", "k 0", "k 1", "v 0", "v 1")
    name = CASES["k of grouped queries"][0]
    assert tensor_detail(plan_of(*family(name, (16, 32))), name, LLAMA).head_names == ("0", "1")


@pytest.mark.parametrize("fixture", ["family", "bf16_family"])
def test_heads_and_rows_add_up_to_the_report_s_tensor(fixture, request, write_recipe, monkeypatch):
    recipe = write_recipe(request.getfixturevalue(fixture), "task_arithmetic", ("one", "two", "three"))
    report = merging.inspect(recipe)
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 3000)
    plan = merging.check(recipe)
    with_heads = 0
    for name, whole in report.tensors.items():
        detail = tensor_detail(plan, name, plan.reference.config)
        with_heads += detail.heads is not None
        for sums in (detail.rows.total(), *([detail.heads.total()] if detail.heads else [])):
            assert sums.nonzero[:, 0].tolist() == whole.nonzero
            assert sums.shared[:, 0].tolist() == whole.signs.shared
            assert sums.opposite[:, 0].tolist() == whole.signs.opposite
            assert int(sums.covered) == sum(whole.signs.covered)
            assert int(sums.split) == whole.signs.split
            assert sums.change[:, 0].tolist() == pytest.approx(whole.change, rel=1e-5)
            assert sums.mass[:, 0].tolist() == pytest.approx(whole.mass, rel=1e-5)
            assert sums.relative_change()[1, 0] == pytest.approx(
                whole.relative_change(1), rel=1e-5, nan_ok=True
            )
            if whole.signs.gross:
                assert float(sums.mass_conflict()) == pytest.approx(whole.signs.mass(), rel=1e-4)
                assert float(sums.opposite_share()) == whole.signs.opposite_share()
                assert float(sums.split_share()) == whole.signs.split_share()
    assert with_heads == 12


def test_head_sums_equal_the_tensor_s_to_float64_rounding():
    name, shape, config, *_ = CASES["o"]
    detail = tensor_detail(plan_of(*family(name, shape)), name, config)
    heads, rows = detail.heads.total(), detail.rows.total()
    for key in ("base", "change", "mass", "gross", "net", "dot"):
        torch.testing.assert_close(getattr(heads, key), getattr(rows, key), rtol=1e-14, atol=1e-14)


def test_derived_numbers_of_a_small_case():
    name = "model.layers.0.mlp.up_proj.weight"
    base = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    one = base + torch.tensor([[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]])
    two = base + torch.tensor([[1.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    rows = tensor_detail(plan_of({name: base}, [{name: one}, {name: two}]), name, {}).rows
    assert rows.norm()[0].tolist() == [5.0, 1.0, 0.0]
    assert rows.relative_change()[0].tolist() == pytest.approx([1.0, np.nan, 0.0], nan_ok=True)
    assert rows.changed_share()[1].tolist() == [1.0, 0.5, 0.0]
    assert rows.coverage().tolist() == [1.0, 0.0, 0.0]
    # only the first row has elements that both changed: signs (+, +) and (-, +)
    assert rows.opposite_share(0).tolist() == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert rows.mass_conflict().tolist() == pytest.approx([1 - 4 / 12, np.nan, np.nan], nan_ok=True)
    assert rows.split_share().tolist() == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert rows.cosine(0).tolist() == pytest.approx([-13 / (5 * 17**0.5), 0.0, np.nan], nan_ok=True)


def test_broken_values_are_counted_and_leave_the_other_rows_alone():
    name, shape, config, *_ = CASES["q"]
    base, models = family(name, shape)
    sound = tensor_detail(plan_of(base, models), name, config)
    models[1][name][9, 3] = float("nan")
    models[1][name][9, 4] = float("inf")
    detail = tensor_detail(plan_of(base, models), name, config)
    assert detail.rows.damaged.nonzero().flatten().tolist() == [9]
    assert detail.heads.broken.tolist() == [[0] * 4, [0, 2, 0, 0], [0] * 4]
    relative = detail.heads.relative_change()
    assert relative.isnan().tolist() == [[False] * 4, [False, True, False, False], [False] * 4]
    assert torch.equal(relative[0], sound.heads.relative_change()[0])
    assert detail.heads.opposite_share().isnan().tolist() == [False, True, False, False]
    assert detail.heads.opposite_share(1)[1] == sound.heads.opposite_share(1)[1]  # of the two intact ones
    keep = torch.arange(32) != 9
    assert torch.equal(detail.rows.take(keep).net, sound.rows.take(keep).net)


def test_one_expert_has_no_conflict():
    name, shape, config, *_ = CASES["q"]
    detail = tensor_detail(plan_of(*family(name, shape, experts=1)), name, config)
    assert detail.rows.shared.shape == (0, 32)
    assert detail.rows.opposite_share().isnan().all()
    assert detail.rows.mass_conflict().isnan().all()
    assert (detail.rows.norm() > 0).all()


def test_a_config_that_fits_no_heads_gives_rows_alone():
    name, shape, _, *_ = CASES["q"]
    plan = plan_of(*family(name, shape))
    assert tensor_detail(plan, name, {}).heads is None
    assert tensor_detail(plan, name, {**LLAMA, "num_attention_heads": 5}).heads is None


def test_reading_stops_between_two_blocks(monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 4 * 4 * 32)
    name, shape, config, *_ = CASES["q"]
    asked = []

    def stop():
        asked.append(len(asked))
        return len(asked) > 3

    with pytest.raises(Stopped):
        tensor_detail(plan_of(*family(name, shape)), name, config, stop=stop)
    assert len(asked) == 4  # of 32 blocks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.nothing.weight", "is no tensor of this recipe"),
        ("model.steps", "is I64; only tensors of floating"),
    ],
)
def test_what_cannot_be_looked_at_says_why(name, message):
    base, models = family("model.norm.weight", (8,))
    steps = {"model.steps": torch.arange(3)}
    with pytest.raises(MergingError, match=message):
        tensor_detail(plan_of(base | steps, [model | steps for model in models]), name, {})


def test_what_a_row_is():
    for case, words in (
        ("q", "one output of the matrix"),
        ("gpt2 up", "one output of the matrix, which is stored as inputs × outputs: one of its columns"),
        ("gpt2 embedding", "one token of the vocabulary"),
        ("q bias", "one number of the vector"),
    ):
        name, shape, config, *_ = CASES[case]
        assert tensor_detail(plan_of(*family(name, shape)), name, config).row_meaning == words


TALL = """
import resource
import torch
from merging.checkpoint import StateDict
from merging.inspecting.detail import tensor_detail
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
name = "model.embed_tokens.weight"
blocks = lambda: torch.cat([torch.randn(2048, 256, generator=generator).bfloat16() for _ in range(16)])
base, *models = [{name: blocks()} for _ in range(5)]
entries = [ModelEntry(model=f"model {number}") for number in range(4)]
recipe = Recipe(merge_method="task_arithmetic", models=tuple(entries), profile="paper")
sources = [(entry, StateDict(tensors, entry.model)) for entry, tensors in zip(entries, models)]
plan = plan_sources(recipe, StateDict(base, "base"), sources)
before = peak()
found = tensor_detail(plan, name, {}, device="cpu")
assert len(found.rows) == 32768
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux counts it")
def test_the_rows_of_a_tall_tensor_take_little_memory():
    """10 MB of sums; kept piece by piece they scattered over 400 MB."""
    found = subprocess.run([sys.executable, "-c", TALL], capture_output=True, text=True, check=True).stdout
    assert float(found) < 100
