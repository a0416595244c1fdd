"""What a Space of Hugging Face is told, and the upload to one, through the real client against the stand-in Hub."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from merging.errors import MergingError
from merging.hub.client import Hub
from scripts.space import main, tracked, upload
from tests.hub_server import TOKEN

ROOT = Path(__file__).parent.parent
NAME = "mira/mergescope"
ZERO_GPU_TORCH = ("2.8.0", "2.11.0")
"""The oldest and the newest torch that a ZeroGPU Space takes."""
HARDWARE = {"cpu-basic", "cpu-upgrade", "zero-a10g", "t4-small", "l4x1", "a10g-small"}


@pytest.fixture(scope="module")
def front_matter():
    head = re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return yaml.safe_load(head[1])


def test_the_readme_tells_a_space_what_it_needs(front_matter):
    assert front_matter["sdk"] == "gradio"
    assert (ROOT / front_matter["app_file"]).is_file()
    assert front_matter["sdk_version"] == version("gradio")
    assert front_matter["python_version"] == "3.12"
    assert front_matter["hf_oauth"] is True
    assert front_matter["hf_oauth_scopes"] == ["contribute-repos"]
    assert front_matter["suggested_hardware"] in HARDWARE
    assert len(front_matter["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= colours


def test_a_space_can_install_what_is_required(front_matter):
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    required = {wanted.name: wanted for wanted in map(Requirement, filter(None, lines))}
    assert front_matter["sdk_version"] in required["gradio"].specifier
    assert all(torch in required["torch"].specifier for torch in ZERO_GPU_TORCH)
    assert "spaces" not in required
    assert all(not wanted.url for wanted in required.values())


@pytest.fixture
def project(tmp_path):
    """A small repository: text, weights, a picture, something that git does not track."""
    root = tmp_path / "project"
    (root / "examples").mkdir(parents=True)
    (root / "README.md").write_text("---\nsdk: gradio\n---\n# A page\n")
    (root / "app.py").write_text("print('hello')\n")
    (root / "examples" / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (root / ".gitignore").write_text("runs/\n")
    (root / "runs").mkdir()
    (root / "runs" / "secret.txt").write_text("a visitor's")
    git(root, "init", "-q")
    commit(root)
    return root


def git(root, *words):
    who = ("-c", "user.name=Mira", "-c", "user.email=mira@example.org")
    subprocess.run(["git", *who, *words], cwd=root, check=True)


def commit(root):
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "as it is")


def there(hub):
    space = hub.models[f"spaces/{NAME}"]
    return {file: path.read_bytes() for file, path in space.commits[space.branches["main"]].items()}


def test_what_git_tracks_becomes_the_space(hub, project):
    assert upload(Hub(TOKEN), NAME, project) == f"{hub.url}/spaces/{NAME}"
    found = there(hub)
    attributes = found.pop(".gitattributes").decode()
    assert "*.safetensors filter=lfs" in attributes
    assert "*.png filter=lfs" in attributes
    assert found == {file: (project / file).read_bytes() for file in tracked(project)}
    assert set(found) == {"README.md", "app.py", "examples/model.safetensors", "picture.png", ".gitignore"}
    space = hub.models[f"spaces/{NAME}"]
    assert space.private
    assert len(space.messages) == 1
    assert re.match(r"Mergescope at [0-9a-f]{7,}$", space.messages[0])
    assert not hub.leaks


def test_a_second_upload_removes_what_is_gone_and_keeps_who_may_see_it(hub, project):
    upload(Hub(TOKEN), NAME, project, public=True)
    git(project, "rm", "-q", "picture.png")
    (project / "app.py").write_text("print('hello again')\n")
    commit(project)
    upload(Hub(TOKEN), NAME, project)
    found = there(hub)
    assert "picture.png" not in found
    assert found["app.py"] == b"print('hello again')\n"
    assert not hub.models[f"spaces/{NAME}"].private


def test_a_space_of_something_else_is_not_emptied(hub, project):
    api = Hub(TOKEN).api
    api.create_repo(NAME, repo_type="space", space_sdk="gradio")
    for file in ("app.py", "secret_sauce.py"):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo=file, repo_id=NAME, repo_type="space")
    with pytest.raises(MergingError, match=r"something else, such as secret_sauce\.py"):
        upload(Hub(TOKEN), NAME, project)
    assert there(hub)["app.py"] == b"theirs"


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        (None, NAME, "hf auth login"),
        (TOKEN, "no-owner", "org/name"),
        (TOKEN, "../../etc/passwd", "org/name"),
        (TOKEN, "somebody/else", "may not write there.*push under atelier, mira"),
        ("hf_unknown", NAME, "does not know your token"),
    ],
)
def test_what_cannot_be_uploaded_is_one_sentence(hub, project, token, name, words):
    with pytest.raises(MergingError, match=words):
        upload(Hub(token), name, project)
    assert not hub.models


def test_a_folder_without_git_and_a_command_without_a_name(hub, tmp_path, monkeypatch):
    with pytest.raises(MergingError, match="git does not say"):
        upload(Hub(TOKEN), NAME, tmp_path)
    monkeypatch.delenv("SPACE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == "Say which Space: make space SPACE=org/name"


def test_git_alone_serves_this_repository():
    """No attribute of a file asks for git-lfs, which few have; the Space has its own."""
    assert ".gitattributes" not in tracked(ROOT)
