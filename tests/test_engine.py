"""The run over a plan: events, dtypes, copies, cancelling, bounded reading."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import Finished, MergingError, Progress, cuts
from merging.devices import resolve_device
from tests.conftest import tune


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_events_end_with_the_result(family, write_recipe, tmp_path):
    *progress, last = merging.run(
        write_recipe(family, "ties", profile="paper"), tmp_path / "out", device="cpu"
    )
    assert all(isinstance(event, Progress) for event in progress)
    shares = [event.share for event in progress]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {event.stage for event in progress} >= {"scan 1", "merging"}
    assert progress[-1].tensors_done == progress[-1].tensors == 30
    assert isinstance(last, Finished)
    assert last.path == (tmp_path / "out").absolute()
    assert last.bytes_written == sum(t.nbytes for t in weights(tmp_path / "out").values())


def test_more_scans_than_expected_take_nothing_back(family, write_recipe, tmp_path, monkeypatch):
    """A cut by a histogram, an l1 rescale and the sign of draws: one scan more than TIES counts on."""
    monkeypatch.setattr(cuts, "SMALL_SCOPE", 0)
    recipe = write_recipe(family, "ties", profile="paper", parameters={"rescale": "l1"})
    *progress, _ = merging.run(recipe, tmp_path / "out", device="cpu")
    shares = [event.share for event in progress]
    assert "scan 4" in {event.stage for event in progress}
    assert shares == sorted(shares)


def test_density_and_ties_are_reported(bf16_family, write_recipe, tmp_path):
    recipe = write_recipe(bf16_family, "ties", profile="paper", parameters={"density": 0.3})
    *_, last = merging.run(recipe, tmp_path / "out")
    elements = last.attained.elements
    assert last.attained.kept == (round(0.3 * elements),) * 2
    base, one = weights(bf16_family / "base"), weights(bf16_family / "one")
    nonzero = sum(int((one[name].float() - base[name].float()).count_nonzero()) for name in base)
    assert last.attained.nonzero[0] == min(round(0.3 * elements), nonzero)
    assert all(tied > 1 for tied in last.attained.tied)


def test_what_the_cast_loses_is_counted(family, tmp_path, write_recipe):
    tune(family / "base", tmp_path / "f" / "one", seed=4, scale=1e-5)
    (tmp_path / "f" / "base").symlink_to(family / "base")
    recipe = write_recipe(tmp_path / "f", "task_arithmetic", ["one"], out_dtype="bfloat16")
    *_, last = merging.run(recipe, tmp_path / "out")
    base, one, merged = weights(family / "base"), weights(tmp_path / "f" / "one"), weights(tmp_path / "out")
    changed = lost = 0
    for name in base:
        differs = base[name] + (one[name] - base[name]) != base[name]
        changed += int(differs.sum())
        lost += int((differs & (merged[name] == base[name].bfloat16())).sum())
    assert last.lost_share == pytest.approx(lost / changed)
    assert 0.5 < last.lost_share < 1


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", ["task_arithmetic", "slerp"])
def test_every_tensor_is_measured_as_it_was_written(family, tmp_path, write_recipe, method, out_dtype):
    tune(family / "base", tmp_path / "f" / "one", seed=4, scale=1e-5)
    (tmp_path / "f" / "base").symlink_to(family / "base")
    parameters = {"t": 0.5} if method == "slerp" else {"weight": 0.5}
    recipe = write_recipe(tmp_path / "f", method, ["one"], parameters=parameters, dtype="float32")
    exact = weights(merging.merge(recipe, tmp_path / "exact"))
    *_, last = merging.run(
        write_recipe(
            tmp_path / "f", method, ["one"], parameters=parameters, dtype="float32", out_dtype=out_dtype
        ),
        tmp_path / "out",
    )
    base, written = weights(family / "base"), weights(tmp_path / "out")
    for found in last.tensors:
        before, merged, after = base[found.name], exact[found.name], written[found.name]
        differs = merged != before
        lost = int((differs & (after == before.to(after.dtype))).sum())
        vanished = found.changed - int(differs.sum())  # changes too small for float32 itself
        assert 0 <= vanished <= 0.1 * found.elements
        assert found.lost == lost + vanished
        assert found.base_norm == pytest.approx(float(before.norm()))
        assert found.change_norm == pytest.approx(float((merged - before).norm()), rel=1e-2)
        assert found.cast_error == pytest.approx(float((after.float() - merged).norm()), rel=1e-5)


@pytest.mark.parametrize("keys", [{}, {"dtype": "float16"}, {"dtype": "float32", "out_dtype": "bfloat16"}])
def test_work_and_output_dtypes_of_the_mergekit_profile(family, write_recipe, tmp_path, keys):
    parameters = {"weight": 0.5}
    out = merging.merge(
        write_recipe(family, "task_arithmetic", parameters=parameters, **keys), tmp_path / "out"
    )
    work = getattr(torch, keys.get("dtype", "float32"))
    final = getattr(torch, keys.get("out_dtype", keys.get("dtype", "float32")))
    base, *models = [weights(family / name) for name in ("base", "one", "two")]
    for name, value in weights(out).items():
        rounded = base[name].to(work).float()
        deltas = [model[name].to(work).float() - rounded for model in models]
        assert torch.equal(value, (rounded + (0.5 * deltas[0] + 0.5 * deltas[1])).to(final)), name


def test_rounding_to_the_work_dtype_is_seen_in_the_result(family, write_recipe, tmp_path):
    keys = {"parameters": {"weight": 0.5}, "out_dtype": "float32"}
    coarse = merging.merge(
        write_recipe(family, "task_arithmetic", dtype="bfloat16", **keys), tmp_path / "coarse"
    )
    fine = merging.merge(write_recipe(family, "task_arithmetic", dtype="float32", **keys), tmp_path / "fine")
    assert any(not torch.equal(value, weights(fine)[name]) for name, value in weights(coarse).items())


def test_inputs_of_several_dtypes_promote(family, bf16_family, tmp_path, write_recipe):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "base").symlink_to(family / "base")
    tensors = {name: value.half() for name, value in weights(family / "one").items()}
    shutil.copytree(family / "one", tmp_path / "f" / "one")
    save_file(tensors, tmp_path / "f" / "one" / "model.safetensors")
    assert merging.check(write_recipe(tmp_path / "f", "ties", ["one"])).tensors[0].info.dtype == "F32"
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "base").symlink_to(tmp_path / "f" / "one")
    (tmp_path / "g" / "one").symlink_to(family / "one")
    assert merging.check(write_recipe(tmp_path / "g", "ties", ["one"])).tensors[0].info.dtype == "F32"
    paper = merging.check(write_recipe(tmp_path / "g", "ties", ["one"], profile="paper"))
    assert paper.tensors[0].info.dtype == "F16"


def test_an_excluded_tensor_must_fit_the_output_dtype(family, write_recipe, tmp_path):
    shutil.copytree(family, tmp_path / "f")
    tensors = weights(tmp_path / "f" / "base")
    tensors["model.norm.weight"][0] = 1e30
    save_file(tensors, tmp_path / "f" / "base" / "model.safetensors")
    recipe = write_recipe(tmp_path / "f", "ties", exclude=["*"], out_dtype="float16")
    with pytest.raises(MergingError, match=r"'model\.norm\.weight': copied from base, and not finite as F16"):
        merging.merge(recipe, tmp_path / "out")


def test_an_input_that_overflows_the_work_dtype(family, write_recipe, tmp_path):
    shutil.copytree(family, tmp_path / "f")
    tensors = weights(tmp_path / "f" / "base")
    tensors["model.norm.weight"][0] = 1e30
    save_file(tensors, tmp_path / "f" / "base" / "model.safetensors")
    with pytest.raises(MergingError, match="does not fit float16 there"):
        merging.merge(write_recipe(tmp_path / "f", "ties", dtype="float16"), tmp_path / "out")


def test_tensor_names_cannot_be_taken_for_scopes():
    base = {"model": torch.arange(3), "block 0": torch.zeros(2), "w": torch.zeros(2)}
    expert = {"model": torch.arange(3), "block 0": torch.ones(2), "w": torch.ones(2)}
    merged = merging.merge_state_dicts(base, [expert], "ties", density=1.0)
    assert merged["w"].tolist() == merged["block 0"].tolist() == [1.0, 1.0]


def test_linear_gives_a_single_weighted_models_bits():
    generator = torch.Generator().manual_seed(0)
    one, two = ({"a": torch.randn(1000, generator=generator)} for _ in range(2))
    one["a"][0], two["a"][0] = 1e8, 1e-3
    assert torch.equal(merging.merge_state_dicts(None, [one, two], "linear", weight=[0, 1])["a"], two["a"])
    huge = {"a": torch.tensor([3e38])}
    assert merging.merge_state_dicts(None, [huge, {"a": -huge["a"]}], "linear")["a"].item() == 0


@pytest.mark.parametrize("weight", [[1, -1], [0.1, 0.2, -0.3], [1e-9, -1e-9]])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_weights_that_cancel(method, weight):
    models = [{"a": torch.full((4,), float(number + 1))} for number in range(len(weight))]
    base = {"a": torch.zeros(4)}
    with pytest.raises(MergingError, match=r"add up to 0|cancel"):
        merging.merge_state_dicts(base, models, method, weight=weight, normalize=True)
    if method != "linear":
        merged = merging.merge_state_dicts(
            base, models, method, weight=weight, normalize=True, profile="mergekit"
        )
        assert torch.isfinite(merged["a"]).all()


def test_excluded_tensors_keep_the_bases_bits(family, write_recipe, tmp_path):
    out = merging.merge(write_recipe(family, "ties", exclude=["*layernorm*", "lm_head.*"]), tmp_path / "out")
    base, merged = weights(family / "base"), weights(out)
    kept = {name for name in base if torch.equal(base[name], merged[name])}
    assert kept == {name for name in base if "layernorm" in name or name == "lm_head.weight"}


def test_integer_buffers_are_copied_if_equal(tmp_path, write_recipe):
    for name, offset in (("base", 0.0), ("one", 1.0)):
        (tmp_path / "f" / name).mkdir(parents=True)
        save_file(
            {"w": torch.ones(3) + offset, "ids": torch.arange(3)}, tmp_path / "f" / name / "model.safetensors"
        )
    recipe = write_recipe(tmp_path / "f", "task_arithmetic", ["one"])
    assert weights(merging.merge(recipe, tmp_path / "out"))["ids"].tolist() == [0, 1, 2]
    save_file({"w": torch.ones(3), "ids": torch.arange(3) + 1}, tmp_path / "f" / "one" / "model.safetensors")
    with pytest.raises(MergingError, match="'ids' is I64 and differs"):
        merging.merge(recipe, tmp_path / "out")
    kept = write_recipe(tmp_path / "f", "task_arithmetic", ["one"], name="kept.yaml", exclude=["ids"])
    assert weights(merging.merge(kept, tmp_path / "kept"))["ids"].tolist() == [0, 1, 2]


def test_a_value_too_large_for_the_output_dtype(family, write_recipe, tmp_path):
    recipe = write_recipe(family, "task_arithmetic", out_dtype="float16", parameters={"lambda": 1e8})
    with pytest.raises(MergingError, match="too large for F16"):
        merging.merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["recipe.yaml"]


def test_closing_the_events_cancels(family, write_recipe, tmp_path):
    events = merging.run(write_recipe(family, "ties"), tmp_path / "out")
    next(events)
    next(events)
    assert (tmp_path / ".out.partial").exists()
    events.close()
    assert [f.name for f in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "slerp"])
def test_same_recipe_same_bytes(family, write_recipe, tmp_path, method):
    experts = ["one"] if method == "slerp" else ["one", "two", "three"]
    recipe = write_recipe(
        family, method, experts, base_model=None if method == "linear" else str(family / "base")
    )
    one, two = merging.merge(recipe, tmp_path / "a"), merging.merge(recipe, tmp_path / "b")
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_the_base_among_the_models_changes_nothing(family, write_recipe, tmp_path):
    models = [{"model": "base", "parameters": {"weight": 9}}, "one", "two"]
    with_base = merging.merge(write_recipe(family, "ties", models, name="a.yaml"), tmp_path / "a")
    without = merging.merge(write_recipe(family, "ties", ["one", "two"], name="b.yaml"), tmp_path / "b")
    assert all(torch.equal(value, weights(without)[name]) for name, value in weights(with_base).items())


def test_the_base_counts_in_linear(family, write_recipe, tmp_path):
    models = [{"model": "base", "parameters": {"weight": 3}}, {"model": "one", "parameters": {"weight": 1}}]
    out = weights(merging.merge(write_recipe(family, "linear", models), tmp_path / "out"))
    base, one = weights(family / "base"), weights(family / "one")
    for name, value in out.items():
        torch.testing.assert_close(value, base[name] * 0.75 + one[name] * 0.25)


def test_a_merge_of_folders_equals_a_merge_of_dictionaries(bf16_family, write_recipe, tmp_path):
    out = merging.merge(
        write_recipe(bf16_family, "ties", ["one", "two", "three"], profile="paper"), tmp_path / "out"
    )
    base, *models = [weights(bf16_family / name) for name in ("base", "one", "two", "three")]
    for tensors in (base, *models):
        tensors.pop("lm_head.weight", None)
    expected = merging.merge_state_dicts(base, models, "ties")
    assert all(torch.equal(value, weights(out)[name]) for name, value in expected.items())


def test_wrong_arguments_in_memory():
    base = {"a": torch.zeros(2)}
    with pytest.raises(MergingError, match="2 values for 1 models"):
        merging.merge_state_dicts(base, [base], "ties", weight=[1, 2])
    with pytest.raises(MergingError, match="Did you mean 'slerp'"):
        merging.merge_state_dicts(base, [base], "slurp")
    with pytest.raises(MergingError, match="lacks 1 tensor"):
        merging.merge_state_dicts(base, [{}], "ties")
    with pytest.raises(MergingError, match="base_model: missing"):
        merging.merge_state_dicts(None, [base], "ties")


def test_unknown_devices():
    for device in ("gpu", "mps", "cuda:99"):
        with pytest.raises(MergingError, match="device"):
            resolve_device(device)
