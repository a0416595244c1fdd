"""A shared server forgets who does not come back, and refuses what would not fit; nothing of a running job goes."""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import pytest

from components.downloads import zip_folder, zip_model
from components.importance.job import cache_of
from components.server.backend import hub_desk, job_store, run_history, visits
from components.server.kept_bytes import (
    MOST_UPLOADS,
    all_bytes,
    owner_bytes,
    require_room,
    require_room_to_upload,
)
from components.server.settings import Settings
from components.server.sweeper import UPLOADS, owners, sweep
from components.shared import LOCAL_OWNER, owner_id
from components.stages import LINKS
from components.theme import kept_words
from merging import MergingError
from merging.hub.cache import cache_folder
from merging.judging.history import Draft

ADA, BOB = "a" * 32, "b" * 32
HOUR = 3600


@pytest.fixture
def settings(tmp_path, monkeypatch):
    from huggingface_hub import constants

    made = Settings(runs=tmp_path / "runs", cache=tmp_path / "cache", single_owner=False, ttl=HOUR)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache" / "uploads"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.hub_cache))
    yield made
    job_store(made).close()


def written(out, nbytes=1000):
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(bytes(nbytes))
    yield {"files": {"module": f"{'1' * 32}.safetensors"}}


def waiting_for(gate):
    def work(out):
        gate.wait(30)
        yield {}

    return work


def done(settings, owner, title="a merge"):
    store = job_store(settings)
    id = store.start(owner, "merge", written, title=title)
    assert store.wait(owner, id, 30).state == "done"
    return id


def left(settings, owner, hours):
    """As if an owner had been here last so many hours ago."""
    then = time.time() - hours * HOUR
    os.utime(settings.runs / owner, (then, then))


def old(path, hours=30):
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


def test_who_does_not_come_back_is_forgotten_with_all_that_was_kept(settings):
    store, history = job_store(settings), run_history(settings)
    job = done(settings, ADA)
    archive = zip_model(store, ADA, job)
    history.add(ADA, Draft(recipe="merge_method: ties", models=(), subject="s", title="t"))
    hub_desk(settings).take_token(ADA, "hf_of_ada")
    (settings.runs / LINKS).mkdir()
    (settings.runs / LINKS / "ties-1").symlink_to(store.model(ADA, job))
    other = done(settings, BOB)
    left(settings, ADA, 2)
    assert owners(settings) == {ADA, BOB}
    assert sweep(settings) == [ADA]
    assert not (settings.runs / ADA).exists()
    assert not archive.exists()
    assert not list((settings.runs / LINKS).iterdir())
    assert not history.list(ADA)
    assert not hub_desk(settings).has_token(ADA)
    assert store.model(BOB, other) is not None


def test_whoever_asks_is_here(settings):
    done(settings, ADA)
    left(settings, ADA, 2)
    assert owner_id(settings, ADA) == ADA
    assert sweep(settings) == []
    assert time.time() - (settings.runs / ADA).stat().st_mtime < HOUR, "a restart knows it, too"


def test_nothing_of_a_running_job_goes(settings):
    def endless(out):
        out.mkdir(parents=True)
        while True:
            time.sleep(0.01)
            yield from ()
            yield merging_progress()

    from merging import Progress

    def merging_progress():
        return Progress("at work", 0, 1, 0, 0.0, 0.0)

    store = job_store(settings)
    id = store.start(ADA, "merge", endless)
    while store.get(ADA, id).state == "queued":
        time.sleep(0.01)
    left(settings, ADA, 100)
    assert sweep(settings) == []
    store.cancel(ADA, id)
    store.wait(ADA, id, 30)
    left(settings, ADA, 100)
    visits(settings)._seen._kept.clear()
    assert sweep(settings) == [ADA]


def test_files_that_nobody_has_any_more_go(settings):
    done(settings, ADA)
    cache, uploads = cache_of(settings), zip_folder("").parent
    for folder in (cache, uploads / "0f" / "upload", uploads / "1f", cache_folder() / "models--org--old"):
        folder.mkdir(parents=True)
    mine, gone = cache / f"{'1' * 32}.safetensors", cache / f"{'2' * 32}.safetensors"
    weights = cache_folder() / "models--org--old" / "weights"
    for file in (mine, gone, weights):
        file.write_bytes(b"x")
        old(file)
    for folder in (uploads / "0f", uploads / "1f"):
        old(folder, 2 * UPLOADS / HOUR if folder.name == "0f" else 0)
    old(weights, 48)
    sweep(settings)
    assert mine.exists()
    assert not gone.exists()
    assert not (uploads / "0f").exists()
    assert (uploads / "1f").exists()
    assert not weights.parent.exists()


def test_what_another_measured_stays_while_somebody_may_be_about_to_use_it(settings):
    file = cache_of(settings) / f"{'2' * 32}.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    old(file)
    store, gate = job_store(settings), threading.Event()
    job = store.start(ADA, "importance", waiting_for(gate))
    sweep(settings)
    assert file.exists()
    gate.set()
    store.wait(ADA, job, 30)
    sweep(settings)
    assert not file.exists()


def test_who_has_no_folder_is_not_forgotten_by_a_restart(settings):
    """The folder of jobs tells when its owner was here; who has only a history has none."""
    run_history(settings).add(ADA, Draft(recipe="merge_method: ties", models=(), subject="s", title="t"))
    assert sweep(settings) == []
    assert run_history(settings).list(ADA)
    assert sweep(settings, time.time() + 2 * HOUR) == [ADA]


def test_models_that_nobody_reads_make_room_for_others(settings):
    """The disk is full of models of the Hub, and somebody wants to merge the demo."""
    for name, hours in (("older", 20), ("old", 10), ("used", 30), ("fresh", 0)):
        weights = cache_folder() / f"models--org--{name}" / "blobs" / "weights"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(bytes(1000))
        old(weights, hours)
    store, gate = job_store(settings), threading.Event()
    recipe = "models: [{model: org/used@abc}]"
    job = store.start(BOB, "merge", waiting_for(gate), recipe=recipe)
    small = dataclasses.replace(settings, disk=all_bytes(settings) + 100)
    require_room(small, 600, "This merge", ADA)
    assert {path.name[13:] for path in cache_folder().iterdir()} == {"old", "used", "fresh"}
    with pytest.raises(MergingError, match="of this server"):
        require_room(small, 3000, "This download")
    assert {path.name[13:] for path in cache_folder().iterdir()} == {"used", "fresh"}
    gate.set()
    store.wait(BOB, job, 30)


def test_uploads_together_have_a_limit(settings):
    small = dataclasses.replace(settings, largest_upload=1000)
    uploaded = zip_folder("").parent / "0f" / "file"
    uploaded.parent.mkdir(parents=True)
    uploaded.write_bytes(bytes(1000 * MOST_UPLOADS - 500))
    require_room_to_upload(small, 500)
    with pytest.raises(MergingError, match="Try again later"):
        require_room_to_upload(small, 501)
    require_room_to_upload(dataclasses.replace(small, single_owner=True), 501)


def test_models_of_this_machines_own_cache_stay(settings, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    file = tmp_path / "home" / "models--org--old" / "weights"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    old(file, 1000)
    sweep(settings)
    assert file.exists()


def test_one_persons_own_server_forgets_nobody(settings):
    own = dataclasses.replace(settings, single_owner=True)
    done(own, LOCAL_OWNER)
    left(own, LOCAL_OWNER, 1000)
    assert sweep(own) == []
    assert sweep(settings) == [], "nor does it once it is shared"


def test_what_does_not_fit_is_refused_with_the_limit_and_a_way_out(settings):
    small = dataclasses.replace(settings, owner_disk=3000, disk=6000)
    zip_model(job_store(small), ADA, done(small, ADA))
    held = owner_bytes(small, ADA)
    assert 2000 < held < 3000, "the model, its record, and the zip"
    require_room(small, 3000 - held, "This merge", ADA)
    with pytest.raises(MergingError, match=r"allows 3\.00 kB to each visitor\. Delete merges"):
        require_room(small, 3001 - held, "This merge", ADA)
    require_room(small, 2999, "This merge", BOB)
    taken = all_bytes(small)
    with pytest.raises(MergingError, match=r"of the 6\.00 kB of this server .* or try again later"):
        require_room(small, 6001 - taken, "This download")
    require_room(settings, 10**15, "This merge", ADA)


@pytest.mark.parametrize(
    ("ttl", "said"), [(86400, "24 hours"), (7 * 86400, "7 days"), (3600, "60 minutes"), (90, "90 seconds")]
)
def test_the_page_says_how_long_things_are_kept(ttl, said):
    assert f"deleted {said} after your last visit" in kept_words(ttl)
    assert "until you delete it" in kept_words(None)
