"""Models that answer, kept in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from merging.folders.header import TensorInfo
from merging.folders.room import free_memory
from merging.inference import LoadedModel
from merging.sources import open_model

SHARE_OF_FREE = 0.75
"""How much of the free memory models may take; the rest is for what they remember of a conversation."""


def bytes_to_run(tensors: Mapping[str, TensorInfo], device: str) -> int:
    """Bytes that these weights take once they are loaded as `LoadedModel` does: float32 on the CPU, else as stored."""
    if device == "cpu":
        return 4 * sum(tensor.elements for tensor in tensors.values())
    return sum(tensor.nbytes for tensor in tensors.values())


def in_rounds(wanted: Sequence[tuple[Hashable, int]], room: int) -> list[list[int]]:
    """The places of models in `wanted`, a name and its bytes each, in rounds of those that fit into `room` together.

    Their order stays. A model that is named twice in a round takes its bytes once; one that does not fit by itself has a
    round of its own.
    """
    rounds: list[list[int]] = []
    taken: dict[Hashable, int] = {}
    for place, (name, nbytes) in enumerate(wanted):
        if not rounds or sum({**taken, name: nbytes}.values()) > room:
            rounds.append([])
            taken = {}
        rounds[-1].append(place)
        taken[name] = nbytes
    return rounds


class ModelCache:
    """Models kept in memory; the least recently used are given up before one is loaded that would not fit beside them.

    Together they take at most `limit` bytes, and on the device they are on no more than is free there. A model of a folder is known by that, its fingerprint and its device: a folder that was written anew is loaded anew.
    """

    def __init__(self, limit: int = 4 << 30):
        self.limit = limit
        self._models: OrderedDict[Hashable, LoadedModel] = OrderedDict()
        self._asked: dict[Hashable, float] = {}
        self._loading = threading.Lock()
        self._lock = threading.Lock()

    def get(self, path: str | Path, device: str = "cpu") -> LoadedModel:
        """The model in a folder, or that a reference means, loaded if need be.

        Raises:
            CheckpointError: as `LoadedModel.load`.
        """
        checkpoint = open_model(str(path))
        key = str(checkpoint.path.resolve()), checkpoint.fingerprint, device
        nbytes = bytes_to_run(checkpoint.tensors, device)
        return self.kept(key, partial(LoadedModel.of_checkpoint, checkpoint, device), nbytes, device)

    def kept(
        self, key: Hashable, make: Callable[[], LoadedModel], nbytes: int = 0, device: str = "cpu"
    ) -> LoadedModel:
        """The model of a key, made if need be; one model is made at a time, and room for its bytes before."""
        if (model := self._resident(key)) is not None:
            return model
        with self._loading:
            if (model := self._resident(key)) is not None:
                return model
            self._make_room(nbytes, device)
            model = make()
            with self._lock:
                self._models[key] = model
                self._asked[key] = time.monotonic()
            return model

    def room(self, device: str = "cpu") -> int:
        """Bytes that models may take together: the limit, or what is free on the device and what models take there now."""
        free = _free_on_gpu(device) if device.startswith("cuda") else free_memory()
        if free is None:
            return self.limit
        with self._lock:
            resident = sum(model.nbytes for model in self._models.values() if model.device == device)
        return min(self.limit, resident + int(free * SHARE_OF_FREE))

    def _make_room(self, nbytes: int, device: str) -> None:
        room = self.room(device)
        with self._lock:
            while self._models and sum(m.nbytes for m in self._models.values()) + nbytes > room:
                self._models.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Give up the model of a key; it is freed once nobody works with it."""
        with self._lock:
            self._models.pop(key, None)

    def forget_idle(self, seconds: float) -> None:
        """Give up the models that nobody has asked for so long."""
        oldest = time.monotonic() - seconds
        with self._lock:
            for key in [key for key in self._models if self._asked.get(key, oldest) < oldest]:
                del self._models[key]
            self._asked = {key: self._asked[key] for key in self._models if key in self._asked}

    def _resident(self, key: Hashable) -> LoadedModel | None:
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                self._asked[key] = time.monotonic()
            return self._models.get(key)

    def __len__(self) -> int:
        return len(self._models)


def _free_on_gpu(device: str) -> int:
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + spare
