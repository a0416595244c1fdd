"""What must hold for every entry of METHODS. Methods are told apart by what their classes say alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references.family import DTYPES, number_of_experts, small_family
from references.importance import made_up_importance

from merging import METHODS, MergingError, merge_state_dicts

RANDOM = [name for name, method in METHODS.items() if "seed" in method.parameters()]
ANY_NUMBER = [name for name, method in METHODS.items() if method.experts_wanted is None]
NEUTRAL = {"weight": 1.0, "density": 1.0, "lambda": 1.0, "t": 1.0, "gamma": 0.0, "select_topk": 1.0}
"""The settings under which one expert must come out, and under which nothing is drawn at random."""


def known_to(method, values):
    return {name: value for name, value in values.items() if name in METHODS[method].parameters()}


def options_for(method):
    """A small density, so that trimming methods trim."""
    return known_to(method, {"density": 0.4, "t": 0.3})


def choices(method):
    """Every word that a parameter of words can have and its default is not, one at a time; and none."""
    yield {}
    for name, schema in METHODS[method].model_json_schema(by_alias=True)["properties"].items():
        for option in schema.get("anyOf", [schema]):
            yield from ({name: word} for word in option.get("enum", ()) if word != schema["default"])


def merge(method, base, models, **options):
    """Merge; a method that needs importance gets made-up scores, in partitions of rows."""
    if METHODS[method].needs_importance:
        options["importance"] = made_up_importance(base, models, "row")
    return merge_state_dicts(base, models, method, **options)


def equal(one, other):
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def each(methods=METHODS, dtypes=DTYPES):
    return pytest.mark.parametrize(
        ("method", "dtype"), [(method, dtype) for method in methods for dtype in dtypes], ids=str
    )


@each()
def test_zero_deltas_give_the_bases_bits(method, dtype):
    base, _ = small_family(dtype=dtype)
    base["model.norm.weight"][0] = -0.0
    copies = [dict(base) for _ in range(number_of_experts(method))]
    assert equal(merge(method, base, copies, **options_for(method)), base)


@each([name for name, method in METHODS.items() if method.reduces])
def test_one_expert_comes_out(method, dtype):
    """Not for methods that declare `reduces = False`: PCB drops scores of one expert too, DPPA prunes it."""
    base, models = small_family(1, dtype=dtype)
    merged = merge(method, base, models, **known_to(method, NEUTRAL))
    for name, value in merged.items():
        error = (value.double() - models[0][name].double()).abs()
        bound = 2.0**-23 * torch.maximum(base[name].double().abs(), models[0][name].double().abs())
        assert (error <= (bound if dtype == torch.float32 else 0)).all(), name


@pytest.mark.parametrize("method", [name for name in ANY_NUMBER if not METHODS[name].reduces])
def test_who_does_not_reduce_says_so_truly(method):
    base, models = small_family(1)
    try:
        merged = merge(method, base, models, **known_to(method, NEUTRAL))
    except MergingError:
        return  # one expert is not enough for it
    if "weight" in METHODS[method].parameters():
        assert not equal(merged, models[0])
    assert all(torch.isfinite(value).all() for value in merged.values())


@pytest.mark.parametrize("method", METHODS)
def test_row_blocks_equal_the_whole(method, monkeypatch):
    base, models = small_family(number_of_experts(method), shape=(24, 6))
    settings = [options_for(method) | choice for choice in choices(method)]
    wholes = [merge(method, base, models, **options) for options in settings]
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 800)
    monkeypatch.setattr("merging.reading.KEEP_BYTES", 0)
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)  # the two scans of a large scope, by default settings
    for options, whole in zip(settings, wholes, strict=True):
        blocks = merge(method, base, models, **options)
        monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 1 << 16)
        for name, value in whole.items():
            if METHODS[method].elementwise:
                assert torch.equal(value, blocks[name]), options
            else:
                torch.testing.assert_close(value, blocks[name], rtol=2**-22, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tensors_does_not_matter(method):
    base, models = small_family(number_of_experts(method))
    for model in (base, *models):  # equal magnitudes everywhere: ties across tensors
        for name in model:
            model[name] = model[name].sign() * (0.5 if model is not base else 1.0)
    backwards = [dict(reversed(model.items())) for model in (base, *models)]
    options = options_for(method)
    if METHODS[method].needs_importance:  # made once: scores are drawn in the order of the tensors
        options["importance"] = made_up_importance(base, models)
    one = merge_state_dicts(base, models, method, **options)
    other = merge_state_dicts(backwards[0], backwards[1:], method, **options)
    assert equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method):
    base, models = small_family(number_of_experts(method))
    one, other = (merge(method, base, models, seed=5, **options_for(method)) for _ in range(2))
    assert equal(one, other)


@pytest.mark.parametrize("method", RANDOM)
def test_another_seed_another_mask(method):
    """At density 0.4 about half of the elements differ in whether an expert's change is there."""
    base, models = small_family(1, shape=(40, 30))
    masks = [
        torch.cat(
            [
                (merged[name] != base[name]).flatten()
                for merged in [merge(method, base, models, density=0.4, seed=seed)]
                for name in base
            ]
        )
        for seed in (0, 1, 2**62)
    ]
    for i, one in enumerate(masks):
        assert 0.35 < one.float().mean() < 0.45
        assert all(0.4 < (one != other).float().mean() < 0.56 for other in masks[:i])


@pytest.mark.parametrize("method", ANY_NUMBER)
def test_permuted_experts(method):
    """Masks follow the position: random methods, symmetric in distribution only, are compared at density 1."""
    base, models = small_family()
    weight = [0.2, 0.5, 0.9]
    options = options_for(method) | known_to(method, {"weight": weight})
    back = options | known_to(method, {"weight": weight[::-1]})
    if METHODS[method].needs_importance:
        options["importance"] = back["importance"] = made_up_importance(base, models)
    if method in RANDOM:
        options["density"] = back["density"] = 1.0
    one = merge_state_dicts(base, models, method, **options)
    other = merge_state_dicts(base, models[::-1], method, **back)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in METHODS if number_of_experts(name) > 1])
def test_two_equal_experts(method):
    """Their change points where each of theirs does; an average of them is either of them."""
    base, (model,) = small_family(1)
    options = known_to(method, {**NEUTRAL, "normalize": True})
    merged = merge(method, base, [model, dict(model)], **options)
    for name, value in merged.items():
        delta, change = model[name] - base[name], value - base[name]
        assert (change * delta >= -1e-7).all()
        assert (change.abs() <= 2.0001 * delta.abs().max()).all()
        if METHODS[method].reduces and METHODS[method].elementwise and "normalize" in options:
            torch.testing.assert_close(value, model[name], rtol=1e-6, atol=1e-7)


@each([name for name in METHODS if number_of_experts(name) > 1])
def test_an_expert_that_changed_nothing(method, dtype):
    """It may thin the others' changes, but adds nothing: where none of them changed anything are the base's bits."""
    base, models = small_family(2, dtype=dtype)
    models[1] = {name: value.clone() for name, value in base.items()}
    models[0]["model.layers.1.mlp.up_proj.weight"] = base["model.layers.1.mlp.up_proj.weight"].clone()
    merged = merge(method, base, models, **options_for(method))
    untouched = "model.layers.1.mlp.up_proj.weight"
    if METHODS[method].elementwise:
        assert torch.equal(merged[untouched], base[untouched])
    assert all(torch.isfinite(value).all() for value in merged.values())
    torch.testing.assert_close(merged[untouched], base[untouched])


@each()
def test_awkward_shapes_stay_finite(method, dtype):
    """By the paper's defaults, by mergekit's, and with every other word that a parameter can have."""
    shapes = [(5,), (5, 1), (1,), (1, 1), (), (0,), (0, 4), (3, 0), (2, 3, 2)]
    generator = torch.Generator().manual_seed(3)

    def model(constant):
        """Random tensors inside a block, constant ones outside."""
        tensors = {}
        for number, shape in enumerate(shapes):
            tensors[f"model.layers.0.t{number}.weight"] = torch.randn(shape, generator=generator).to(dtype)
            tensors[f"constant{number}"] = torch.full(shape, constant, dtype=dtype)
        return tensors

    base, models = model(1.0), [model(1.5) for _ in range(number_of_experts(method))]
    profiles = [{"profile": "paper"}, {"profile": "mergekit"}]
    for choice in [*profiles, *choices(method)] if dtype == torch.bfloat16 else profiles[:1]:
        merged = merge(method, base, models, **options_for(method) | choice)
        assert merged.keys() == base.keys()
        for name, value in merged.items():
            assert (value.shape, value.dtype) == (base[name].shape, dtype)
            assert torch.isfinite(value).all(), (name, choice)


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        *[(method, float("nan")) for method in METHODS],
        *[(method, float("inf")) for method in ("linear", "ties", "pcb", "slerp")],
    ],
)
def test_nan_in_an_input_is_named(method, bad):
    base, models = small_family(number_of_experts(method))
    models[0]["model.norm.weight"][2] = bad
    options = known_to(method, {**NEUTRAL, "t": 0.5})
    with pytest.raises(MergingError, match=r"'model.norm.weight'.*model 1 holds 1 NaN"):
        merge(method, base, models, **options)


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
        patch.setattr("merging.cuts.SMALL_SCOPE", small_scope)
        merged = merge_state_dicts(base, [parts], "ties", density=density, scope="model")
    kept = 0 if density == 0 else len(values) if density == 1 else max(1, round(density * len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept]
    expected = torch.zeros_like(delta)
    expected[order] = delta[order]
    assert torch.equal(torch.cat([merged["a"], merged["b"]]), expected)
