"""How the cost of a merge grows: with parameters, with experts, and with the vocabulary.

    python -m benchmarks.growth [--sizes 110 350 1000] [--repeat 3] [--device auto] [--save NAME]

Nanoseconds a parameter should stay as they are, and so should the peak of memory. Every measurement runs in a process of its
own with the recipes that mergekit reads, too (see `benchmarks.run`), with the page cache warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.family import cached_family
from benchmarks.run import OURS, machine_name, measured

SHAPES: dict[int, dict[str, int]] = {
    110: {"width": 768, "blocks": 12, "vocabulary": 16_000},
    350: {"width": 1024, "blocks": 24, "vocabulary": 32_000},
    1000: {"width": 2048, "blocks": 17, "vocabulary": 32_000},
}
"""Million parameters, about -> a Llama's shape."""
METHODS = ("task_arithmetic", "ties")
SMALL: dict[str, int] = {"width": 512, "blocks": 8, "vocabulary": 16_000}
EXPERTS = (2, 4, 8)
VOCABULARY = {"width": 256, "blocks": 2, "vocabulary": 256_000}
MANY = {"width": 64, "blocks": 80, "vocabulary": 1000}
"""Of how many tensors a check reads the headers."""
MOST_PEAK = 1.5e9
MOST_CHECK = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    rows = []
    print(f"{'':34}{'M':>7}{'seconds':>9}{'ns/param':>10}{'ns/param/expert':>17}{'peak MB':>9}")
    for row in growth(options.sizes, options.repeat, options.device):
        rows.append(row)
        each = row["seconds"] / row["parameters"] * 1e9
        print(
            f"{row['what']:34}{row['parameters'] / 1e6:7.0f}{row['seconds']:9.2f}{each:10.1f}"
            f"{each / row['experts']:17.1f}{row['peak'] / 1e6:9.0f}",
            flush=True,
        )
    peak = max(row["peak"] for row in rows)
    print(f"highest peak: {peak / 1e6:.0f} MB ({'within' if peak <= MOST_PEAK else 'ABOVE'} 1500)")
    checks = [row["seconds"] for row in rows if row["what"].startswith("check")]
    print(f"check: {max(checks):.2f} s ({'within' if max(checks) <= MOST_CHECK else 'ABOVE'} {MOST_CHECK:g})")
    if options.save:
        target = Path(__file__).parent / "results" / f"{options.save}.json"
        content = {"machine": machine_name(options.device), "repeat": options.repeat, "rows": rows}
        target.write_text(json.dumps(content, indent=2) + "\n")


def growth(sizes: list[int], repeat: int, device: str) -> Iterator[dict[str, Any]]:
    """One row for everything that is measured: medians."""
    for size in sizes:
        yield from _rows(f"{size} M", SHAPES[size], 3, repeat, device, METHODS)
    for experts in EXPERTS:
        yield from _rows(f"{experts} experts", SMALL, experts, repeat, device, (*METHODS, "della"))
    yield from _rows("vocabulary of 256k", VOCABULARY, 3, repeat, device, (*METHODS, "della"))
    yield from _rows("80 blocks", MANY, 3, repeat, device, ())


def _rows(
    what: str, shape: dict[str, int], experts: int, repeat: int, device: str, methods: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    family, parameters = cached_family(**shape, experts=experts)
    cases = {f"{method}, {what}": OURS + method for method in methods} or {f"check, {what}": "check"}
    for name, case in cases.items():
        runs = [measured(case, family, device) for _ in range(repeat + 1)][1:]  # the first warms the cache
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        yield {"what": name, "parameters": parameters, "experts": experts, **medians}


if __name__ == "__main__":
    main()
