"""DPPA against its formulas in float64."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from references import dppa as reference
from references.family import (
    DTYPES,
    NAMES,
    SHAPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    heavy_family,
    per_model,
    random_family,
)

from merging import merge_state_dicts

FAMILIES = {"heavy": heavy_family, "random": random_family, "coarse": coarse_family}
CASES = [*(("heavy", dtype) for dtype in DTYPES), ("random", torch.bfloat16), ("coarse", torch.float32)]
BLOCKS = {
    name: int(re.search(r"layers\.(\d+)\.", name)[1])
    for name, shape in SHAPES.items()
    if "layers." in name and len(shape) == 2 and 0 not in shape
}
"""The 2-D linears inside blocks, and their block."""


def expected_change(base, models, options):
    deltas = [{name: flat(deltas_of(base, model), [name]) for name in NAMES} for model in models]
    merged = reference.dppa(
        deltas,
        BLOCKS,
        per_model(options.get("weight", 1.0), len(models)),
        options.get("lambda", 1.0),
        **{name: options[name] for name in ("levels", "amplify", "rule", "nu") if name in options},
    )
    return np.concatenate([merged[name] for name in NAMES])


OPTIONS = [
    {},
    {"levels": [0.8], "amplify": [1.0]},
    {"levels": [0.95, 0.6, 0.3], "amplify": [2.1, 1.3, 0.5], "weight": [0.5, -1.0, 2.0], "lambda": 1.2},
    {"amplify": [1.8, 0.0]},
    {"amplify": [1.0, 1.5], "rule": "authors"},
    {"amplify": [-1.0, 0.7], "rule": "authors"},
    {"nu": 0.0, "levels": [0.72, 0.55]},
    {"nu": 0.5, "levels": [0.72, 0.45], "amplify": [2.0, 1.0]},
    {"levels": [0.48, 0.0]},
    {"levels": [0.999, 0.99]},
]


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dppa(options, family, dtype):
    base, models = FAMILIES[family](3, 41, dtype)
    merged = merge_state_dicts(base, models, "dppa", **options)
    assert_close(merged, base, expected_change(base, models, options), NAMES)


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_the_defaults(profile):
    base, models = heavy_family(2, 42, torch.float32)
    merged = merge_state_dicts(base, models, "dppa", profile=profile)
    options = {"levels": (0.9, 0.8), "amplify": (1, 1), "rule": "strictest", "nu": 0.08}
    assert_close(merged, base, expected_change(base, models, options), NAMES)


def test_levels_may_be_a_tuple():
    base, models = heavy_family(2, 42, torch.float32)
    one, other = (
        merge_state_dicts(base, models, "dppa", levels=kind((0.7, 0.4)), amplify=kind((2.0, 1.0)))
        for kind in (list, tuple)
    )
    assert all(torch.equal(one[name], other[name]) for name in NAMES)


def test_the_family_tells_densities_apart():
    """Blocks and linears with other outliers keep other shares, so that the tests above compare something."""
    base, models = heavy_family(1, 41, torch.float32)
    delta = {name: flat(deltas_of(base, models[0]), [name]) for name in NAMES}
    pruned = reference.prune(delta, BLOCKS, 0.5, 0.3)
    shares = {name: np.count_nonzero(pruned[name]) / len(pruned[name]) for name in BLOCKS}
    assert max(shares.values()) - min(shares.values()) > 0.3
    assert all((pruned[name] == delta[name]).all() for name in NAMES if name not in BLOCKS)


def test_stricter_masks_lie_inside_looser_ones():
    base, models = heavy_family(1, 43, torch.bfloat16)
    kept = []
    for p in (0.9, 0.7, 0.4, 0.1):
        merged = merge_state_dicts(base, models, "dppa", levels=[p], amplify=[1.0])
        kept.append(flat(merged, NAMES) != flat(base, NAMES))
    assert all((strict <= loose).all() for strict, loose in pairwise(kept))
    assert kept[0].sum() < kept[1].sum() < kept[2].sum() < kept[3].sum()


def test_no_linear_inside_a_block_means_nothing_is_pruned():
    base = {"model.embed_tokens.weight": torch.zeros(3, 2), "model.layers.0.norm.weight": torch.zeros(4)}
    models = [{name: torch.full_like(value, 0.5 * t) for name, value in base.items()} for t in (1, 2)]
    merged = merge_state_dicts(base, models, "dppa", weight=[1.0, 0.5], **{"lambda": 2.0})
    assert all((value == 2.0).all() for value in merged.values())
