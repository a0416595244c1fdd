"""Models that answer, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

from merging.checkpoint import Checkpoint
from merging.inference import LoadedModel


class ModelCache:
    """Models kept in memory, the least recently used given up first once they take more than `limit` bytes.

    A model of a folder is known by that, its fingerprint and its device: a folder that was written anew is loaded anew.
    """

    def __init__(self, limit: int = 4 << 30):
        self.limit = limit
        self._models: OrderedDict[Hashable, LoadedModel] = OrderedDict()
        self._loading = threading.Lock()
        self._lock = threading.Lock()

    def get(self, path: str | Path, device: str = "cpu") -> LoadedModel:
        """The model in a folder, loaded if need be.

        Raises:
            CheckpointError: as `LoadedModel.load`.
        """
        folder = Path(path).resolve()
        key = str(folder), Checkpoint.open(folder).fingerprint, device
        return self.kept(key, partial(LoadedModel.load, folder, device))

    def kept(self, key: Hashable, make: Callable[[], LoadedModel]) -> LoadedModel:
        """The model of a key, made if need be; one model is made at a time."""
        if (model := self._resident(key)) is not None:
            return model
        with self._loading:
            if (model := self._resident(key)) is not None:
                return model
            model = make()
            with self._lock:
                self._models[key] = model
                while len(self._models) > 1 and sum(m.nbytes for m in self._models.values()) > self.limit:
                    self._models.popitem(last=False)
            return model

    def forget(self, key: Hashable) -> None:
        """Give up the model of a key; it is freed once nobody works with it."""
        with self._lock:
            self._models.pop(key, None)

    def _resident(self, key: Hashable) -> LoadedModel | None:
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
            return self._models.get(key)

    def __len__(self) -> int:
        return len(self._models)
