"""Work is counted, not timed: passes over the models, bytes read and written, tensors made for every piece."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import merging
from merging import ops
from merging.engine import NoSink, run_plan
from merging.events import Progress
from merging.executors import Inline

EXPERTS = ["one", "two", "three"]
COLUMNS, ROWS = 128, 1024
"""A piece of the tests below has so many rows."""
FINGERPRINT = 16 * 256
"""Bytes of a model's one tensor that tell it from others: what a merge's scores are kept under."""
WORK = {
    # passes over the models where nothing can be kept in between, a sample of a sixteenth (of so small models) for every cut;
    # float32 tensors made of every piece, of its own size
    ("linear", None): (1, 2.1),
    ("task_arithmetic", None): (1, 2.6),
    ("ties", "tensor"): (3.0625, 3.3),
    ("ties", "model"): (3.0625, 3.3),
    ("dare_ties", None): (2, 8.6),
    ("della", None): (1, 11.6),
    ("pcb", None): (3.125, 14.6),
    ("dppa", None): (4.0625, 10.1),
}
"""A change that makes less should lower its number here; one that needs more has to say why."""


class Made(TorchDispatchMode):
    """Counts the bytes of all tensors that are made, but views of others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        known = {self._memory(value) for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        for value in tree_leaves(found):
            if torch.is_tensor(value) and self._memory(value) not in known:
                self.bytes += value.untyped_storage().nbytes()
        return found

    def _memory(self, value: torch.Tensor) -> int:
        return value.untyped_storage().data_ptr()


@pytest.fixture
def plan_of(tmp_path, write_recipe, monkeypatch):
    """A plan for models of one matrix in so many pieces, one piece after the other."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 4 * 4 * COLUMNS * ROWS)
    monkeypatch.setattr("merging.engine.executor_for", lambda device, elements: Inline())
    monkeypatch.setattr("merging.inspecting.shelf.BLOCK_BYTES", 1)

    def make(method: str, scope: str | None, pieces: int) -> merging.Plan:
        folder = tmp_path / str(pieces)
        for number, name in enumerate(("base", *EXPERTS)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            values = torch.randn(pieces * ROWS, COLUMNS, generator=torch.Generator().manual_seed(number))
            tensors = {"model.layers.0.mlp.up_proj.weight": values.bfloat16()}
            save_file(tensors, folder / name / "model.safetensors")
        keys = {"scope": scope} if scope else {}
        return merging.check(write_recipe(folder, method, EXPERTS, profile="paper", **keys))

    return make


def counting(count: dict[str, int], name: str, call: Callable[..., int]) -> Callable[..., int]:
    def counted(*arguments) -> int:
        done = call(*arguments)
        count[name] += done
        return done

    return counted


@pytest.fixture
def moved(monkeypatch) -> dict[str, int]:
    """Bytes that the system really reads and writes at places in files."""
    count = {"preadv": 0, "pwritev": 0}
    for name in count:
        monkeypatch.setattr(os, name, counting(count, name, getattr(os, name)))
    return count


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("method", "scope"), WORK)
def test_bytes_read_and_written(monkeypatch, plan_of, moved, tmp_path, method, scope, kept):
    """What is kept between scans is read once, else once for every scan and little for a sample; what is written is written once."""
    if not kept:
        monkeypatch.setattr("merging.reading.KEEP_BYTES", 0)
    plan = plan_of(method, scope, pieces=8)
    passes = 1 if kept else WORK[method, scope][0]
    *steps, last = merging.run(plan.recipe, tmp_path / "out")
    written = plan.bytes_to_write
    assert plan.bytes_to_read == (3 if method == "linear" else 4) * written
    assert (last.bytes_read, last.bytes_written) == (passes * plan.bytes_to_read, written)
    header = Path(last.path, "model.safetensors").stat().st_size - written
    fingerprints = FINGERPRINT * len(("base", *EXPERTS))
    assert moved == {"preadv": last.bytes_read + fingerprints, "pwritev": written + header}
    assert isinstance(steps[-1], Progress)
    assert steps[-1].bytes_done == last.bytes_read + written


@pytest.mark.parametrize(("method", "scope"), WORK)
def test_tensors_made_for_a_piece(plan_of, method, scope):
    """What twice as many pieces make more, so that nothing counts that is made once."""

    if ops.loops() is None:
        pytest.skip("without compiled loops every step makes a tensor")

    def made(pieces: int) -> int:
        plan = plan_of(method, scope, pieces)
        with Made() as count:
            list(run_plan(plan, NoSink(), device="cpu"))
        return count.bytes

    made(4)  # what is made once in a process
    one = 4 * COLUMNS * ROWS
    most = WORK[method, scope][1]
    found = (made(8) - made(4)) / 4 / one
    assert found <= most, f"{found:.2f} tensors a piece"
