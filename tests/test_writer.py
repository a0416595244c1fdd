import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from merging.checkpoint import Checkpoint
from merging.errors import OutputError
from merging.folders.header import TensorInfo
from merging.writer import MARKER, CheckpointWriter

LAYOUT = [TensorInfo("a", "BF16", (3, 5)), TensorInfo("b", "F32", (4,)), TensorInfo("c", "F32", ())]
VALUES = {
    "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "b": torch.arange(4.0),
    "c": torch.tensor(2.5),
}


def write(out, **options):
    with CheckpointWriter(out, LAYOUT, **options) as writer:
        writer.add_text(MARKER, "merge_method: linear\n")
        for name, value in VALUES.items():
            writer.write(name, value)
    return out


def same(found):
    return set(found) == set(VALUES) and all(
        torch.equal(found[name], value) for name, value in VALUES.items()
    )


def test_rows_in_any_order(tmp_path):
    with CheckpointWriter(tmp_path / "out", LAYOUT) as writer:
        writer.write("c", VALUES["c"])
        writer.write("a", VALUES["a"][2:], start=2)
        writer.write("b", VALUES["b"][1:], start=1)
        writer.write("a", VALUES["a"][:2], start=0)
        writer.write("b", VALUES["b"][:1], start=0)
    assert same(load_file(tmp_path / "out" / "model.safetensors"))


def test_shards_get_an_index_and_read_back(tmp_path):
    out = write(tmp_path / "out", shard_bytes=20)
    assert sorted(f.name for f in out.glob("*.safetensors")) == [
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    checkpoint = Checkpoint.open(out)
    assert same({name: checkpoint.read(name) for name in checkpoint.tensors})


def test_metadata_keeps_the_format(tmp_path):
    assert Checkpoint.open(write(tmp_path / "out", metadata={"recipe": "x"})).metadata == {
        "format": "pt",
        "recipe": "x",
    }


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), CheckpointWriter(tmp_path / "out", LAYOUT) as writer:
        writer.write("b", VALUES["b"])
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_earlier_result(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(RuntimeError, match="stop"), CheckpointWriter(tmp_path / "out", LAYOUT):
        raise RuntimeError("stop")
    assert same(load_file(tmp_path / "out" / "model.safetensors"))
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_an_earlier_result_of_ours_is_replaced(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "old").write_text("")
    write(tmp_path / "out")
    assert not (tmp_path / "out" / "old").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_foreign_folders_and_files_are_not_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("text")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name, says in [("thesis", "did not write"), ("file", "file or link"), ("link", "file or link")]:
        with pytest.raises(OutputError, match=says):
            CheckpointWriter(tmp_path / name, LAYOUT)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "text"


def test_two_writers_of_one_folder(tmp_path):
    first = CheckpointWriter(tmp_path / "out", LAYOUT)
    with pytest.raises(OutputError, match="another merge"):
        CheckpointWriter(tmp_path / "out", LAYOUT)
    first.abort()
    write(tmp_path / "out")


def test_litter_of_a_killed_process_is_removed(tmp_path):
    script = (
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "from pathlib import Path; from merging.writer import CheckpointWriter; from merging.folders.header import TensorInfo\n"
        f"w = CheckpointWriter(Path({str(tmp_path / 'out')!r}), [TensorInfo('a', 'F32', (9,))])\n"
        "w.add_text('README.md', 'half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=os.getcwd(), check=False)
    assert done.returncode == -9
    assert [f.name for f in tmp_path.iterdir()] == [".out.partial"]
    write(tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_crash_between_the_two_renames_is_mended(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    writer = CheckpointWriter(tmp_path / "out", LAYOUT)
    assert same(load_file(tmp_path / "out" / "model.safetensors"))
    writer.abort()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        CheckpointWriter(tmp_path / "file" / "out", LAYOUT)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path):
    writer = CheckpointWriter(tmp_path / "out", LAYOUT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("text")
    with pytest.raises(OutputError, match="did not write"), writer:
        pass
    assert (tmp_path / "out" / "thesis.tex").read_text() == "text"
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("link", [True, False])
def test_a_foreign_hidden_folder_is_not_emptied(tmp_path, link):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "chapter.tex").write_text("text")
    if link:
        (tmp_path / ".out.partial").symlink_to(tmp_path / "foreign")
    else:
        (tmp_path / "foreign").rename(tmp_path / ".out.partial")
    with pytest.raises(OutputError, match="in the way"):
        CheckpointWriter(tmp_path / "out", LAYOUT)
    assert (tmp_path / ".out.partial" / "chapter.tex").exists()


def test_a_foreign_replaced_folder_is_kept(tmp_path):
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "chapter.tex").write_text("text")
    with CheckpointWriter(tmp_path / "out", LAYOUT):
        pass
    assert (tmp_path / ".out.replaced" / "chapter.tex").exists()


def test_a_writer_cannot_take_a_folder_that_is_being_renamed(tmp_path, monkeypatch):
    """The second writer starts exactly when the first has synced everything and is about to rename."""
    first = CheckpointWriter(tmp_path / "out", LAYOUT)
    for name, value in VALUES.items():
        first.write(name, value)
    tried = []
    from merging.folders import atomic_folder as module

    def sync_and_intrude(path, original=module._sync):
        original(path)
        if path == first.partial:
            with pytest.raises(OutputError, match="another merge"):
                CheckpointWriter(tmp_path / "out", LAYOUT)
            tried.append(path)

    monkeypatch.setattr(module, "_sync", sync_and_intrude)
    first.commit()
    assert tried
    assert same(load_file(tmp_path / "out" / "model.safetensors"))


def test_a_full_disk_is_one_sentence_and_no_litter(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("merging.writer.write_at", full)
    with pytest.raises(OutputError, match="No space left"):
        CheckpointWriter(tmp_path / "out", LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_comes_after_the_end_is_written_nowhere(tmp_path, monkeypatch):
    """Neither what comes later, nor what was under way: its file's number may belong to another file by then."""
    from merging import writer as module

    writer, under_way, go_on = (
        CheckpointWriter(tmp_path / "out", LAYOUT),
        threading.Event(),
        threading.Event(),
    )

    def wait_and_write(*arguments, original=module.write_at):
        under_way.set()
        go_on.wait(10)
        original(*arguments)

    monkeypatch.setattr(module, "write_at", wait_and_write)
    late = threading.Thread(target=writer.write, args=("a", VALUES["a"]))
    late.start()
    under_way.wait(10)
    writer.abort()
    others = [(tmp_path / str(number)).open("w+b") for number in range(4)]
    go_on.set()
    late.join()
    assert all(os.fstat(other.fileno()).st_size == 0 for other in others)
    with pytest.raises(OutputError, match="given up"):
        writer.write("b", VALUES["b"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_names_with_dots_are_made_plain_first(tmp_path):
    write(tmp_path / "new" / ".." / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
