"""What must hold for every entry of METHODS."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merging
from merging import METHODS, MergingError, merge_state_dicts

EXPERTS = 3


def options_for(method):
    """A small density, so that trimming methods trim."""
    fields = METHODS[method].parameters()
    return {name: value for name, value in {"density": 0.4, "t": 0.3}.items() if name in fields}


def neutral(method):
    """Weight 1, density 1, λ 1: the settings under which one expert must come out."""
    fields = METHODS[method].parameters()
    values = {"weight": 1.0, "density": 1.0, "lambda": 1.0, "t": 1.0}
    return {name: value for name, value in values.items() if name in fields}


def family(experts=EXPERTS, seed=0, dtype=torch.float32, shape=(8, 6)):
    generator = torch.Generator().manual_seed(seed)
    base = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(shape, generator=generator).to(dtype),
        "model.layers.1.mlp.up_proj.weight": torch.randn(shape, generator=generator).to(dtype),
        "model.norm.weight": torch.ones(6, dtype=dtype),
    }
    models = [
        {
            name: (value.float() + torch.randn(value.shape, generator=generator) * 0.05).to(dtype)
            for name, value in base.items()
        }
        for _ in range(experts)
    ]
    return base, models


def number_of_experts(method):
    return METHODS[method].experts_wanted or EXPERTS


def equal(one, other):
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def each(*dtypes):
    return [(method, dtype) for method in METHODS for dtype in dtypes]


@pytest.mark.parametrize(("method", "dtype"), each(torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_zero_deltas_give_the_bases_bits(method, dtype):
    base, _ = family(dtype=dtype)
    base["model.norm.weight"][0] = -0.0
    copies = [dict(base) for _ in range(number_of_experts(method))]
    assert equal(merge_state_dicts(base, copies, method, **options_for(method)), base)


@pytest.mark.parametrize(("method", "dtype"), each(torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_one_expert_comes_out(method, dtype):
    base, models = family(1, dtype=dtype)
    merged = merge_state_dicts(base, models, method, **neutral(method))
    for name, value in merged.items():
        error = (value.double() - models[0][name].double()).abs()
        bound = 2.0**-23 * torch.maximum(base[name].double().abs(), models[0][name].double().abs())
        assert (error <= (bound if dtype == torch.float32 else 0)).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_row_blocks_equal_the_whole(method, monkeypatch):
    base, models = family(number_of_experts(method), shape=(40, 6))
    whole = merge_state_dicts(base, models, method, **options_for(method))
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 500)
    monkeypatch.setattr("merging.engine.KEEP_BYTES", 0)
    monkeypatch.setattr("merging.statistics.SMALL_SCOPE", 0)
    blocks = merge_state_dicts(base, models, method, **options_for(method))
    for name, value in whole.items():
        if METHODS[method].elementwise:
            assert torch.equal(value, blocks[name])
        else:
            torch.testing.assert_close(value, blocks[name], rtol=2**-22, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tensors_does_not_matter(method):
    base, models = family(number_of_experts(method))
    for model in (base, *models):  # equal magnitudes everywhere: ties across tensors
        for name in model:
            model[name] = model[name].sign() * (0.5 if model is not base else 1.0)
    backwards = [dict(reversed(model.items())) for model in (base, *models)]
    one = merge_state_dicts(base, models, method, **options_for(method))
    other = merge_state_dicts(backwards[0], backwards[1:], method, **options_for(method))
    assert equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method):
    base, models = family(number_of_experts(method))
    assert equal(
        merge_state_dicts(base, models, method, seed=5, **options_for(method)),
        merge_state_dicts(base, models, method, seed=5, **options_for(method)),
    )


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.experts_wanted is None]
)
def test_permuted_experts(method):
    base, models = family()
    weight = [0.2, 0.5, 0.9]
    options = options_for(method)
    if "seed" in METHODS[method].parameters():
        options["density"] = 1.0  # masks follow the position, so random methods are symmetric in distribution only
    one = merge_state_dicts(base, models, method, weight=weight, **options)
    other = merge_state_dicts(base, models[::-1], method, weight=weight[::-1], **options)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "bad", [{"nonsense": 1}, {"weight": float("nan")}, {"lambda": float("inf")}, {"t": 2}, {"density": -1}]
)
def test_unknown_and_impossible_parameters(method, bad):
    base, models = family(number_of_experts(method))
    with pytest.raises(MergingError):
        merge_state_dicts(base, models, method, **bad)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 1), (1,), (1, 1), (), (0,), (0, 4), (3, 0), (2, 3, 2)], ids=str)
def test_awkward_shapes_stay_finite(method, shape, dtype):
    generator = torch.Generator().manual_seed(3)
    base = {
        "random": torch.randn(shape, generator=generator).to(dtype),
        "constant": torch.ones(shape, dtype=dtype),
    }
    models = [
        {
            "random": torch.randn(shape, generator=generator).to(dtype),
            "constant": torch.full(shape, 1.5, dtype=dtype),
        }
        for _ in range(number_of_experts(method))
    ]
    merged = merge_state_dicts(base, models, method, **options_for(method))
    for name, value in merged.items():
        assert value.shape == base[name].shape
        assert value.dtype == dtype
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_an_input_is_named(method):
    base, models = family(number_of_experts(method))
    models[0]["model.norm.weight"][2] = float("nan")
    options = {**neutral(method), "t": 0.5} if "t" in neutral(method) else neutral(method)
    with pytest.raises(MergingError, match=r"'model.norm.weight'.*model 1 holds 1 NaN"):
        merge_state_dicts(base, models, method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_explains_itself(method):
    for name, field in METHODS[method].parameters().items():
        assert field.description, name
        assert field.json_schema_extra.keys() >= {"symbol", "per_model"}
    assert METHODS[method].when_to_use
    assert METHODS[method].paper.startswith("https://")


@settings(max_examples=100, deadline=None)
@given(
    small_scope=st.sampled_from([0, 1 << 16]),
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    density=st.floats(0, 1),
    split=st.integers(0, 60),
)
def test_exactly_k_are_kept_and_ties_go_to_the_first(small_scope, values, density, split):
    """Few distinct magnitudes, cut into two tensors: the trim equals a stable sort over the whole scope."""
    delta = torch.tensor(values, dtype=torch.float32)
    parts = {"a": delta[:split], "b": delta[split:]}
    base = {name: torch.zeros_like(part) for name, part in parts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merging.statistics.SMALL_SCOPE", small_scope)
        merged = merge_state_dicts(base, [parts], "ties", density=density, scope="model")
    kept = 0 if density == 0 else len(values) if density == 1 else max(1, round(density * len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept]
    expected = torch.zeros_like(delta)
    expected[order] = delta[order]
    assert torch.equal(torch.cat([merged["a"], merged["b"]]), expected)
