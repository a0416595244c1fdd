"""Measuring on a model that runs: what a change in one part of the weights does to a loss.

A model's float32 weights are moved between base and expert in place. Gradients are multiplied with the change and
summed as they arrive, parameter by parameter, so that never more than one of them is kept.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from merging import ops
from merging.checkpoint import TensorSource
from merging.errors import MergingError
from merging.folders.header import MERGEABLE, TensorInfo
from merging.heartbeats import Stopped
from merging.importances.calibration import Task
from merging.partitions import Partitions

BLOCK_ELEMENTS = 1 << 22
"""Elements of a tensor that are read and multiplied at once."""


def carried(base: TensorSource) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that carry task vectors."""
    return {name: info.shape for name, info in base.tensors.items() if info.dtype in MERGEABLE}


class MovedModel:
    """A model in float32 whose weights are set to base, expert, or anything between, always in place.

    Once `stop` is set, a forward or backward pass under way raises `Stopped` at its next module.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: TensorSource,
        expert: TensorSource,
        stop: threading.Event | None = None,
    ):
        """
        Raises:
            MergingError: base and expert differ in a tensor that the running model does not have by that name.
        """
        self.model = model.eval()
        self.base, self.expert = base, expert
        self.device = next(model.parameters()).device
        self.stop = stop or threading.Event()
        self.parameters = self._match()
        for module in model.modules():
            module.register_forward_pre_hook(lambda *_: self.look_up())

    def look_up(self) -> None:
        """Raises `Stopped` if nobody waits any more."""
        if self.stop.is_set():
            raise Stopped

    def _match(self) -> dict[str, torch.nn.Parameter]:
        """Stored name -> parameter; a checkpoint may leave out the prefix of the inner model."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        prefix = getattr(self.model, "base_model_prefix", "")
        found = {}
        for name, shape in carried(self.base).items():
            parameter = own.get(name, own.get(f"{prefix}.{name}"))
            if parameter is not None and tuple(parameter.shape) == shape:
                found[name] = parameter
            elif any(
                bool(self.change(name, *rows).any())
                for rows in self.base.tensors[name].row_blocks(BLOCK_ELEMENTS)
            ):
                raise MergingError(
                    f"importance: '{name}' is stored otherwise than {type(self.model).__name__} holds it, so its gradient "
                    "cannot be matched. This architecture is not supported."
                )
        return found

    def change(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of δ in float32, on the model's device."""
        self.look_up()
        return self._read(self.expert, name, start, stop) - self._read(self.base, name, start, stop)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Set the weights to θ0 + share·δ; at 0 and 1 they are the base's and the expert's own bits."""
        for name in self.parameters:
            for start, stop in self.base.tensors[name].row_blocks(BLOCK_ELEMENTS):
                if share in (0, 1):
                    rows = self._read(self.expert if share else self.base, name, start, stop)
                else:
                    rows = self._read(self.base, name, start, stop) + share * self.change(name, start, stop)
                self._write(name, start, stop, rows)

    @contextmanager
    def put_back(self, partitions: Partitions, numbers: torch.Tensor) -> Iterator[None]:
        """While it lasts, the partitions of these numbers are the base's; then the expert's bits return."""
        chosen = torch.zeros(len(partitions), dtype=torch.bool)
        chosen[numbers] = True
        if len(numbers) == 1:
            names = [name for name in partitions[int(numbers)].tensors if name in self.parameters]
        else:
            names = [name for name in self.parameters if bool(partitions.spread(chosen, name).any())]
        try:
            for name in names:
                self._put_back(name, partitions.spread(chosen, name))
            yield
        finally:
            for name in names:
                self._put_back(name, torch.tensor(False))

    @torch.no_grad()
    def _put_back(self, name: str, mask: torch.Tensor) -> None:
        """Base where `mask` (broadcast to the tensor) is set, expert elsewhere."""
        for start, stop in self.base.tensors[name].row_blocks(BLOCK_ELEMENTS):
            part = ops.broadcast_rows(mask, start, stop)
            rows = self._read(self.expert, name, start, stop)
            if bool(part.any()):
                rows = torch.where(part.to(self.device), self._read(self.base, name, start, stop), rows)
            self._write(name, start, stop, rows)

    def _read(self, source: TensorSource, name: str, start: int, stop: int) -> torch.Tensor:
        return source.read(name, start, stop).to(self.device).to(torch.float32)

    def _write(self, name: str, start: int, stop: int, rows: torch.Tensor) -> None:
        parameter = self.parameters[name]
        (parameter[start:stop] if parameter.ndim else parameter).copy_(rows)


class Elements:
    """δᵢgᵢ of every element in float32, in a file without a name that lives as long as this object."""

    label = "importance of elements"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        """
        Raises:
            MergingError: there is no room for it on the disk.
        """
        self.tensors = {name: TensorInfo(name, "F32", shape) for name, shape in shapes.items()}
        elements = sum(info.elements for info in self.tensors.values())
        descriptor, path = tempfile.mkstemp(prefix="mergescope-")
        try:
            os.posix_fallocate(descriptor, 0, max(4, 4 * elements))
            values = torch.from_file(path, shared=True, size=elements, dtype=torch.float32)
        except OSError as error:
            raise MergingError(
                f"importance of every element needs {4 * elements / 1e9:.1f} GB in {Path(path).parent} "
                f"({error.strerror}). Free some room, or do without elements."
            ) from None
        finally:
            os.close(descriptor)
            Path(path).unlink()
        split = values.split([info.elements for info in self.tensors.values()])
        self._values = {
            name: part.view(info.shape)
            for part, (name, info) in zip(split, self.tensors.items(), strict=True)
        }

    def add(self, name: str, start: int, products: torch.Tensor, factor: float) -> None:
        rows = self._values[name][start : start + len(products)] if products.ndim else self._values[name]
        rows += products.cpu() * factor

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        value = self._values[name]
        return value[start:stop] if value.ndim else value


def gradient_sums(
    moved: MovedModel,
    partitions: Partitions,
    task: Task,
    batches: Sequence[Sequence[int]],
    elements: tuple[Elements, float] | None = None,
    names: Collection[str] | None = None,
) -> Iterator[torch.Tensor]:
    """For each batch Σ_{i∈P} δᵢ·∂(summed loss)/∂θᵢ where the weights are now, float64 [P], after one forward and backward.

    With `elements` every product, times the given factor, is added there too; with `names` only these tensors count.
    """
    totals = torch.zeros(len(partitions), dtype=torch.float64, device=moved.device)

    def take(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        for start, stop in moved.base.tensors[name].row_blocks(BLOCK_ELEMENTS):
            gradient = parameter.grad[start:stop] if parameter.ndim else parameter.grad
            products = moved.change(name, start, stop) * gradient
            partitions.add(totals, name, products, start)
            if elements is not None:
                elements[0].add(name, start, products, elements[1])
        parameter.grad = None

    with _hooks(moved, take, moved.parameters if names is None else names):
        for batch in batches:
            totals.zero_()
            with torch.enable_grad():
                task.sums(moved.model, batch).sum().backward()
            yield totals.cpu()


@contextmanager
def _hooks(
    moved: MovedModel, take: Callable[[str, torch.Tensor], None], names: Collection[str]
) -> Iterator[None]:
    """While it lasts, `take(name, parameter)` is called as soon as a parameter's gradient is complete."""
    for parameter in moved.model.parameters():
        parameter.requires_grad_(False)
    handles = []
    for name, parameter in moved.parameters.items():
        if name not in names:
            continue
        parameter.requires_grad_(True)
        handles.append(parameter.register_post_accumulate_grad_hook(partial(take, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in moved.model.parameters():
            parameter.grad = None


@torch.no_grad()
def losses(moved: MovedModel, task: Task) -> torch.Tensor:
    """The summed loss of every example where the weights are now, float64 [examples].

    Raises:
        MergingError: one is not finite.
    """
    found = torch.zeros(len(task.weights), dtype=torch.float64)
    for batch in task.batches:
        found[list(batch)] = task.sums(moved.model, batch).double().cpu()
    if not bool(found.isfinite().all()):
        raise MergingError(
            f"importance: the loss of {moved.expert.label} on its calibration data is not finite. Use an intact model."
        )
    return found
