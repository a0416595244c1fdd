"""What every method says about its parameters, and that it refuses what they cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references.family import number_of_experts, small_family
from references.importance import made_up_importance

from merging import METHODS, MergingError, merge_state_dicts


def impossible(schema):
    """Values that a parameter with this JSON schema must refuse."""
    options = schema.get("anyOf", [schema])
    kinds = {option.get("type") for option in options}
    if any("enum" in option or "const" in option for option in options):
        yield "nonsense"
    elif kinds & {"number", "integer"}:
        yield from (float("nan"), float("inf"), -float("inf"), "many", {"nonsense": 1})
        limits = {word: edge for option in options for word, edge in option.items() if "imum" in word.lower()}
        if (low := limits.get("minimum", limits.get("exclusiveMinimum"))) is not None:
            yield low - 1
        if (high := limits.get("maximum", limits.get("exclusiveMaximum"))) is not None:
            yield type(high)(high + 1)
        yield from (limits[word] for word in ("exclusiveMinimum", "exclusiveMaximum") if word in limits)
    elif kinds == {"boolean"}:
        yield from ("perhaps", 7)
    elif kinds == {"array"}:
        yield from ([float("nan"), 1.0], "many")
    else:
        raise AssertionError(f"no wrong value known for {schema}")


@pytest.mark.parametrize("method", METHODS)
def test_unknown_and_impossible_parameters(method):
    base, models = small_family(number_of_experts(method))
    importance = made_up_importance(base, models) if METHODS[method].needs_importance else None
    schemas = METHODS[method].model_json_schema(by_alias=True)["properties"]
    wrong = [("nonsense", 1), *((name, value) for name in schemas for value in impossible(schemas[name]))]
    assert set(schemas) == set(METHODS[method].parameters())
    for name, value in wrong:
        with pytest.raises(MergingError, match=name):
            merge_state_dicts(base, models, method, importance=importance, **{name: value})
            pytest.fail(f"{name}: {value!r} was taken")


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_explains_itself(method):
    for name, field in METHODS[method].parameters().items():
        assert field.description, name
        assert field.json_schema_extra.keys() >= {"symbol", "per_model"}
    assert METHODS[method].when_to_use
    assert METHODS[method].paper.startswith("https://")
    assert METHODS[method].MERGEKIT.keys() <= METHODS[method].parameters().keys()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear"])
def test_a_share_too_small_to_keep_anything_gives_the_base(method):
    base, models = small_family()
    extra = {"epsilon": 0.0} if method == "della_linear" else {}
    merged = merge_state_dicts(base, models, method, density=1e-40, **extra)
    assert all(torch.equal(merged[name], base[name]) for name in base)


@pytest.mark.parametrize(
    "half", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)], ids=["float32", "float64", "tensor"]
)
def test_numbers_of_other_libraries_are_numbers(half):
    base, models = small_family(experts=2)
    wanted = merge_state_dicts(base, models, "dare_linear", weight=[0.5, 1.0], seed=5, normalize=False)
    found = merge_state_dicts(
        base, models, "dare_linear", weight=[half, np.int64(1)], seed=np.int64(5), normalize=False
    )
    assert all(torch.equal(found[name], wanted[name]) for name in base)


def test_int8_mask_is_accepted_and_changes_nothing():
    base, models = small_family(experts=2)
    wanted = merge_state_dicts(base, models, "ties")
    found = merge_state_dicts(base, models, "ties", int8_mask=True)
    assert all(torch.equal(found[name], wanted[name]) for name in base)
