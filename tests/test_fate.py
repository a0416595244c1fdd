"""The fate of every change, projection, residual and what casts lose, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import fate as reference
from references.family import (
    DTYPES,
    NAMES,
    SHAPES,
    coarse_family,
    flat,
    heavy_family,
    random_family,
)
from references.fate import plan_of
from references.importance import made_up_importance

from merging import MergingError
from merging.checkpoint import StateDict
from merging.engine import MemorySink, run_plan
from merging.inspecting.fate import FATES, FateWatch
from merging.inspecting.sums import total
from merging.inspection import preview_plan
from merging.reports.report import Preview

FAMILIES = {"heavy": heavy_family, "random": random_family, "coarse": coarse_family}
CASES = [
    ("task_arithmetic", {}),
    ("task_arithmetic", {"lambda": 1.0, "weight": [0.5, 0.0, -0.75]}),
    ("task_arithmetic", {"lambda": 0.0}),
    ("magnitude", {}),
    ("magnitude", {"density": [0.0, 0.5, 1.0], "weight": [1.0, 2.0, 0.5]}),
    ("ties", {}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": 0.6, "weight": [1.0, 0.0, 2.0]}),
    ("ties", {"density": 0.6, "weight": [1.0, -0.5, 0.25], "profile": "mergekit"}),
    ("dare_linear", {"density": 0.3, "seed": 5}),
    ("dare_ties", {"density": 0.5, "seed": 2**40}),
    ("della", {"density": 0.5}),
    ("pcb", {"ratio": 0.3}),
    ("dppa", {"amplify": (1.8, 0.0)}),
    ("dppa", {"levels": (0.7, 0.4), "amplify": (2.0, 1.0), "weight": [1.0, -1.0, 0.5]}),
    ("apl", {"density": 0.4}),
    ("apl", {"density": 0.4, "drop": "magnitude", "weight": [1.0, 0.0, 2.0]}),
    ("apl", {"density": 0.6, "elect": True}),
    ("sce", {}),
    ("sce", {"select_topk": 0.5}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}),
    ("ram", {"epsilon": 0.01}),
    ("model_stock", {}),
]
BF16_OF_FLOAT32 = ("heavy", torch.float32, torch.bfloat16)
KINDS = [
    BF16_OF_FLOAT32,
    ("heavy", torch.bfloat16, torch.bfloat16),
    ("heavy", torch.bfloat16, torch.float16),
    ("coarse", torch.float32, torch.float32),
]
ROUNDS_SCORES = {"pcb"}
"""Methods whose float32 scores may fall on the other side of a threshold than float64 ones."""


def merged_with_fates(plan, origin=None):
    sink, watch = MemorySink([tensor.info for tensor in plan.tensors]), FateWatch(origin)
    for _ in run_plan(plan, sink, device="cpu", watches=[watch]):
        pass
    return sink.tensors, watch.result()


def preview_of(plan, **options):
    *_, preview = preview_plan(plan, device="cpu", **options)
    assert isinstance(preview, Preview)
    return preview


def check(method, base, models, options, out):
    """Every number of every tensor; the fates that occurred."""
    options = dict(options)
    if method == "apl":
        options["importance"] = made_up_importance(base, models)
    plan = plan_of(base, models, method, out=out, **options)
    merged, fates = merged_with_fates(plan)
    assert preview_of(plan).tensors == fates
    wanted = reference.pieces_of(method, base, models, options)
    met = np.zeros(len(FATES))
    assert {name for name, found in fates.items() if found.elements} == {n for n in NAMES if base[n].numel()}
    for name, found in fates.items():
        assert found.elements == base[name].numel()
        deltas, sparse, parts, lam = wanted[name]
        output, start = (flat(values, [name]) for values in (merged, {name: base[name].to(out)}))
        energy, unsure = reference.energies(deltas, sparse, parts, lam, output, start)
        slack = 1.0 if method in ROUNDS_SCORES else 0.0
        for t in range(len(models)):
            whole = (deltas[t] ** 2).sum()
            assert sum(found.energy[t]) == pytest.approx(whole, rel=1e-12, abs=0)
            for number in range(len(FATES)):
                bound = 1e-12 * whole + unsure[t] + 0.02 * slack * whole
                assert abs(found.energy[t][number] - energy[t][number]) <= bound, (name, t, FATES[number])
            if whole > 0:
                assert sum(found.share(t, fate) for fate in FATES) == pytest.approx(1, abs=1e-9)
        met += energy.sum(axis=0)
        check_projections(found, deltas, lam * parts, 0.05 if slack else 1e-5)
        check_casts(found, base[name], lam * parts, slack)
    return met


def check_projections(found, deltas, parts, tolerance):
    """Against NumPy's own least squares over the experts' changes."""
    change = parts.sum(axis=0)
    length = np.linalg.norm(change)
    assert found.change**0.5 == pytest.approx(length, rel=tolerance, abs=1e-12)
    for t, delta in enumerate(deltas):
        square = delta @ delta
        expected = change @ delta / square if square > 0 else None
        assert found.projection(t) == (
            None if expected is None else pytest.approx(expected, rel=tolerance, abs=tolerance)
        )
    if length > 0:
        factors = np.linalg.lstsq(deltas.T, change, rcond=1e-5)[0]
        left = np.linalg.norm(change - deltas.T @ factors) / length
        assert found.residual() == pytest.approx(left, abs=max(tolerance, 1e-6))


def check_casts(found, base, parts, slack):
    """Losses of the three dtypes; elements so near a rounding edge that float32 decides are counted as slack."""
    exact, change = base.double().numpy().ravel(), parts.sum(axis=0)
    clear = np.abs(change) > 1e-6 * np.abs(parts).sum(axis=0)
    for word, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        verdicts = [
            (
                torch.tensor(exact + change * scale).to(torch.float32).to(dtype) == base.flatten().to(dtype)
            ).numpy()
            for scale in (1 - 1e-5, 1.0, 1 + 1e-5)
        ]
        surely = np.logical_and.reduce(verdicts) & clear
        maybe = np.logical_or.reduce(verdicts) & (change != 0)
        extra = int(slack * 0.05 * len(change)) + 1
        assert surely.sum() - slack * extra <= found.casts[word].lost <= maybe.sum() + slack * extra
        if not slack:
            error = 1e-6 * np.abs(parts).sum(axis=0)
            low = (np.maximum(np.abs(change) - error, 0)[surely] ** 2).sum()
            high = ((np.abs(change) + error)[maybe] ** 2).sum()
            assert low * (1 - 1e-12) <= found.casts[word].energy <= high * (1 + 1e-12)
        assert found.casts[word].overflow == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_the_fate_of_every_element(method, options, kind):
    family, dtype, out = kind
    base, models = FAMILIES[family](3, 61, dtype)
    check(method, base, models, options, out)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "pcb", "dppa", "ram"])
@pytest.mark.parametrize("experts", [1, 8])
def test_other_numbers_of_experts(experts, method):
    base, models = heavy_family(experts, 62, torch.float32)
    check(method, base, models, {}, torch.bfloat16)


def test_nearswap_rounds_and_drops():
    base, models = heavy_family(1, 63, torch.float32)
    met = check("nearswap", base, models, {"t": 0.002}, torch.bfloat16)
    assert met[FATES.index("rounded")] > 0.1 * met.sum()
    met = check("nearswap", base, models, {"t": 0.0}, torch.bfloat16)
    assert met[FATES.index("dropped")] == met.sum()


def test_every_fate_occurs():
    """So that the comparisons above compare something."""
    base, models = heavy_family(3, 61, torch.float32)
    models = [
        {name: base[name] + (v - base[name]).clamp(-0.003, 0.003) for name, v in m.items()} for m in models
    ]
    elected = check("ties", base, models, {"density": 0.6}, torch.bfloat16)
    assert (elected[[0, 1, 2, 4]] > 1e-2 * elected.sum()).all()
    summed = check("task_arithmetic", base, models, {}, torch.bfloat16)
    assert (summed[[2, 3, 4]] > 1e-2 * summed.sum()).all()
    assert summed[[0, 1]].sum() == 0


def test_what_weighs_nothing():
    """An expert of weight 0 is dropped; with λ 0 the output is the base, so the rest counts as rounded away."""
    base, models = random_family(3, 64, torch.float32)
    found = total(
        merged_with_fates(plan_of(base, models, "ties", weight=[1.0, 0.0, 1.0], density=1.0))[1].values()
    )
    assert found.share(1, "dropped") == 1
    found = total(merged_with_fates(plan_of(base, models, "task_arithmetic", **{"lambda": 0.0}))[1].values())
    assert [found.share(t, "rounded") for t in range(3)] == [1, 1, 1]
    assert (found.change, found.changed, found.residual()) == (0, 0, None)
    assert found.lost_share("bfloat16") is None


def test_equal_opposite_and_unchanged_experts():
    for dtype in DTYPES:
        start = {name: torch.ones(shape, dtype=dtype) for name, shape in SHAPES.items()}
        up, down = ({n: (v.float() + s * 0.25).to(dtype) for n, v in start.items()} for s in (1, -1))
        options = {"lambda": 1.0}
        opposite = total(
            merged_with_fates(plan_of(start, [up, down], "task_arithmetic", **options))[1].values()
        )
        assert opposite.change == 0
        assert [opposite.share(t, "rounded") for t in (0, 1)] == [1, 1]
        weighed = plan_of(start, [up, down], "task_arithmetic", weight=[1.0, 0.5], **options)
        outcome = total(merged_with_fates(weighed)[1].values())
        assert outcome.share(0, "kept") == outcome.share(1, "cancelled") == 1
        assert (outcome.projection(0), outcome.projection(1)) == (0.5, -0.5)
        elected = total(merged_with_fates(plan_of(start, [up, down], "ties", density=1.0))[1].values())
        assert elected.share(0, "kept") == elected.share(1, "outvoted") == 1
        equal = plan_of(start, [up, dict(up), start], "task_arithmetic", **options)
        outcome = total(merged_with_fates(equal)[1].values())
        assert outcome.share(0, "kept") == outcome.share(1, "kept") == 1
        assert outcome.share(2, "kept") is None
        assert outcome.projection(2) is None
        assert outcome.projection(0) == 2
        assert outcome.residual() == pytest.approx(0, abs=1e-7)


def test_too_large_for_a_dtype():
    """A merge whose result fits float32 and bfloat16, of which three values become infinite in float16."""
    base = {"a": torch.tensor([6e4, -6e4, 1.0, 6.55e4, 0.0])}
    models = [{"a": base["a"] + torch.tensor([1e4, -1e4, 0.5, 100.0, 1.0])}]
    fates = merged_with_fates(plan_of(base, models, "task_arithmetic", **{"lambda": 1.0}))[1]["a"]
    assert [fates.casts[word].overflow for word in ("float32", "bfloat16", "float16")] == [0, 0, 3]


def test_a_small_change_is_lost_in_bfloat16_alone():
    base = {"a": torch.ones(1000)}
    models = [{"a": base["a"] + 2.0**-9 * 0.9}]
    fates = merged_with_fates(plan_of(base, models, "task_arithmetic", **{"lambda": 1.0}))[1]["a"]
    assert [fates.lost_share(word) for word in ("float32", "bfloat16", "float16")] == [0, 1, 0]
    assert [fates.lost_energy(word) for word in ("float32", "bfloat16", "float16")] == [0, 1, 0]
    assert fates.share(0, "kept") == 1
    out = plan_of(base, models, "task_arithmetic", out=torch.bfloat16, **{"lambda": 1.0})
    assert merged_with_fates(out)[1]["a"].share(0, "rounded") == 1


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher", "multislerp", "nuslerp", "passthrough"])
def test_methods_that_are_no_sum(method):
    """Projection and residual only; measured from the family's base where the method has none."""
    count = {"slerp": 1, "passthrough": 1, "nuslerp": 2}.get(method, 3)
    base, models = random_family(count, 66, torch.float32)
    options = {"weight": [0.5, 0.3, 0.2][:count]} if method in {"linear", "multislerp", "nuslerp"} else {}
    based = method == "slerp"
    plan = plan_of(base if based else None, models, method, **options)
    preview = preview_of(plan, origin=None if based else StateDict(base, "base"))
    merged = MemorySink([tensor.info for tensor in plan.tensors])
    for _ in run_plan(plan, merged, device="cpu"):
        pass
    assert not preview.elementwise
    for name, found in preview.tensors.items():
        assert found.energy is None
        assert found.share(0, "kept") is None
        deltas = np.array([flat(model, [name]) - flat(base, [name]) for model in models])
        change = flat(merged.tensors, [name]) - flat(base, [name])
        for t, delta in enumerate(deltas):
            assert found.projection(t) == pytest.approx(change @ delta / (delta @ delta), rel=1e-4)
        factors = np.linalg.lstsq(deltas.T, change, rcond=1e-5)[0]
        left = np.linalg.norm(change - deltas.T @ factors) / np.linalg.norm(change)
        assert found.residual() == pytest.approx(left, abs=2e-5)
        assert found.casts["float32"].lost == 0


def test_what_has_no_origin_is_said():
    base, models = random_family(2, 67, torch.float32)
    plan = plan_of(None, models, "linear")
    with pytest.raises(MergingError, match="uses no base and the recipe names none"):
        preview_of(plan)
    other = {**base, "model.layers.1.column.weight": torch.zeros(6, 1)}
    with pytest.raises(
        MergingError, match=r"'model.layers.1.column.weight': other has it as \[6, 1\], not \[5, 1\]"
    ):
        preview_of(plan, origin=StateDict(other, "other"))


def test_blocks_of_rows_change_nothing(monkeypatch):
    base, models = heavy_family(3, 68, torch.bfloat16)
    for method in ("dare_ties", "della", "ties"):
        whole = merged_with_fates(plan_of(base, models, method))[1]
        with monkeypatch.context() as patch:
            patch.setattr("merging.tensor_plan.PIECE_BYTES", 300)
            patch.setattr("merging.inspecting.fate.CHUNK", 7)
            blocks = merged_with_fates(plan_of(base, models, method))[1]
        for name, found in whole.items():
            assert np.allclose(found.energy, blocks[name].energy, rtol=1e-12, atol=0)
            assert np.allclose(found.gram, blocks[name].gram, rtol=1e-12, atol=1e-18)
            assert found.casts["bfloat16"].lost == blocks[name].casts["bfloat16"].lost
