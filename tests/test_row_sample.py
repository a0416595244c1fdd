"""A report from a sample of rows: near the whole one, with an error that says how near."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import merging
from merging.row_sample import GROUPS, rows_of


@pytest.fixture(scope="module")
def tall_family(tmp_path_factory):
    """Two experts of a model whose rows differ much in how far they moved, and a small norm."""
    folder = tmp_path_factory.mktemp("tall")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (900, 40),
        "model.layers.0.mlp.up_proj.weight": (701, 30),
    }
    shapes["model.norm.weight"] = (40,)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for number, name in enumerate(("base", "one", "two")):
        tensors = {}
        for key, value in base.items():
            scale = torch.linspace(0.01, 0.1, len(value)).reshape(-1, *[1] * (value.ndim - 1))
            tensors[key] = value + bool(number) * scale * torch.randn(value.shape, generator=generator)
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    return folder


def recipe_of(folder, method="ties", **keys) -> merging.Recipe:
    models = tuple({"model": str(folder / name)} for name in ("one", "two"))
    parameters = {"density": 0.3} if method == "ties" else {}
    return merging.Recipe(
        merge_method=method,
        base_model=str(folder / "base"),
        models=models,
        parameters=parameters,
        profile="paper",
        **keys,
    )


def test_groups_share_no_row_and_are_spread_over_all():
    groups = [rows_of(1000, 50, 0.1, group) for group in range(GROUPS)]
    together = sorted(row for group in groups for row in group)
    assert len(together) == len(set(together)) == 100
    assert [row // 10 for row in together] == list(range(100))
    assert rows_of(1000, 4, 0.1, 0) is None, "small tensors are read whole"


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_estimates_are_near_the_whole_and_say_how_near(tall_family, method):
    whole = merging.inspect(recipe_of(tall_family, method), device="cpu")
    part = merging.inspect(recipe_of(tall_family, method), device="cpu", sample=0.2)
    assert part.total.elements == whole.total.elements
    assert {n: t.elements for n, t in part.tensors.items()} == {
        n: t.elements for n, t in whole.tensors.items()
    }
    assert part.total.relative_change(0) == pytest.approx(whole.total.relative_change(0), rel=0.03)
    assert part.total.relative_change(0) != whole.total.relative_change(0)
    assert part.total.signs.opposite_share() == pytest.approx(whole.total.signs.opposite_share(), abs=0.03)
    norm = "model.norm.weight"
    assert part.tensors[norm].change == pytest.approx(whole.tensors[norm].change)
    (said,) = [warning for warning in part.warnings if "estimates" in warning]
    value, error = (float(part) for part in said.partition("one ")[2].partition(",")[0].split(" ± "))
    assert value == pytest.approx(part.total.relative_change(0), rel=1e-3)
    assert abs(value - whole.total.relative_change(0)) < 6 * error
    assert error < 0.05 * value


def test_fates_and_trim_of_a_sample(tall_family):
    whole = merging.inspect(recipe_of(tall_family), device="cpu")
    part = merging.inspect(recipe_of(tall_family), device="cpu", sample=0.3)
    name = "model.layers.0.self_attn.q_proj.weight"
    fates, exact = part.preview.tensors[name], whole.preview.tensors[name]
    assert sum(fates.energy[0]) == pytest.approx(part.tensors[name].change[0], rel=1e-4)
    assert fates.share(0, "kept") == pytest.approx(exact.share(0, "kept"), abs=0.05)
    assert part.preview.sample.share == part.trim.sample.share == 0.3
    assert len(part.preview.sample.groups) == GROUPS
    error = part.preview.sample.error(lambda fate: fate.share(0, "kept"), [name])
    assert 0 < error < 0.05
    kept = part.trim.tensors[name].kept[0] / part.tensors[name].elements
    assert kept == pytest.approx(whole.trim.tensors[name].kept[0] / whole.tensors[name].elements, abs=0.05)


def test_a_small_family_is_read_whole_and_comes_out_exactly(family):
    whole = merging.inspect(recipe_of(family), device="cpu")
    part = merging.inspect(recipe_of(family), device="cpu", sample=0.5)
    assert part.total.signs.opposite == whole.total.signs.opposite
    assert part.total.histogram == whole.total.histogram
    assert part.total.change == pytest.approx(whole.total.change)
    assert any("from 100.0% of the weights" in warning for warning in part.warnings)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1])
def test_a_share_that_is_none(family, share):
    with pytest.raises(merging.MergingError, match=r"sample: .* is not a share between 0 and 1"):
        merging.inspect(recipe_of(family), sample=share)
