"""Every method on a GPU that is none, and on a real one where there is one: no tensor meets one of another device, no stream
reads what another still writes, and the bits are the CPU's."""

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

ROUNDED = {
    "apl",
    "arcee_fusion",
    "dppa",
    "karcher",
    "model_stock",
    "multislerp",
    "nuslerp",
    "pcb",
    "sce",
    "slerp",
}
"""Methods with sums, exponentials or angles in their weights: they agree with the CPU to rounding."""
STRAY = 0.01
"""Share of elements that rounding may send to the other side of a threshold."""
REAL = pytest.param(
    False,
    id="real",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.fixture(params=[pytest.param(True, id="fake"), REAL])
def start_gpu(request, monkeypatch):
    """Called once the CPU's results are there: a fake GPU takes the CPU's place in torch."""
    return lambda: fake_gpu.install(monkeypatch) if request.param else None


def settings(method):
    """A small density with every other word for every parameter, and what takes a way of its own."""
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
def test_no_method_mixes_devices(method, start_gpu):
    base, models = small_family(number_of_experts(method), shape=(24, 6))
    plans = [plan_of(method, base, models, options) for options in settings(method)]
    expected = [merged(plan, "cpu") for plan in plans]
    gpu = start_gpu()
    for plan, wanted in zip(plans, expected, strict=True):
        assert_alike(plan, merged(plan, "cuda"), wanted)
    assert gpu is None or gpu.peak > 0


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        *[(name, 1 << 28) for name, one in METHODS.items() if not one.needs_importance],
        *[(name, 0) for name in ("linear", "ties", "pcb", "slerp")],
    ],
)
def test_streams_wait_for_each_other(method, kept, bf16_family, write_recipe, monkeypatch, start_gpu):
    """Files, small pieces, several workers, every scope."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 30_000)
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
    start_gpu()
    for plan, wanted in zip(plans, expected, strict=True):
        assert_alike(plan, merged(plan, "cuda"), wanted)


def assert_alike(plan, found, wanted):
    """The same bits, or for what is made of sums the same numbers."""
    method = plan.tensors[0].method
    summed = method.name in ROUNDED or getattr(method, "rescale", "") == "l1"
    for name, values in wanted.items():
        if not summed:
            assert torch.equal(found[name].view(torch.uint8), values.view(torch.uint8)), name
            continue
        rounding = 1e-2 if values.itemsize == 2 else 1e-5
        far = ~torch.isclose(found[name], values, rtol=rounding, atol=1e-6)
        assert int(far.sum()) <= STRAY * far.numel(), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_looking_at_a_merge(method, bf16_family, write_recipe, monkeypatch, start_gpu):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 30_000)
    experts = ("one", "two", "three")[: number_of_experts(method)]
    plan = merging.check(write_recipe(bf16_family, method, experts, profile="paper"))
    looks = [
        preview_plan,
        inspect_plan,
        inspect_recipe,
        lambda plan, device: trim_plan(plan, 0.3, "model", device=device),
    ]
    gpu = start_gpu()
    for look in looks:
        *_, found = look(plan, device="cuda")
        assert found is not None
    assert gpu is None or gpu.peak > 0


def test_a_written_merge_has_the_bits_of_the_cpu_s(bf16_family, write_recipe, start_gpu, tmp_path):
    recipe = write_recipe(bf16_family, "ties", ["one", "two", "three"], profile="paper")
    expected = merging.merge(recipe, tmp_path / "cpu", device="cpu")
    gpu = start_gpu()
    found = merging.merge(recipe, tmp_path / "gpu")
    assert gpu is None or gpu.peak > 0, "auto takes the GPU"
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
