"""Every number of a Report against plain NumPy."""

from __future__ import annotations

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import merging
from merging import Report
from merging.anatomy import locate
from merging.changes import ChangeWatch, bin_edges
from merging.engine import watch

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


def test_nan_is_saved_as_null(family, tmp_path, write_recipe):
    for name in ("base", "one"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    tensors = load_file(tmp_path / "f" / "one" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "f" / "one" / "model.safetensors")
    merging.inspect(write_recipe(tmp_path / "f", "ties", ["one"])).save(tmp_path / "report.json")
    content = json.loads(
        (tmp_path / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word)
    )
    assert content["tensors"]["model.norm.weight"]["change"] == [None]


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


def test_saved_and_loaded(case, tmp_path):
    report, *_ = case
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


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
