"""Which layers did it: how likely an answer is once one block of a model is put back to another's."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from merging.anatomy import Block, after_blocks, block_name, block_order, locate
from merging.answering.reply_logits import reply_logits
from merging.errors import MergingError
from merging.heartbeats import Stopped
from merging.inference import LoadedModel

NOTHING, EVERYTHING = "nothing", "everything"
EMBEDDINGS, TIED = "embeddings", "embeddings + tied head"
LAST, NORM = "final norm + head", "final norm"
OTHERS = "other tensors"


@dataclass(frozen=True, slots=True)
class PartPutBack:
    """The answer's log-likelihood in nats, summed over its tokens, while a part is the donor's; `change` is what that adds."""

    part: str
    log_likelihood: float
    change: float


class PutBack:
    """A merged model whose parts are taken from a donor one at a time: from its base, or from an expert.

    It runs a copy of the modules that shares every weight with the merged model, and exchanges references there. Others may
    ask the merged model meanwhile: nothing of it changes, and no weight is copied (`torch.func.functional_call` would
    exchange them in the model itself while it runs). What no weight says, such as the base of rotary positions, stays
    the merged model's.
    """

    def __init__(
        self,
        merged: LoadedModel,
        donor: LoadedModel,
        prompt: Sequence[int],
        answer: Sequence[int],
        stop: threading.Event | None = None,
    ):
        """
        Args:
            stop: once it is set, `run` raises `Stopped` at the next module.

        Raises:
            MergingError: the donor has other tensors or other shapes.
        """
        self.merged, self.prompt, self.answer = merged, list(prompt), list(answer)
        self._stop = stop or threading.Event()
        self._copy = _sharing_copy(merged.model)
        for module in self._copy.modules():
            module.register_forward_pre_hook(lambda *_: self._look_up())
        self._own, self._donor = _parameters(merged.model), _parameters(donor.model)
        _check(self._own, self._donor)
        self._names = _parts(self._own)

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be put back: embeddings, blocks, final norm and head, in the order of the model."""
        return tuple(self._names)

    def run(self) -> Iterator[PartPutBack]:
        """First with nothing put back, then every part by itself, at last with everything, which is the donor.

        Raises:
            MergingError: the answer is empty, too long, or a model predicts NaN.
            Stopped: nobody waits any more.
        """
        before = self._measure(())
        yield PartPutBack(NOTHING, before, 0.0)
        for part, names in self._names.items():
            after = self._measure(names)
            yield PartPutBack(part, after, after - before)
        donor = self._measure(tuple(self._own))
        yield PartPutBack(EVERYTHING, donor, donor - before)

    def _measure(self, names: Sequence[str]) -> float:
        with self._put_back(names):
            self._look_up()
            logs = reply_logits(self.merged, self.prompt, self.answer, self._copy).float().log_softmax(-1)
            said = logs.gather(1, torch.tensor(self.answer, device=logs.device)[:, None])
        return float(said.sum(dtype=torch.float64))

    @contextmanager
    def _put_back(self, names: Sequence[str]) -> Iterator[None]:
        try:
            for name in names:
                own = self._own[name]
                self._place(name, self._donor[name].to(own.device, own.dtype))
            yield
        finally:
            for name in names:
                self._place(name, self._own[name])

    def _place(self, name: str, weight: torch.Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        self._copy.get_submodule(path)._parameters[leaf] = weight

    def _look_up(self) -> None:
        if self._stop.is_set():
            raise Stopped


def _sharing_copy(model: Any) -> Any:
    """The same modules once more, around the same tensors, without the hooks that others come and go with meanwhile."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared |= {id(module._forward_pre_hooks): OrderedDict() for module in model.modules()}
    return copy.deepcopy(model, shared)


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    """Every name with its tensor; tied ones under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False))


def _check(own: dict[str, torch.Tensor], donor: dict[str, torch.Tensor]) -> None:
    differing = [
        name for name in {**own, **donor} if _shape(own.get(name)) != _shape(donor.get(name))
    ]  # fmt: skip
    if not differing:
        return
    name = differing[0]
    raise MergingError(
        f"These models have different shapes ('{name}' is {_shape(own.get(name))} in one and {_shape(donor.get(name))} in the "
        "other), so no block of one fits into the other. Choose the base or an expert of this merge."
    )


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else "×".join(map(str, tensor.shape))


def _parts(parameters: dict[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
    """Names of tensors by part; tied ones are in one part together."""
    first: dict[int, tuple[int, Block | None]] = {}
    found: dict[tuple[int, Block | None], list[str]] = {}
    tied = False
    for name, parameter in parameters.items():
        place = _place_of(name)
        one = first.setdefault(id(parameter), place)
        tied = tied or one[0] != place[0]
        found.setdefault(one, []).append(name)
    labels = {0: TIED if tied else EMBEDDINGS, 2: NORM if tied else LAST, 3: OTHERS}
    order = sorted(found, key=lambda part: (part[0], block_order(part[1])))
    return {
        labels[kind] if block is None else block_name(block): tuple(found[kind, block])
        for kind, block in order
    }


def _place_of(name: str) -> tuple[int, Block | None]:
    """Where a part stands in the model: before the blocks, which block, after them, elsewhere."""
    place = locate(name)
    if place.block is not None:
        return 1, place.block
    if after_blocks(place):
        return 2, None
    return (0, None) if place.role in ("embedding", "norm") else (3, None)
