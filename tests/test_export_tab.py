"""The Export tab: one's own merges as a zip or on the Hub, and nobody else's by any id."""

from __future__ import annotations

import dataclasses
import zipfile
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest

from components import downloads
from components.compare import runner
from components.export import chosen, push_job
from components.export.about import about_html
from components.export.parcels import going_home, zip_merge
from components.export.tab import _download
from components.family import Family
from components.hub import token
from components.merge import events as merge_events
from components.merge.recipe import default_recipe
from components.server.backend import hub_desk, job_store, push_store, run_history
from components.server.settings import Settings
from merging import MergingError, check
from merging.evaluation import ItemResult, SuiteResult
from merging.judging.history import Draft
from merging.judging.suites import Item, Suite
from tests.hub_server import TOKEN

ADA, BOB = "a" * 32, "b" * 32
FORGED = [None, "", 7, [], {"id": 1}, "../" + ADA, "0" * 32, "x" * 10**6, "a/b", "\0"]


@pytest.fixture(scope="module")
def settings(family, tmp_path_factory):
    made = Settings(
        demo=family,
        runs=tmp_path_factory.mktemp("runs"),
        device="cpu",
        single_owner=False,
        local_folders=False,
    )
    yield made
    for store in (job_store(made), push_store(made)):
        store.close()


@pytest.fixture(scope="module")
def models(family) -> Family:
    return Family(str(family / "base"), (str(family / "one"), str(family / "two")))


@pytest.fixture(scope="module")
def merges(settings, models) -> list[str]:
    """Two finished merges of Ada's, the newer one last."""
    ids = []
    for method in ("linear", "ties"):
        id = merge_events.start(settings, default_recipe(models, method), models, ADA)[0]
        assert job_store(settings).wait(ADA, id, 60).state == "done"
        ids.append(id)
    return ids


@pytest.fixture
def signed_in(settings):
    """Ada has given a token."""
    token.take(settings, TOKEN, ADA)
    yield
    token.forget(settings, ADA)


def asked(id, name="mira/merge", public=False, add=False, message="Mine"):
    return id, name, public, add, message


def pushed(settings, models, *values):
    id = push_job.start(settings, ADA, models, *values)
    return push_store(settings).wait(ADA, id, 60)


def test_the_newest_merge_of_the_chosen_models_is_chosen(settings, models, merges):
    newest, shown, listed, card, first, download, *_ = chosen.come(settings, "", "", models, ADA)
    assert newest == shown == listed["value"] == merges[1]
    assert {id for _, id in listed["choices"]} == set(merges)
    assert "TIES" in card
    assert str(settings.runs) not in card, "the folder is no visitor's business"
    assert (first["visible"], download["visible"]) == (False, True)
    assert "MB)" in download["value"] or "kB)" in download["value"]
    assert chosen.come(settings, merges[0], newest, models, ADA)[1] == merges[0], "what was chosen stays"
    assert chosen.come(settings, merges[0], merges[0], models, ADA)[1] == merges[1], "a newer one came"
    other = Family(models.base, (*models.experts[::-1], "x"))
    assert chosen.come(settings, "", "", other, ADA)[1] == merges[1]
    own = dataclasses.replace(settings, single_owner=True)
    job = job_store(settings).get(ADA, merges[0])
    assert str(job_store(settings).model(ADA, job.id)) in chosen.chosen_html(own, job, "1 MB")


def test_who_has_no_merge_is_led_to_merge(settings, models, merges):
    newest, shown, listed, card, first, download, readme, text = chosen.come(settings, "", "", models, BOB)
    assert (newest, shown, text) == ("", "", "")
    assert card == chosen.EMPTY
    assert (first["visible"], listed["visible"], download["visible"], readme["visible"]) == (
        True,
        False,
        False,
        False,
    )


def test_the_zip_holds_what_goes_home(settings, merges):
    path = zip_merge(settings, ADA, merges[0])
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {path.stem}
        for name, content in going_home(settings, ADA, merges[0]).items():
            assert archive.read(f"{path.stem}/{name}") == content
            assert names.count(f"{path.stem}/{name}") == 1
    assert zip_merge(settings, ADA, merges[0]) == path


def test_who_asks_for_the_same_zip_at_once_gets_it(settings, merges):
    over = {"notes.txt": b"x" * 10**7}
    with ThreadPoolExecutor(6) as visitors:
        for _ in range(3):
            downloads.forget_zip(merges[0])
            paths = visitors.map(
                lambda _: downloads.zip_model(job_store(settings), ADA, merges[0], over), range(6)
            )
            (path,) = {*paths}
            assert zipfile.ZipFile(path).testzip() is None
            assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_merge_that_is_deleted_while_it_is_zipped_is_gone(settings, models, monkeypatch):
    id = merge_events.start(settings, default_recipe(models, "linear"), models, ADA)[0]
    store, write = job_store(settings), downloads._write_zip
    assert store.wait(ADA, id, 60).state == "done"
    monkeypatch.setattr(downloads, "_write_zip", lambda *one: [store.delete(ADA, id), write(*one)])
    with pytest.raises(MergingError, match="no longer there"):
        zip_merge(settings, ADA, id)
    assert not downloads.zip_folder(id).exists()


def test_the_card_that_goes_home_has_the_scores_of_its_owner(settings, merges):
    folder = job_store(settings).model(ADA, merges[1])
    history, plan = run_history(settings), check(folder / "mergescope.yaml")
    suite = Suite("sums", (Item("1 + 1", "2"),))
    for owner, name in ((ADA, "sums"), (BOB, "bob's own")):
        run = history.add(owner, Draft.of(plan))
        history.put_score(
            owner, run.subject, SuiteResult(name, (ItemResult("1 + 1", "2", "2", True),)), suite
        )
    card = chosen.read_card(settings, merges[1], ADA)
    assert "| `this merge` | 100.0 %" in card
    assert "bob" not in card
    assert card.count("data:image/png;base64,") == 3


@pytest.mark.parametrize("id", FORGED, ids=lambda id: repr(id)[:12])
def test_a_forged_id_finds_nothing(settings, models, merges, id, signed_in):
    assert chosen.show(settings, id, ADA)[0] == ""
    assert "no longer there" in chosen.read_card(settings, id, ADA)
    with pytest.raises(gr.Error, match="no longer there"):
        _download(settings, id, ADA)
    with pytest.raises(MergingError, match="no longer there"):
        push_job.start(settings, ADA, models, *asked(id))


def test_nobody_takes_another_ones_merge_home(settings, models, merges, hub):
    token.take(settings, TOKEN, BOB)
    for id in merges:
        assert chosen.show(settings, id, BOB)[0] == ""
        assert "no longer there" in chosen.read_card(settings, id, BOB)
        with pytest.raises(gr.Error):
            _download(settings, id, BOB)
        with pytest.raises(MergingError):
            push_job.start(settings, BOB, models, *asked(id))
    assert hub.seen == []
    token.forget(settings, BOB)


def test_a_push_is_a_job_with_a_link_in_the_end(settings, models, merges, hub, signed_in):
    work = push_job.work(settings, [], None)
    assert work.ready(ADA, models, None)
    job = pushed(settings, models, *asked(merges[1]))
    assert (job.state, job.result["private"]) == ("done", True)
    stored = hub.models["mira/merge"]
    assert stored.messages == ["Mine"]
    names = set(stored.commits[stored.branches["main"]])
    assert {"model.safetensors", "README.md", "config.json"} <= names
    shown = runner.attach(work, models, ADA)[-1]
    assert f'href="{hub.url}/mira/merge"' in shown
    kept = [file.read_bytes() for file in settings.pushes.rglob("*") if file.is_file()]
    assert kept
    assert not any(TOKEN.encode() in content for content in kept)
    assert runner.attach(work, models, BOB)[-1] == ""
    again = pushed(settings, models, *asked(merges[1]))
    assert (again.state, "is on the Hub already" in again.error) == ("failed", True)
    assert pushed(settings, models, *asked(merges[0], add=True)).state == "done"


def test_what_cannot_be_pushed_is_said_before_a_job_is_made(settings, models, merges, hub, signed_in):
    with pytest.raises(MergingError, match="is no name of a repository"):
        push_job.start(settings, ADA, models, *asked(merges[0], name="../../etc"))
    for name in (None, 3, [], "x" * 10**6):
        with pytest.raises(
            MergingError, match=r"is no name of a repository|Write the name of the repository"
        ):
            push_job.start(settings, ADA, models, *asked(merges[0], name=name))
    assert "is no name" in push_job.name_problem("<b>one</b>")
    assert "<b>" not in push_job.name_problem("<b>one</b>")
    assert (
        push_job.name_problem("mira/one") == push_job.name_problem(" ") == push_job.name_problem(None) == ""
    )
    token.forget(settings, ADA)
    assert not push_job.work(settings, [], None).ready(ADA, models, None)
    with pytest.raises(MergingError, match="give an access token"):
        push_job.start(settings, ADA, models, *asked(merges[0]))
    assert hub.seen == []


def test_the_servers_own_token_is_never_a_visitors(settings, models, merges, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not push_job.work(settings, [], None).ready(ADA, models, None)
    with pytest.raises(MergingError, match="give an access token"):
        push_job.start(settings, ADA, models, *asked(merges[0]))
    own = dataclasses.replace(settings, single_owner=True)
    assert hub_desk(own).hub("local").has_token, "on one's own machine it is one's own"
    assert hub.seen == []


def test_anything_but_true_and_public_is_private(settings, models, merges, hub, signed_in):
    for number, public in enumerate(("yes", 1, None)):
        assert pushed(settings, models, *asked(merges[0], f"mira/p{number}", public)).result["private"]
    assert not pushed(settings, models, *asked(merges[0], "mira/open", True)).result["private"]


def test_a_push_is_cancelled_and_leaves_nothing(settings, models, merges, hub, signed_in):
    hub.fail("/upload/*", pause=0.05)
    id = push_job.start(settings, ADA, models, *asked(merges[0], "mira/slow"))
    store = push_store(settings)
    while not ((job := store.get(ADA, id)).progress and job.progress.bytes_done):
        assert job.active
    assert " of " in push_job._bar(job)
    with pytest.raises(MergingError, match="A push runs already"):
        push_job.start(settings, ADA, models, *asked(merges[0], "mira/other"))
    assert not store.cancel(BOB, id)
    store.cancel(ADA, id)
    assert store.wait(ADA, id, 30).state == "cancelled"
    assert "mira/slow" not in hub.models
    hub.faults.clear()
    assert pushed(settings, models, *asked(merges[0], "mira/slow")).state == "done", "the name is free again"


def test_the_model_card_is_read_with_its_pictures_inside(settings, merges, monkeypatch):
    card = b"---\nlicense: mit\n---\n# One\n\n![A map](pictures/change.png) ![x](pictures/none.png)\n"
    parts = {"README.md": card, "pictures/change.png": b"\x89PNG"}
    monkeypatch.setattr(chosen, "going_home", lambda *_: parts)
    text = chosen.read_card(settings, merges[0], ADA)
    assert text.startswith("# One")
    assert "![A map](data:image/png;base64,iVBORw==) x" in text


def test_about_says_what_this_server_is(settings):
    local, shared = about_html(Settings()), about_html(settings)
    assert "stays on this machine" in local
    assert "belong to this browser" in shared
    assert "opens the demo models" in shared
