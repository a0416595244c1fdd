"""Every method at its paper's defaults on the demo family: exact match per task, parents included.

    python -m benchmarks.methods [--only NAME ...] [--split test]

Random methods are merged with three seeds. A method made for one or two experts gets the first of math, code and words.
Results go to benchmarks/results/methods-demo.json; `make format` writes README's table from them.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import merging
from merging import METHODS, MergingError, Method, Recipe
from merging.evaluation import evaluate
from merging.importances.artefact import Importance
from merging.inference import LoadedModel
from merging.judging.suites import Suite

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
RESULT = Path(__file__).resolve().parent / "results" / "methods-demo.json"
TASKS = ("math", "code", "words")
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="names of methods")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    arguments = parser.parse_args()
    suites = {task: Suite.load(DEMO / "data" / task / f"{arguments.split}.jsonl") for task in TASKS}
    loaded = LoadedModel.load(DEMO / "base")
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = known.get("rows", {}) if known.get("split") == arguments.split else {}
    for name in ("base", *TASKS):
        if name not in rows:
            rows[name] = [_scores(loaded, _weights(LoadedModel.load(DEMO / name)), suites)]
    for name in arguments.only:
        try:
            rows[name] = [_scores(loaded, weights, suites) for weights in _merges(METHODS[name])]
        except MergingError as error:
            print(f"{name}: {error}")
            continue
        print(name, rows[name], flush=True)
        _save(rows, arguments.split)
    _save(rows, arguments.split)


def _merges(method: type[Method]) -> Iterator[dict[str, torch.Tensor]]:
    """The merged weights, once for every seed."""
    experts = list(TASKS)[: method.experts_wanted]
    base = DEMO / "base" if method.needs_base else None
    keys: dict[str, object] = {"base_model": str(base)} if base else {}
    with tempfile.TemporaryDirectory() as folder:
        if method.needs_importance:
            keys["importance"] = str(_importance(Path(folder), experts))
        for seed in SEEDS if "seed" in method.parameters() else SEEDS[:1]:
            recipe = Recipe(
                merge_method=method.name,
                models=tuple({"model": str(DEMO / name)} for name in experts),  # type: ignore[misc]
                profile="paper",
                seed=seed,
                **keys,  # type: ignore[arg-type]
            )
            out = merging.merge(recipe, Path(folder) / f"out-{seed}", device="cpu")
            yield _weights(LoadedModel.load(out))


def _importance(folder: Path, experts: list[str]) -> Path:
    recipe = Recipe(
        merge_method="apl",
        base_model=str(DEMO / "base"),
        models=tuple({"model": str(DEMO / name)} for name in experts),  # type: ignore[misc]
    )
    calibration = {str(DEMO / name): DEMO / "data" / name / "calibration.jsonl" for name in experts}
    measured: Importance = merging.importance(recipe, calibration, device="cpu")
    measured.save(folder / "importance.safetensors")
    return folder / "importance.safetensors"


def _weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.model.named_parameters()}


def _scores(
    like: LoadedModel, weights: dict[str, torch.Tensor], suites: dict[str, Suite]
) -> dict[str, float]:
    model = copy.deepcopy(like.model)
    model.load_state_dict(weights, strict=False)
    ready = LoadedModel(model, like.tokenizer, like.path, like.device)
    return {task: evaluate(ready, suite).score for task, suite in suites.items()}


def _save(rows: dict[str, list[dict[str, float]]], split: str) -> None:
    order = ["base", *TASKS, *METHODS]
    content = {
        "split": split,
        "machine": f"{platform.machine()}, torch {torch.__version__}, CPU",
        "seeds": len(SEEDS),
        "rows": {name: rows[name] for name in order if name in rows},
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
