"""The stand-in Hub takes what the real client uploads, as the Hub does."""

from __future__ import annotations

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_server import TOKEN, HubServer
from tests.hub_uploads import Account


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n# One\n")
    (tmp_path / "out" / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    return tmp_path / "out"


@pytest.mark.parametrize("part", [None, 30_000], ids=["whole", "in parts"])
def test_large_files_go_to_the_storage_before_one_commit_names_them(hub, folder, part):
    hub.uploads.part_bytes = part
    api = HfApi(endpoint=hub.url, token=TOKEN)
    url = api.create_repo("mira/one", private=True)
    assert (url.repo_id, hub.models["mira/one"].private) == ("mira/one", True)
    with (folder / "model.safetensors").open("rb") as file:
        files = [
            CommitOperationAdd("model.safetensors", file),
            CommitOperationAdd("README.md", folder / "README.md"),
        ]
        commit = api.create_commit("mira/one", files, commit_message="First", parent_commit=url_head(api))
    assert commit.oid == hub.models["mira/one"].branches["main"]
    assert hub.models["mira/one"].messages == ["First"]
    stored = hub.models["mira/one"].commits[commit.oid]
    assert set(stored) == {".gitattributes", "README.md", "model.safetensors"}
    assert stored["model.safetensors"].read_bytes() == (folder / "model.safetensors").read_bytes()
    assert hub.leaks == []


def url_head(api: HfApi) -> str:
    return api.model_info("mira/one").sha or ""


def test_a_folder_becomes_a_space(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("mira/app", repo_type="space", space_sdk="gradio")
    api.upload_folder(repo_id="mira/app", repo_type="space", folder_path=folder)
    space = hub.models["spaces/mira/app"]
    assert space.made["sdk"] == "gradio"
    assert "model.safetensors" in space.commits[space.branches["main"]]


def test_who_may_not_write_is_refused(hub: HubServer):
    hub.uploads.accounts["hf_OnlyForReading"] = Account("mira", role="read")
    for token, id, status in ((TOKEN, "other/one", 403), ("hf_OnlyForReading", "mira/one", 403)):
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=hub.url, token=token).create_repo(id)
        assert refused.value.response.status_code == status
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("atelier/one")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("atelier/one")
    api.delete_repo("atelier/one")
    assert hub.models == {}
