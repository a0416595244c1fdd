"""The Hub through its real client, against a stand-in server on localhost."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError, HubError
from merging.heartbeats import Stopped
from merging.hub.cache import cached_commit, cached_model
from merging.hub.client import Hub
from merging.hub.remote import RemoteCheckpoint
from merging.references import Reference
from tests.conftest import edit_config, save_llama
from tests.hub_server import TOKEN


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One small model, saved once."""
    return save_llama(tmp_path_factory.mktemp("tiny") / "model")


def pin(hub: Hub, text: str):
    return hub.pin(Reference.parse(text))


def test_search_tells_what_a_visitor_chooses_by(hub, tiny):
    hub.add("org/tiny-one", tiny, tags=("license:mit",))
    hub.add("org/other", tiny)
    hub.add("org/tiny-secret", tiny, private=True)
    (found,) = Hub().search("TINY")
    assert (found.id, found.downloads, found.likes, found.licence) == ("org/tiny-one", 1234, 5, "mit")
    assert found.updated.year == 2025


def test_a_reference_is_pinned_to_a_commit(hub, tiny):
    commit = hub.add("org/tiny", tiny, tags=("license:mit", "base_model:finetune:org/base"))
    pinned = pin(Hub(), "org/tiny")
    assert (pinned.commit, pinned.licence, pinned.base) == (commit, "mit", "org/base")
    sizes = {file.name: file.nbytes for file in pinned.files}
    assert sizes["model.safetensors"] == (tiny / "model.safetensors").stat().st_size
    assert pin(Hub(), f"org/tiny@{commit}").commit == commit


def test_headers_are_read_without_a_weight(hub, tiny):
    hub.add("org/tiny", tiny)
    model = Hub().open(pin(Hub(), "org/tiny"))
    here = Checkpoint.open(tiny)
    assert isinstance(model, RemoteCheckpoint)
    assert {n: (t.dtype, t.shape) for n, t in model.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in here.tensors.items()
    }
    assert (model.config, model.vocabulary, model.label) == (here.config, here.vocabulary, "org/tiny")
    header = 8 + int.from_bytes((tiny / "model.safetensors").read_bytes()[:8], "little")
    assert hub.bytes_of("model.safetensors") == header
    with pytest.raises(Exception, match="python -m merging download org/tiny@"):
        model.read("model.norm.weight")


def test_a_download_is_found_by_us_and_by_transformers(hub, tiny):
    from huggingface_hub import snapshot_download

    hub.add("org/tiny", tiny)
    ours = Hub()
    pinned = pin(ours, "org/tiny")
    assert ours.missing(pinned) == pinned.nbytes
    *_, last = ours.download(pinned)
    assert last.bytes_done == last.nbytes == pinned.nbytes
    assert (last.folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert ours.missing(pinned) == 0
    assert snapshot_download("org/tiny", local_files_only=True) == str(last.folder)
    assert type(ours.open(pinned)) is Checkpoint
    hub.forget()
    *_, again = ours.download(pinned)
    assert again.folder == last.folder
    assert not hub.seen


@pytest.mark.parametrize(
    ("path", "fault", "says"),
    [
        ("/api/*", {"status": 401}, "does not know your token"),
        ("/api/*", {"status": 403}, "may not read this"),
        ("/api/*", {"status": 404}, "no such model"),
        (
            "/api/*",
            {"status": 429, "headers": {"Retry-After": "300"}},
            "Try again in 300 seconds. A token raises",
        ),
        ("/api/*", {"status": 500}, "trouble of its own .error 500."),
        ("/api/*", {"cut": 20}, "cannot be reached, or its answer broke off"),
        ("/api/*", {"body": b"<html>"}, "Check HF_ENDPOINT"),
        ("/api/*", {"body": b"[]"}, "Check HF_ENDPOINT"),
        ("/api/*", {"body": b'{"id": "a/b", "sha": "../../x", "siblings": []}'}, "Check HF_ENDPOINT"),
    ],
)
def test_a_fault_of_the_hub_is_one_sentence_at_once(hub, tiny, path, fault, says):
    hub.add("org/tiny", tiny)
    hub.fail(path, **fault)
    began = time.monotonic()
    with pytest.raises(HubError, match=says):
        pin(Hub(), "org/tiny")
    if fault.get("body") != b"[]":
        with pytest.raises(HubError, match=says):
            Hub().search("tiny")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("facts", "token", "reference", "says"),
    [
        ({}, None, "org/nothing", "no model of the Hub, or a private one.*give a token"),
        ({}, TOKEN, "org/nothing", "no model of the Hub, or a private one.*your token may read"),
        ({"private": True}, None, "org/tiny", "no model of the Hub, or a private one"),
        ({}, None, "org/tiny@gone", "not this revision"),
        ({"gated": "manual"}, None, "org/tiny", "is gated. Accept its conditions at http"),
        (
            {"gated": "auto"},
            "hf_another",
            "org/tiny",
            "is gated, and the account of your token has no access",
        ),
        ({}, "no-token-at-all", "org/tiny", "does not know your token"),
        ({}, "hf_ö\nX: y", "org/tiny", "The token holds letters that no token has"),
        ({}, None, "not a name", "is no name of a Hub model"),
    ],
)
def test_a_model_that_may_not_be_read_says_why(hub, tiny, facts, token, reference, says):
    hub.add("org/tiny", tiny, **facts)
    ours = Hub(token)
    with pytest.raises(HubError, match=says):
        ours.open(pin(ours, reference))


def test_private_and_gated_models_open_with_the_token_which_is_shown_nowhere(hub, tiny, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    hub.add("org/tiny", tiny, private=True, gated="manual")
    ours = Hub(TOKEN)
    pinned = pin(ours, "org/tiny")
    assert (pinned.private, pinned.gated) == (True, True)
    ours.open(pinned)
    *_, last = ours.download(pinned)
    hub.fail("*", status=403)
    with pytest.raises(HubError) as refused:
        ours.search("tiny")
    shown = [
        repr(ours),
        str(ours),
        repr(pinned),
        repr(last),
        str(refused.value),
        caplog.text,
        *capsys.readouterr(),
    ]
    shown += [
        file.read_text(errors="replace") for file in last.folder.parents[3].rglob("*") if file.is_file()
    ]
    assert not any(TOKEN in text for text in shown)
    assert any(token == TOKEN for _, _, token in hub.seen)


def test_nobody_is_asked_when_offline_is_set(hub, tiny, monkeypatch):
    hub.add("org/tiny", tiny)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pin(Hub(), "org/tiny")
    assert not hub.seen


def test_no_connection_is_one_sentence(hub):
    with pytest.raises(HubError, match="cannot be reached"):
        Hub(endpoint="http://127.0.0.1:9").search("tiny")


def test_a_silent_hub_is_given_up(hub, tiny, monkeypatch):
    hub.add("org/tiny", tiny)
    hub.fail("/api/*", pause=1.0)
    monkeypatch.setattr("merging.hub.requests.SILENCE", 0.2)
    with pytest.raises(HubError, match="cannot be reached"):
        pin(Hub(), "org/tiny")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["pytorch_model.bin"], "pickle weights"),
        (["model-q4.gguf"], "GGUF"),
        (["model_index.json", "unet/model.safetensors"], "several models that work together"),
        (["consolidated.safetensors"], "no weights that can be merged"),
    ],
)
def test_what_holds_no_safetensors_of_ours_is_refused(hub, tmp_path, names, says):
    for name in ["config.json", *names]:
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text("{}")
    hub.add("org/tiny", tmp_path / "repo")
    with pytest.raises(HubError, match=says):
        pin(Hub(), "org/tiny")


def test_only_files_that_a_merge_uses_are_fetched(hub, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "repo")
    for name in (
        "pytorch_model.bin",
        "onnx/model.onnx",
        "consolidated.safetensors",
        "original/model.safetensors",
    ):
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_bytes(b"x" * 100)
    hub.add("org/tiny", tmp_path / "repo")
    *_, last = Hub().download(pin(Hub(), "org/tiny"))
    assert {file.name for file in last.folder.iterdir()} == {file.name for file in tiny.iterdir()}


def test_small_files_have_a_limit(hub, tiny, monkeypatch):
    hub.add("org/tiny", tiny)
    monkeypatch.setattr("merging.hub.files.MOST_SMALL", 10)
    with pytest.raises(HubError, match="more than any model needs"):
        pin(Hub(), "org/tiny")


def weights_of(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_connection_that_breaks_goes_on_where_it_was(hub, tiny, monkeypatch):
    monkeypatch.setattr("merging.hub.download.PAUSE", 0.01)
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", cut=40_000, times=2)
    *_, last = Hub().download(pin(Hub(), "org/tiny"))
    assert weights_of(last.folder) == weights_of(tiny)
    assert hub.bytes_of("model.safetensors") < len(weights_of(tiny)) + 2 * 8192


def test_a_download_that_was_cut_off_is_resumed(hub, tiny, monkeypatch):
    monkeypatch.setattr("merging.hub.download.PAUSE", 0.01)
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", cut=0)
    hub.fail("/storage/*", cut=40_000, times=1)
    pinned = pin(Hub(), "org/tiny")
    with pytest.raises(HubError, match=r"broke off after .* it goes on from there"):
        list(Hub().download(pinned))
    left = Hub().missing(pinned)
    assert 0 < left < len(weights_of(tiny))
    hub.forget()
    *_, last = Hub().download(pinned)
    assert weights_of(last.folder) == weights_of(tiny)
    assert hub.bytes_of("model.safetensors") == last.nbytes == left


def test_a_cancelled_download_leaves_what_it_has(hub, tiny):
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", pause=0.001)
    pinned = pin(Hub(), "org/tiny")
    with pytest.raises(Stopped):
        list(Hub().download(pinned, cancelled=lambda: hub.bytes_of("model.safetensors") > 20_000))
    assert cached_model(Reference("org/tiny")) is None
    hub.forget()
    left = Hub().missing(pinned)
    *_, last = Hub().download(pinned)
    assert last.nbytes == left < pinned.nbytes
    assert weights_of(last.folder) == weights_of(tiny)


def test_a_server_that_cannot_begin_in_the_middle_begins_again(hub, tiny, monkeypatch):
    monkeypatch.setattr("merging.hub.download.PAUSE", 0.01)
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", no_range=True)
    hub.fail("/storage/*", cut=40_000, times=1)
    *_, last = Hub().download(pin(Hub(), "org/tiny"))
    assert weights_of(last.folder) == weights_of(tiny)


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda b: b[:-9], "lists .* bytes and sends"), (lambda b: b[:-9] + b"corrupted", "their hash differs")],
)
def test_other_bytes_than_the_hub_lists_are_not_kept(hub, tiny, change, says):
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", body=change(weights_of(tiny)))
    pinned = pin(Hub(), "org/tiny")
    with pytest.raises(HubError, match=says):
        list(Hub().download(pinned))
    hub.forget()
    *_, last = Hub().download(pinned)
    assert weights_of(last.folder) == weights_of(tiny)


def test_a_download_without_room_does_not_begin(hub, tiny, monkeypatch):
    hub.add("org/tiny", tiny)
    pinned = pin(Hub(), "org/tiny")
    hub.forget()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match=r"the download of org/tiny needs .* make room"):
        list(Hub().download(pinned))
    assert not hub.seen


def test_two_downloads_of_one_model_fetch_it_once(hub, tiny):
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", pause=0.002)
    pinned = pin(Hub(), "org/tiny")
    with ThreadPoolExecutor(2) as pool:
        folders = [
            list(done)[-1].folder for done in pool.map(lambda _: list(Hub().download(pinned)), range(2))
        ]
    assert folders[0] == folders[1]
    assert hub.bytes_of("model.safetensors") == len(weights_of(tiny))


def test_a_revision_that_moved_is_a_new_commit_and_the_old_one_stays(hub, tiny, tmp_path):
    old = hub.add("org/tiny", tiny)
    *_, first = Hub().download(pin(Hub(), "org/tiny"))
    shutil.copytree(tiny, tmp_path / "newer")
    edit_config(tmp_path / "newer", note="newer")
    new = hub.add("org/tiny", tmp_path / "newer")
    hub.forget()
    pinned = pin(Hub(), "org/tiny")
    assert pinned.commit == new != old
    assert cached_commit(Reference("org/tiny")) == old
    *_, second = Hub().download(pinned)
    assert hub.bytes_of("model.safetensors") == 0, "the weights are the same, so they are not fetched again"
    assert cached_model(Reference("org/tiny")) == second.folder
    assert cached_model(Reference("org/tiny", old)) == first.folder


@pytest.fixture
def sharded(tiny, tmp_path):
    """The same model in two files with an index."""
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_shards_are_read_by_their_headers(hub, tiny, sharded):
    hub.add("org/tiny", sharded)
    model = Hub().open(pin(Hub(), "org/tiny"))
    assert model.tensors.keys() == Checkpoint.open(tiny).tensors.keys()
    files = sharded.glob("*.safetensors")
    assert hub.bytes_of(".safetensors") == sum(
        8 + int.from_bytes(f.read_bytes()[:8], "little") for f in files
    )


def test_a_shard_that_the_index_names_and_nobody_has(hub, sharded):
    next(sharded.glob("*.safetensors")).unlink()
    hub.add("org/tiny", sharded)
    with pytest.raises(CheckpointError, match="though its index names it"):
        Hub().open(pin(Hub(), "org/tiny"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ((10**15).to_bytes(8, "little") + b"{}", "claims a header of 1,000,000,000,000,000 bytes"),
        ((5).to_bytes(8, "little") + b"[[[[[" + b" " * 99, "its header is not JSON"),
        (b"<html>", "claims a header"),
    ],
)
def test_a_damaged_header_is_refused_before_it_is_read(hub, tiny, tmp_path, body, says):
    shutil.copytree(tiny, tmp_path / "repo")
    (tmp_path / "repo" / "model.safetensors").write_bytes(body)
    hub.add("org/tiny", tmp_path / "repo")
    with pytest.raises(CheckpointError, match=says):
        Hub().open(pin(Hub(), "org/tiny"))
    assert hub.bytes_of("model.safetensors") < 50


def test_a_server_that_sends_all_is_not_listened_to_for_a_header(hub, tiny):
    hub.add("org/tiny", tiny)
    hub.fail("/storage/*", no_range=True, pause=0.01)
    Hub().open(pin(Hub(), "org/tiny"))
    assert hub.bytes_of("model.safetensors") < len(weights_of(tiny))


def test_a_gated_model_that_another_visitor_downloaded_stays_gated(hub, tiny):
    hub.add("org/tiny", tiny, gated="auto")
    list(Hub(TOKEN).download(pin(Hub(TOKEN), "org/tiny")))
    pinned = pin(Hub(), "org/tiny")
    for ask in (lambda: Hub().open(pinned), lambda: list(Hub().download(pinned))):
        with pytest.raises(HubError, match="is gated"):
            ask()


def test_a_cache_that_cannot_be_written_is_one_sentence(hub, tiny, tmp_path):
    hub.add("org/tiny", tiny)
    (tmp_path / "file").write_text("")
    ours = Hub(cache=tmp_path / "file")
    with pytest.raises(HubError, match="Set HF_HUB_CACHE to a folder that may be written"):
        list(ours.download(pin(ours, "org/tiny")))


def test_the_stand_in_is_a_hub_to_huggingface_hub_itself(hub, tiny, tmp_path):
    from huggingface_hub import HfApi, snapshot_download

    hub.add("org/tiny", tiny, private=True)
    there = {"endpoint": hub.url, "token": TOKEN}
    folder = snapshot_download("org/tiny", cache_dir=tmp_path / "theirs", **there)
    ours = Hub(TOKEN, cache=tmp_path / "theirs")
    assert ours.missing(pin(ours, "org/tiny")) == 0, "what they downloaded is not fetched again"
    assert type(ours.open(pin(ours, "org/tiny"))) is Checkpoint
    assert weights_of(Path(folder)) == weights_of(tiny)
    assert HfApi(**there).get_safetensors_metadata("org/tiny").sharded is False


def test_a_model_that_is_refused_is_refused_from_afar(hub, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "repo")
    edit_config(tmp_path / "repo", quantization_config={"quant_method": "gptq"})
    hub.add("org/tiny", tmp_path / "repo")
    with pytest.raises(CheckpointError, match="quantised"):
        Hub().open(pin(Hub(), "org/tiny"))
    assert hub.bytes_of("model.safetensors") == 0
