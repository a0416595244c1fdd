"""Uploads the project to a Space of Hugging Face, as one commit: SPACE=org/name make space

What git tracks goes there as it lies in the working tree, and what is no longer tracked is removed there. Binary files go by
way of the Hub's storage, which `git push` alone cannot do; the Space's own `.gitattributes` says which. It is no file of this
repository: with it, git would want git-lfs here as well.

The token is that of this machine's user: HF_TOKEN, or of `hf auth login`. A Space that is not there yet is made, for a CPU and
private unless PUBLIC=1 is given; the hardware of a Space is chosen in its settings, see docs/space.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from merging.errors import MergingError  # noqa: E402
from merging.hub.client import Hub  # noqa: E402
from merging.hub.push import account_of, repository_name  # noqa: E402
from merging.hub.push_errors import why_not  # noqa: E402

ATTRIBUTES = ".gitattributes"
LARGE = ("*.safetensors", "*.png")
"""The kinds of binary files here; what else is binary the Hub finds out by itself."""
OF_EVERY_SPACE = {ATTRIBUTES, ".gitignore", "README.md", "app.py", "requirements.txt"}


def upload(hub: Hub, name: str, root: Path = ROOT, *, public: bool = False) -> str:
    """Make what git tracks under `root` the whole content of a Space; its address.

    Raises:
        MergingError: a wrong name, no token or one that may not write there, a Space that holds something else, no git, a Hub
            that does not answer.
    """
    name = repository_name(name)
    if not hub.has_token:
        raise MergingError(
            "The Hub has to know you: run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    account = account_of(hub)
    files = {file: root / file for file in tracked(root)}
    try:
        hub.api.create_repo(name, repo_type="space", space_sdk="gradio", private=not public, exist_ok=True)
        before = set(hub.api.list_repo_files(name, repo_type="space"))
        _require_ours(name, before, files)
        hub.api.create_commit(
            name,
            [
                CommitOperationAdd(ATTRIBUTES, BytesIO("".join(_attributes()).encode())),
                *(CommitOperationAdd(file, BytesIO(path.read_bytes())) for file, path in files.items()),
                *(CommitOperationDelete(file) for file in sorted(before - {ATTRIBUTES, *files})),
            ],
            repo_type="space",
            commit_message=f"Mergescope at {_git(root, 'rev-parse', '--short', 'HEAD')}",
        )
    except Exception as error:
        raise why_not(error, hub, name, account) from None
    return f"{hub.endpoint}/spaces/{name}"


def _require_ours(name: str, before: Collection[str], files: Collection[str]) -> None:
    """Refuse a Space whose files are another project's: all of them would be removed."""
    theirs = {file for file in before if file not in OF_EVERY_SPACE}
    if theirs and theirs.isdisjoint(files):
        raise MergingError(
            f"The Space {name} holds something else, such as {min(theirs)}, and all of it would be removed. Give another name, "
            "or delete that Space first."
        )


def tracked(root: Path) -> list[str]:
    """The files that git tracks and that are there."""
    return [file for file in _git(root, "ls-files", "-z").split("\0") if file and (root / file).is_file()]


def _attributes() -> Iterator[str]:
    return (f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise MergingError(f"{root}: git does not say which files are the project's ({error}).") from None


def main() -> None:
    name = os.environ.get("SPACE", "")
    try:
        if not name:
            raise MergingError("Say which Space: make space SPACE=org/name")
        print(f"{upload(Hub.from_environment(), name, public=os.environ.get('PUBLIC') == '1')}: uploaded")
    except MergingError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
