"""DARE and DELLA against their formulas in float64, with masks drawn in plain Python integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import random_methods as reference
from references.family import (
    DTYPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    masks_of,
    per_model,
    random_family,
    scopes_of,
)

from merging import MergingError, merge_state_dicts, ops

ELECTION = {"sign": "total", "elect_on": "delta", "zero_sum": "majority", "normalize": True}
DARE = {"density": 0.8, "rescale": "expected", "lambda": 1.0}
DELLA = {"density": 0.7, "epsilon": 0.07, "rescale": "expected", "lambda": 1.1}
MERGEKIT = {"density": 1.0, "rescale": "l1"}
DEFAULTS = {
    "dare_linear": ({**DARE, "normalize": True}, {**MERGEKIT, "normalize": False}),
    "dare_ties": (
        {**DARE, **ELECTION},
        {**MERGEKIT, "elect_on": "weighted", "zero_sum": "plus", "normalize": False},
    ),
    "della_linear": ({**DELLA, "normalize": False}, {**MERGEKIT, "epsilon": 0.15, "lambda": 1.0}),
    "della": (
        {**DELLA, **ELECTION, "elect_on": "weighted", "zero_sum": "plus"},
        {**MERGEKIT, "epsilon": 0.15, "lambda": 1.0},
    ),
}
"""The parameters of methods.md by profile: the paper's, and where mergekit's differ."""
FAMILIES = {"random": random_family, "coarse": coarse_family}
CASES = [*(("random", dtype) for dtype in DTYPES), ("coarse", torch.float32)]
RESCALE = {True: "l1", False: "none"}


def expected_change(method, base, models, names, options):
    """The merged change of the tensors `names` (one scope), flat."""
    paper, mergekit = DEFAULTS[method]
    known = {**paper, **(mergekit if options.get("profile") == "mergekit" else {}), **options}
    deltas = [deltas_of(base, model) for model in models]
    experts = range(len(models))
    density, epsilon = (per_model(known.get(name, 0.0), len(models)) for name in ("density", "epsilon"))
    keep = [
        np.concatenate(
            [
                reference.della_keep(deltas[t][name].double().numpy(), density[t], epsilon[t])
                if method.startswith("della")
                else np.full(deltas[t][name].numel(), float(density[t]))
                for name in names
            ]
        )
        for t in experts
    ]
    masks = [masks_of(keep[t], names, options.get("seed", 0), t) for t in experts]
    combine = reference.pruned_linear if method.endswith("linear") else reference.pruned_election
    words = ["normalize"] if method.endswith("linear") else list(ELECTION)
    return combine(
        [flat(delta, names) for delta in deltas],
        masks,
        keep,
        per_model(known.get("weight", 1.0), len(models)),
        known["lambda"],
        sizes=[base[name].numel() for name in names],
        rescale=RESCALE.get(known["rescale"], known["rescale"]),
        **{word: known[word] for word in words},
    )


def check(method, family, dtype, options, scope):
    base, models = FAMILIES[family](3, 21, dtype)
    merged = merge_state_dicts(base, models, method, **options)
    for names in scopes_of(scope):
        assert_close(merged, base, expected_change(method, base, models, names, options), names)


LINEAR = [
    {},
    {"seed": 7, "density": [0.1, 0.5, 1.0], "weight": [0.5, -1.0, 2.0], "lambda": 1.3},
    {"density": 0.4, "rescale": "l1", "weight": [0.2, 0.9, 0.4]},
    {"density": 0.5, "rescale": "none", "normalize": False, "seed": 2**63 - 1},
    {"density": [0.01, 0.0, 0.3], "normalize": False},
    {"profile": "mergekit"},
    {"profile": "mergekit", "density": [0.2, 0.6, 0.9], "weight": [1.0, -0.5, 0.25], "lambda": 0.7},
    {"profile": "mergekit", "density": 0.5, "rescale": False, "normalize": True, "weight": [1.0, 2.0, 3.0]},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", LINEAR, ids=str)
def test_dare_linear(options, dtype):
    check("dare_linear", "random", dtype, options, "model")


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sign": "frequency", "density": 0.5, "seed": 3},
        {"density": 0.4, "rescale": "l1", "weight": [0.5, 1.0, 2.0]},
        {"density": [0.2, 0.5, 1.0], "weight": [1.0, -0.5, 0.25], "lambda": 1.3},
        {"density": 0.5, "rescale": "none", "normalize": False, "elect_on": "weighted", "weight": [4, 2, 1]},
        {"density": 0.02, "zero_sum": "plus"},
    ],
    ids=str,
)
def test_dare_ties(options, scope, family, dtype):
    check("dare_ties", family, dtype, {**options, "scope": scope}, scope)


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": [0.2, 0.6, 0.9], "weight": [1.0, -0.5, 0.25]},
        {"density": 0.5, "rescale": "none", "normalize": True, "weight": [1.0, 2.0, 4.0]},
    ],
    ids=str,
)
def test_dare_ties_as_mergekit_has_it(options, family, dtype):
    """A draw is plus, so the scope is each tensor."""
    check("dare_ties", family, dtype, {"profile": "mergekit", **options}, "tensor")


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.5, "epsilon": 0.49, "seed": 9},
        {"density": 0.5, "epsilon": 0.5 - 1e-6},
        {"density": [0.2, 0.5, 1.0], "epsilon": [0.1, 0.0, 0.3], "weight": [0.5, 1.0, 2.0], "lambda": 0.9},
        {"density": 0.6, "epsilon": 0.4, "rescale": "l1", "sign": "frequency"},
        {"density": 0.6, "epsilon": 0.1, "rescale": "none", "normalize": False, "elect_on": "delta"},
        {"density": 0.4, "zero_sum": "majority", "weight": [1.0, -0.5, 0.25]},
        {"density": 0.05, "epsilon": 0.04},
        {"profile": "mergekit"},
        {"profile": "mergekit", "density": [0.3, 0.5, 0.8], "weight": [1.0, -0.5, 0.25]},
        {"profile": "mergekit", "density": [0.5, 0.0, 0.5], "epsilon": 0.2},
    ],
    ids=str,
)
def test_della(options, family, dtype):
    check("della", family, dtype, options, "tensor")


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": [0.2, 0.5, 1.0], "epsilon": [0.1, 0.3, 0.9], "weight": [0.5, -1.0, 2.0], "lambda": 1.0},
        {"density": 0.6, "epsilon": 0.25, "rescale": "l1", "normalize": True, "seed": 1},
        {"profile": "mergekit"},
        {"profile": "mergekit", "density": 0.5, "rescale": True},
    ],
    ids=str,
)
def test_della_linear(options, family, dtype):
    check("della_linear", family, dtype, options, "tensor")


def test_della_with_a_window_of_nothing_is_dare():
    base, models = random_family(3, 22, torch.float32)
    shared = {"density": 0.6, "seed": 4, "lambda": 1.0}
    della = merge_state_dicts(base, models, "della_linear", epsilon=0.0, **shared)
    dare = merge_state_dicts(base, models, "dare_linear", normalize=False, **shared)
    assert all(torch.equal(della[name], dare[name]) for name in base)


def test_probabilities_over_a_row_average_to_the_density():
    for size in (2, 3, 7, 100):
        keep = reference.della_keep(np.random.default_rng(0).normal(size=(1, size)), 0.6, 0.3)
        assert keep.mean() == pytest.approx(0.6, abs=1e-12)
        assert (keep.min(), keep.max()) == pytest.approx((0.3, 0.9))


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(
    ("density", "epsilon", "fits"),
    [
        (0.9, 0.1, True),  # density + ε = 1 up to 1e-9, which mergekit refuses
        (0.7, 0.30000000001, True),
        (0.7, 0.3001, False),
        (0.1, 0.1, False),  # density − ε must be above 0
        (0.5, 0.6, False),
        (1.0, 0.9, True),  # nothing is pruned, ε unused
        (0.0, 0.0, False),
    ],
)
def test_where_the_window_of_della_fits(method, density, epsilon, fits):
    base, models = random_family(2, 23, torch.float32)
    if fits:
        merge_state_dicts(base, models, method, density=density, epsilon=epsilon)
    else:
        with pytest.raises(MergingError, match=r"epsilon|density 0"):
            merge_state_dicts(base, models, method, density=density, epsilon=epsilon)


def test_density_0_leaves_the_base_under_mergekit():
    base, models = random_family(2, 24, torch.float32)
    for method in DEFAULTS:
        merged = merge_state_dicts(base, models, method, density=0.0, profile="mergekit")
        assert all(torch.equal(merged[name], base[name]) for name in base)


def test_rows_are_ordered_as_a_stable_sort_by_magnitude_orders_them():
    """Ties, both zeros and infinities included, in rows of one element and of many."""
    rows = torch.randint(-3, 4, (2, 5, 40), generator=torch.Generator().manual_seed(1)).float()
    rows[0, 0, :4] = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    for some in (rows, rows[..., :1], rows[:, :0], torch.randn(2, 3, 1000)):
        expected = np.argsort(-np.abs(some.numpy()), axis=-1, kind="stable")
        found = ops.order_in_rows(ops.Changes(some)).numpy()
        assert np.array_equal(found, expected.reshape(found.shape))
