"""APL against its formulas in float64, given an importance artefact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import apl as reference
from references.family import (
    DTYPES,
    NAMES,
    SHAPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    masks_of,
    per_model,
    random_family,
)
from references.importance import made_up_importance

from merging import METHODS, MergingError, merge_state_dicts
from merging.methods import Group
from merging.partitions import Scores

FAMILIES = {"random": random_family, "coarse": coarse_family}
DEFAULTS = {
    "density": 0.8,
    "tau1": 0.1,
    "tau2": 1.0,
    "lambda": 1.0,
    "drop": "random",
    "elect": False,
    "include": False,
    "seed": 0,
}


def expected_change(base, models, importance, options):
    known = {**DEFAULTS, **options}
    partitions, experts = importance.partitions, range(len(models))
    index = np.concatenate([partitions.index[name].expand(SHAPES[name]).flatten().numpy() for name in NAMES])
    sizes = np.bincount(index, minlength=len(partitions))
    outside = np.zeros(len(partitions), dtype=bool) if known["include"] else partitions.outside.numpy()
    weight, density = (per_model(known.get(name, 1.0), len(models)) for name in ("weight", "density"))
    values = importance.values.numpy()
    calibrated = [
        reference.calibrate(values, sizes, outside, 1 - density[t], known["tau1"], known["tau2"])
        for t in experts
    ]
    pruned, factors = [], []
    for t in experts:
        delta, ratio = flat(deltas_of(base, models[t]), NAMES), calibrated[t][0][t]
        if known["drop"] == "random":
            drop = ratio[index]
            pruned.append(reference.random_drop(delta, masks_of(1 - drop, NAMES, known["seed"], t), drop))
        else:
            taylor = known["drop"] == "taylor"
            order_by = np.abs(stored(importance.sources[t]) if taylor else delta)
            pruned.append(reference.keep_top(delta, order_by, index, ratio))
        factors.append(weight[t] * calibrated[t][1][t][index])
    return reference.merge(pruned, factors, known["lambda"], known["elect"])


def stored(source):
    return np.concatenate([source.read(name).double().flatten().numpy() for name in NAMES])


def check(family, dtype, partition, options, equal=False):
    base, models = FAMILIES[family](3, 51, dtype)
    importance = made_up_importance(base, models, partition, equal=equal)
    merged = merge_state_dicts(base, models, "apl", importance=importance, **options)
    assert_close(merged, base, expected_change(base, models, importance, options), NAMES)


OPTIONS = [
    {},
    {"density": [0.25, 0.6, 1.0], "weight": [0.5, -1.0, 2.0], "lambda": 1.3, "seed": 8},
    {"include": True, "tau1": 0.5, "tau2": 0.1},
    {"density": 0.4, "elect": True, "weight": [1.0, 0.5, 2.0]},
    {"density": 0.01, "tau1": 0.0},
    {"density": 0.1, "tau1": 1.0, "include": True},
    {"density": 0.9, "tau1": 1.0, "profile": "mergekit"},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("partition", ["model", "layer", "module", "row"])
@pytest.mark.parametrize("drop", ["random", "magnitude", "taylor"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_apl(options, drop, partition, dtype):
    check("random", dtype, partition, {**options, "drop": drop})


@pytest.mark.parametrize("partition", ["model", "module", "row"])
@pytest.mark.parametrize("drop", ["random", "magnitude"])
@pytest.mark.parametrize("elect", [False, True])
def test_changes_of_equal_size(elect, drop, partition):
    """Among equals in a partition the first by tensor name and index stays; a sum of 0 elects plus."""
    options = {"drop": drop, "elect": elect, "density": 0.4}
    check("coarse", torch.float32, partition, options, equal=elect)


def test_equal_importance_is_dare_without_the_average():
    base, models = random_family(3, 52, torch.float32)
    importance = made_up_importance(base, models, equal=True)
    apl = merge_state_dicts(base, models, "apl", importance=importance, density=0.6, seed=4)
    dare = merge_state_dicts(base, models, "dare_linear", density=0.6, seed=4, normalize=False)
    for name in NAMES:
        torch.testing.assert_close(apl[name], dare[name], rtol=1e-6, atol=1e-7)


def test_drop_ratios_are_float64():
    """Their mean over what is calibrated is p, and p itself holds outside, both to more digits than float32 has."""
    base, models = random_family(2, 58, torch.float32)
    importance = made_up_importance(base, models, "row")
    method = METHODS["apl"].configure("paper", {"density": (0.3, 0.7), "tau1": 0.2})
    scores = Scores(importance.partitions, importance.values)
    with pytest.raises(StopIteration) as stop:
        next(method.survey(Group(SHAPES, 2, scores)))
    drop, sizes = stop.value.value.drop, importance.partitions.sizes.double()
    inside = ~importance.partitions.outside
    for ratios, density in zip(drop, (0.3, 0.7), strict=True):
        assert (ratios[~inside] - (1 - density)).abs().max() < 1e-15
        mean = (ratios * sizes)[inside].sum() / sizes[inside].sum()
        assert float(mean) == pytest.approx(1 - density, abs=1e-12)


def test_importance_follows_its_expert():
    """The artefact knows models by their weights: it may hold more of them, in another order."""
    base, models = random_family(3, 53, torch.float32)
    importance = made_up_importance(base, models)
    one, other = (
        merge_state_dicts(base, some, "apl", importance=importance, drop="magnitude", density=0.4)
        for some in (models[:2], models[1::-1])
    )
    for name in NAMES:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_a_file_serves_as_well_as_the_object(tmp_path):
    base, models = random_family(2, 54, torch.bfloat16)
    importance = made_up_importance(base, models, "row")
    importance.save(tmp_path / "importance.safetensors")
    for drop in ("random", "taylor"):
        one, other = (
            merge_state_dicts(base, models, "apl", importance=source, drop=drop)
            for source in (importance, tmp_path / "importance.safetensors")
        )
        assert all(torch.equal(one[name], other[name]) for name in NAMES)


def test_what_apl_needs_is_said():
    base, models = random_family(2, 55, torch.float32)
    with pytest.raises(MergingError, match="importance"):
        merge_state_dicts(base, models, "apl")
    with pytest.raises(MergingError, match="taylor"):
        merge_state_dicts(
            base, models, "apl", importance=made_up_importance(base, models, elements=False), drop="taylor"
        )
    strangers = random_family(2, 56, torch.float32)[1]
    with pytest.raises(MergingError, match=r"importance: says nothing of the expert model 1"):
        merge_state_dicts(base, strangers, "apl", importance=made_up_importance(base, models))
    for density in (0.0, 0.005):
        with pytest.raises(MergingError, match="density"):
            merge_state_dicts(
                base, models, "apl", importance=made_up_importance(base, models), density=density
            )
