"""A GPU that is none: tensors that live in ordinary memory, say that they are on `cuda:0`, and insist on being treated so.

What CUDA refuses raises `Misplaced`: tensors of two devices in one operation, NumPy on a tensor of the GPU. What CUDA lets
pass and computes wrongly raises `Race`: a tensor that another stream may still be writing, pinned memory that is written
again while it is being copied. A copy that does not block arrives when its stream is waited for; until then the memory holds
rubbish. `peak` is the most bytes of such tensors at any moment, without what operations need inside.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch

from merging import noise

CUDA = torch.device("cuda", 0)
RUBBISH = 0xAB
FACTORIES = ("empty", "zeros", "ones", "full", "arange", "tensor")
PLACES = {"copy_", "view_as", "expand_as", "reshape_as"}
"""Operations that take tensors of two devices, the last three for the shape alone."""
NO_SCALARS = {
    "stack",
    "cat",
    "index_add_",
    "scatter_",
    "scatter_add_",
    "gather",
    "einsum",
    "bmm",
    "matmul",
    "clamp",
}
"""Operations that do not take even a single number from the CPU."""
WAITS = {
    "item",
    "tolist",
    "__bool__",
    "__float__",
    "__int__",
    "nonzero",
    "unique",
    "bincount",
    "equal",
    "allclose",
}
"""Operations after which the stream has done all it was told."""
_plain_to, _plain_cpu = torch.Tensor.to, torch.Tensor.cpu


class Misplaced(Exception):
    """CUDA would refuse it."""


class Race(Exception):
    """CUDA would do it, and sometimes compute something else."""


class Stream:
    """Operations in order; `done` is the last that is certain to be over."""

    def __init__(self, device: Any = None):
        self.told, self.done = 0, 0
        self.pending: list[Callable[[], None]] = []

    def synchronize(self) -> None:
        for finish in self.pending:
            finish()
        self.pending.clear()
        self.done = self.told


class _Gpu:
    """What all fake tensors share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.local = threading.local()
        self.default = Stream()
        self.pinned: dict[int, int] = {}
        self.live: dict[int, list[int]] = {}
        self.bytes = self.peak = 0

    @property
    def stream(self) -> Stream:
        return getattr(self.local, "stream", self.default)

    def allocated(self, tensor: torch.Tensor) -> None:
        storage = torch.Tensor.untyped_storage(tensor)
        place, size = storage.data_ptr(), storage.nbytes()
        with self.lock:
            found = self.live.setdefault(place, [0, size])
            found[0] += 1
            if found[0] == 1:
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, self.freed, self.live, place).atexit = False

    def freed(self, live: dict[int, list[int]], place: int) -> None:
        with self.lock:
            found = live[place]
            found[0] -= 1
            if not found[0]:
                del live[place]
                self.bytes -= found[1] if live is self.live else 0


gpu = _Gpu()


class OnGpu(torch.Tensor):
    """A tensor on the fake GPU; `written` is where and when it was last written: [stream, number of the operation]."""

    written: list[Any]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    if name == "__get__" and owner is torch.Tensor.device:
        return CUDA
    if name == "__get__" and owner is torch.Tensor.is_cuda:
        return True
    if name == "__get__":
        return _tagged(func(_plain(args[0])), _placed([args]))
    if name in {"numpy", "__array__", "data_ptr"}:
        raise Misplaced(f"{name}() of a tensor on the GPU")
    if name == "__iter__":
        return iter(_run(torch.Tensor.unbind, args, {}))
    tensors = _tensors([args, kwargs])
    _require_one_device(name, args, tensors)
    mine = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    _require_written(name, mine)
    stream = gpu.stream
    if name == "copy_" and _later(args, kwargs):
        return args[0]
    plain = {id(tensor): _plain(tensor) for tensor in mine}
    found = func(*_mapped(args, plain), **_mapped(kwargs, plain))
    stream.told += 1
    if name in WAITS or (name == "__getitem__" and any(t.dtype == torch.bool for t in _tensors(args[1:]))):
        stream.synchronize()
    if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or "out" in kwargs:
        changed = kwargs.get("out", args[0])
        if isinstance(changed, OnGpu):
            changed.written[:] = [stream, stream.told]
        return changed
    if "device" in kwargs:
        return _tagged(found, mine) if _is_cuda(kwargs["device"]) else found
    return _tagged(found, mine)


def _later(args: Any, kwargs: dict[str, Any]) -> bool:
    """A copy from the GPU that does not block: rubbish now, the values when the stream is waited for."""
    to, source = args[0], args[1]
    waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if isinstance(to, OnGpu) or waits or not _is_pinned(to):
        gpu.stream.synchronize() if not isinstance(to, OnGpu) else None
        return False
    values = _plain(source).to(to.dtype).clone()
    to.view(torch.uint8).fill_(RUBBISH) if to.ndim else to.fill_(RUBBISH)
    gpu.stream.told += 1
    gpu.stream.pending.append(lambda: to.copy_(values))
    return True


def _require_one_device(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    foreign = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    if name in {"__getitem__", "__setitem__"}:
        by = _tensors(args[1])
        if not isinstance(args[0], OnGpu) and any(isinstance(index, OnGpu) for index in by):
            raise Misplaced(f"{name}: a tensor on the CPU indexed by one on the GPU")
        values = args[2] if name == "__setitem__" and by else None
        if isinstance(values, torch.Tensor) and values.ndim:
            apart = isinstance(values, OnGpu) != isinstance(args[0], OnGpu)
            if apart:
                raise Misplaced(f"{name}: values of another device")
        return
    if name in PLACES or not foreign:
        return
    if any(tensor.ndim for tensor in foreign) or name in NO_SCALARS:
        raise Misplaced(f"{name}: {[tuple(t.shape) for t in foreign]} on the CPU beside a tensor on the GPU")
    if all(not tensor.ndim for tensor in tensors if isinstance(tensor, OnGpu)) and name.endswith("_"):
        raise Misplaced(f"{name}: a number of the GPU put into the CPU's")


def _require_written(name: str, mine: list[OnGpu]) -> None:
    for tensor in mine:
        stream, when = tensor.written
        if stream is not gpu.stream and when > stream.done:
            raise Race(f"{name}: reads what another stream may still be writing")


def _tagged(found: Any, sources: list[OnGpu]) -> Any:
    if isinstance(found, torch.Tensor):
        return _on_gpu(found, sources)
    if isinstance(found, tuple) and type(found) is not tuple and not isinstance(found, torch.Size):
        return type(found)([_tagged(one, sources) for one in found])
    if isinstance(found, tuple | list) and not isinstance(found, torch.Size):
        return type(found)(_tagged(one, sources) for one in found)
    return found


def _on_gpu(values: torch.Tensor, sources: list[OnGpu] = ()) -> OnGpu:
    place = values.untyped_storage().data_ptr()
    view = next((one for one in sources if _plain(one).untyped_storage().data_ptr() == place and place), None)
    with torch._C.DisableTorchFunctionSubclass():
        tensor = values.as_subclass(OnGpu)
        tensor.written = view.written if view is not None else [gpu.stream, gpu.stream.told]
        gpu.allocated(tensor)
    return tensor


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor) if isinstance(tensor, OnGpu) else tensor


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [one for some in values for one in _tensors(some)] if isinstance(values, list | tuple) else []


def _placed(values: Any) -> list[OnGpu]:
    return [tensor for tensor in _tensors(values) if isinstance(tensor, OnGpu)]


def _mapped(values: Any, plain: dict[int, torch.Tensor]) -> Any:
    if isinstance(values, torch.Tensor):
        return plain.get(id(values), values)
    if isinstance(values, dict):
        return {name: _mapped(value, plain) for name, value in values.items() if name != "device"} | (
            {"device": "cpu"} if "device" in values else {}
        )
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        return type(values)(_mapped(one, plain) for one in values)
    return values


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_pinned(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in gpu.pinned


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to` between the CPU and the fake GPU."""
    args, wanted = list(args), kwargs.pop("device", None)
    for number, one in enumerate(args):
        if isinstance(one, torch.Tensor):
            args[number], wanted = one.dtype, one.device
            break
        if isinstance(one, torch.device) or (isinstance(one, str) and not isinstance(one, torch.dtype)):
            wanted = args.pop(number)
            break
    later = kwargs.pop("non_blocking", False)
    cuda = isinstance(self, OnGpu) if wanted is None else _is_cuda(wanted)
    if isinstance(self, OnGpu):
        _require_written("to", [self])
    source = _plain(self)
    with torch._C.DisableTorchFunctionSubclass():
        values = _plain_to(source, *args, **kwargs) if args or kwargs else source
    if not cuda:
        if isinstance(self, OnGpu):
            assert not later, "nobody would know when it is there"
            gpu.stream.synchronize()
            return values.clone() if values is source else values
        return values
    if isinstance(self, OnGpu):
        gpu.stream.told += 1
        return self if values is source else _on_gpu(values, [self])
    gpu.stream.told += 1
    if later and _is_pinned(source):
        copy = source.clone()

        def unchanged() -> None:
            if not torch.equal(source.view(-1).view(torch.uint8), copy.view(-1).view(torch.uint8)):
                raise Race("pinned memory was written again while it was being copied")

        gpu.stream.pending.append(unchanged)
    elif not later:
        gpu.stream.synchronize()
    return _on_gpu(values.clone() if values is source else values)


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        cuda, pinned = _is_cuda(kwargs.get("device")), kwargs.pop("pin_memory", False)
        if cuda:
            kwargs["device"] = "cpu"
        values = make(*args, **kwargs)
        if pinned and values.numel():
            assert not cuda
            place = values.untyped_storage().data_ptr()
            gpu.pinned[place] = gpu.pinned.get(place, 0) + 1
            weakref.finalize(values.untyped_storage(), gpu.pinned.pop, place, None)
        return _on_gpu(values) if cuda else values

    return made


@contextmanager
def _streaming(stream: Stream):
    before = gpu.stream
    gpu.local.stream = stream
    try:
        yield
    finally:
        gpu.local.stream = before


def install(monkeypatch: Any, free: int = 80 * 10**9) -> SimpleNamespace:
    """Let torch have a GPU with so many bytes free, for one test; `bytes`, `peak` of what lies there."""
    gpu.__init__()
    monkeypatch.setattr(
        "merging.devices._mine", threading.local()
    )  # no stream of this GPU is left to another
    monkeypatch.setattr("merging.noise._flips", lru_cache(noise._flips.__wrapped__))
    monkeypatch.setattr(torch.Tensor, "to", _to)
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: _to(self, "cpu") if isinstance(self, OnGpu) else _plain_cpu(self)
    )
    for name in FACTORIES:
        monkeypatch.setattr(torch, name, _factory(getattr(torch, name)))
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (free, max(free, 80 * 10**9)),
        "Stream": Stream,
        "stream": _streaming,
        "current_stream": lambda device=None: gpu.stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return gpu
