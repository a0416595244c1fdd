"""Pushing a merged folder to the Hub, through its real client against the stand-in: one commit, or nothing."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from merging import Progress
from merging.errors import HubError
from merging.heartbeats import Stopped
from merging.hub import push
from merging.hub.client import Hub
from merging.hub.push import MESSAGE, Order, Pushed
from tests.hub_server import TOKEN
from tests.hub_uploads import Account

NAME = "mira/my-merge"
WEIGHTS = bytes(range(256)) * 1200


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text("---\nlicense: mit\n---\n# The folder's own\n")
    (out / "config.json").write_text("{}")
    (out / "mergescope.yaml").write_text("merge_method: ties\n")
    (out / "model.safetensors").write_bytes(WEIGHTS)
    (out / "secret").symlink_to("/etc/hostname")
    return out


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """huggingface_hub waits half a minute between its tries."""
    here = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(0.01)})
    monkeypatch.setattr("huggingface_hub.utils._http.time", here)


def pushed(folder, order, *, token=TOKEN, over=None, **options) -> Pushed:
    *_, last = push.push(Hub(token), folder, order, [over or {}], **options)
    assert isinstance(last, Pushed)
    return last


def files(hub, name=NAME) -> dict[str, bytes]:
    model = hub.models[name]
    return {file: path.read_bytes() for file, path in model.commits[model.branches["main"]].items()}


def test_a_folder_becomes_one_private_commit(hub, folder):
    card = {"README.md": b"---\nlicense: mit\n---\n# What goes home\n", "pictures/change.png": b"\x89PNG\0\0"}
    *steps, last = push.push(Hub(TOKEN), folder, Order(f" {NAME} "), [card])
    assert (last.id, last.url, last.private, last.new) == (NAME, f"{hub.url}/{NAME}", True, True)
    assert last.commit == hub.models[NAME].branches["main"]
    assert (hub.models[NAME].private, hub.models[NAME].messages) == (True, [MESSAGE])
    found = files(hub)
    assert set(found) == {".gitattributes", "config.json", "mergescope.yaml", "model.safetensors", *card}
    assert found["model.safetensors"] == WEIGHTS
    assert found["README.md"] == card["README.md"]
    assert all(isinstance(step, Progress) for step in steps)
    shares = [step.share for step in steps if step.stage == "uploading"]
    assert shares == sorted(shares)
    assert TOKEN not in repr((last, Hub(TOKEN), *steps))


def test_what_everybody_may_see_is_public(hub, folder):
    assert not pushed(folder, Order("atelier/one", private=False, message="  My\nbest ")).private
    assert not hub.models["atelier/one"].private
    assert hub.models["atelier/one"].messages == ["My best"]


@pytest.mark.parametrize(
    "name",
    [
        "one",
        "a/b/c",
        "../x",
        "mira/..",
        "mira/a--b",
        "mira/-x",
        "mira/x.git",
        "mira/é",
        "mira/" + "x" * 97,
        "x" * 10**6,
        "mira/x y",
        "https://huggingface.co/mira/x",
        "mira/\nx",
        "mira/x?y",
        "datasets/mira/x",
    ],
)
def test_a_name_the_hub_would_not_take_is_one_sentence(hub, folder, name):
    with pytest.raises(HubError, match="is no name of a repository; write org/name") as told:
        pushed(folder, Order(name))
    assert len(str(told.value)) < 330
    with pytest.raises(HubError, match=r"^Write the name of the repository: org/name"):
        pushed(folder, Order(" "))
    assert hub.seen == []


def test_another_repository_of_that_name_stays_as_it_is(hub, folder, tmp_path):
    pushed(folder, Order(NAME))
    with pytest.raises(HubError, match=r"is on the Hub already\. Choose another name"):
        pushed(folder, Order(NAME))
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 5000)
    again = pushed(folder, Order(NAME, private=False, add=True))
    assert (again.new, again.private) == (False, True), "who may see it does not change"
    assert "model.safetensors" not in files(hub), "a reader would load the old weights"
    assert len(hub.models[NAME].messages) == 2
    hub.add("other/one", folder)
    with pytest.raises(HubError, match=r"not yours\. Choose a name that begins with your account's"):
        pushed(folder, Order("other/one", add=True))
    with pytest.raises(HubError, match=r"other/two: your token may not write there.*atelier, mira"):
        pushed(folder, Order("other/two"))
    assert "other/two" not in hub.models


def test_who_may_not_push_is_told_before_a_byte_is_sent(hub, folder):
    hub.uploads.accounts["hf_OnlyForReading"] = Account("mira", role="read")
    for token, said in (
        (None, "give an access token with the right to write, or sign in"),
        ("hf_NobodyKnowsThisOne", "does not know your token"),
        ("hf_OnlyForReading", "may only read"),
    ):
        with pytest.raises(HubError, match=said):
            pushed(folder, Order(NAME), token=token)
    assert hub.models == {}
    assert not hub.uploads.received


FAULTS = {
    "create: rate limit": (
        "/api/repos/create",
        {"status": 429, "headers": {"Retry-After": "7"}},
        "in 7 seconds",
    ),
    "create: trouble": ("/api/repos/create", {"status": 500}, "trouble of its own"),
    "create: taken": (
        "/api/repos/create",
        {"status": 409},
        "on the Hub already, where your token does not see it",
    ),
    "storage: refused": ("/upload/*", {"status": 403}, "may not write there"),
    "storage: too large": ("/upload/*", {"status": 413}, "too large for the Hub"),
    "storage: cut": ("/upload/*", {"cut": 70_000}, "connection broke off"),
    "storage: trouble": ("/upload/*", {"status": 503}, "trouble of its own"),
    "preupload: unknown token": (
        "*/preupload/*",
        {"status": 401},
        "does not know your token any more|did not take it",
    ),
    "commit: conflict": ("*/commit/*", {"status": 412}, "somebody committed there meanwhile"),
    "commit: limit": ("*/commit/*", {"status": 429}, "a few minutes"),
    "commit: cut": ("*/commit/*", {"cut": 10}, "connection broke off"),
    "commit: no Hub": ("*/commit/*", {"body": b"<html>"}, "did not take it as it was sent|made before"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_that_fails_leaves_no_repository(hub, folder, fault):
    path, what, said = FAULTS[fault]
    hub.fail(path, **what)
    with pytest.raises(HubError, match=said) as told:
        pushed(folder, Order(NAME))
    assert "\n" not in str(told.value)
    assert TOKEN not in str(told.value)
    if fault != "commit: no Hub":
        assert hub.models == {}


def test_a_repository_that_was_there_stays_when_a_push_fails(hub, folder):
    pushed(folder, Order(NAME))
    before = files(hub)
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    hub.fail("/upload/*", status=403)
    with pytest.raises(HubError):
        pushed(folder, Order(NAME, add=True))
    assert files(hub) == before


def test_an_empty_repository_that_cannot_be_removed_is_named(hub, folder):
    hub.fail("*/commit/*", status=500)
    hub.fail("/api/repos/delete", status=403)
    with pytest.raises(HubError, match=f"trouble of its own.*delete it at {hub.url}/{NAME}"):
        pushed(folder, Order(NAME))


def test_a_broken_connection_is_made_anew(hub, folder):
    hub.fail("/upload/*", cut=70_000, times=1)
    assert pushed(folder, Order(NAME)).new
    assert files(hub)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("how", ["closed", "asked"])
def test_cancel_within_a_second_leaves_nothing(hub, folder, how):
    hub.fail("/upload/*", pause=0.1)
    wanted = [True]
    events = push.push(Hub(TOKEN), folder, Order(NAME), [{}], cancelled=lambda: not wanted[0])
    for step in events:
        if step.stage == "uploading" and step.bytes_done:
            break
    assert NAME in hub.models
    began = time.monotonic()
    wanted[0] = False
    if how == "closed":
        events.close()
    else:
        with pytest.raises(Stopped):
            list(events)
    assert time.monotonic() - began < 1
    assert hub.models == {}, "though the storage has not answered yet"


def committing(hub, folder, **options):
    """A push whose commit is on its way."""
    events = push.push(Hub(TOKEN), folder, Order(NAME), [{}], **options)
    for _ in events:
        if any("/commit/" in path for _, path, _ in hub.seen):
            return events
    raise AssertionError("no commit")


def test_a_repository_is_gone_when_a_slow_hub_is_left(hub, folder):
    hub.fail("/upload/*", status=403)
    hub.fail("/api/repos/delete", pause=0.7)
    with pytest.raises(HubError, match="may not write there"):
        pushed(folder, Order(NAME))
    assert hub.models == {}


def test_what_a_hub_that_does_not_answer_may_keep_is_named(hub, folder):
    hub.fail("*/commit/*", pause=1)
    events = committing(hub, folder, patience=0.1)
    with pytest.raises(HubError, match=f"^Cancelled.*may be left; look at {hub.url}/{NAME}"):
        events.close()


def test_a_further_commit_that_is_cancelled_waits_for_no_storage(hub, folder):
    pushed(folder, Order(NAME))
    before = files(hub)
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    hub.fail("/upload/*", pause=0.2)
    events = push.push(Hub(TOKEN), folder, Order(NAME, add=True), [{}])
    next(step for step in events if step.stage == "uploading" and step.bytes_done)
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 1
    assert files(hub) == before


def test_a_commit_that_was_made_before_it_could_be_stopped_is_named(hub, folder):
    hub.fail("*/commit/*", pause=0.1)
    events = committing(hub, folder, patience=20)
    with pytest.raises(HubError, match=f"made before it could be stopped; it is at {hub.url}/{NAME}"):
        events.close()
    assert "model.safetensors" in files(hub)


def test_a_silent_hub_is_given_up(hub, folder, monkeypatch):
    monkeypatch.setattr("merging.hub.upload.SILENCE", 0.3)
    hub.fail("/upload/*", pause=3)
    with pytest.raises(HubError, match="takes no more bytes"):
        pushed(folder, Order(NAME))


def test_nothing_is_sent_offline(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pushed(folder, Order(NAME))
    assert hub.seen == []


def test_a_folder_without_weights_is_not_pushed(hub, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match="holds no weights"):
        pushed(folder, Order(NAME))
    assert hub.models == {}


def test_the_command_line_pushes(hub, folder, command_line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = command_line("push", folder, NAME, "--message", "From a terminal")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{NAME}: pushed, private" in done.stdout
    assert hub.models[NAME].messages == ["From a terminal"]
    again = command_line("push", folder, NAME)
    assert (again.returncode, "is on the Hub already" in again.stderr) == (1, True)
    (folder / "mergescope.yaml").unlink()
    assert "is no merged folder" in command_line("push", folder, NAME).stderr
