"""Every number of a Report against plain NumPy."""

from __future__ import annotations

import shutil
from itertools import combinations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import merging
from merging.anatomy import locate
from merging.engine import watch
from merging.inspecting.changes import ChangeWatch, bin_edges
from merging.inspecting.sums import total
from merging.inspection import inspect_plan, inspect_recipe, preview_plan, trim_plan

EXPERTS = ("one", "two", "three")


@pytest.fixture(params=["family", "bf16_family"])
def case(request, write_recipe):
    folder = request.getfixturevalue(request.param)
    base, *models = [
        {k: v.double().numpy().flatten() for k, v in load_file(folder / name / "model.safetensors").items()}
        for name in ("base", *EXPERTS)
    ]
    report = merging.inspect(write_recipe(folder, "ties", EXPERTS))
    deltas = {name: [(m[name] - base[name]).astype(np.float32) for m in models] for name in report.tensors}
    return report, base, deltas


@pytest.fixture
def plan(case, write_recipe, request):
    """The plan of the case's family."""
    folder = request.getfixturevalue(request.node.callspec.params["case"])
    return merging.check(write_recipe(folder, "task_arithmetic", EXPERTS))


def test_numbers_of_every_tensor(case):
    report, base, deltas = case
    for name, found in report.tensors.items():
        ours = deltas[name]
        assert found.elements == base[name].size
        for t, delta in enumerate(ours):
            wide = delta.astype(np.float64)
            assert found.relative_change(t) == pytest.approx(
                np.linalg.norm(wide) / np.linalg.norm(base[name])
            )
            assert found.changed_share(t) == np.count_nonzero(delta) / delta.size
            assert found.largest[t] == np.abs(delta).max()
            assert found.mass[t] == pytest.approx(np.abs(wide).sum())
            assert found.histogram[t] == np.histogram(np.abs(wide[wide != 0]), bin_edges())[0].tolist()
        for number, (a, b) in enumerate(combinations(range(3), 2)):
            both = (ours[a] != 0) & (ours[b] != 0)
            opposite = both & (np.sign(ours[a]) != np.sign(ours[b]))
            assert found.signs.opposite_share(number) == (opposite.sum() / both.sum() if both.any() else None)
            wide = [ours[t].astype(np.float64) for t in (a, b)]
            norms = np.linalg.norm(wide[0]) * np.linalg.norm(wide[1])
            assert found.cosine(number) == (
                pytest.approx(wide[0] @ wide[1] / norms, abs=1e-6) if norms else None
            )


def test_totals_are_sums_over_tensors(case):
    report, base, deltas = case
    flat = [np.concatenate([deltas[name][t] for name in deltas]).astype(np.float64) for t in range(3)]
    whole = np.concatenate([base[name] for name in deltas])
    assert report.total.relative_change(1) == pytest.approx(np.linalg.norm(flat[1]) / np.linalg.norm(whole))
    assert report.total.cosine(2) == pytest.approx(
        flat[1] @ flat[2] / np.linalg.norm(flat[1]) / np.linalg.norm(flat[2]), abs=1e-6
    )


def test_the_map_has_blocks_and_modules(case):
    report, *_ = case
    grid = report.grid(lambda found: found.relative_change(0))
    assert grid.rows == [0, 1, 2]
    assert grid.columns == ["q", "k", "v", "o", "gate", "up", "down"]
    assert grid.values[1][5] == report.tensors["model.layers.1.mlp.up_proj.weight"].relative_change(0)
    everything = report.grid(lambda found: found.relative_change(0), everything=True)
    assert everything.rows == [0, 1, 2, None]
    assert "embedding" in everything.columns
    assert everything.values[0][everything.columns.index("embedding")] is None
    assert report.names_at(2, "down") == ["model.layers.2.mlp.down_proj.weight"]


def test_row_blocks_change_nothing(case, bf16_family, write_recipe, monkeypatch):
    recipe = write_recipe(bf16_family, "ties", EXPERTS)
    whole = merging.inspect(recipe)
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    blocks = merging.inspect(recipe)
    for name, found in whole.tensors.items():
        assert found.histogram == blocks.tensors[name].histogram
        assert found.signs.opposite == blocks.tensors[name].signs.opposite
        assert found.change == pytest.approx(blocks.tensors[name].change)


def test_experts_equal_to_the_base(family, tmp_path, write_recipe):
    for name in ("base", "same", "too"):
        shutil.copytree(family / "base", tmp_path / "copies" / name)
    report = merging.inspect(write_recipe(tmp_path / "copies", "ties", ["same", "too"]))
    assert report.total.relative_change(0) == 0
    assert report.total.signs.opposite_share() is None
    assert report.total.cosine(0) is None


@pytest.fixture
def broken_family(family, tmp_path):
    """Base and three experts, the second with a NaN in one tensor and an infinity in another."""
    for name in ("base", *EXPERTS):
        shutil.copytree(family / name, tmp_path / "f" / name)
    file = tmp_path / "f" / "two" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    tensors["model.norm.weight"][:2] = float("inf")
    save_file(tensors, file)
    return tmp_path / "f"


def test_nan_is_a_gap_in_the_maps_and_nothing_else(broken_family, family, write_recipe):
    report = merging.inspect(write_recipe(broken_family, "ties", EXPERTS))
    sound = merging.inspect(write_recipe(family, "ties", EXPERTS))
    assert report.broken == {
        "model.layers.1.mlp.up_proj.weight": [0, 0, 1, 0],
        "model.norm.weight": [0, 0, 2, 0],
    }
    for expert in range(3):
        grid = report.grid(lambda found, expert=expert: found.relative_change(expert))
        expected = sound.grid(lambda found, expert=expert: found.relative_change(expert)).values
        if expert == 1:
            expected[1][grid.columns.index("up")] = None
        assert grid.values == [[v and pytest.approx(v, rel=1e-6) for v in row] for row in expected]
    left = [found for name, found in sound.tensors.items() if name not in report.broken]
    assert report.total.relative_change(1) == pytest.approx(total(left).relative_change(1), rel=1e-6)
    assert report.total.signs.opposite_share() == total(left).signs.opposite_share()
    assert report.preview is None
    assert any("NaN" in warning for warning in report.warnings)


def test_nan_stops_trim_and_preview_with_one_sentence(broken_family, write_recipe):
    plan = merging.check(write_recipe(broken_family, "task_arithmetic", EXPERTS))
    for events in (trim_plan(plan, 0.2, "tensor"), trim_plan(plan, 0.2, "model"), preview_plan(plan)):
        with pytest.raises(merging.MergingError, match=r"two holds .* NaN or infinite values there\. Use an"):
            list(events)


def test_a_broken_base_leaves_the_other_tensors(family, tmp_path, write_recipe):
    for name in ("base", *EXPERTS):
        shutil.copytree(family / name, tmp_path / "f" / name)
    tensors = load_file(tmp_path / "f" / "base" / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("-inf")
    save_file(tensors, tmp_path / "f" / "base" / "model.safetensors")
    report = merging.inspect(write_recipe(tmp_path / "f", "ties", EXPERTS))
    grid = report.grid(lambda found: found.relative_change(2))
    assert [(r, c) for r in range(3) for c in range(7) if grid.values[r][c] is None] == [(0, 0)]
    assert report.broken == {"model.layers.0.self_attn.q_proj.weight": [1, 0, 0, 0]}
    assert report.total.relative_change(0) > 0


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_a_trim_keeps_the_largest_changes(case, plan, scope, density):
    report, _, deltas = case
    *_, trim = trim_plan(plan, density, scope)
    assert (trim.density, trim.scope) == (density, scope)
    assert trim.tensors.keys() == report.tensors.keys()
    groups = [[name] for name in deltas] if scope == "tensor" else [list(deltas)]
    for names in groups:
        for expert in range(3):
            values = np.abs(np.concatenate([deltas[name][expert] for name in names]))
            count = max(1, round(density * values.size)) if density < 1 else values.size
            largest = np.sort(values)[::-1][:count]
            kept = int((largest > 0).sum())
            assert sum(trim.tensors[name].kept[expert] for name in names) == kept
            smallest = min(trim.tensors[name].threshold[expert] for name in names)
            assert smallest == (largest[largest > 0].min() if kept else np.inf)
    for name, found in trim.tensors.items():
        left = np.stack([x * (np.abs(x) >= t) for x, t in zip(deltas[name], found.threshold, strict=True)])
        at_most = [int((row != 0).sum()) for row in left]
        assert all(kept <= most for kept, most in zip(found.kept, at_most, strict=True))
        assert found.signs.elements == deltas[name][0].size
        if found.kept == at_most:  # no ties at the threshold, so that what is left is known
            signs = np.sign(left)
            count = np.abs(signs).sum(0)
            assert found.signs.covered == [int((count == 2).sum()), int((count == 3).sum())]
            assert found.signs.split == int((np.abs(signs.sum(0)) < count).sum())
            for pair, (a, b) in enumerate(combinations(range(3), 2)):
                assert found.signs.shared[pair] == (signs[a] * signs[b] != 0).sum()
                assert found.signs.opposite[pair] == (signs[a] * signs[b] < 0).sum()


def test_ties_at_the_threshold_are_counted_out(bf16_family, write_recipe):
    plan = merging.check(write_recipe(bf16_family, "task_arithmetic", EXPERTS))
    *_, report = inspect_plan(plan)
    *_, trim = trim_plan(plan, 0.1, "tensor")
    tied = 0
    for name, found in trim.tensors.items():
        for expert in range(3):
            asked = max(1, round(0.1 * report.tensors[name].elements))
            assert found.kept[expert] == min(asked, report.tensors[name].nonzero[expert])
            values = bf16_changes(bf16_family, name, expert)
            tied += int((np.abs(values) >= found.threshold[expert]).sum()) > found.kept[expert]
    assert tied > 10


def bf16_changes(family, name, expert):
    one, base = (load_file(family / n / "model.safetensors")[name].float() for n in (EXPERTS[expert], "base"))
    return (one - base).flatten().numpy()


def test_trims_of_row_blocks_and_workers_agree(case, plan, monkeypatch):
    *_, whole = trim_plan(plan, 0.3, "model")
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    *_, blocks = trim_plan(plan, 0.3, "model")
    for name, found in whole.tensors.items():
        assert found.kept == blocks.tensors[name].kept
        assert found.threshold == blocks.tensors[name].threshold
        assert found.signs.opposite == blocks.tensors[name].signs.opposite
        assert found.signs.net == pytest.approx(blocks.tensors[name].signs.net, rel=1e-5)


def test_one_pass_makes_changes_and_preview(case, plan):
    *_, both = inspect_recipe(plan)
    *_, report = inspect_plan(plan)
    *_, preview = preview_plan(plan)
    assert both.tensors == report.tensors
    assert both.preview == preview


def test_two_watches_combine_to_one(family, write_recipe):
    plan = merging.check(write_recipe(family, "ties", EXPERTS))
    whole, parts = ChangeWatch(), [ChangeWatch(), ChangeWatch()]

    class Dealer:
        def __init__(self):
            self.number = 0

        def update(self, piece):
            whole.update(piece)
            parts[self.number % 2].update(piece)
            self.number += 1

    for _ in watch(plan, Dealer()):
        pass
    parts[1].combine(parts[0])
    assert parts[1].result() == whole.result()


def test_names_never_seen(tmp_path, write_recipe):
    import torch
    from safetensors.torch import save_file

    for name, scale in (("base", 0.0), ("one", 0.1)):
        (tmp_path / "f" / name).mkdir(parents=True)
        values = {f"body.{i}.mixer": torch.ones(3, 2) + scale for i in range(2)}
        save_file(values, tmp_path / "f" / name / "model.safetensors")
    grid = merging.inspect(write_recipe(tmp_path / "f", "ties", ["one"])).grid(
        lambda found: found.changed_share(0)
    )
    assert (grid.rows, grid.columns, grid.values) == ([0, 1], ["mixer"], [[1.0], [1.0]])
    assert locate("body.1.mixer").block == 1
