"""PCB-Merging against its three formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import pcb as reference
from references.family import (
    DTYPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    heavy_family,
    per_model,
    random_family,
    scopes_of,
)

from merging import merge_state_dicts

FAMILIES = {"random": random_family, "coarse": coarse_family, "heavy": heavy_family}
CASES = [*(("random", dtype) for dtype in DTYPES), ("coarse", torch.float32), ("heavy", torch.bfloat16)]


def undecided(deltas, ratio, variant):
    """Elements whose score lies so near its threshold that float32 cannot tell how far above: within 0.2 %."""
    if not len(deltas[0]):
        return np.zeros(0, dtype=bool)
    beta, changed = reference.balances(deltas, variant), (np.array(deltas) != 0).any(axis=0)
    if variant == "paper":
        kept = reference.scores(beta, ratio, variant) > 0
        edge = np.where(kept, beta, np.inf).min(axis=1, keepdims=True)
        gap = np.abs(beta - edge) / np.where(np.isfinite(edge), edge, 1)
        return changed & ((gap > 0) & (gap < 1e-6)).any(axis=0)
    edge = reference.thresholds(beta, ratio)[:, None]
    gap = np.abs(beta - edge)
    return changed & ((gap > 0) & (gap < 0.002 * np.abs(edge))).any(axis=0)


def check(options, scope, family, dtype, experts=3):
    base, models = FAMILIES[family](experts, 31, dtype)
    merged = merge_state_dicts(base, models, "pcb", scope=scope, **options)
    deltas = [deltas_of(base, model) for model in models]
    ratio, variant = options.get("ratio", 0.1), options.get("variant", "root")
    left_out = []
    for names in scopes_of(scope):
        own = [flat(delta, names) for delta in deltas]
        left_out.append(undecided(own, ratio, variant))
        expected = reference.pcb(
            own, per_model(options.get("weight", 1.0), experts), ratio, options.get("lambda", 1.0), variant
        )
        assert_close(merged, base, expected, names, leave_out=left_out[-1], relative=1e-4)
    assert np.concatenate(left_out).mean() < 0.15


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize("variant", ["root", "vision"])
@pytest.mark.parametrize(
    "options",
    [{}, {"ratio": 0.3, "weight": [0.5, -1.0, 2.0], "lambda": 1.2}, {"ratio": 1.0}, {"ratio": 0.0}],
    ids=str,
)
def test_the_programs(options, variant, family, scope, dtype):
    check({**options, "variant": variant}, scope, family, dtype)


@pytest.mark.parametrize(("family", "dtype"), [case for case in CASES if case[0] != "coarse"], ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.6},
        {"ratio": 0.7, "weight": [0.5, -1.0, 2.0], "lambda": 1.2},
        {"ratio": 1.0},
        {"ratio": 0.0},
    ],
    ids=str,
)
def test_the_printed_formulas(options, family, scope, dtype):
    """Ratios of a half or more, so that a tensor of one element keeps it."""
    check({**options, "variant": "paper"}, scope, family, dtype)


@pytest.mark.parametrize("variant", ["root", "vision", "paper"])
@pytest.mark.parametrize("ratio", [0.3, 0.8, 1.0])
def test_as_in_a_large_scope(variant, ratio, monkeypatch):
    """By histograms, in small blocks read again for every scan; above a ratio of about a half thresholds are negative."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 300)
    monkeypatch.setattr("merging.reading.KEEP_BYTES", 0)
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    ratio = max(ratio, 0.6) if variant == "paper" else ratio
    check({"variant": variant, "ratio": ratio}, "model", "random", torch.float32)


@pytest.mark.parametrize("variant", ["root", "vision", "paper"])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_another_number_of_experts(experts, variant):
    check({"variant": variant, "ratio": 0.2}, "model", "random", torch.float32, experts)


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_the_defaults(profile):
    base, models = random_family(3, 32, torch.float32)
    implied = merge_state_dicts(base, models, "pcb", profile=profile)
    named = merge_state_dicts(
        base,
        models,
        "pcb",
        profile=profile,
        ratio=0.1,
        scope="model",
        variant="root",
        weight=1.0,
        **{"lambda": 1.0},
    )
    assert all(torch.equal(implied[name], named[name]) for name in base)


def test_where_one_expert_is_left_its_change_applies_in_full():
    """One element, three experts: only the change that agrees with the sum scores above 0."""
    base = {"a": torch.zeros(4)}
    models = [{"a": torch.tensor(values)} for values in ([4.0, 1, 0, 0], [-1.0, 1, 0, 0], [-1.0, 1, 0, 0])]
    merged = merge_state_dicts(base, models, "pcb", ratio=0.5)["a"]
    assert merged.tolist() == [
        pytest.approx(reference.pcb([flat(m, ["a"]) for m in models], [1] * 3, 0.5)[0]),
        1,
        0,
        0,
    ]
    assert merged[0] > 0
