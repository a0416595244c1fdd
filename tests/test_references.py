"""The deterministic methods against their formulas in float64, over scopes, profiles, dtypes and awkward shapes."""

from __future__ import annotations

import pytest
import torch
from references import seed_methods as reference
from references.family import (
    DTYPES,
    NAMES,
    SHAPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    per_model,
    random_family,
    scopes_of,
)

from merging import MergingError, merge_state_dicts

TIES = {
    "density": 0.2,
    "sign": "total",
    "elect_on": "delta",
    "zero_sum": "majority",
    "count": "nearest",
    "normalize": True,
}
TIES_MERGEKIT = {**TIES, "density": 1.0, "elect_on": "weighted", "zero_sum": "plus", "count": "floor"}
MAGNITUDE = {"density": 0.2, "count": "nearest", "rescale": "none", "normalize": False}
MAGNITUDE_MERGEKIT = {**MAGNITUDE, "density": 1.0, "count": "floor"}
FAMILIES = {"random": random_family, "coarse": coarse_family}
CASES = [*(("random", dtype) for dtype in DTYPES), ("coarse", torch.float32)]


def settings_of(options, paper, mergekit):
    """The reference's keywords, with weight, density and λ apart."""
    known = {**(mergekit if options.get("profile") == "mergekit" else paper), **options}
    density = per_model(known.pop("density"))
    weight, lam = per_model(known.pop("weight", 1.0)), known.pop("lambda", 1.0)
    return weight, density, lam, {name: known[name] for name in paper if name in known}


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.5, "sign": "frequency"},
        {"density": [0.1, 0.5, 1.0], "weight": [0.5, 1.0, 2.0], "lambda": 1.3},
        {"density": 0.7, "weight": [0.25, 1.0, 0.5], "elect_on": "weighted", "zero_sum": "plus"},
        {"density": 0.9, "zero_sum": "plus", "sign": "frequency"},
        {"density": 0.3, "normalize": False, "count": "floor"},
        {"density": 0.001},
        {"density": 0.6, "weight": [1.0, -0.5, 0.25]},
        {"profile": "mergekit", "density": 0.33, "weight": [1.0, -0.5, 0.25]},
        {"profile": "mergekit"},
        {"density": 0.0},
    ],
    ids=str,
)
def test_ties(scope, options, dtype, family):
    base, models = FAMILIES[family](3, 11, dtype)
    merged = merge_state_dicts(base, models, "ties", scope=scope, **options)
    weight, density, lam, settings = settings_of(options, TIES, TIES_MERGEKIT)
    deltas = [deltas_of(base, model) for model in models]
    for names in scopes_of(scope):
        expected = reference.ties([flat(delta, names) for delta in deltas], weight, density, lam, **settings)
        assert_close(merged, base, expected, names)


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": [0.1, 0.5, 1.0], "weight": [0.5, -1.0, 2.0], "lambda": 1.3},
        {"density": 0.4, "rescale": "l1", "weight": [0.2, 0.9, 0.4], "normalize": True},
        {"density": 0.35, "count": "floor", "rescale": "l1"},
        {"profile": "mergekit"},
        {"profile": "mergekit", "density": 0.35, "lambda": 0.7},
        {"density": 0.0},
    ],
    ids=str,
)
def test_magnitude(scope, options, dtype, family):
    base, models = FAMILIES[family](3, 12, dtype)
    merged = merge_state_dicts(base, models, "magnitude", scope=scope, **options)
    weight, density, lam, settings = settings_of(options, MAGNITUDE, MAGNITUDE_MERGEKIT)
    deltas = [deltas_of(base, model) for model in models]
    for names in scopes_of(scope):
        sizes = [base[name].numel() for name in names]
        expected = reference.magnitude(
            [flat(delta, names) for delta in deltas], weight, density, lam, sizes=sizes, **settings
        )
        assert_close(merged, base, expected, names)


@pytest.mark.parametrize(
    ("method", "profile", "scope"),
    [
        ("ties", "paper", "model"),
        ("ties", "mergekit", "tensor"),
        ("magnitude", "paper", "model"),
        ("magnitude", "mergekit", "tensor"),
    ],
)
def test_the_default_scope(method, profile, scope):
    base, models = random_family(3, 13, torch.float32)
    implied = merge_state_dicts(base, models, method, profile=profile, density=0.3)
    named = merge_state_dicts(base, models, method, profile=profile, density=0.3, scope=scope)
    assert all(torch.equal(implied[name], named[name]) for name in NAMES)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "magnitude", "dare_linear", "della_linear"])
def test_weights_that_cancel(method):
    """Changes 1 and −1 with weights 1 and −1: w·δ̂ agree, their weights add up to 0. mergekit divides by 1."""
    base = {"a": torch.zeros(3)}
    models = [{"a": torch.ones(3)}, {"a": -torch.ones(3)}]
    options = {"weight": [1.0, -1.0], "density": 1.0, "normalize": True, "lambda": 1.0}
    with pytest.raises(MergingError, match=r"weights .*(add up to 0|cancel)"):
        merge_state_dicts(base, models, method, **options)
    merged = merge_state_dicts(base, models, method, profile="mergekit", **options)
    assert merged["a"].tolist() == [2.0] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("options", "lam"),
    [
        ({}, 0.4),
        ({"profile": "mergekit"}, 1.0),
        ({"lambda": 1.5, "weight": [0.2, 0.9, -0.4]}, 1.5),
        ({"normalize": True, "weight": [1, 2, 3]}, 0.4),
    ],
    ids=str,
)
def test_task_arithmetic(options, lam, dtype):
    base, models = random_family(3, 5, dtype)
    merged = merge_state_dicts(base, models, "task_arithmetic", **options)
    deltas = [flat(deltas_of(base, model), NAMES) for model in models]
    weight = options.get("weight", [1.0] * 3)
    expected = reference.task_arithmetic(deltas, weight, lam, options.get("normalize", False))
    assert_close(merged, base, expected, NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"weight": [0.2, 0.9, 0.4]}, {"weight": [0.2, 0.9, 0.4], "normalize": False}], ids=str
)
def test_linear(options, dtype):
    base, models = random_family(3, 6, dtype)
    merged = merge_state_dicts(None, models, "linear", **options)
    weight = options.get("weight", [1.0] * 3)
    expected = reference.linear(
        [flat(model, NAMES) for model in models], weight, options.get("normalize", True)
    )
    zero = {name: torch.zeros_like(value) for name, value in base.items()}
    assert_close(merged, zero, expected, NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp(t, dtype):
    base, models = random_family(1, 7, dtype)
    models[0]["model.layers.0.self_attn.q_proj.weight"] = torch.randn(
        6, 6, generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    models[0]["model.layers.0.input_layernorm.weight"] = torch.zeros(6, dtype=dtype)
    merged = merge_state_dicts(base, models, "slerp", t=t)
    zero = {name: torch.zeros_like(value) for name, value in base.items()}
    for name in SHAPES:
        expected = reference.slerp(flat(base, [name]), flat(models[0], [name]), t)
        assert_close(merged, zero, expected, [name])
