"""Jobs run in order, belong to somebody, can be stopped, and leave either a result or nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest

import merging
from merging.engine import Progress
from merging.executors import Threads
from merging.job_records import Partial
from merging.jobs import NO_MEMORY, UNEXPECTED, JobStore
from merging.reading import Pieces

ROOT = Path(__file__).parent.parent
ADA, BOB = "a" * 32, "b" * 32


def step(done: int, of: int = 100) -> Progress:
    return Progress("merging", done, of, done * 1000, done / of, done * 0.01)


def endless(out: Path):
    """Works until it is closed, and then tidies up, as a merge does."""
    out.mkdir(parents=True)
    try:
        for done in count():
            yield step(min(done, 99))
            time.sleep(0.01)
    finally:
        out.rmdir()


def until(question, seconds: float = 10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.005)
    raise AssertionError("waited in vain")


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "runs")
    yield store
    store.close()


@pytest.fixture
def recipe(family):
    return merging.Recipe.from_yaml(
        json.dumps(
            {
                "merge_method": "ties",
                "base_model": str(family / "base"),
                "models": [{"model": str(family / name)} for name in ("one", "two", "three")],
                "parameters": {"density": 0.3},
                "profile": "paper",
            }
        )
    )


def test_a_merge_runs_and_keeps_what_it_attained(store, recipe):
    job = store.start(ADA, "merge", lambda out: merging.run(recipe, out), title="TIES", recipe="the yaml")
    done = store.wait(ADA, job, 60)
    assert (done.state, done.error, done.title, done.recipe) == ("done", None, "TIES", "the yaml")
    assert done.created <= done.started <= done.ended
    assert done.result["density"] == pytest.approx([0.3] * 3, abs=1e-3)
    assert done.result["relative_change"] > 0
    assert store.model(ADA, job) == store.folder / ADA / job / "model"
    merged = merging.Checkpoint.open(store.model(ADA, job))
    assert merged.parameters == done.result["parameters"]


def test_progress_is_seen_while_it_runs(store):
    job = store.start(ADA, "merge", endless)
    seen = set()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        now = store.get(ADA, job)
        if now.progress is not None:
            seen.add(now.progress.tensors_done)
        time.sleep(0.01)
    assert len(seen) >= 5
    store.cancel(ADA, job)


def test_a_partial_result_is_seen_at_once_and_outlives_a_cancel(store):
    def work(out):
        yield Partial({"rows": [1]})
        yield from endless(out)

    job = store.start(ADA, "search", work)
    assert until(lambda: store.get(ADA, job).result) == {"rows": [1]}
    assert store.get(ADA, job).active
    assert json.loads((store.folder / ADA / job / "job.json").read_text())["result"] == {"rows": [1]}
    store.cancel(ADA, job)
    ended = store.wait(ADA, job, 5)
    assert (ended.state, ended.result) == ("cancelled", {"rows": [1]})


def test_a_table_that_grows_quickly_is_not_written_for_every_row(store):
    def work(out):
        for rows in range(3):
            yield Partial({"rows": rows})
        yield from endless(out)

    def written():
        return json.loads((store.folder / ADA / job / "job.json").read_text())["result"]

    job = store.start(ADA, "search", work)
    until(lambda: store.get(ADA, job).result == {"rows": 2})
    assert written() == {"rows": 0}
    store.cancel(ADA, job)
    store.wait(ADA, job, 5)
    assert written() == {"rows": 2}


def test_only_the_newest_of_a_kind_are_kept(store):
    def work(out):
        yield {"done": True}

    ids = [store.start(owner, kind, work) for owner, kind in [(ADA, "grid")] * 3 + [(ADA, "merge")]]
    store.wait(ADA, ids[-1], 5)
    other = store.start(BOB, "grid", work)
    store.wait(BOB, other, 5)
    running = store.start(ADA, "grid", endless)
    store.forget_oldest(ADA, "grid", 1)
    assert {job.id for job in store.list(ADA)} == {*ids[2:], running}
    assert store.get(BOB, other)
    store.cancel(ADA, running)


def test_cancel_stops_within_a_second_and_leaves_nothing(store):
    job = store.start(ADA, "merge", endless)
    until(lambda: store.get(ADA, job).progress)
    begun = time.monotonic()
    assert store.cancel(ADA, job)
    assert store.wait(ADA, job, 5).state == "cancelled"
    assert time.monotonic() - begun < 1
    assert [file.name for file in (store.folder / ADA / job).iterdir()] == ["job.json"]
    assert store.model(ADA, job) is None
    assert not store.cancel(ADA, job)


def test_cancel_in_the_middle_of_a_real_merge_leaves_nothing(store, recipe):
    begun, go_on = threading.Event(), threading.Event()

    def work(out):
        for number, event in enumerate(merging.run(recipe, out)):
            if number == 5:
                assert (out.parent / ".model.partial").is_dir()
                begun.set()
                go_on.wait(10)
            yield event

    job = store.start(ADA, "merge", work)
    begun.wait(30)
    store.cancel(ADA, job)
    go_on.set()
    assert store.wait(ADA, job, 10).state == "cancelled"
    assert [file.name for file in (store.folder / ADA / job).iterdir()] == ["job.json"]


def test_a_cancel_does_not_wait_for_a_piece_that_takes_long(store, recipe, monkeypatch):
    """As the first one does, while its loops are compiled; what comes of it later is written nowhere."""
    under_way, release, ended = threading.Event(), threading.Event(), threading.Event()

    def load(self, spot, original=Pieces.load):
        under_way.set()
        release.wait(60)
        ended.set()
        return original(self, spot)

    monkeypatch.setattr("merging.engine.executor_for", lambda device, elements: Threads(2))
    monkeypatch.setattr(Pieces, "load", load)
    job = store.start(ADA, "merge", lambda out: merging.run(recipe, out))
    under_way.wait(30)
    store.cancel(ADA, job)
    assert store.wait(ADA, job, 30).state == "cancelled"
    assert not release.is_set()
    release.set()
    ended.wait(10)
    assert [file.name for file in (store.folder / ADA / job).iterdir()] == ["job.json"]


def test_jobs_run_in_the_order_they_were_asked_for(store):
    order = []
    gate = threading.Event()

    def work(name):
        def run(out):
            gate.wait(10)
            order.append(name)
            yield {"name": name}

        return run

    jobs = [store.start(owner, "merge", work(name)) for owner, name in ((ADA, 1), (BOB, 2), (ADA, 3))]
    until(lambda: store.get(ADA, jobs[0]).state == "running")
    assert [store.get(o, j).ahead for o, j in zip((ADA, BOB, ADA), jobs, strict=True)] == [0, 1, 2]
    gate.set()
    assert store.wait(ADA, jobs[2], 10).result == {"name": 3}
    assert order == [1, 2, 3]
    assert [job.id for job in store.list(ADA)] == [jobs[2], jobs[0]]


def test_nobody_waits_for_all_that_another_asked_for(store):
    order, gate = [], threading.Event()

    def work(name):
        def run(out):
            gate.wait(10)
            order.append(name)
            yield {"name": name}

        return run

    asked = [(ADA, "a1"), (ADA, "a2"), (ADA, "a3"), (BOB, "b1"), (BOB, "b2"), ("c" * 32, "c1")]
    jobs = {name: (owner, store.start(owner, "merge", work(name))) for owner, name in asked}
    until(lambda: store.get(*jobs["a1"]).state == "running")
    ahead = {name: store.get(*job).ahead for name, job in jobs.items()}
    gate.set()
    assert store.wait(*jobs["a3"], 10).state == "done"
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert ahead == {name: place for place, name in enumerate(order)}


def test_a_job_that_runs_longer_than_any_may_is_ended_and_says_so(store):
    store.longest = 0.15

    def rows(out):
        yield Partial({"rows": [1]})
        yield from endless(out)

    job = store.start(ADA, "tune", rows)
    ended = store.wait(ADA, job, 10)
    assert (ended.state, ended.result) == ("failed", {"rows": [1]})
    assert "this server gives no job more time" in ended.error
    quick = store.start(ADA, "merge", lambda out: iter([{"x": 1}]))
    assert store.wait(ADA, quick, 10).state == "done"
    assert store.cancel(ADA, quick) is False


def test_a_waiting_job_can_be_cancelled_and_never_runs(store):
    first = store.start(ADA, "merge", endless)
    ran = []
    second = store.start(ADA, "merge", lambda out: iter(ran.append(out) or ()))
    assert store.cancel(ADA, second)
    assert store.get(ADA, second).state == "cancelled"
    store.cancel(ADA, first)
    store.wait(ADA, first, 5)
    assert ran == []


def test_owners_do_not_see_each_other(store, tmp_path):
    job = store.start(ADA, "merge", lambda out: iter([{"x": 1}]))
    running = store.start(ADA, "merge", endless)
    store.wait(ADA, job, 10)
    for who in (BOB, "", "..", "a/b", f"../runs/{ADA}", None, "A" * 32, ADA + "\n"):
        assert store.get(who, job) is None
        assert store.list(who) == []
        assert store.model(who, job) is None
        assert not store.cancel(who, running)
        assert not store.delete(who, job)
    for id in ("", "..", "../" + ADA, None, job + "/", job.upper()):
        assert store.get(ADA, id) is None
        assert not store.delete(ADA, id)
    until(lambda: store.get(ADA, running).state == "running")
    assert store.get(ADA, job).result == {"x": 1}


def test_an_owner_that_is_no_owner_starts_nothing(store):
    with pytest.raises(merging.MergingError, match="Reload"):
        store.start("../elsewhere", "merge", endless)


def test_one_owner_cannot_fill_the_queue(store):
    jobs = [store.start(ADA, "merge", endless) for _ in range(store.most_of_owner)]
    with pytest.raises(merging.MergingError, match="waiting"):
        store.start(ADA, "merge", endless)
    store.start(BOB, "merge", endless)
    for job in reversed(jobs):
        store.delete(ADA, job)


def test_delete_removes_the_result_and_the_record(store, recipe):
    job = store.start(ADA, "merge", lambda out: merging.run(recipe, out))
    store.wait(ADA, job, 60)
    assert store.delete(ADA, job)
    assert store.get(ADA, job) is None
    assert not (store.folder / ADA / job).exists()


def test_delete_stops_a_running_job_first(store):
    job = store.start(ADA, "merge", endless)
    until(lambda: store.get(ADA, job).progress)
    assert store.delete(ADA, job)
    store.wait(ADA, job, 5)
    assert store.get(ADA, job) is None
    assert list((store.folder / ADA).iterdir()) == []


def test_a_mistake_of_the_user_is_told_in_its_own_words(store, recipe):
    broken = recipe.model_copy(update={"parameters": {"density": 7}})
    job = store.start(ADA, "merge", lambda out: merging.run(broken, out))
    failed = store.wait(ADA, job, 10)
    assert failed.state == "failed"
    assert "density" in failed.error
    assert [file.name for file in (store.folder / ADA / job).iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    ("error", "sentence"), [(ZeroDivisionError("secret"), UNEXPECTED), (MemoryError(), NO_MEMORY)]
)
def test_a_mistake_of_ours_is_logged_and_told_plainly(store, caplog, error, sentence):
    def work(out):
        yield step(1)
        raise error

    with caplog.at_level(logging.ERROR):
        job = store.start(ADA, "merge", work)
        failed = store.wait(ADA, job, 10)
    assert (failed.state, failed.error) == ("failed", sentence)
    assert type(error).__name__ in caplog.text
    later = store.start(ADA, "merge", lambda out: iter([{"alive": True}]))
    assert store.wait(ADA, later, 10).result == {"alive": True}


def test_records_outlive_the_store(tmp_path, recipe):
    store = JobStore(tmp_path)
    done = store.start(ADA, "merge", lambda out: merging.run(recipe, out))
    before = store.wait(ADA, done, 60)
    running = store.start(ADA, "merge", endless)
    waiting = store.start(ADA, "merge", endless)
    until(lambda: store.get(ADA, running).progress)
    store.close()
    again = JobStore(tmp_path)
    assert again.get(ADA, done) == before
    assert again.get(ADA, running).state == "interrupted"
    assert again.get(ADA, waiting).state == "interrupted"
    assert again.model(ADA, done) is not None
    again.close()


CRASH = """
import sys, time
from pathlib import Path
import merging
from merging.jobs import JobStore

def work(out):
    for number, event in enumerate(merging.run(sys.argv[2], out)):
        if number == 5:
            print("midway", flush=True)
            time.sleep(60)
        yield event

store = JobStore(sys.argv[1])
store.start("a" * 32, "merge", work)
time.sleep(60)
"""


def test_a_killed_process_leaves_an_interrupted_job_and_no_litter(tmp_path, family, write_recipe):
    recipe = write_recipe(family, "ties")
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, runs, recipe], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "midway\n"
        beside = JobStore(runs)
        assert [job.state for job in beside.list(ADA)] == ["running"]
        beside.close()
    finally:
        process.kill()
        process.wait()
    assert list(runs.glob("*/*/.model.partial"))
    store = JobStore(runs)
    (job,) = store.list(ADA)
    assert job.state == "interrupted"
    assert [file.name for file in (runs / ADA / job.id).iterdir()] == ["job.json"]
    store.close()


def test_a_damaged_or_foreign_record_is_no_job(store):
    job = store.start(ADA, "merge", lambda out: iter([{}]))
    store.wait(ADA, job, 10)
    copy = store.folder / BOB / job
    copy.mkdir(parents=True)
    (copy / "job.json").write_text((store.folder / ADA / job / "job.json").read_text())
    assert store.get(BOB, job) is None
    (store.folder / ADA / job / "job.json").write_text("{")
    assert store.list(ADA) == []


def test_many_owners_cannot_fill_the_queue_either(store):
    for number in range(store.most):
        store.start(f"{number:032x}", "merge", endless)
    with pytest.raises(merging.MergingError, match="busy"):
        store.start(ADA, "merge", endless)


def test_a_record_that_cannot_be_written_leaves_no_job_running_forever(store, monkeypatch):
    """A disk that fills up at the very end: the job is not shown as running, and the next one runs."""
    from merging import jobs

    def full(folder, job, original=jobs.write_record):
        if job.state == "done":
            raise merging.OutputError("No space left on device")
        original(folder, job)

    monkeypatch.setattr(jobs, "write_record", full)
    first = store.start(ADA, "merge", lambda out: iter([{"answer": 1}]))
    assert store.wait(ADA, first, 10).state == "interrupted"
    monkeypatch.undo()
    second = store.start(ADA, "merge", lambda out: iter([{"answer": 2}]))
    assert store.wait(ADA, second, 10).state == "done"


def test_a_result_that_is_no_json_does_not_stop_the_worker(store):
    store.start(ADA, "merge", lambda out: iter([{"answer": "\ud800"}]))
    second = store.start(ADA, "merge", lambda out: iter([{"answer": 2}]))
    assert store.wait(ADA, second, 10).state == "done"
