import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from merging.errors import CheckpointError
from merging.folders.header import TensorInfo, build_header, read_header


def raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_library_wrote(tmp_path):
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(5)}, file, {"format": "pt"})
    tensors, metadata = read_header(file)
    assert (tensors["a"].shape, tensors["a"].dtype, tensors["b"].shape) == ((2, 3), "BF16", ())
    assert metadata == {"format": "pt"}


def test_the_library_reads_what_we_build(tmp_path):
    header, placed = build_header(
        [TensorInfo("ä", "F32", (2,)), TensorInfo("b", "BF16", (1, 2))], {"format": "pt"}
    )
    file = tmp_path / "m.safetensors"
    file.write_bytes(header + torch.tensor([1.5, 2.5]).numpy().tobytes() + b"\x80\x3f\x00\x40")
    assert placed[0].start == len(header)
    with safe_open(file, "pt") as reader:
        assert reader.get_tensor("ä").tolist() == [1.5, 2.5]
        assert reader.get_tensor("b").tolist() == [[1.0, 2.0]]
        assert reader.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("header", "data", "length", "says"),
    [
        ({"a": entry(offsets=(0, 12))}, b"x" * 12, None, "do not fit"),
        ({"a": entry(offsets=(0, 8))}, b"x" * 4, None, "do not fit"),
        ({"a": entry(offsets=(0, 8)), "b": entry(offsets=(4, 12))}, b"x" * 12, None, "overlap"),
        ({"a": entry(offsets=(-8, 0))}, b"x" * 8, None, "whole numbers"),
        ({"a": entry(shape=(-2,))}, b"x" * 8, None, "whole numbers"),
        ({"a": entry(shape=(2.0,))}, b"x" * 8, None, "whole numbers"),
        ({"a": {"dtype": "F32"}}, b"", None, "malformed"),
        ({"a": entry("F8_E4M3", (8,))}, b"x" * 8, None, "F8_E4M3"),
        ({"a": entry("F99", (8,))}, b"x" * 8, None, "F99"),
        (b"[1, 2]", b"", None, "no table"),
        (b"{nonsense", b"", None, "not JSON"),
        (b"[" * 100_000, b"", None, "not JSON"),
        (b"{}", b"", 10**15, "claims a header"),
        (b"{}", b"", 200_000_000, "claims a header"),
    ],
)
def test_damaged_files_are_refused(tmp_path, header, data, length, says):
    file = raw(tmp_path / "m.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_a_file_of_a_few_bytes(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="too short"):
        read_header(tmp_path / "m.safetensors")
