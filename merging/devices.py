"""Where tensors are worked on: the choice of a device, and what a GPU needs that a CPU does not.

Every worker has a stream of its own, so that one piece is copied in while another is worked on and a third copied out. What a
worker leaves to others (an accumulator, a kept piece) is there when its stream was waited for: see `settle`. Copies go by
pinned memory, which torch keeps and gives out again when the copy is over.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from merging.errors import MergingError

VRAM = 2_000_000_000
"""Bytes of a GPU that a merge takes at most."""
GPU_WORKERS = 4
"""Workers of a GPU: one copies in, one computes, one copies out, one reads the next piece's file."""
_mine = threading.local()
_elsewhere = False
"""Whether only workers that this process forks may use its GPU."""


def resolve_device(device: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`; the CPU while the GPU is kept for others.

    Raises:
        MergingError: no such device here.
    """
    if _elsewhere:
        return torch.device("cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MergingError(f"device '{device}': unknown. Use auto, cpu, cuda or cuda:0.") from None
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise MergingError(f"device '{device}': not available on this machine. Use auto or cpu.")
    if chosen.type not in {"cpu", "cuda"}:
        raise MergingError(f"device '{device}': not supported. Use auto, cpu or cuda.")
    return chosen


def keep_off_the_gpu() -> None:
    """From now on this process works on the CPU, and only forks of it that are lent the GPU use that."""
    global _elsewhere
    _elsewhere = True


@contextmanager
def with_the_gpu() -> Iterator[None]:
    """In such a fork: the GPU may be used until the end, when what nobody holds is taken off it."""
    global _elsewhere
    before, _elsewhere = _elsewhere, False
    try:
        yield
    finally:
        _elsewhere = before
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def device_with_room(device: str, needed: int) -> tuple[torch.device, tuple[str, ...]]:
    """`resolve_device` for work that takes so many bytes there. Where the GPU that `auto` means has no room it is the CPU,
    and a sentence says so.

    Raises:
        MergingError: no such device here, or no room on the one that was named.
    """
    chosen = resolve_device(device)
    problem = _no_room(chosen, needed) if chosen.type == "cuda" else None
    if problem is None:
        return chosen, ()
    if device != "auto":
        raise MergingError(f"device '{device}': {problem}. Use device cpu, or allow less memory.")
    return torch.device("cpu"), (f"The CPU did the work, because {problem}.",)


def _no_room(device: torch.device, needed: int) -> str | None:
    """Why so many bytes do not fit on a GPU, without its full stop."""
    if needed > VRAM:
        return f"the largest piece takes {needed / 1e9:.2g} GB of the GPU, more than the {VRAM / 1e9:g} GB that a merge may use"
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except RuntimeError as error:  # a driver that does not fit, a GPU that is lent to one process alone
        return f"the GPU does not answer ({str(error).splitlines()[0]})"
    if needed > free:
        return f"the merge takes {needed / 1e9:.2g} GB of the GPU and {free / 1e9:.2g} GB are free"
    return None


@contextmanager
def on_own_stream(device: torch.device) -> Iterator[None]:
    """Have this thread's work done on a stream of its own, all of it by the end."""
    streams = vars(_mine).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    with torch.cuda.stream(streams[device]):
        try:
            yield
        finally:
            settle(device)


def settle(device: torch.device) -> None:
    """Wait until what this thread has told a GPU is done, so that others may use it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def to_host(values: torch.Tensor) -> torch.Tensor:
    """The same on the CPU; from a GPU by way of pinned memory."""
    if values.device.type == "cpu":
        return values
    found = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    found.copy_(values, non_blocking=True)
    settle(values.device)
    return found


@contextmanager
def out_of_memory_in_words() -> Iterator[None]:
    """A GPU's memory that ran out, as an error that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise MergingError(
            "the memory of the GPU ran out, for others use it too. Use device cpu, or free the GPU."
        ) from None
