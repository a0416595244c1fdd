"""A disk that fills up while a result is written: one sentence, nothing left, and the program goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import merging
from merging import kernels
from merging.errors import HubError, OutputError
from merging.hub.cache import cached_model
from merging.hub.client import Hub
from merging.jobs import JobStore
from merging.references import Reference

ADA = "a" * 32
DISK = 96 << 20
FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    """A disk of its own with room for the check of a recipe: `DISK` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Take all of the disk but so many bytes."""
    free = shutil.disk_usage(disk).free
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


@pytest.fixture
def recipe(tmp_path, write_recipe) -> Path:
    """Of a model of 24 MB in twelve tensors."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "one", "two"):
        (tmp_path / "models" / name).mkdir(parents=True)
        tensors = {f"layers.{i}.w": torch.randn(1000, 500, generator=generator) for i in range(12)}
        save_file(tensors, tmp_path / "models" / name / "model.safetensors")
    return write_recipe(tmp_path / "models", "ties", profile="paper", parameters={"density": 0.5})


def left(disk: Path) -> list[str]:
    return sorted(file.name for file in disk.iterdir() if file.name != "filler")


def test_a_disk_that_fills_up_in_the_middle_of_a_command(disk, recipe):
    command = [sys.executable, "-m", "merging", "merge", str(recipe), str(disk / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (disk / ".out.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    fill(disk, leave=4 << 20)
    printed, said = process.communicate()
    assert (process.returncode, printed, len(said.splitlines())) == (1, "", 1), said
    assert said.startswith(f"error: {disk / 'out'}: ")
    assert FULL in said
    assert left(disk) == []


def test_a_disk_that_fills_up_in_the_middle_of_a_job(disk, recipe):
    store = JobStore(disk / "runs")

    def work(out):
        for number, event in enumerate(merging.run(recipe, out)):
            if number == 0:
                fill(disk, leave=4 << 20)
            yield event

    job = store.start(ADA, "merge", work)
    failed = store.wait(ADA, job, 60)
    assert failed.state == "failed"
    assert FULL in failed.error
    assert left(store.folder / ADA / job) == ["job.json"]
    (disk / "filler").unlink()
    again = store.start(ADA, "merge", lambda out: merging.run(recipe, out))
    assert store.wait(ADA, again, 60).state == "done"
    store.close()


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_is_full_when_the_weights_are_written(disk, recipe, earlier):
    """The model card and what else lies beside them no longer fits; an earlier result is still there."""
    out = disk / "out"
    if earlier:
        merging.merge(recipe, out)
        before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(OutputError, match=rf"writing mergescope\.yaml failed \({FULL}\)"):
        for event in merging.run(recipe, out):
            if event.share == 1:
                fill(disk)
    assert left(disk) == (["out"] if earlier else [])
    if earlier:
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_reports_at_the_last_moment_that_it_is_full(tmp_path, recipe, monkeypatch, call):
    def full(*_):
        raise OSError(28, FULL)

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "rename", full)))
    with pytest.raises(OutputError, match=rf"cannot be completed \({FULL}\)"):
        merging.merge(recipe, tmp_path / "results" / "out")
    assert list((tmp_path / "results").iterdir()) == []


def test_a_job_that_cannot_be_recorded_is_refused_in_a_sentence(disk):
    store = JobStore(disk / "runs")
    fill(disk)
    with pytest.raises(OutputError, match=FULL):
        store.start(ADA, "merge", lambda out: iter([{}]))
    assert store.list(ADA) == []
    (disk / "filler").unlink()
    job = store.start(ADA, "merge", lambda out: iter([{"answer": 1}]))
    assert store.wait(ADA, job, 10).result == {"answer": 1}
    store.close()


def test_the_program_starts_on_a_full_disk(disk):
    """A job that was under way is shown as interrupted, though that cannot be recorded."""
    store = JobStore(disk / "runs")
    job = store.start(ADA, "merge", lambda out: iter([{}]))
    store.wait(ADA, job, 10)
    store.close()
    record = disk / "runs" / ADA / job / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "running"}))
    fill(disk)
    again = JobStore(disk / "runs")
    assert again.get(ADA, job).state == "interrupted"
    again.close()


def test_a_disk_without_room_for_what_is_compiled(disk, monkeypatch):
    """What cannot be kept is compiled again next time; the first form of a loop fits here, the next does not."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(disk))
    loop = kernels._exact(lambda values: values.sum())
    assert loop(np.ones(3, np.float32)) == 3
    (kept,) = disk.rglob("*.nbc")
    fill(disk)
    assert loop(np.ones(3)) == 3
    assert list(disk.rglob("*.nbc")) == [kept]
    assert len(loop.signatures) == 2


def test_a_disk_that_fills_up_in_the_middle_of_a_download(disk, hub, tmp_path):
    save_file({"w": torch.zeros(5 << 20)}, (tmp_path / "model.safetensors"))
    (tmp_path / "repo").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "repo" / "model.safetensors")
    hub.add("org/tiny", tmp_path / "repo")
    ours = Hub(cache=disk)
    pinned = ours.pin(Reference("org/tiny"))
    steps = ours.download(pinned)
    next(steps)
    fill(disk, leave=4 << 20)
    with pytest.raises(HubError, match=r"the disk is full. Make room and start the download again"):
        list(steps)
    assert cached_model(Reference("org/tiny"), disk) is None
    with pytest.raises(HubError, match=r"the download of org/tiny needs .* make room"):
        list(ours.download(pinned))
    (disk / "filler").unlink()
    hub.forget()
    *_, last = ours.download(pinned)
    assert last.folder is not None
    assert hub.bytes_of("model.safetensors") < 18 << 20, "it goes on from where the disk was full"
