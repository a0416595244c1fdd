"""Every piece of advice: a family that earns it, one that does not; and kinship against NumPy."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging.inspecting.advice import advice, kinship
from merging.inspecting.changes import measure
from merging.inspection import inspect_recipe, trim_plan
from merging.pieces import Piece
from merging.reports.report import Report, Trim
from tests.conftest import tune

BLOCKS = 8


def values(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Random weights of a model with eight blocks, and its embedding."""
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight"] + [
        f"model.layers.{block}.{module}.weight"
        for block in range(BLOCKS)
        for module in ("self_attn.q_proj", "mlp.up_proj")
    ]
    return {name: torch.randn(24, 20, generator=generator) * scale for name in names}


def report_of(*changes: dict[str, torch.Tensor], base: dict[str, torch.Tensor] | None = None) -> Report:
    """A report on the experts base + change, named a, b, c …"""
    base = base or values(0)
    tensors = {}
    for name, start in base.items():
        models = torch.stack([start + change[name] for change in changes])
        tensors[name] = measure(Piece(name, 0, start, models, torch.ones(len(changes))))
    return Report("base", tuple(f"models/{letter}" for letter in "abcdefgh"[: len(changes)]), tensors)


def said(report: Report, text: str, plan=None) -> list:
    return [one for one in advice(report, plan) if text in one.text]


ONE, TWO, THREE = (values(seed, 0.01) for seed in (1, 2, 3))


def test_unrelated_experts_of_one_size_get_one_note():
    (only,) = advice(report_of(ONE, TWO, THREE))
    assert only.severity == "note"
    assert "nearly orthogonal" in only.text
    flat = [torch.cat([v.flatten() for v in change.values()]) for change in (ONE, TWO, THREE)]
    largest = max(
        abs(float(torch.cosine_similarity(flat[a], flat[b], 0))) for a, b in ((0, 1), (0, 2), (1, 2))
    )
    assert only.evidence == f"largest |cosine| of two changes {largest:.2f}"


def test_no_experts_or_tensors_no_advice():
    assert advice(Report("base", (), {})) == []
    assert advice(Report("base", ("a", "b"), {})) == []
    assert kinship(Report("base", ("a", "b"), {})).means == (None, None, None)


def test_one_expert_alone_gets_none():
    assert advice(report_of(ONE)) == []


def test_not_from_this_base():
    stranger = {name: v - values(0)[name] for name, v in values(9).items()}
    (found,) = said(report_of(ONE, stranger), "tuned from another one, or very hard")
    assert found.text.startswith("b is so far")
    assert found.severity == "warning"
    change = torch.cat([(values(0)[n] + v - values(0)[n]).flatten() for n, v in stranger.items()])
    length = change.norm() / torch.cat([v.flatten() for v in values(0).values()]).norm()
    assert found.evidence.startswith(f"its change is {float(length):.0%} of the base's length")
    large = {name: v * 100 for name, v in ONE.items()}
    near = {name: v + TWO[name] for name, v in large.items()}
    assert not said(report_of(large, near), "tuned from another one"), "large, but they have much in common"


def test_most_tensors_unchanged():
    few = {name: v if ".0." in name else v * 0 for name, v in ONE.items()}
    (found,) = said(report_of(few, TWO), "left most tensors")
    assert found.evidence == "88% of 17 tensors unchanged"
    assert not said(report_of(ONE, TWO), "left most")


def test_most_weights_unchanged():
    mask = {name: v * (values(7)[name] > 1.0) for name, v in ONE.items()}
    (found,) = said(report_of(mask, TWO), "left most weights")
    share = sum((v == 0).sum() for v in mask.values()) / sum(v.numel() for v in mask.values())
    assert found.evidence == f"{float(share):.0%} of the weights unchanged"


def test_one_outlier_block():
    odd = {name: v * (5 if ".3." in name else 1) for name, v in ONE.items()}
    (found,) = said(report_of(odd, TWO), "far more than its others")
    assert "a changed block 3 far more" in found.text
    assert "in block 3, usually 0.01" in found.evidence
    slope = {name: v * (1 + 0.2 * BLOCKS) for name, v in ONE.items()}
    assert not said(report_of(slope, TWO), "far more than its others")


def test_many_strong_blocks_are_no_outliers():
    half = {
        name: v * (5 if any(f".{block}." in name for block in range(4)) else 1) for name, v in ONE.items()
    }
    assert not said(report_of(half, TWO), "far more than its others")


def test_parallel_and_orthogonal():
    near = {name: v + 0.3 * TWO[name] for name, v in ONE.items()}
    found = advice(report_of(ONE, near))
    (parallel,) = [one for one in found if "counts it twice" in one.text]
    assert parallel.evidence == "cosine of their changes 0.96"
    assert "about 0.51" in parallel.text
    assert not [one for one in found if "orthogonal" in one.text]
    assert not said(report_of(ONE, TWO), "counts it twice")


def test_two_experts_the_same():
    found = advice(report_of(ONE, TWO, ONE))
    (twice,) = [one for one in found if "are the same model" in one.text]
    assert (twice.text[:7], twice.severity) == ("a and c", "warning")
    assert not [one for one in found if "nearly the same change" in one.text or "orthogonal" in one.text]
    flipped = {name: -v for name, v in ONE.items()}
    assert not said(report_of(ONE, flipped), "the same model"), "the same sizes, the other signs"


def test_an_expert_equal_to_the_base():
    nothing = {name: v * 0 for name, v in ONE.items()}
    (found,) = said(report_of(ONE, nothing), "equals the base")
    assert found.text.startswith("b equals")
    assert found.evidence == f"0 of {17 * 480:,} weights differ"
    assert not said(report_of(ONE, TWO), "equals the base")


def test_nan_is_named_and_counted_and_the_rest_still_judged():
    broken = {name: v.clone() for name, v in ONE.items()}
    broken["model.layers.2.mlp.up_proj.weight"][0, :3] = math.nan
    found = advice(report_of(broken, TWO, ONE))
    (nan,) = [one for one in found if "NaN" in one.text]
    assert nan.text.startswith("a holds")
    assert nan.evidence.startswith("3 values in 'model.layers.2.mlp.up_proj.weight'")
    assert any("a and c are the same model" in one.text for one in found)
    assert kinship(report_of(broken, TWO)).means[1] is not None
    assert not said(report_of(ONE, TWO), "NaN")


def test_a_dominant_expert_gets_a_weight_that_evens_it():
    large = {name: v * 4 for name, v in ONE.items()}
    (found,) = said(report_of(large, TWO, THREE), "dominate")
    assert "a weight of 0.25 beside 1" in found.text
    assert found.evidence == "its change is 4.0 times as long as the others' (median)"
    assert not said(report_of({n: v * 1.9 for n, v in ONE.items()}, TWO), "dominate")


def without_length(report: Report, expert: int) -> Report:
    """A report where the squares of an expert's changes are so small that they are 0 in float32."""
    pairs = [number for number, pair in enumerate(report.pairs) if expert in pair]
    tensors = {
        name: replace(
            found,
            change=[0.0 if e == expert else square for e, square in enumerate(found.change)],
            dot=[0.0 if pair in pairs else dot for pair, dot in enumerate(found.dot)],
        )
        for name, found in report.tensors.items()
    }
    return replace(report, tensors=tensors)


def test_a_change_without_length_is_compared_with_none():
    small = {name: v * 0.3 for name, v in ONE.items()}
    report = report_of(small, TWO, THREE)
    assert report.total.nonzero[0] > 0
    assert "a weight of" not in str(advice(without_length(report, 0)))
    assert advice(without_length(without_length(report, 0), 1)) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_tied_embedding_beside_a_change_without_length(number, bf16_family, tmp_path, write_recipe):
    plan = merging.check(write_recipe(bf16_family, "task_arithmetic"))
    report = without_length(merging.inspect(plan.recipe), number)
    assert all(plan.names[1 - number].endswith(one.text.split()[0]) for one in said(report, "(tied)", plan))


def test_conflict_above_chance():
    against = {name: -0.5 * v + TWO[name] for name, v in ONE.items()}
    (found,) = said(report_of(ONE, against), "opposite directions")
    signs = torch.cat([(ONE[n].sign() * against[n].sign() < 0).flatten() for n in ONE]).float().mean()
    assert float(found.evidence.split()[3].rstrip("%")) == pytest.approx(100 * float(signs), abs=0.1)
    assert not said(report_of(ONE, TWO), "opposite directions")


def test_conflict_in_one_module_alone():
    place = "model.layers.5.self_attn.q_proj.weight"
    local = {name: -ONE[name] if name == place else v for name, v in TWO.items()}
    report = report_of(ONE, local)
    assert not said(report, "opposite directions")
    (found,) = said(report, "fight in some modules")
    assert "100.0%" in found.evidence
    assert "block 5 q" in found.evidence


def trimmed(write_recipe, family, density: float, scope="model") -> Report:
    plan = merging.check(write_recipe(family, "ties"))
    (*_, report) = inspect_recipe(plan, device="cpu")
    (*_, trim) = trim_plan(plan, density, scope, device="cpu")
    assert isinstance(trim, Trim)
    return replace(report, trim=trim)


@pytest.fixture
def sparse_family(family, tmp_path):
    """Two experts that changed a tenth of the weights."""
    shutil.copytree(family / "base", tmp_path / "sparse" / "base")
    base = load_file(family / "base" / "model.safetensors")
    for seed, name in enumerate(("one", "two")):
        shutil.copytree(family / "base", tmp_path / "sparse" / name)
        generator = torch.Generator().manual_seed(seed)
        changed = {
            n: v
            + 0.01
            * torch.randn(v.shape, generator=generator)
            * (torch.rand(v.shape, generator=generator) < 0.1)
            for n, v in base.items()
        }
        save_file(changed, tmp_path / "sparse" / name / "model.safetensors", {"format": "pt"})
    return tmp_path / "sparse"


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_a_density_above_the_changed_share_has_no_effect(family, sparse_family, write_recipe, scope):
    found = said(trimmed(write_recipe, sparse_family, 0.5, scope), "has no effect")
    assert [one.text.split(" on ")[1][:3] for one in found] == ["one", "two"]
    assert "100.0% of them kept" in found[0].evidence
    assert not said(trimmed(write_recipe, sparse_family, 0.05, scope), "has no effect")
    assert not said(trimmed(write_recipe, family, 0.5, scope), "has no effect")


def test_changes_of_one_size_are_ties():
    signs = {name: 0.25 * v.sign() for name, v in ONE.items()}
    base = {name: v * 0 + 1 for name, v in ONE.items()}
    (found,) = said(report_of(signs, TWO, base=base), "one size")
    assert found.text.startswith("All of a's changes")
    assert found.evidence == f"|δ| = 0.25 in all {17 * 480:,} changed weights"
    near = {name: (1.1 + 0.2 * v.abs().clamp(max=1)) * v.sign() for name, v in values(1).items()}
    (nearly,) = said(report_of(near, base=base), "one size")
    assert "within a factor of √2" in nearly.evidence
    assert not said(report_of(ONE, TWO), "one size")


def test_rounding_names_what_is_lost(bf16_family, family, write_recipe):
    (*_, report) = inspect_recipe(merging.check(write_recipe(bf16_family, "task_arithmetic")), device="cpu")
    changed = sum(fate.changed for fate in report.preview.tensors.values())
    lost = sum(fate.casts["bfloat16"].lost for fate in report.preview.tensors.values())
    (*_, half) = inspect_recipe(
        merging.check(write_recipe(bf16_family, "task_arithmetic", parameters={"weight": 0.1})), device="cpu"
    )
    (found,) = said(half, "Saving as bfloat16")
    share = sum(f.casts["bfloat16"].lost for f in half.preview.tensors.values()) / sum(
        f.changed for f in half.preview.tensors.values()
    )
    assert found.evidence.startswith(f"{share:.0%} of the changed weights")
    assert lost / changed < share
    (*_, wide) = inspect_recipe(merging.check(write_recipe(family, "task_arithmetic")), device="cpu")
    assert not said(wide, "Saving as")


def test_a_tied_embedding_that_changed_much(bf16_family, family, tmp_path, write_recipe):
    for name in ("base", "two"):
        shutil.copytree(bf16_family / name, tmp_path / "f" / name)
    tune(bf16_family / "base", tmp_path / "f" / "one", seed=5, only=lambda n: "embed" in n or ".0." in n)
    plan = merging.check(write_recipe(tmp_path / "f", "task_arithmetic"))
    report = merging.inspect(plan.recipe)
    (found,) = said(report, "(tied)", plan)
    share = report.tensors["model.embed_tokens.weight"].change[0] / report.total.change[0]
    assert found.text.startswith("one changed the embedding")
    assert found.evidence.startswith(f"{share:.0%} of its change")
    assert not said(report, "(tied)"), "without a plan nobody knows"
    plain = merging.check(write_recipe(family, "task_arithmetic"))
    assert not said(merging.inspect(plain.recipe), "(tied)", plain)


def test_a_vocabulary_that_differs_comes_from_the_headers(family, tmp_path, write_recipe):
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    file = tmp_path / "f" / "two" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["é"] = 47
    file.write_text(json.dumps(tokenizer))
    plan = merging.check(write_recipe(tmp_path / "f", "ties"))
    (found,) = said(merging.inspect(plan.recipe), "its tokenizer differs", plan)
    assert found.severity == "warning"
    assert not said(report_of(ONE, TWO), "tokenizer")


def test_kinship_against_numpy():
    report = report_of(ONE, {n: v + 0.5 * ONE[n] for n, v in TWO.items()}, THREE)
    base = values(0)
    flat = [
        np.concatenate([((base[n] + c[n]) - base[n]).double().numpy().flatten() for n in base])
        for c in (ONE, {n: v + 0.5 * ONE[n] for n, v in TWO.items()}, THREE)
    ]
    found = kinship(report)
    for number, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        assert found.pearson[number] == pytest.approx(np.corrcoef(flat[a], flat[b])[0, 1], abs=1e-6)
        cosine = flat[a] @ flat[b] / np.linalg.norm(flat[a]) / np.linalg.norm(flat[b])
        assert found.cosine[number] == pytest.approx(cosine, abs=1e-6)
        assert found.distance[number] == pytest.approx(np.linalg.norm(flat[a] - flat[b]), rel=1e-5)
    assert found.means[1] == pytest.approx(sum(found.cosine) / 3)
    assert "share a part" in found.suggestion
    assert "not skills" in found.suggestion


def test_kinship_skips_an_expert_that_changed_nothing():
    found = kinship(report_of(ONE, {n: v * 0 for n, v in ONE.items()}, ONE))
    assert [value is None for value in found.distance] == [True, False, True]
    assert found.means[1] == pytest.approx(1.0)
    assert "much the same direction" in found.suggestion
    assert "needs two experts" in kinship(report_of(ONE)).suggestion
