"""A folder that appears complete or not at all, whatever moment its writer is killed at, and with many writers at once."""

from __future__ import annotations

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from merging.errors import OutputError
from merging.folders.atomic_folder import LOCK, AtomicFolder

MARKER = "marker"


def ours(out: Path) -> None:
    if out.exists() and not (out / MARKER).is_file() and any(out.iterdir()):
        raise OutputError(f"{out}: is foreign.")


def write(out: Path, text: str, patience: float = 0.0) -> None:
    folder = AtomicFolder(out, MARKER, ours, patience)
    try:
        (folder.partial / MARKER).write_text(text)
        (folder.partial / "twin").write_text(text)
        folder.commit()
    except BaseException:
        folder.abort()
        raise


def content(out: Path) -> list[str]:
    return [(out / name).read_text() for name in (MARKER, "twin")]


def killed_at(step: int, out: Path) -> bool:
    """Write in a process that dies just before so many steps on the file system are done; False where it was done first."""
    child = os.fork()
    if child == 0:
        left = [step]

        def count(event: str, arguments: tuple) -> None:
            if event.split(".")[0] in {"os", "open", "shutil", "fcntl"} and "fork" not in event:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            write(out, "new")
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("earlier", [True, False])
def test_killed_at_every_step(earlier, tmp_path):
    seen, step = set(), 0
    while True:
        out = tmp_path / str(step) / "out"
        out.parent.mkdir()
        if earlier:
            write(out, "old")
        killed = killed_at(step, out)
        left = sorted(path.name for path in out.parent.iterdir())
        seen.add(tuple(left))
        if out.exists():
            assert content(out) in [["old"] * 2, ["new"] * 2]
        elif earlier:
            assert content(out.parent / ".out.replaced") == ["old"] * 2
        AtomicFolder(out, MARKER, ours).abort()
        assert [path.name for path in out.parent.iterdir()] == (["out"] if earlier or out.exists() else [])
        write(out, "next")
        assert content(out) == ["next"] * 2
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        assert sorted(path.name for path in out.iterdir()) == [MARKER, "twin"]
        if not killed:
            break
        step += 1
    assert step > 15
    assert seen >= (
        {(".out.partial", ".out.replaced"), (".out.replaced", "out"), (".out.partial", "out"), ("out",)}
        if earlier
        else {(), (".out.partial",), ("out",)}
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_rename_that_fails_leaves_what_was_there(number, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    write(out, "old")

    def rename(self, target, original=Path.rename):
        calls.append(target)
        if len(calls) == number + 1:
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write(out, "new")
    assert content(out) == ["old"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_many_threads_write_one_folder_in_turn(tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write(out, str(number), patience=60), range(40)))
    one, other = content(out)
    assert one == other
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == [MARKER, "twin"]


def test_a_writer_that_still_removes_what_it_replaced_is_waited_for(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="being written there right now; wait"):
            write(out, "new")
    assert content(out) == ["old"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write(out, "new")
    assert content(out) == ["new"] * 2


def test_what_is_foreign_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("text")
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / MARKER).write_text("old")
    with pytest.raises(OutputError, match="is foreign"):
        AtomicFolder(tmp_path / "out", MARKER, ours)
    assert (tmp_path / ".out.replaced" / MARKER).read_text() == "old"
    assert not (tmp_path / ".out.partial").exists()
