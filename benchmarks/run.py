"""Speed and memory of checking, merging and inspecting, as multiples of copying the same bytes, in one run.

    python -m benchmarks.run [--width 768 --blocks 12 --vocabulary 16000] [--repeat 3] [--device auto] [--save NAME]

"Copying" reads base and experts and writes one model through our own reader and writer: the floor of any merge. Each
measurement runs in a process of its own and is repeated; medians are shown, with the peak of the process's own memory.
Where `make oracle` installed mergekit, it merges the same recipes in turn, and deterministic results are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

import merging
from benchmarks.family import cached_family, cached_importance
from benchmarks.first_visit import measured_visits
from benchmarks.memory import PeakMemory
from benchmarks.slider import print_latency
from benchmarks.what_if import previews
from merging import METHODS, noise
from merging.checkpoint import Checkpoint
from merging.folders.header import TensorInfo
from merging.inspection import inspect_plan, inspect_recipe
from merging.writer import CheckpointWriter

CASES: dict[str, dict[str, object]] = {
    **{name: {"merge_method": name, "experts": method.experts_wanted} for name, method in METHODS.items()},
    "ties, scope tensor": {"merge_method": "ties", "scope": "tensor"},
}
INSPECTED = "task_arithmetic"
"""The recipe that is inspected; the merge that inspecting is compared with."""
INSPECT, PREVIEW = "inspect", "inspect, preview"
RATIOS = {
    INSPECT: (INSPECTED, 2),
    PREVIEW: (INSPECTED, 2),
    "linear": ("copy", 2.5),
    "task_arithmetic": ("copy", 2.5),
    "ties": ("ties, scope tensor", 1.6),
    "pcb": ("ties", 2),
    "dppa": ("ties", 2),
    "apl": ("ties", 2),
}
"""What should take at most how many times as long as what."""
PEER_PYTHON = Path(__file__).resolve().parent.parent / ".venv-mergekit" / "bin" / "python"
PEERS: dict[str, tuple[dict[str, float], float]] = {
    "linear": ({}, 4),
    "task_arithmetic": ({}, 4),
    "dare_ties": ({"density": 0.5}, 4),
    "ties": ({"density": 0.5}, 10),
    "della": ({"density": 0.5, "epsilon": 0.1}, 6),
}
"""mergekit's methods with their parameters, and how many times as long as we mergekit should take at least."""
TINY = {"width": 64, "blocks": 1, "vocabulary": 2048}
"""A family that takes no time, and whose merge loads all code that others need."""
DETERMINISTIC = ("linear", "task_arithmetic", "ties")
OURS, THEIRS = "as mergekit: ", "mergekit: "
MEASURES = ["copy", "check", INSPECT, PREVIEW, *CASES]


def recipe_of(family: Path, case: dict[str, object]) -> merging.Recipe:
    experts = experts_of(family)[: case.get("experts")]  # type: ignore[misc]
    method = METHODS[str(case["merge_method"])]
    base = str(family / "base") if method.needs_base else None
    keys = {"base_model": base, "profile": "paper", **case}
    if method.needs_importance:
        keys["importance"] = str(cached_importance(family))
    keys.pop("experts", None)
    return merging.Recipe(models=tuple({"model": str(expert)} for expert in experts), **keys)  # type: ignore[arg-type]


def peer_recipe(family: Path, method: str) -> str:
    """A recipe that both read: float32 arithmetic, written as the models are stored."""
    parameters = PEERS[method][0]
    experts = [
        {"model": str(folder), "parameters": {"weight": 1.0, **parameters}} for folder in experts_of(family)
    ]
    base = {} if method == "linear" else {"base_model": str(family / "base")}
    content = {"merge_method": method, **base, "models": experts, "dtype": "float32", "out_dtype": "bfloat16"}
    return yaml.safe_dump(content)


def experts_of(family: Path) -> list[Path]:
    return sorted(family.glob("expert-*"))


def copy(family: Path, out: Path) -> None:
    """Read every model in the family once and write one of them."""
    base, *experts = [Checkpoint.open(folder) for folder in sorted(family.iterdir())]
    layout = [TensorInfo(tensor.name, tensor.dtype, tensor.shape) for tensor in base.tensors.values()]
    with CheckpointWriter(out, layout) as writer:
        for name in base.tensors:
            for expert in experts:
                expert.read(name)
            writer.write(name, base.read(name))


def measure(name: str, family: Path, device: str, out: Path) -> None:
    """Run one measurement in this process, writing to `out`; prints seconds and peak bytes of memory as JSON."""
    if device != "cpu" and torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    tiny, _ = cached_family(**TINY)
    perform(
        name, tiny, device, out.with_name("tiny")
    )  # code is loaded, which is not timed: mergekit's is not either
    with PeakMemory() as peak:
        started = time.perf_counter()
        perform(name, family, device, out)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak.bytes}))


def perform(name: str, family: Path, device: str, out: Path) -> None:
    """Do once what is measured."""
    if name == "copy":
        copy(family, out)
    elif name == "check":
        merging.check(recipe_of(family, CASES["ties"]))
    elif name in (INSPECT, PREVIEW):
        look = inspect_plan if name == INSPECT else inspect_recipe
        for _ in look(merging.check(recipe_of(family, CASES[INSPECTED])), device=device):
            pass
    elif name.startswith(OURS):
        recipe = merging.Recipe.from_yaml(peer_recipe(family, name.removeprefix(OURS)))
        merging.merge(recipe, out, device=device)
    else:
        merging.merge(recipe_of(family, CASES[name]), out, device=device)


def noise_speed(repeat: int = 20) -> tuple[float, float]:
    """Nanoseconds a value of the random masks' numbers, and of adding two float32 numbers; best of many."""
    count = 1 << 20
    a, b = torch.rand(count), torch.rand(count)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times) / count * 1e9

    return best(lambda: noise.uniform(0, 0, "tensor", 0, count)), best(lambda: a + b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", help="write benchmarks/results/NAME.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--family", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer-only", action="store_true", help="only copying and what mergekit does, too")
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory(dir=options.family.parent) as folder:
            measure(options.measure, options.family, options.device, options.out or Path(folder) / "out")
        return
    shape = {"width": options.width, "blocks": options.blocks, "vocabulary": options.vocabulary}
    family, parameters = cached_family(**shape)
    measures = ["copy"] if options.peer_only else MEASURES
    results = run_all(family, options.repeat, options.device, measures)
    report(options, parameters, results)
    if not options.peer_only:
        print_ratios(results)
        previews(family, options.repeat)
        print_latency()
        measured_visits()


def report(options: argparse.Namespace, parameters: int, results: dict[str, dict[str, float]]) -> None:
    """Print what was measured, and keep it under a name if one is given."""
    machine = machine_name(options.device)
    print(
        f"\n{parameters / 1e6:.0f} M parameters, bfloat16, base + 3 experts; {machine}; median of {options.repeat}"
    )
    print(f"{'':26}{'seconds':>9}{'x copy':>8}{'% of copy':>11}{'GB/s':>7}{'peak MB':>9}")
    moved = 2 * parameters * 5  # bfloat16: base and three experts are read, one model is written
    for name, result in results.items():
        print(
            f"{name:26}{result['seconds']:9.2f}{result['ratio']:8.2f}{100 / result['ratio']:11.0f}"
            f"{moved / result['seconds'] / 1e9:7.2f}{result['peak'] / 1e6:9.0f}"
        )
    print_peer(results)
    numbers, addition = noise_speed()
    print(f"random numbers: {numbers:.2f} ns a value; one addition: {addition:.2f} ns")
    if options.save:
        target = Path(__file__).parent / "results" / f"{options.save}.json"
        content = {
            "machine": machine,
            "parameters": parameters,
            "repeat": options.repeat,
            "results": results,
            "noise_ns": numbers,
            "addition_ns": addition,
        }
        target.write_text(json.dumps(content, indent=2) + "\n")


def run_all(family: Path, repeat: int, device: str, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Medians of every measure, interleaved, so that noise of the machine meets all of them alike."""
    peers = [*PEERS] if PEER_PYTHON.exists() else []
    found: dict[str, list[dict[str, float]]] = {
        name: [] for name in (*measures, *(who + peer for peer in peers for who in (OURS, THEIRS)))
    }
    for _ in range(repeat):
        for name in measures:
            found[name].append(measured(name, family, device))
        for method in peers:
            ours, theirs = side_by_side(method, family, device)
            found[OURS + method].append(ours)
            found[THEIRS + method].append(theirs)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    return {
        name: {**run, "ratio": run["seconds"] / medians["copy"]["seconds"]} for name, run in medians.items()
    }


def measured(name: str, family: Path, device: str, out: Path | None = None) -> dict[str, float]:
    """One measurement in a process of its own."""
    arguments = ["--measure", name, "--family", str(family), "--device", device]
    arguments += ["--out", str(out)] if out else []
    return answer_of([sys.executable, "-m", "benchmarks.run", *arguments])


def side_by_side(method: str, family: Path, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Ours and mergekit's merge of the same recipe; where it is deterministic, with the share of weights that differ."""
    with tempfile.TemporaryDirectory(dir=family.parent) as folder:
        recipe, ours, theirs = (Path(folder) / name for name in ("recipe.yaml", "ours", "theirs"))
        recipe.write_text(peer_recipe(family, method))
        script = str(Path(__file__).with_name("peer.py"))
        found = (
            measured(OURS + method, family, device, ours),
            answer_of([str(PEER_PYTHON), script, str(recipe), str(theirs)]),
        )
        if method in DETERMINISTIC:
            found[0]["differ"] = differing(Checkpoint.open(ours), Checkpoint.open(theirs))
    return found


def differing(one: Checkpoint, other: Checkpoint) -> float:
    """The share of weights that differ."""
    apart = sum(int((one.read(name) != other.read(name)).sum()) for name in one.tensors)
    return apart / one.parameters


def answer_of(command: Sequence[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    print(".", end="", file=sys.stderr, flush=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def print_peer(results: dict[str, dict[str, float]]) -> None:
    """How many times as long as we mergekit takes for the same recipe, and with how much more memory."""
    for method, (_, least) in PEERS.items():
        if OURS + method not in results:
            print("mergekit is not installed beside us (make oracle), so there is no comparison with it")
            return
        ours, theirs = results[OURS + method], results[THEIRS + method]
        times = theirs["seconds"] / ours["seconds"]
        verdict = "reaches" if times >= least else "BELOW"
        differ = f"; {ours['differ']:.2e} of the weights differ" if "differ" in ours else ""
        print(
            f"mergekit / ours, {method}: {times:.1f} ({verdict} the target of {least:g}); memory "
            f"{theirs['peak'] / 1e6:.0f} MB against {ours['peak'] / 1e6:.0f} MB{differ}"
        )


def print_ratios(results: dict[str, dict[str, float]]) -> None:
    """One of our own measures beside another: time as a multiple, and peak memory."""
    for name, (other, most) in RATIOS.items():
        one, two = results[name], results[other]
        times = one["seconds"] / two["seconds"]
        verdict = "within" if times <= most else "ABOVE"
        print(
            f"{name} / {other}: {times:.2f} ({verdict} the target of {most:g}); peak "
            f"{one['peak'] / 1e6:.0f} MB against {two['peak'] / 1e6:.0f} MB"
        )


def machine_name(device: str) -> str:
    cpu = f"{torch.get_num_threads()} CPU threads, {platform.machine()}, torch {torch.__version__}"
    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cpu}"
    return cpu


if __name__ == "__main__":
    main()
