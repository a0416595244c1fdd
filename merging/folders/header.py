"""The header of a safetensors file: what it holds and where, without a weight.

A file is 8 bytes (header length, little endian), the header as JSON, then the tensors' bytes. Reading checks
everything a hostile or damaged file could get wrong, so that whoever maps names to byte ranges can trust them.

Source: the safetensors format description, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from merging.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

MOST_DIMENSIONS = 8

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_WORDS = {n: str(d).removeprefix("torch.") for n, d in DTYPES.items() if d.is_floating_point}
"""The float dtypes as recipes, configs and the page write them."""
MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that carry task vectors; tensors of any other are copied."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, dtype and shape of a tensor, and the bytes `[start, stop)` of `file` that hold it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path | None = None
    start: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.torch_dtype.itemsize

    @property
    def stop(self) -> int:
        return self.start + self.nbytes

    @property
    def rows(self) -> int:
        """Length of the first dimension; a scalar counts as one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_elements(self) -> int:
        return math.prod(self.shape[1:])

    def row_blocks(self, most: int) -> Iterator[tuple[int, int]]:
        """The rows in blocks of at most `most` elements, but one row at least; none for an empty tensor."""
        step = max(1, most // max(1, self.row_elements))
        for start in range(0, self.rows if self.elements else 0, step):
            yield start, min(start + step, self.rows)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors in file order and the free-text metadata of one safetensors file.

    Raises:
        CheckpointError: truncated or oversized header, broken JSON, unknown or quantised dtype, byte ranges that
            overlap, leave the file, or do not fit shape and dtype.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix, raw = file.read(8), b""
            length = int.from_bytes(prefix, "little")
            if len(prefix) == 8 and length <= min(MAX_HEADER_BYTES, size - 8):
                raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(prefix) < 8:
        raise CheckpointError(
            f"{path}: only {size} bytes, too short for a safetensors file; download it again."
        )
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path}: claims a header of {length:,} bytes in a file of {size:,}; "
            "it is cut off or no safetensors file: download it again."
        )
    return parse_header(path, raw, size)


def parse_header(path: Path, raw: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The same of a header's JSON, in a file of `size` bytes."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not JSON ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its header is no table of tensors; download it again.")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the metadata in its header is no table; the file is damaged.")
    data_start = 8 + len(raw)
    tensors = [_entry(path, name, entry, data_start, size) for name, entry in content.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    for before, after in pairwise(tensors):
        if after.start < before.stop:
            raise CheckpointError(
                f"{path}: the bytes of '{before.name}' and '{after.name}' overlap; the file is damaged."
            )
    return {tensor.name: tensor for tensor in tensors}, {
        str(key): str(value) for key, value in metadata.items()
    }


def _entry(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the header's entry for '{name}' is malformed.") from None
    if not whole:
        raise CheckpointError(f"{path}: shape or offsets of {name!r} are not whole numbers from 0 up.")
    if len(shape) > MOST_DIMENSIONS or not name.isprintable():
        raise CheckpointError(
            f"{path}: {name[:80]!r} with {len(shape)} dimensions is no tensor of a model; file refused."
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: '{name}' is stored as {dtype}, which cannot be merged. "
            "Use the model's unquantised weights (float32, float16 or bfloat16)."
        )
    tensor = TensorInfo(name, dtype, shape, path, data_start + begin)
    if end - begin != tensor.nbytes or data_start + end > size:
        raise CheckpointError(
            f"{path}: '{name}' claims the bytes {begin:,} to {end:,}, which do not fit "
            f"{dtype}{list(shape)} in a file of {size:,} bytes; the file is damaged or cut off."
        )
    return tensor


def build_header(
    tensors: Iterable[TensorInfo], metadata: Mapping[str, str]
) -> tuple[bytes, list[TensorInfo]]:
    """The leading bytes of a file that holds `tensors` in the given order, and the tensors with their place in it.

    The header is padded with spaces to a multiple of 8 bytes, as the format asks.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    placed = []
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        placed.append((tensor, offset))
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return (
        len(text).to_bytes(8, "little") + text,
        [TensorInfo(t.name, t.dtype, t.shape, t.file, start + offset) for t, offset in placed],
    )


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer of bytes from a file's `offset`; the number of bytes that were there."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_at(descriptor: int, values: torch.Tensor, offset: int) -> None:
    """Write a tensor of bytes, whole, at a file's `offset`."""
    buffer = memoryview(values.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(buffer):
        done += os.pwritev(descriptor, [buffer[done:]], offset + done)
