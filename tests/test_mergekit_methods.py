"""mergekit's other methods against their formulas in float64, and what each of them promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import mergekit_methods as reference
from references.family import (
    DTYPES,
    SHAPES,
    assert_close,
    coarse_family,
    deltas_of,
    flat,
    heavy_family,
    per_model,
    random_family,
    scopes_of,
)

from merging import METHODS, MergingError, PlanError, merge_state_dicts

FAMILIES = {"random": random_family, "coarse": coarse_family, "heavy": heavy_family}
CASES = [*(("random", dtype) for dtype in DTYPES), ("coarse", torch.float32), ("heavy", torch.bfloat16)]
of_family = pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
FULL = [name for name, shape in SHAPES.items() if np.prod(shape, dtype=int)]


def arrays(tensors, name):
    return [model[name].double().numpy() for model in tensors]


def changes_of(base, models, name):
    """Float32 changes of one tensor as float64 arrays of its shape."""
    return [(model[name].float() - base[name].float()).double().numpy() for model in models]


def zeros(tensors):
    return {name: torch.zeros_like(value) for name, value in tensors.items()}


def compare(merged, base, change_of, *, leave_out=None, relative=1e-6):
    """Tensor by tensor with `change_of(name)`."""
    for name in FULL:
        change = np.asarray(change_of(name)).ravel()
        skipped = None if leave_out is None else np.asarray(leave_out(name)).ravel()
        assert_close(merged, base, change, [name], leave_out=skipped, relative=relative)


@of_family
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.4, "gamma": 0.2},
        {"density": [0.1, 0.5, 1.0], "gamma": [0.05, 0.7, 0.3], "weight": [0.5, 1.0, -2.0], "lambda": 1.3},
        {"density": 0.0, "gamma": 0.5},
        {"profile": "mergekit", "density": 0.3, "gamma": 0.1, "normalize": True, "weight": [0.2, 0.3, 0.9]},
        {"profile": "mergekit"},
    ],
)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(method, options, scope, family, dtype):
    if method == "breadcrumbs_ties" and options.get("weight") == [0.5, 1.0, -2.0]:
        options = {**options, "weight": [0.5, 1.0, -3.0]}
    base, models = FAMILIES[family](3, 41, dtype)
    merged = merge_state_dicts(base, models, method, scope=scope, **options)
    mergekit = options.get("profile") == "mergekit"
    elected = method == "breadcrumbs_ties"
    density = per_model(options.get("density", 1.0 if mergekit else 0.15))
    gamma = per_model(options.get("gamma", 0.01 if mergekit else 0.006))
    weight = per_model(options.get("weight", 1.0))
    scale = options.get("lambda", 1.0 if mergekit or elected else 0.2)
    normalize = options.get("normalize", elected and not mergekit)
    count = "floor" if mergekit else "nearest"
    for names in scopes_of(scope):
        sparse = [
            reference.crumbs(flat(deltas_of(base, model), names), k, g, count)
            for model, k, g in zip(models, density, gamma, strict=True)
        ]
        if elected:
            how = {"elect_on": "weighted", "zero_sum": "plus"} if mergekit else {}
            expected = reference.breadcrumbs_ties(sparse, weight, scale, normalize=normalize, **how)
        else:
            expected = reference.breadcrumbs(sparse, weight, scale, normalize)
        assert_close(merged, base, expected, names, relative=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_breadcrumbs_rescaled(dtype):
    base, models = random_family(2, 42, dtype)
    merged = merge_state_dicts(base, models, "breadcrumbs", density=0.3, gamma=0.1, rescale="l1")

    def change(name):
        deltas = [delta.ravel() for delta in changes_of(base, models, name)]
        return 0.2 * sum(reference.l1_rescaled(reference.crumbs(d, 0.3, 0.1), d) for d in deltas)

    compare(merged, base, change)


def test_crumbs_lie_between_the_largest_and_the_smallest():
    delta = torch.tensor([5.0, -9.0, 1.0, 3.0, -2.0, 0.0, 8.0, 4.0, -6.0, 7.0])
    merged = merge_state_dicts(
        {"a": torch.zeros(10)}, [{"a": delta}], "breadcrumbs", density=0.3, gamma=0.2, lambda_=1.0
    )["a"]
    assert merged.tolist() == [5.0, 0, 0, 0, 0, 0, 0, 0, -6.0, 7.0]


@of_family
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("experts", [2, 4])
def test_model_stock(experts, profile, filter_wise, family, dtype):
    base, models = FAMILIES[family](experts, 43, dtype)
    merged = merge_state_dicts(base, models, "model_stock", filter_wise=filter_wise, profile=profile)
    options = {"clamp": False, "floor": 1e-6} if profile == "mergekit" else {}
    compare(
        merged,
        base,
        lambda name: reference.model_stock(changes_of(base, models, name), filter_wise, **options),
    )


def test_model_stock_of_opposite_changes_is_the_base():
    base = {"a": torch.tensor([1.0, -0.0, 3.0])}
    step = torch.tensor([0.5, 0.0, -1.0])
    models = [{"a": base["a"] + step}, {"a": base["a"] - step}]
    assert torch.equal(
        merge_state_dicts(base, models, "model_stock")["a"].view(torch.int32), base["a"].view(torch.int32)
    )
    alike = [{"a": base["a"] + step}] * 2
    assert torch.equal(merge_state_dicts(base, alike, "model_stock")["a"], base["a"] + step)


@of_family
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.6, 0.11, 0.0])
@pytest.mark.parametrize("experts", [1, 3])
def test_sce(experts, select_topk, profile, family, dtype):
    base, models = FAMILIES[family](experts, 44, dtype)
    merged = merge_state_dicts(base, models, "sce", select_topk=select_topk, profile=profile)
    floor = 1e-6 if profile == "mergekit" else 0.0

    def change(name):
        deltas = [delta.ravel() for delta in changes_of(base, models, name)]
        return reference.sce(deltas, select_topk, floor, cut_off=profile == "mergekit")

    compare(merged, base, change)


def test_sce_weighs_by_the_squares_however_small():
    base = {"a": torch.zeros(2)}
    models = [{"a": torch.tensor([3e-5, 1e-5])}, {"a": torch.tensor([1e-5, 3e-6])}]
    ours = merge_state_dicts(base, models, "sce")["a"].double().numpy()
    squares = np.array([3e-5**2 + 1e-5**2, 1e-5**2 + 3e-6**2])
    share = squares / squares.sum()
    np.testing.assert_allclose(ours, share @ np.array([[3e-5, 1e-5], [1e-5, 3e-6]]), rtol=1e-6)
    theirs = merge_state_dicts(base, models, "sce", profile="mergekit")["a"].double().numpy()
    np.testing.assert_allclose(theirs, [2e-5, 6.5e-6], rtol=1e-6)


@of_family
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("weight", [[1.0, 1.0], [0.2, 0.9], [-0.3, 0.6], [0.5, -0.5], [0.0, 2.0]])
@pytest.mark.parametrize(("flatten", "columns"), [(True, False), (False, False), (False, True)])
def test_nuslerp(flatten, columns, weight, with_base, family, dtype):
    base, models = FAMILIES[family](2, 45, dtype)
    merged = merge_state_dicts(
        base if with_base else None,
        models,
        "nuslerp",
        weight=weight,
        nuslerp_flatten=flatten,
        nuslerp_row_wise=columns,
    )

    def change(name):
        vectors = changes_of(base, models, name) if with_base else arrays(models, name)
        return reference.nuslerp(*vectors, weight, flatten, columns)

    compare(merged, base if with_base else zeros(base), change, relative=4e-6)


@of_family
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("weight", "normalize"), [([1.0] * 3, True), ([0.2, 0.3, 0.9], True), ([0.2, -0.3, 0.9], False)]
)
def test_multislerp(weight, normalize, with_base, family, dtype):
    base, models = FAMILIES[family](3, 46, dtype)
    merged = merge_state_dicts(
        base if with_base else None, models, "multislerp", weight=weight, normalize_weights=normalize
    )

    def change(name):
        vectors = changes_of(base, models, name) if with_base else arrays(models, name)
        return reference.multislerp([vector.ravel() for vector in vectors], weight, normalize)

    compare(merged, base if with_base else zeros(base), change)


@of_family
@pytest.mark.parametrize("options", [{}, {"max_iter": 0}, {"max_iter": 2, "tol": 1e-3}])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_karcher(experts, options, family, dtype):
    base, models = FAMILIES[family](experts, 47, dtype)
    merged = merge_state_dicts(None, models, "karcher", **options)

    def change(name):
        return reference.karcher([vector.ravel() for vector in arrays(models, name)], **options)

    compare(merged, zeros(base), change)


def test_karcher_of_models_far_apart():
    """Right angles and more, where the first mean is not yet the answer: every step counts."""
    generator = torch.Generator().manual_seed(3)
    models = [{"a": torch.randn(40, generator=generator) * scale} for scale in (1.0, 4.0, 0.1)]
    vectors = arrays(models, "a")
    for rounds in (0, 1, 2, 10):
        merged = merge_state_dicts(None, models, "karcher", max_iter=rounds)["a"].double().numpy()
        np.testing.assert_allclose(merged, reference.karcher(vectors, rounds), rtol=0, atol=2e-6)
    apart = reference.karcher(vectors, 0) - reference.karcher(vectors, 10)
    assert np.abs(apart).max() > 0.01


@pytest.mark.parametrize(
    "models", [[[1e-7, 0.0], [1e-7, 0.0]], [[2.0, 1.0], [-2.0, -1.0]], [[0.0, 0.0], [3.0, 4.0]]]
)
def test_karcher_without_a_direction_stays_finite(models):
    merged = merge_state_dicts(None, [{"a": torch.tensor(model)} for model in models], "karcher")["a"]
    expected = {1e-7: [1e-7, 0.0], 2.0: [2.0, 1.0], 0.0: [1.5, 2.0]}[models[0][0]]
    torch.testing.assert_close(merged, torch.tensor(expected))


@of_family
@pytest.mark.parametrize("t", [0.0, 1e-7, 0.01, 0.25, 3.0])
def test_nearswap(t, family, dtype):
    base, models = FAMILIES[family](1, 48, dtype)
    merged = merge_state_dicts(base, models, "nearswap", t=t)
    compare(merged, base, lambda name: reference.nearswap(changes_of(base, models, name)[0], t))


@of_family
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_arcee_fusion(precision, family, dtype):
    base, models = FAMILIES[family](1, 49, dtype)
    merged = merge_state_dicts(base, models, "arcee_fusion", precision=precision)
    found = {name: reference.arcee_fusion(*arrays([base, models[0]], name)) for name in FULL}
    share = 1e-6 if precision == "float32" else 1e-8

    def undecided(name):
        _, distance = found[name]
        return (distance > 0) & (distance < share * np.abs(changes_of(base, models, name)[0]).max())

    compare(
        merged, base, lambda name: changes_of(base, models, name)[0] * found[name][0], leave_out=undecided
    )
    left_out = {name: undecided(name).mean() for name in FULL}
    left_out.pop("model.layers.1.constant.weight")  # a softmax does not see that a row was shifted
    assert np.mean(list(left_out.values())) < 0.05


@of_family
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.05}, {"epsilon": 0.2}])
@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_ram(method, options, family, dtype):
    base, models = FAMILIES[family](3, 50, dtype)
    merged = merge_state_dicts(base, models, method, **options)
    formula = reference.ram if method == "ram" else reference.ramplus
    compare(merged, base, lambda name: formula(changes_of(base, models, name), **options))


def test_ram_raises_what_one_alone_changed():
    base = {"a": torch.zeros(4)}
    models = [{"a": torch.tensor([1.0, 2.0, 4.0, 0.0])}, {"a": torch.tensor([0.0, 0.0, 2.0, 0.0])}]
    assert merge_state_dicts(base, models, "ram")["a"].tolist() == [1.0, 2.0, 3.0, 0.0]
    merged = merge_state_dicts(base, models, "ramplus_tl", r=0.5, alpha=0.4)["a"]
    torch.testing.assert_close(merged, torch.tensor([1.2, 2.4, 3.0, 0.0]))


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_ram_of_one_expert_without_epsilon_is_that_expert(method):
    base, models = random_family(1, 51, torch.bfloat16)
    merged = merge_state_dicts(base, models, method, epsilon=0.0)
    assert all(torch.equal(merged[name], models[0][name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passthrough(dtype):
    _, models = random_family(1, 52, dtype)
    kept = merge_state_dicts(None, models, "passthrough")
    halved = merge_state_dicts(None, models, "passthrough", scale=0.5)
    for name in SHAPES:
        assert torch.equal(kept[name], models[0][name])
        assert torch.equal(halved[name], (models[0][name].float() * 0.5).to(dtype))


EQUAL_MODELS = ["model_stock", "sce", "nuslerp", "multislerp", "karcher", "ram"]


@pytest.mark.parametrize("method", EQUAL_MODELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_base", [True, False])
def test_equal_models_come_out(with_base, dtype, method):
    """Bit for bit, −0 included, where float32 holds their changes."""
    if not with_base and METHODS[method].needs_base:
        return
    base, (model, _) = coarse_family(2, 53, dtype)
    model["model.layers.0.input_layernorm.weight"][0] = -0.0
    base["model.layers.0.input_layernorm.weight"][0] = -0.0
    model["model.layers.1.constant.weight"][:] = 0.0
    copies = [{name: value.clone() for name, value in model.items()} for _ in range(2)]
    options = {"weight": [0.3, 0.9]} if "weight" in METHODS[method].parameters() else {}
    merged = merge_state_dicts(base if with_base else None, copies, method, **options)
    for name in SHAPES:
        assert torch.equal(merged[name], model[name]), name
    assert merged["model.layers.0.input_layernorm.weight"][0].signbit()


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_a_base_turns_models_into_changes(method):
    base = {"a": torch.tensor([10.0, 10.0])}
    models = [{"a": torch.tensor([11.0, 10.0])}, {"a": torch.tensor([10.0, 11.0])}]
    on_changes = merge_state_dicts(base, models, method)["a"]
    torch.testing.assert_close(on_changes, torch.tensor([10 + 0.5**0.5, 10 + 0.5**0.5]))
    on_models = merge_state_dicts(None, models, method)["a"]
    length = (11**2 + 10**2) ** 0.5
    torch.testing.assert_close(on_models, torch.tensor([length * 0.5**0.5] * 2))


@pytest.mark.parametrize("options", [{}, {"nuslerp_flatten": False}])
def test_nuslerp_of_opposite_vectors_is_a_line(options):
    """Every row by itself, and all of them together: cosines of −1 but for rounding."""
    generator = torch.Generator().manual_seed(5)
    one = torch.randn(300, 1, generator=generator)
    models = [{"a": one}, {"a": one * -1.7}]
    merged = merge_state_dicts(None, models, "nuslerp", weight=[0.7, 0.3], **options)["a"]
    torch.testing.assert_close(merged, one * (0.7 - 0.3 * 1.7), rtol=1e-5, atol=1e-6)


def test_multislerp_of_unchanged_and_of_opposite_tensors():
    base = {"a": torch.tensor([1.0, 2.0])}
    same = merge_state_dicts(base, [dict(base)] * 3, "multislerp")["a"]
    assert torch.equal(same, base["a"])
    step = torch.tensor([0.25, -0.5])
    opposite = [{"a": base["a"] + step}, {"a": base["a"] - step}]
    torch.testing.assert_close(merge_state_dicts(base, opposite, "multislerp", weight=[1, 1])["a"], base["a"])


NOT_WHOLE = [
    "model_stock",
    "sce",
    "nuslerp",
    "multislerp",
    "karcher",
    "arcee_fusion",
    "ramplus_tl",
    "breadcrumbs",
]


@pytest.mark.parametrize("method", NOT_WHOLE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filter_wise": True},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
)
def test_blocks_of_rows_equal_the_whole_tensor(method, options, monkeypatch):
    """Every tensor in many pieces, a vector too, and nothing kept between two scans."""
    if not options.keys() <= METHODS[method].parameters().keys():
        return
    base, models = random_family(METHODS[method].experts_wanted or 3, 54, torch.float32)
    options = {**options, **({"select_topk": 0.4} if method == "sce" else {})}
    whole = merge_state_dicts(base, models, method, **options)
    for module in ("merging.plan", "merging.tensor_plan"):
        monkeypatch.setattr(f"{module}.PIECE_BYTES", 50, raising=False)
    monkeypatch.setattr("merging.reading.KEEP_BYTES", 0)
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    blocks = merge_state_dicts(base, models, method, **options)
    for name in SHAPES:
        torch.testing.assert_close(blocks[name], whole[name], rtol=2**-22, atol=2**-24)


@pytest.mark.parametrize(
    ("method", "count", "text"),
    [
        ("model_stock", 1, "at least two models"),
        ("nuslerp", 1, "needs two, not 1"),
        ("nuslerp", 3, "exactly 2 models"),
        ("nearswap", 2, "exactly 1 other model"),
        ("arcee_fusion", 2, "exactly 1 other model"),
        ("passthrough", 2, "exactly 1 model"),
    ],
)
def test_a_wrong_number_of_models_is_named(method, count, text):
    base, models = random_family(count, 55, torch.float32)
    with pytest.raises(PlanError, match=text):
        merge_state_dicts(base if METHODS[method].takes_base else None, models, method)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("breadcrumbs", {"gamma": -0.1}),
        ("breadcrumbs", {"gamma": 1.5}),
        ("sce", {"select_topk": 1.5}),
        ("karcher", {"max_iter": -1}),
        ("karcher", {"max_iter": 2.5}),
        ("karcher", {"tol": 0.0}),
        ("nearswap", {"t": -1.0}),
        ("ram", {"epsilon": -1.0}),
        ("multislerp", {"weight": [1.0, -1.0]}),
        ("arcee_fusion", {"precision": "float16"}),
    ],
)
def test_impossible_values_are_refused(method, options):
    base, models = random_family(METHODS[method].experts_wanted or 2, 56, torch.float32)
    with pytest.raises(MergingError, match=next(iter(options)) if method != "multislerp" else "add up to 0"):
        merge_state_dicts(base, models, method, **options)


VECTORS = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 1e-3, 1e-20, 500.0]), min_size=4, max_size=4),
    min_size=2,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(rows=VECTORS)
def test_spheres_keep_the_length(rows):
    """Zero, equal, opposite and tiny vectors among others: finite, and as long as the definition says."""
    models = [{"a": torch.tensor(row)} for row in rows]
    norms = [float(model["a"].double().norm()) for model in models]
    average = np.mean(norms)
    karcher = float(merge_state_dicts(None, models, "karcher")["a"].double().norm())
    if max(norms) > 1e-5:
        assert karcher == pytest.approx(average, rel=1e-3)
    multislerp = float(merge_state_dicts(None, models, "multislerp")["a"].double().norm())
    assert multislerp <= average * (1 + 1e-3) + 1e-12
