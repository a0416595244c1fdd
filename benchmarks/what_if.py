"""How long a preview takes: of the demo from disk and from memory, and of a large family from a sample, with its error.

python -m benchmarks.what_if [--repeat 7] [--width 768 --blocks 12 --vocabulary 16000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import merging
from benchmarks.family import make_family
from merging import Plan
from merging.inspecting.sampling import samplable
from merging.inspecting.sums import total
from merging.inspection import preview_plan
from merging.memory import whatif
from merging.reports.report import Preview

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
METHODS = ("task_arithmetic", "ties", "magnitude", "dare_linear", "dare_ties", "della", "pcb", "dppa")
SAMPLED = ("ties", "dare_ties", "della", "pcb")


def planned(method: str, base: Path, experts: Sequence[Path]) -> Plan:
    models = tuple({"model": str(folder)} for folder in experts)
    recipe = merging.Recipe(merge_method=method, base_model=str(base), models=models, profile="paper")  # type: ignore[arg-type]
    return merging.check(recipe)


def from_disk(plan: Plan) -> Preview:
    *_, found = preview_plan(plan, device="cpu")
    assert isinstance(found, Preview)
    return found


def milliseconds(work: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def demo(repeat: int) -> None:
    """Median milliseconds by method, the first preview of a family apart."""
    print(f"\ndemo, base + 3 experts, ms{'from disk':>14}{'from memory':>14}{'the first':>12}")
    for method in METHODS:
        plan = planned(method, DEMO / "base", [DEMO / name for name in ("math", "code", "words")])
        residents = whatif.Residents()
        first = milliseconds(lambda p=plan, r=residents: whatif.preview(p, r), 1)  # type: ignore[misc]
        memory = milliseconds(lambda p=plan, r=residents: whatif.preview(p, r), repeat)  # type: ignore[misc]
        disk = milliseconds(lambda p=plan: from_disk(p), repeat)  # type: ignore[misc]
        print(f"{method:26}{disk:14.0f}{memory:14.0f}{first:12.0f}")


def sampled(family: Path, repeat: int) -> None:
    """Milliseconds of an estimate and of the exact preview, and how far the estimate is off."""
    experts = sorted(family.glob("expert-*"))
    print(f"\n{'large family, ms':20}{'exact':>9}{'first':>9}{'moved':>9}{'share':>8}{'error':>9}{'told':>9}")
    for method in SAMPLED:
        plan = planned(method, family / "base", experts)
        if not samplable(plan):
            print(f"{method:20} too small to sample")
            continue
        residents = whatif.Residents()
        first = milliseconds(lambda p=plan, r=residents: whatif.estimate(p, r), 1)  # type: ignore[misc]
        moved = milliseconds(lambda p=plan, r=residents: whatif.estimate(p, r), repeat)  # type: ignore[misc]
        started = time.perf_counter()
        exact = from_disk(plan)
        seconds = time.perf_counter() - started
        guess = whatif.estimate(plan, residents)
        assert guess.sample is not None
        off, told = errors(exact, guess)
        print(
            f"{method:20}{seconds * 1e3:9.0f}{first:9.0f}{moved:9.0f}{guess.sample.share:8.1%}{off:9.2%}{told:9.2%}"
        )


def errors(exact: Preview, guess: Preview) -> tuple[float, float]:
    """The mean distance of every tensor's kept share from the exact one, and the mean standard error told."""
    assert guess.sample is not None
    off, told = [], []
    for name, fate in exact.tensors.items():
        true, found = fate.share(0, "kept"), guess.tensors[name].share(0, "kept")
        error = guess.sample.error(lambda one: one.share(0, "kept"), [name])
        if error and true is not None and found is not None:
            off.append(abs(found - true))
            told.append(error)
    assert total(exact.tensors.values()).elements == total(guess.tensors.values()).elements
    return statistics.mean(off), statistics.mean(told)


def previews(family: Path, repeat: int) -> None:
    """Previews of the demo, and of a large family."""
    demo(repeat)
    sampled(family, min(3, repeat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=16000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        family = Path(folder) / "family"
        make_family(family, width=options.width, blocks=options.blocks, vocabulary=options.vocabulary)
        previews(family, options.repeat)


if __name__ == "__main__":
    main()
