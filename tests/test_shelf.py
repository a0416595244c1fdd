"""Small results of many pieces must not cost more memory than they hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merging.inspecting.shelf import Shelf

SCANS = """
import sys
import torch
import merging.engine
import merging.reading
import merging.tensor_plan
from merging.checkpoint import StateDict
from merging.engine import run_plan
from merging.executors import Inline
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe

class Nowhere:
    def write(self, name, rows, start=0):
        pass

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

torch.set_num_threads(1)
merging.reading.KEEP_BYTES = 0
merging.tensor_plan.PIECE_BYTES = 2 << 20
merging.engine.executor_for = lambda device, elements: Inline()
generator = torch.Generator().manual_seed(0)
names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(25)]
models = [{name: torch.randn(1024, 1024, generator=generator).bfloat16() for name in names[:1]} for _ in range(3)]
base, *experts = [dict.fromkeys(names, model[names[0]]) for model in models]
entries = [ModelEntry(model=f"model {number}") for number in range(2)]
recipe = Recipe(merge_method=sys.argv[1], models=tuple(entries), profile="paper")
sources = [(entry, StateDict(tensors, entry.model)) for entry, tensors in zip(entries, experts)]
plan = plan_sources(recipe, StateDict(base, "base"), sources)
sizes = {}
for event in run_plan(plan, Nowhere(), device="cpu"):
    if event.stage == "merging":
        break
    sizes.setdefault(event.stage, []).append(resident())
print(max(max(found[15:]) - found[15] for found in sizes.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of memory")
def test_scans_do_not_scatter_their_results_over_the_pieces_memory():
    """150 pieces of 2 MB: without the shelf the two scans of PCB grew by 311 MB, those of other methods by less."""
    command = [sys.executable, "-c", SCANS, "pcb"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(found) < 45


def test_a_shelf_gives_back_what_was_put_there(monkeypatch):
    monkeypatch.setattr("merging.inspecting.shelf.BLOCK_BYTES", 64)
    shelf = Shelf(torch.int64)
    wanted = [torch.arange(size) - 3 for size in (5, 0, 2, 4, 20, 1)]
    wanted += [torch.tensor(7), torch.arange(6).view(2, 3).T]
    strips = [shelf.put(values) for values in wanted]
    for strip, values in zip(strips, wanted, strict=True):
        assert torch.equal(strip.tensor(), values)


def test_a_shelf_copies():
    shelf = Shelf(torch.float64)
    values = torch.ones(3)
    strip = shelf.put(values)
    values.zero_()
    assert strip.tensor().tolist() == [1.0, 1.0, 1.0]
