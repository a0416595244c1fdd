"""Every method on a GPU that is none: no tensor meets one of another device, no stream reads what another still writes, and
the bits are the CPU's."""

from __future__ import annotations

import pytest
import torch
from references.family import number_of_experts, small_family
from references.importance import made_up_importance

import merging
from merging import METHODS, MergingError
from merging.api import _recipe_in_memory, _spelled
from merging.checkpoint import StateDict
from merging.engine import MemorySink, run_plan
from merging.inspection import inspect_plan, inspect_recipe, preview_plan, trim_plan
from merging.plan import plan_sources
from tests import fake_gpu
from tests.test_methods_contract import choices, known_to

ROUNDED = {"apl", "arcee_fusion", "pcb", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce"}
"""Methods with sums, exponentials or angles in their weights: they agree with the CPU to rounding."""


def settings(method):
    """A small density with every other word for every parameter, and with the two scopes."""
    for choice in choices(method):
        yield known_to(method, {"density": 0.4, "t": 0.3, "select_topk": 0.6, "epsilon": 0.1}) | choice
    if "filter_wise" in METHODS[method].parameters():
        yield {"filter_wise": True}
    if "nuslerp_flatten" in METHODS[method].parameters():
        yield {"nuslerp_flatten": False}
        yield {"nuslerp_flatten": False, "nuslerp_row_wise": True}


def plan_of(method, base, models, options):
    importance = None
    if METHODS[method].needs_importance:
        importance = made_up_importance(base, models, "row", elements=options.get("drop") == "taylor")
    recipe = _recipe_in_memory(len(models), method, "paper", 0, _spelled(dict(options), None))
    sources = [
        (entry, StateDict(tensors, entry.model)) for entry, tensors in zip(recipe.models, models, strict=True)
    ]
    return plan_sources(recipe, StateDict(base, "base"), sources, importance=importance)


def merged(plan, device):
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    list(run_plan(plan, sink, device=device))
    return sink.tensors


@pytest.mark.parametrize("method", METHODS)
def test_no_method_mixes_devices(method, monkeypatch):
    base, models = small_family(number_of_experts(method), shape=(24, 6))
    plans = [plan_of(method, base, models, options) for options in settings(method)]
    expected = [merged(plan, "cpu") for plan in plans]
    fake_gpu.install(monkeypatch)
    for plan, wanted in zip(plans, expected, strict=True):
        assert_alike(method, merged(plan, "cuda"), wanted)
    assert fake_gpu.gpu.peak > 0


@pytest.mark.parametrize("kept", [0, 1 << 28], ids=["read anew", "kept"])
@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.needs_importance])
def test_streams_wait_for_each_other(method, kept, bf16_family, write_recipe, monkeypatch):
    """Files, small pieces, several workers, every scope."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 12_000)
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    monkeypatch.setattr("merging.reading.KEEP_BYTES", kept)
    monkeypatch.setattr("merging.engine.KEEP_BYTES", kept)
    experts = ("one", "two", "three")[: number_of_experts(method)]
    parameters = known_to(method, {"density": 0.4, "t": 0.3, "select_topk": 0.6})
    scopes = ("tensor", "layer", "model") if "scope" in METHODS[method].parameters() else (None,)
    plans = []
    for scope in scopes:
        keys = {"profile": "paper", "parameters": parameters, "scope": scope}
        plans.append(merging.check(write_recipe(bf16_family, method, experts, **keys)))
    expected = [merged(plan, "cpu") for plan in plans]
    fake_gpu.install(monkeypatch)
    for plan, wanted in zip(plans, expected, strict=True):
        assert_alike(method, merged(plan, "cuda"), wanted)


def assert_alike(method, found, wanted):
    for name, values in wanted.items():
        if method in ROUNDED:
            torch.testing.assert_close(
                found[name], values, rtol=1e-2 if values.itemsize == 2 else 1e-5, atol=1e-6
            )
        else:
            assert torch.equal(found[name].view(torch.uint8), values.view(torch.uint8)), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_looking_at_a_merge(method, bf16_family, write_recipe, monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 12_000)
    experts = ("one", "two", "three")[: number_of_experts(method)]
    plan = merging.check(write_recipe(bf16_family, method, experts, profile="paper"))
    looks = [
        preview_plan,
        inspect_plan,
        inspect_recipe,
        lambda plan, device: trim_plan(plan, 0.3, "model", device=device),
    ]
    fake_gpu.install(monkeypatch)
    for look in looks:
        *_, found = look(plan, device="cuda")
        assert found is not None
    assert fake_gpu.gpu.peak > 0


def test_a_written_merge_has_the_bits_of_the_cpu_s(bf16_family, write_recipe, monkeypatch, tmp_path):
    recipe = write_recipe(bf16_family, "ties", ["one", "two", "three"], profile="paper")
    expected = merging.merge(recipe, tmp_path / "cpu", device="cpu")
    fake_gpu.install(monkeypatch)
    found = merging.merge(recipe, tmp_path / "gpu")
    assert fake_gpu.gpu.peak > 0, "auto takes the GPU"
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (expected, found))
    assert one == other


def test_a_gpu_without_room(bf16_family, write_recipe, monkeypatch, tmp_path):
    recipe = write_recipe(bf16_family, "ties", profile="paper")
    fake_gpu.install(monkeypatch, free=1000)
    *_, finished = merging.run(recipe, tmp_path / "out")
    assert fake_gpu.gpu.peak == 0
    (said,) = [warning for warning in finished.warnings if "CPU" in warning]
    assert said == "The CPU did the work, because the merge takes 0.003 GB of the GPU and 1e-06 GB are free."
    with pytest.raises(MergingError, match=r"device 'cuda': the merge takes .* are free\. Use device cpu"):
        merging.merge(recipe, tmp_path / "other", device="cuda")
    assert not (tmp_path / "other").exists()


def test_memory_that_runs_out_on_the_way(bf16_family, write_recipe, monkeypatch, tmp_path):
    recipe, out = write_recipe(bf16_family, "ties", profile="paper"), tmp_path / "results" / "out"

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr("merging.ops.elected_sum", full)
    fake_gpu.install(monkeypatch)
    with pytest.raises(MergingError, match=r"^the memory of the GPU ran out"):
        merging.merge(recipe, out, device="cuda")
    assert list(out.parent.iterdir()) == []
