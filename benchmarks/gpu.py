"""Merges on a GPU beside the time that their bytes need over PCIe, with the GPU's memory at its peak and the bits compared.

    python -m benchmarks.gpu [--blocks 32] [--piece 8 32 64] [--workers 4] [--folder /dev/shm] [--save NAME]
    python -m benchmarks.gpu --device cpu --blocks 1 --width 256      (a dry run)

The models have the shapes of Llama 3 8B, but one block is stored and read again as every block: so the bytes that are read,
copied and merged are those of the whole model, where disk and memory hold less. What is merged is copied back and dropped.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file

import merging
from merging import devices
from merging.checkpoint import Checkpoint, bytes_of
from merging.devices import resolve_device, to_host
from merging.engine import MemorySink, run_plan
from merging.events import Finished
from merging.plan import Plan, plan_sources
from merging.recipe import ModelEntry

METHODS = ("task_arithmetic", "dare_ties", "ties", "della")
EXPERTS = 3
LLAMA_WIDTH, LLAMA_VOCABULARY = 4096, 128256
TARGET = 1.5
"""A merge should take at most so many times as long as its bytes need over PCIe."""
COPIED = 256 << 20
RESULTS = Path(__file__).parent / "results"


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """One block of Llama 3 8B and what lies around the blocks, narrowed to a width."""
    vocabulary, inner, keys = LLAMA_VOCABULARY * width // LLAMA_WIDTH, width * 7 // 2, width // 4
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    return {
        "model.embed_tokens.weight": (vocabulary, width),
        **{f"model.layers.0.{name}.weight": shape for name, shape in block.items()},
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }


def make_models(folder: Path, width: int, device: torch.device) -> None:
    """Write a base and lightly tuned experts in bfloat16."""
    for number in range(EXPERTS + 1):
        same, own = (torch.Generator(device).manual_seed(seed) for seed in (0, number))
        tensors = {}
        for name, shape in shapes(width).items():
            values = torch.randn(shape, generator=same, device=device) * 0.02
            if number:
                values += torch.randn(shape, generator=own, device=device) * 5e-4
            tensors[name] = values.bfloat16().cpu()
        save_file(tensors, folder / f"{number}.safetensors")


def opened(file: Path, blocks: int, *, outside: bool = True) -> Checkpoint:
    """A file's one block as so many blocks, with what lies `outside` them or without."""
    stored = Checkpoint.open(file).tensors
    found = {name: info for name, info in stored.items() if outside and "layers" not in name}
    for block in range(blocks):
        for name, info in stored.items():
            if "layers" in name:
                other = name.replace("layers.0", f"layers.{block}")
                found[other] = replace(info, name=other)
    return Checkpoint(file, found, {})


def plan_of(folder: Path, method: str, blocks: int, *, outside: bool = True) -> Plan:
    base, *experts = (
        opened(folder / f"{n}.safetensors", blocks, outside=outside) for n in range(EXPERTS + 1)
    )
    entries = [ModelEntry(model=expert.label) for expert in experts]
    recipe = merging.Recipe(
        merge_method=method, base_model=base.label, models=tuple(entries), profile="paper"
    )
    return plan_sources(recipe, base, list(zip(entries, experts, strict=True)))


class Dropped:
    """Takes the result back to the CPU and drops it."""

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        to_host(rows)


def bandwidth(device: torch.device) -> dict[str, float]:
    """Bytes a second into the device and out of it, from and to pinned memory."""
    pinned = torch.empty(COPIED, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(COPIED, dtype=torch.uint8, device=device)
    found = {}
    for way, (to, source) in {"in": (there, pinned), "out": (pinned, there)}.items():
        best = min(
            _timed(lambda to=to, source=source: to.copy_(source, non_blocking=True), device) for _ in range(9)
        )
        found[way] = COPIED / best
    return found


def reading(folder: Path, workers: int, device: torch.device) -> float:
    """Bytes a second from a file into pinned memory, by so many threads at once."""
    file = Checkpoint.open(folder / "0.safetensors")
    info = max(file.tensors.values(), key=lambda one: one.nbytes)
    blocks = list(info.row_blocks(1 << 20))
    pinned = device.type == "cuda"

    def read(rows: tuple[int, int]) -> None:
        shape = (rows[1] - rows[0], *info.shape[1:])
        file.read_into(
            info.name, rows[0], bytes_of(torch.empty(shape, dtype=info.torch_dtype, pin_memory=pinned))
        )

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, blocks))
        return info.nbytes / _timed(lambda: list(pool.map(read, blocks)), device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(plan: Plan, device: torch.device, speed: dict[str, float]) -> dict[str, float | None]:
    """Seconds of a merge, what its bytes need over PCIe, and the most bytes of the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    *_, finished = run_plan(plan, Dropped(), device=str(device))
    assert isinstance(finished, Finished)
    # both ways at once: PCIe is full duplex
    least = max(finished.bytes_read / speed["in"], finished.bytes_written / speed["out"])
    return {
        "seconds": finished.seconds,
        "gigabytes in": finished.bytes_read / 1e9,
        "gigabytes out": finished.bytes_written / 1e9,
        "seconds over PCIe": least,
        "times PCIe": finished.seconds / least,
        "peak bytes reserved": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        "peak bytes allocated": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def bits_equal(folder: Path, method: str, device: torch.device) -> bool:
    """Whether one block has the bits that the CPU gives it."""
    plan = plan_of(folder, method, 1, outside=False)
    found = []
    for where in ("cpu", str(device)):
        sink = MemorySink([tensor.info for tensor in plan.tensors])
        list(run_plan(plan, sink, device=where))
        found.append(sink.tensors)
    return all(
        torch.equal(values.view(torch.int16), found[1][name].view(torch.int16))
        for name, values in found[0].items()
    )


def cases(
    folder: Path, options: argparse.Namespace, device: torch.device, speed: dict[str, float]
) -> Iterator[dict]:
    for piece in options.piece:
        with (
            patch("merging.tensor_plan.PIECE_BYTES", piece << 20),
            patch.object(devices, "VRAM", options.budget),
            patch("merging.plan.VRAM", options.budget),
            patch("merging.plan.GPU_WORKERS", options.workers),
        ):
            for method in options.method:
                plan = plan_of(folder, method, options.blocks)
                if plan.gpu_memory > options.budget:
                    print(f"{method}, pieces of {piece} MiB: do not fit the budget")
                    continue
                same = bits_equal(folder, method, device)  # it warms up, too
                case = {
                    "method": method,
                    "piece MiB": piece,
                    "workers": plan.gpu_workers,
                    "bits of the CPU": same,
                }
                yield {**case, **measure(plan, device, speed)}


def told(case: dict, budget: int) -> str:
    peak = case["peak bytes reserved"]
    memory = (
        ""
        if peak is None
        else f", {peak / 1e9:.2f} GB of the GPU ({'within' if peak <= budget else 'OVER'} {budget / 1e9:g})"
    )
    return (
        f"{case['method']}, pieces of {case['piece MiB']} MiB, {case['workers']} workers: {case['seconds']:.2f} s for "
        f"{case['gigabytes in']:.2f} GB in and {case['gigabytes out']:.2f} out, {case['times PCIe']:.2f} times what PCIe needs "
        f"({'within' if case['times PCIe'] <= TARGET else 'over'} {TARGET}){memory}; "
        f"bits {'as' if case['bits of the CPU'] else 'NOT AS'} on the CPU"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=LLAMA_WIDTH)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument(
        "--piece", type=int, nargs="+", default=[8], help="MiB of float32 over base and experts"
    )
    parser.add_argument("--workers", type=int, default=devices.GPU_WORKERS)
    parser.add_argument("--budget", type=int, default=devices.VRAM, help="bytes of the GPU")
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--folder", type=Path, help="where the models lie meanwhile; /dev/shm is memory")
    parser.add_argument("--save", help=f"write {RESULTS}/NAME.json")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        make_models(folder, options.width, device)
        speed = bandwidth(device)
        read = reading(folder, options.workers, device)
        about = f"one stored block of Llama 3 8B's shape (width {options.width}), read as {options.blocks} blocks; {EXPERTS} experts"
        print(f"{name}, torch {torch.__version__}\n{about}")
        print(f"pinned copies: {speed['in'] / 1e9:.1f} GB/s in, {speed['out'] / 1e9:.1f} GB/s out; ", end="")
        print(f"files into pinned memory by {options.workers} threads: {read / 1e9:.1f} GB/s", flush=True)
        result = {
            "device": name,
            "torch": torch.__version__,
            "models": about,
            "bytes a second": {**speed, "read": read},
            "budget": options.budget,
            "cases": [],
        }
        for case in cases(folder, options, device, speed):
            print(told(case, options.budget), flush=True)
            result["cases"].append(case)
            if options.save:
                (RESULTS / f"{options.save}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
