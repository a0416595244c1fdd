"""A report from a sample of rows: near the whole one, with errors that say how near."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging.inspecting import sampling
from merging.inspecting.sampling import GROUPS, sample_rows
from merging.inspecting.sums import total
from merging.memory.resident import family_bytes
from merging.reports import sampled as sampled_report
from merging.reports.full import full_report
from merging.reports.report import Report

Q, UP, NORM = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
)


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    """What counts as large is made small."""
    monkeypatch.setattr(sampling, "WHOLE", 4096)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 64)


@pytest.fixture(scope="module")
def tall_family(tmp_path_factory):
    """Two experts of a model whose rows differ much in how far they moved, and a small norm."""
    folder = tmp_path_factory.mktemp("tall")
    generator = torch.Generator().manual_seed(0)
    shapes = {Q: (900, 40), UP: (701, 30), NORM: (40,)}
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
    keys = {"parameters": parameters, "profile": "paper", **keys}
    return merging.Recipe(merge_method=method, base_model=str(folder / "base"), models=models, **keys)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_share_becomes_rows_spread_over_all(share, tall_family):
    rows = sample_rows(merging.check(recipe_of(tall_family)), 0, share=share)
    assert set(rows.of) == {Q, UP}, "the norm is read whole"
    for name, count in ((Q, 900), (UP, 701)):
        found = rows.of[name]
        assert len(found) == GROUPS * round(share * count / GROUPS)
        strata = torch.arange(len(found), dtype=torch.float64) * count / len(found)
        drawn = found.sort().values
        assert bool((drawn >= strata.floor()).all() & (drawn < (strata + count / len(found)).ceil()).all())
        for group in found.view(GROUPS, -1):
            assert group.double().mean() == pytest.approx(count / 2, rel=0.1)
    assert rows.elements == 40 + 40 * len(rows.of[Q]) + 30 * len(rows.of[UP])
    assert rows.elements / rows.whole == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_estimates_are_near_the_whole_and_say_how_near(tall_family, method):
    whole = merging.inspect(recipe_of(tall_family, method), device="cpu")
    part = merging.inspect(recipe_of(tall_family, method), device="cpu", sample=0.2)
    assert whole.sample is None
    assert {n: t.elements for n, t in part.tensors.items()} == {
        n: t.elements for n, t in whole.tensors.items()
    }
    assert part.total.relative_change(0) == pytest.approx(whole.total.relative_change(0), rel=0.03)
    assert part.total.relative_change(0) != whole.total.relative_change(0)
    assert part.total.signs.opposite_share() == pytest.approx(whole.total.signs.opposite_share(), abs=0.03)
    assert part.tensors[NORM] == whole.tensors[NORM]
    assert part.sample is not None
    error = part.sample.error(lambda found: found.relative_change(0), part.tensors)
    assert error is not None
    assert 0 < error < 0.05 * part.total.relative_change(0)
    assert abs(part.total.relative_change(0) - whole.total.relative_change(0)) < 6 * error
    (said,) = [warning for warning in part.warnings if "estimates" in warning]
    assert f"one {part.total.relative_change(0):.4g} ± {2.365 * error:.2g}" in said
    assert "± covers 95 %" in said
    assert f"from {part.sample.share:.1%} of the weights" in said


def test_fates_and_trim_of_a_sample(tall_family):
    whole = merging.inspect(recipe_of(tall_family), device="cpu")
    part = merging.inspect(recipe_of(tall_family), device="cpu", sample=0.3)
    for preview in (whole.preview, part.preview):
        assert preview is not None
    fates, exact = part.preview.tensors[Q], whole.preview.tensors[Q]
    assert sum(fates.energy[0]) == pytest.approx(part.tensors[Q].change[0], rel=1e-4)
    assert fates.share(0, "kept") == pytest.approx(exact.share(0, "kept"), abs=0.05)
    samples = [part.sample, part.preview.sample, part.trim.sample]
    assert len({sample.share for sample in samples}) == 1
    assert samples[0].share == pytest.approx(0.3, abs=0.01)
    assert [len(sample.groups) for sample in samples] == [GROUPS] * 3
    error = part.preview.sample.error(lambda fate: fate.share(0, "kept"), [Q])
    assert 0 < error < 0.05
    assert abs(fates.share(0, "kept") - exact.share(0, "kept")) < 6 * error
    kept = part.trim.tensors[Q].kept[0] / part.tensors[Q].elements
    assert kept == pytest.approx(whole.trim.tensors[Q].kept[0] / whole.tensors[Q].elements, abs=0.05)


def test_a_method_without_a_base_is_trimmed_too(tall_family):
    whole = merging.inspect(recipe_of(tall_family, "linear"), density=0.4)
    part = merging.inspect(recipe_of(tall_family, "linear"), density=0.4, sample=0.3)
    for found in (whole, part):
        trimmed = total(found.trim.tensors.values())
        assert trimmed.kept[1] / found.total.elements == pytest.approx(0.4, abs=0.02)
    assert part.preview.sample is not None


def test_a_small_family_is_read_whole_and_comes_out_exactly(family):
    whole = merging.inspect(recipe_of(family), device="cpu")
    part = merging.inspect(recipe_of(family), device="cpu", sample=0.5)
    assert part.total.signs.opposite == whole.total.signs.opposite
    assert part.total.histogram == whole.total.histogram
    assert part.total.change == pytest.approx(whole.total.change)
    assert any("from 100.0% of the weights" in warning for warning in part.warnings)


def test_what_rows_cannot_tell_is_left_out_and_said(tall_family):
    part = merging.inspect(recipe_of(tall_family, "model_stock"), sample=0.2)
    assert part.preview is None
    assert part.total.relative_change(0) == pytest.approx(0.058, rel=0.1)
    (said,) = [warning for warning in part.warnings if "without a preview" in warning]
    assert "Model Stock" in said
    assert "leave sample out" in said


def test_nan_leaves_the_changes_of_the_rest(tall_family, tmp_path):
    for name in ("base", "one", "two"):
        tensors = load_file(tall_family / name / "model.safetensors")
        if name == "two":
            tensors[NORM][3] = float("nan")
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    part = merging.inspect(recipe_of(tmp_path), sample=0.2)
    assert part.broken == {NORM: [0, 0, 1]}
    assert part.preview is None
    assert part.trim is None
    assert [warning for warning in part.warnings if "without a preview" in warning and NORM in warning]
    error = part.sample.error(lambda found: found.relative_change(1), [Q, UP])
    assert f"two {part.total.relative_change(1):.4g} ± {2.365 * error:.2g}" in part.warnings[-1]


def test_a_sampled_report_comes_back_from_disk(tall_family, tmp_path):
    part = merging.inspect(recipe_of(tall_family), sample=0.2)
    part.save(tmp_path / "report")
    assert Report.load(tmp_path / "report") == part


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1])
def test_a_share_that_is_none(family, share):
    with pytest.raises(merging.MergingError, match=r"sample: .* is not a share between 0 and 1"):
        merging.inspect(recipe_of(family), sample=share)


def half_of_what_it_takes(monkeypatch, plan, share):
    needed = family_bytes(plan, sample_rows(plan, 0, share=share).elements)
    monkeypatch.setattr(sampled_report, "MOST_BYTES", needed // 2)
    return needed // 2


def test_a_small_share_that_does_not_fit_becomes_smaller(tall_family, monkeypatch):
    most = half_of_what_it_takes(monkeypatch, merging.check(recipe_of(tall_family)), 0.19)
    part = merging.inspect(recipe_of(tall_family), device="cpu", sample=0.19)
    assert part.sample is not None
    rows = sample_rows(merging.check(recipe_of(tall_family)), 0, share=0.95 * 0.19 / 2)
    assert part.sample.share == pytest.approx(rows.elements / rows.whole, rel=0.02)
    assert family_bytes(merging.check(recipe_of(tall_family)), rows.elements) <= most
    assert part.preview.sample.share == part.trim.sample.share == part.sample.share
    (said,) = [warning for warning in part.warnings if warning.startswith("sample:")]
    assert "sample: 19.00% of these models would take" in said
    assert f"; {part.sample.share:.2%} were looked at. Leave sample out" in said


def test_a_large_share_that_does_not_fit_is_an_exact_report(tall_family, monkeypatch):
    whole = merging.inspect(recipe_of(tall_family), device="cpu")
    half_of_what_it_takes(monkeypatch, merging.check(recipe_of(tall_family)), 0.5)
    part = merging.inspect(recipe_of(tall_family), device="cpu", sample=0.5)
    assert part.sample is None
    assert (part.tensors, part.preview, part.trim) == (whole.tensors, whole.preview, whole.trim)
    (said,) = set(part.warnings) - set(whole.warnings)
    assert said.startswith("sample: 50.00% of these models would take")
    assert said.endswith("every weight was looked at instead, piece by piece, and all numbers are exact.")


def test_without_free_memory_every_weight_is_read(tall_family, monkeypatch):
    monkeypatch.setattr(sampled_report, "memory_problem", lambda needed: ["too much"])
    part = merging.inspect(recipe_of(tall_family), device="cpu", sample=0.02)
    assert part.sample is None
    assert "all numbers are exact" in part.warnings[-1]


def test_every_pass_over_a_sample_tells_how_far_it_is_and_can_be_stopped(tall_family):
    plan = merging.check(recipe_of(tall_family))
    *steps, report = full_report(plan, device="cpu", sample=0.2)
    assert isinstance(report, Report)
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    tensors = len(plan.tensors)
    for number in range(3):
        assert sum(number / 3 < share <= (number + 1) / 3 for share in shares) >= tensors
    merged = []
    events = full_report(plan, device="cpu", sample=0.2)
    for step in events:
        if step.share > 1 / 3:
            merged.append(step)
            events.close()
    assert [step.stage for step in merged] == ["merging"]
    assert merged[0].tensors_done == 1
