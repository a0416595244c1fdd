"""Models of the Hub of which only headers, config and tokenizer are here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from merging.checkpoint import INDEX, Checkpoint, Header, read_shards
from merging.errors import CheckpointError
from merging.folders.header import MAX_HEADER_BYTES, TensorInfo, parse_header
from merging.folders.refusals import refuse
from merging.folders.small_files import config_in
from merging.hub.files import HubFile, Pinned
from merging.hub.requests import CutOff, HubRequests

AT_ONCE = 8
"""Headers that are fetched side by side."""
MOST_HEADERS = 64 << 20
"""Bytes of all headers of a model."""


class RemoteCheckpoint(Checkpoint):
    """A model whose weights were not downloaded: everything but `read`, for cards, plans and checks.

    Its folder is the one of the Hub's cache in which the small files lie already.
    """

    def __init__(self, path: Path, header: Header, pinned: Pinned):
        self.pinned, self.label = pinned, pinned.id
        super().__init__(path, *header)
        self.label = pinned.id

    @property
    def licences(self) -> tuple[str, ...]:
        tagged = (self.pinned.licence,) if self.pinned.licence else ()
        return super().licences or tagged

    def _fill(self, tensor: TensorInfo, begin: int, buffer: memoryview) -> None:
        raise CheckpointError(
            f"{self.label}: its weights are not on this machine yet. Download them first: python -m merging download "
            f"{self.pinned.reference}"
        )


def open_remote(requests: HubRequests, pinned: Pinned, folder: Path) -> RemoteCheckpoint:
    """A model by the headers of its weights, which alone are fetched; its small files lie in `folder`.

    Raises:
        CheckpointError: damaged, or of a kind that cannot be merged.
        CutOff, HfHubHTTPError: a request failed; see `HubRequests.explained`.
    """
    refuse(folder, config_in(folder))
    weights = pinned.weights
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lengths = list(pool.map(partial(_header_length, requests, pinned), weights))
        if sum(lengths) > MOST_HEADERS:
            raise CheckpointError(
                f"{pinned.id}: its headers claim {sum(lengths):,} bytes, more than any model needs."
            )
        found = pool.map(partial(_header, requests, pinned, folder), weights, lengths)
        headers = {file.name: header for file, header in zip(weights, found, strict=True)}
    if len(weights) == 1 and INDEX not in {file.name for file in pinned.files}:
        return RemoteCheckpoint(folder, headers[weights[0].name], pinned)

    def header_of(path: Path) -> Header:
        if path.name not in headers:
            raise CheckpointError(f"{pinned.id}: has no {path.name}, though its index names it.")
        return headers[path.name]

    return RemoteCheckpoint(folder, read_shards(folder, header_of), pinned)


def _header_length(requests: HubRequests, pinned: Pinned, file: HubFile) -> int:
    """What the first 8 bytes of a file of weights say."""
    prefix = requests.content(requests.address(pinned.id, pinned.commit, file.name), 8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file.nbytes - 8):
        raise CheckpointError(
            f"{pinned.id}: {file.name} claims a header of {length:,} bytes in a file of {file.nbytes:,}; it is no "
            "safetensors file."
        )
    return length


def _header(requests: HubRequests, pinned: Pinned, folder: Path, file: HubFile, length: int) -> Header:
    raw = requests.content(requests.address(pinned.id, pinned.commit, file.name), length, first=8)
    if len(raw) < length:
        raise CutOff
    return parse_header(folder / file.name, raw, file.nbytes)
