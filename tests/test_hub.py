"""The Hub through its real client, against a stand-in server on localhost."""

from __future__ import annotations

import pytest

from merging.checkpoint import Checkpoint
from merging.hub import Hub
from merging.references import Reference
from merging.remote import RemoteCheckpoint
from tests.conftest import save_llama


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
