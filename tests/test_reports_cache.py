"""The cache of reports on disk: what it gives back, what it forgets, and that two processes may share it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from components.family import Family
from components.inspect.report_cache import ReportCache
from components.inspect.reports import Reports, report_key, shared_reports
from components.server.settings import ROOT, Settings
from merging import Report
from merging.inspection import inspect_plan

KEYS = [f"{number:032x}" for number in range(8)]


def report_of(size: int = 10, label: str = "base") -> Report:
    """A report of about `size` kB."""
    return Report(label, ("one",), {}, warnings=("x" * 1000,) * size)


def plan_of(family: Path, experts=("one", "two")) -> merging.Plan:
    return merging.check(Family.demo(family, experts).recipe())


def used(cache: ReportCache, key: str, seconds: int) -> None:
    """Pretend that an entry was used last at this time."""
    os.utime(cache.folder / key, (seconds, seconds))


def test_a_restart_measures_nothing_twice(family, tmp_path, monkeypatch):
    plan = plan_of(family)
    key = report_key(plan)
    first = Reports(disk=ReportCache(tmp_path / "cache"))
    assert len(list(first.measure(plan, key, "cpu"))) > 1
    again = Reports(disk=ReportCache(tmp_path / "cache"))
    monkeypatch.setattr(
        "components.inspect.reports.inspect_plan", lambda *a, **k: pytest.fail("measured twice")
    )
    assert list(again.measure(plan, key, "cpu")) == []
    *_, measured = inspect_plan(plan, device="cpu")
    assert again.get(key) == first.get(key) == measured
    assert again.of_experts(plan.names) == measured


def test_the_one_not_used_for_longest_goes_first(tmp_path):
    cache = ReportCache(tmp_path, most_bytes=10**9)
    for number, key in enumerate(KEYS[:3]):
        cache.keep(key, report_of())
        used(cache, key, 1000 + number)
    assert cache.get(KEYS[0]) == report_of()
    size = sum(file.stat().st_size for file in (tmp_path / KEYS[0]).iterdir())
    cache.most_bytes = 3 * size
    cache.keep(KEYS[3], report_of())
    assert [cache.get(key) is not None for key in KEYS[:4]] == [True, False, True, True]
    assert sorted(os.listdir(tmp_path)) == [KEYS[0], KEYS[2], KEYS[3]]


def test_a_report_larger_than_the_bound_is_not_kept(tmp_path):
    cache = ReportCache(tmp_path, most_bytes=5000)
    cache.keep(KEYS[0], report_of(100))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("file", ["report.json", "report.safetensors"])
def test_a_damaged_entry_is_measured_anew(family, tmp_path, file):
    plan = plan_of(family)
    key = report_key(plan)
    list(Reports(disk=ReportCache(tmp_path)).measure(plan, key, "cpu"))
    os.truncate(tmp_path / key / file, 100)
    again = Reports(disk=ReportCache(tmp_path))
    assert len(list(again.measure(plan, key, "cpu"))) > 1
    assert ReportCache(tmp_path).get(key) == again.get(key)
    assert os.listdir(tmp_path) == [key]


@pytest.mark.parametrize(
    "key", ["", "..", "../" + KEYS[0], KEYS[0].upper() + "g", KEYS[0] + "/..", KEYS[0] + "\n"]
)
def test_keys_lead_nowhere_else(tmp_path, key):
    report_of().save(tmp_path / KEYS[0])
    cache = ReportCache(tmp_path / "inner")
    cache.keep(KEYS[0], report_of())
    assert cache.get(key) is None
    with pytest.raises(ValueError, match="is no key"):
        cache.keep(key, report_of())


def test_links_are_not_followed(tmp_path):
    report_of().save(tmp_path / "elsewhere")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / KEYS[0]).symlink_to(tmp_path / "elsewhere")
    cache = ReportCache(tmp_path / "cache", most_bytes=0)
    assert cache.get(KEYS[0]) is None
    cache.keep(KEYS[1], report_of())
    assert (tmp_path / "elsewhere" / "report.json").is_file()


def test_only_its_own_entries_are_removed(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    stale, fresh = (tmp_path / f".{KEYS[1]}.{mark}.partial" for mark in ("00000000", "11111111"))
    for folder in (stale, fresh):
        folder.mkdir()
    os.utime(stale, (1000, 1000))
    ReportCache(tmp_path, most_bytes=0).keep(KEYS[0], report_of())
    assert sorted(os.listdir(tmp_path)) == [fresh.name, "notes"]
    assert (tmp_path / "notes" / "text").read_text() == "mine"


def test_a_folder_that_cannot_be_written_only_means_no_cache(family, tmp_path):
    (tmp_path / "file").write_text("")
    plan = plan_of(family)
    reports = Reports(disk=ReportCache(tmp_path / "file" / "cache"))
    list(reports.measure(plan, report_key(plan), "cpu"))
    assert reports.get(report_key(plan)) is not None
    assert reports.disk.get(report_key(plan)) is None


WORKER = """
import sys
from components.inspect.report_cache import ReportCache
from merging import Report
from merging.inspection import inspect_plan
cache = ReportCache(sys.argv[1], most_bytes=60_000)
for step in range(60):
    key = f"{step % 8:032x}"
    found = cache.get(key)
    assert found is None or (found.base == key and len(found.warnings) == 10), found
    cache.keep(key, Report(key, ("one",), {}, warnings=("x" * 1000,) * 10))
"""


def test_two_processes_share_a_folder(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.wait(timeout=120) == 0, worker.stderr.read().decode()
        worker.stderr.close()
    names = os.listdir(tmp_path)
    assert names
    assert set(names) <= set(KEYS)
    size = sum(file.stat().st_size for name in names for file in (tmp_path / name).iterdir())
    assert size <= 60_000
    assert all(ReportCache(tmp_path).get(name).base == name for name in names)


def test_the_key_changes_with_a_single_weight(family, tmp_path):
    folder = shutil.copytree(family, tmp_path / "f")
    before = report_key(plan_of(folder))
    assert report_key(plan_of(folder)) == before
    file = folder / "one" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][20, 17] += 1
    save_file(tensors, file, {"format": "pt"})
    assert report_key(plan_of(folder)) != before


def test_the_key_changes_where_nobody_samples_and_the_time_is_set_back(tmp_path):
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(4000, 1000)}, tmp_path / name / "model.safetensors")
    plan, file = plan_of(tmp_path), tmp_path / "one" / "model.safetensors"
    before, sampled, state = report_key(plan), plan.experts[0].fingerprint, file.stat()
    with file.open("r+b") as content:
        content.seek(state.st_size - 1_000_003)
        content.write(b"\x3f")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = plan_of(tmp_path)
    assert changed.experts[0].fingerprint == sampled
    assert report_key(changed) != before


def test_the_key_is_cheap_for_large_tensors(family, tmp_path, monkeypatch):
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(4000, 1000)}, tmp_path / name / "model.safetensors")
    plan = plan_of(tmp_path)
    read = []
    bytes_of = merging.Checkpoint._bytes
    monkeypatch.setattr(
        merging.Checkpoint,
        "_bytes",
        lambda self, tensor, begin, end: read.append(end - begin) or bytes_of(self, tensor, begin, end),
    )
    assert len(report_key(plan)) == 32
    assert 0 < sum(read) < 100_000


def test_the_setting_says_where(tmp_path):
    settings = Settings.from_environment({"MERGESCOPE_CACHE": str(tmp_path / "c")})
    assert settings.reports == tmp_path / "c" / "reports"
    settings = Settings.from_environment({"MERGESCOPE_RUNS": str(tmp_path / "data" / "runs")})
    assert settings.reports == tmp_path / "data" / "cache" / "reports"
    assert Settings().reports == ROOT / "cache" / "reports"
    before = shared_reports().disk
    try:
        assert shared_reports(settings) is shared_reports()
        assert shared_reports().disk.folder == settings.reports
    finally:
        shared_reports().disk = before
