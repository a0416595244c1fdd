"""Previews from memory are the merge's own: every decision, count and sum."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from references.family import heavy_family
from references.fate import plan_of
from references.importance import made_up_importance
from safetensors.torch import load_file, save_file

import merging
from merging import METHODS, Checkpoint, MergingError
from merging.inspection import preview_plan, trim_plan
from merging.memory import whatif
from merging.memory.whatif import Residents
from merging.plan import Plan
from merging.reports.report import Preview, Trim
from tests.conftest import threads_of_another

EXPERTS = ("one", "two", "three")
PREVIEWED = [name for name, method in METHODS.items() if method.takes_base and not method.needs_importance]


def experts_of(name: str) -> tuple[str, ...]:
    return EXPERTS[: METHODS[name].experts_wanted]


def last(events):
    *_, found = events
    return found


def same(one, other) -> None:
    """Records are equal: whole numbers exactly, sums to rounding."""
    assert list(one.tensors) == list(other.tensors)
    for name, ours in one.tensors.items():
        assert vars(ours).keys() == vars(other.tensors[name]).keys()
        compare(vars(ours), vars(other.tensors[name]))


def compare(ours, theirs) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            compare(ours[key], theirs[key])
    elif isinstance(ours, list):
        for a, b in zip(ours, theirs, strict=True):
            compare(a, b)
    elif hasattr(ours, "__dataclass_fields__"):
        compare(vars(ours), vars(theirs))
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    else:
        assert ours == theirs


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("name", PREVIEWED)
def test_a_preview_from_memory_is_the_one_from_disk(name, profile, bf16_family, write_recipe):
    residents = Residents()
    keys = {"profile": profile}
    if "density" in METHODS[name].parameters():
        keys["parameters"] = {"density": 0.5}
    plan = merging.check(write_recipe(bf16_family, name, experts_of(name), **keys))
    exact = last(preview_plan(plan, device="cpu"))
    for _ in range(2):  # the second one finds everything worked out
        found = whatif.preview(plan, residents)
        same(found, exact)
        assert found.sample is None
        assert found.recipe == exact.recipe
        assert found.effective == exact.effective


def baseless(folder: Path, name: str, profile: str = "paper", **keys) -> Plan:
    """The plan of a recipe that names no base."""
    models = tuple({"model": str(folder / expert)} for expert in experts_of(name))
    return merging.check(merging.Recipe(merge_method=name, models=models, profile=profile, **keys))


@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("name", ["linear", "nuslerp", "multislerp", "karcher"])
def test_methods_without_a_base_from_memory(name, profile, bf16_family):
    residents, origin = Residents(), Checkpoint.open(bf16_family / "base")
    plan = baseless(bf16_family, name, profile)
    assert plan.base is None
    exact = last(preview_plan(plan, device="cpu", origin=origin))
    for _ in range(2):
        found = whatif.preview(plan, residents, origin=origin)
        same(found, exact)
        assert (found.recipe, found.effective, found.dtypes) == (exact.recipe, exact.effective, exact.dtypes)
    (stepped,) = whatif.steps(plan, residents, device="cpu", origin=origin)
    same(stepped, exact)
    assert len(residents._kept) == 1
    with pytest.raises(MergingError, match="nothing says what the models changed"):
        whatif.preview(plan, residents)


def test_changes_are_measured_from_the_origin_that_was_given(family):
    """Two origins over the same experts, one after the other, from the same memory."""
    residents, plan = Residents(), baseless(family, "karcher")
    found = {}
    for name in ("base", "three", "base"):
        origin = Checkpoint.open(family / name)
        found[name] = whatif.preview(plan, residents, origin=origin)
        same(found[name], last(preview_plan(plan, device="cpu", origin=origin)))
    assert found["base"].tensors != found["three"].tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_origin_is_rounded_as_the_inputs_are(dtype, family):
    origin = Checkpoint.open(family / "base")
    plan = baseless(family, "linear", "mergekit", dtype=dtype)
    exact = last(preview_plan(plan, device="cpu", origin=origin))
    same(whatif.preview(plan, Residents(), origin=origin), exact)


def test_a_method_s_own_base_comes_before_an_origin(family, write_recipe):
    plan = merging.check(write_recipe(family, "ties", EXPERTS))
    found = whatif.preview(plan, Residents(), origin=Checkpoint.open(family / "one"))
    same(found, last(preview_plan(plan, device="cpu")))


def test_an_origin_without_the_tensors_is_told_as_from_disk(family, tmp_path):
    shutil.copytree(family / "base", tmp_path / "short")
    tensors = load_file(tmp_path / "short" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "short" / "model.safetensors")
    origin, plan = Checkpoint.open(tmp_path / "short"), baseless(family, "linear")
    with pytest.raises(MergingError) as disk:
        last(preview_plan(plan, device="cpu", origin=origin))
    with pytest.raises(MergingError) as memory:
        whatif.preview(plan, Residents(), origin=origin)
    assert str(memory.value) == str(disk.value)
    assert "does not have it" in str(disk.value)


@pytest.mark.parametrize("drop", ["random", "magnitude", "taylor"])
def test_a_preview_by_importance_from_memory(drop):
    base, models = heavy_family(3, 61, torch.bfloat16)
    importance = made_up_importance(base, models)
    residents = Residents()
    for density in (0.4, 0.7):
        options = {"density": density, "drop": drop, "importance": importance}
        plan = plan_of(base, models, "apl", out=torch.bfloat16, **options)
        exact = last(preview_plan(plan, device="cpu"))
        same(whatif.preview(plan, residents), exact)
        assert any(fate.share(0, "dropped") for fate in exact.tensors.values())


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize("density", [0, 0.13, 0.5, 1])
def test_trims_from_memory(scope, density, bf16_family, write_recipe):
    plan = merging.check(write_recipe(bf16_family, "ties", EXPERTS))
    (found,) = whatif.trim_steps(plan, density, scope, Residents())
    assert isinstance(found, Trim)
    same(found, last(trim_plan(plan, density, scope, device="cpu")))


def test_moving_every_slider_on_one_family(bf16_family, write_recipe):
    """What is remembered for one recipe is not taken for another's."""
    residents = Residents()
    moves = [
        ("dare_ties", {"parameters": {"density": 0.5}, "profile": "paper"}),
        ("dare_ties", {"parameters": {"density": 0.7}, "profile": "paper"}),
        ("dare_ties", {"parameters": {"density": 0.7}, "profile": "paper", "seed": 3}),
        ("dare_ties", {"parameters": {"density": 0.7, "rescale": "none"}, "profile": "paper", "seed": 3}),
        ("della", {"parameters": {"density": 0.7, "epsilon": 0.1}, "profile": "paper"}),
        ("della", {"parameters": {"density": 0.7, "epsilon": 0.2}, "profile": "paper"}),
        ("ties", {"parameters": {"density": 0.2}, "profile": "paper"}),
        ("ties", {"parameters": {"density": 0.3}, "profile": "paper"}),
        ("ties", {"parameters": {"density": 0.3}, "scope": "tensor"}),
        ("pcb", {"parameters": {"ratio": 0.1}}),
        ("pcb", {"parameters": {"ratio": 0.2, "variant": "vision"}}),
        ("pcb", {"parameters": {"ratio": 0.2}, "scope": "tensor"}),
        ("breadcrumbs", {"parameters": {"density": 0.3, "gamma": 0.1}, "profile": "paper"}),
        ("ties", {"parameters": {"density": 0.3}, "dtype": "bfloat16"}),
    ]
    for name, keys in moves:
        plan = merging.check(write_recipe(bf16_family, name, EXPERTS, **keys))
        same(whatif.preview(plan, residents), last(preview_plan(plan, device="cpu")))
    assert len(residents._kept) == 2  # the family, and once more as bfloat16 rounds it


def test_two_visitors_at_once(bf16_family, write_recipe):
    residents = Residents()
    plans = [
        merging.check(
            write_recipe(bf16_family, "dare_ties", EXPERTS, seed=seed, profile="paper", name=f"{seed}.yaml")
        )
        for seed in range(4)
    ]
    exact = [last(preview_plan(plan, device="cpu")) for plan in plans]
    found: dict[int, list[Preview]] = {}

    def visit(number: int) -> None:
        found[number] = [whatif.preview(plans[number], residents) for _ in range(3)]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, previews in found.items():
        for one in previews:
            same(one, exact[number])
    assert len(found) == 4


def test_a_model_that_changes_on_disk_is_read_again(family, tmp_path, write_recipe):
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    residents = Residents()
    recipe = write_recipe(tmp_path / "f", "task_arithmetic", ["one", "two"])
    before = whatif.preview(merging.check(recipe), residents)
    tensors = load_file(tmp_path / "f" / "one" / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "f" / "one" / "model.safetensors")
    plan = merging.check(recipe)
    after = whatif.preview(plan, residents)
    assert after.tensors["model.norm.weight"] != before.tensors["model.norm.weight"]
    same(after, last(preview_plan(plan, device="cpu")))


def test_weights_edited_in_place_with_their_time_set_back_are_read_again(family, tmp_path, write_recipe):
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    file, residents = tmp_path / "f" / "one" / "model.safetensors", Residents()
    recipe = write_recipe(tmp_path / "f", "task_arithmetic", ["one", "two"])
    before = whatif.preview(merging.check(recipe), residents)
    times, tensors = file.stat(), load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "edited")
    with file.open("r+b") as stored:
        stored.write((tmp_path / "edited").read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = file.stat()
    assert (found.st_mtime_ns, found.st_size, found.st_ino) == (
        times.st_mtime_ns,
        times.st_size,
        times.st_ino,
    )
    after = whatif.preview(merging.check(recipe), residents)
    assert after.tensors["model.norm.weight"] != before.tensors["model.norm.weight"]


def test_nan_is_told_as_the_merge_tells_it(family, tmp_path, write_recipe):
    for name in ("base", "one"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    tensors = load_file(tmp_path / "f" / "one" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "f" / "one" / "model.safetensors")
    plan = merging.check(write_recipe(tmp_path / "f", "ties", ["one"]))
    with pytest.raises(MergingError) as disk:
        last(preview_plan(plan, device="cpu"))
    with pytest.raises(MergingError) as memory:
        whatif.preview(plan, Residents())
    assert str(memory.value) == str(disk.value)
    assert "model.norm.weight" in str(disk.value)


def test_memory_is_bounded(family, bf16_family, write_recipe):
    plans = [merging.check(write_recipe(folder, "ties", EXPERTS)) for folder in (family, bf16_family)]
    size = max(whatif.family_bytes(plan) for plan in plans)
    residents = Residents(size)
    for plan in plans:
        assert residents.fits(plan)
        whatif.preview(plan, residents)
    assert len(residents._kept) == 1
    assert not Residents(size // 2).fits(plans[0])


def test_previews_leave_the_number_of_threads_alone(family, write_recipe):
    before = torch.get_num_threads()
    whatif.preview(merging.check(write_recipe(family, "ties", EXPERTS)), Residents())
    assert torch.get_num_threads() == before
    assert threads_of_another() == before


DEMO = Path(__file__).parent.parent / "examples" / "demo"


def test_the_demo_family_fits():
    models = tuple({"model": str(DEMO / name)} for name in ("math", "code", "words"))
    plan = merging.check(merging.Recipe(merge_method="ties", base_model=str(DEMO / "base"), models=models))
    residents = Residents()
    assert residents.fits(plan)
    (found,) = whatif.steps(plan, residents, device="cpu")
    same(found, last(preview_plan(plan, device="cpu")))
