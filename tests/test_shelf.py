"""Small results of many pieces must not cost more memory than they hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merging.shelf import Shelf

SCANS = """
import torch
from merging import ops
from merging.pieces import Piece
from merging.statistics import InnerProducts, LargestCut, Ranking, Sums

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
values = torch.randn(3, 170, 1024, generator=generator).to(torch.bfloat16)
shape = values[0].numel()
scans = [
    Sums(lambda piece: ops.flat(piece.deltas.abs()).sum(1, dtype=torch.float64)),
    InnerProducts(),
    LargestCut(Ranking((0, 1)), [shape // 5] * 2, shape),
]
for scan in scans:
    for number in range(120):
        models = torch.stack([value.float() for value in values[1:]])
        scan.update(Piece("w", number, values[0].float(), models, torch.ones(2)))
        if number == 20:
            before = resident()
    print(type(scan).__name__, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of memory")
def test_scans_do_not_scatter_their_results_over_the_pieces_memory():
    """100 pieces of 2 MB: without the shelf each leaves a gap of its own size in the heap."""
    found = subprocess.run([sys.executable, "-c", SCANS], capture_output=True, text=True, check=True).stdout
    growth = {name: float(size) for name, size in map(str.split, found.splitlines())}
    assert growth.keys() == {"Sums", "InnerProducts", "LargestCut"}
    assert max(growth.values()) < 40, growth


def test_a_shelf_gives_back_what_was_put_there(monkeypatch):
    monkeypatch.setattr("merging.shelf.BLOCK_BYTES", 64)
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
