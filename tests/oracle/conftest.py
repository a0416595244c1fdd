"""Runs every recipe once in mergekit's environment, in one process, and ours where a test asks for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merging
from oracle.case import Case
from oracle.families import build_families
from oracle.recipes import ALL

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-mergekit"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
RUN_SECONDS = 280
FIRST_SEED = 1000
"""mergekit draws from torch's generator: a seed the families were made with would repeat their own numbers."""


@cache
def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, over its shards."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def ask_mergekit(jobs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What `run_mergekit.py` answers to the jobs, by name."""
    asked, answered = folder / "jobs.json", folder / "answers.json"
    asked.write_text(json.dumps(jobs))
    command = [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name("run_mergekit.py"))]
    done = subprocess.run(
        [*command, str(asked), str(answered)],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(answered.read_text())


@dataclass(frozen=True)
class Oracle:
    """The families, the recipes written for them, and mergekit's merges."""

    root: Path
    families: dict[str, dict[str, Path]]
    answers: dict[str, Any]

    def resolved(self, case: Case) -> dict[str, Any]:
        """Output tensor -> models, base, tensor names and parameters as mergekit resolved them."""
        answer = self.answers[f"{case.name}.0"]
        assert answer["error"] is None, f"mergekit refuses {case.name}: {answer['error']}"
        return answer["tensors"]

    def theirs(self, case: Case, seed: int = 0) -> Path:
        error = self.answers[f"{case.name}.{seed}"]["error"]
        assert error is None, f"mergekit fails at {case.name}, seed {seed}: {error}"
        return self.root / "theirs" / f"{case.name}.{seed}"

    def ours(self, case: Case, seed: int = 0, **keys: Any) -> Path:
        """Our merge of the recipe; `keys` replace keys of the recipe."""
        out = self.root / "ours" / "-".join([case.name, str(seed), *map(str, keys.values())])
        if not out.exists():
            recipe = merging.Recipe.load(self.root / "recipes" / f"{case.name}.yml")
            out.parent.mkdir(exist_ok=True)
            merging.merge(recipe.model_copy(update={"seed": seed, **keys}), out, device="cpu")
        return out

    def tensor(self, folder: str, name: str) -> torch.Tensor:
        return tensors_of(Path(folder))[name]


@pytest.fixture(scope="session", autouse=True)
def oracle(tmp_path_factory) -> Oracle:
    if not (ENVIRONMENT / ".ready").exists():
        pytest.skip("mergekit is not installed beside the app: `make oracle` does it")
    root = tmp_path_factory.mktemp("oracle")
    families = build_families(root)
    (root / "recipes").mkdir()
    jobs = []
    for case in ALL:
        file = case.write(root / "recipes", families[case.family])
        for seed in range(max(1, case.seeds)):
            name = f"{case.name}.{seed}"
            jobs.append(
                {
                    "name": name,
                    "recipe": str(file),
                    "out": str(root / "theirs" / name),
                    "seed": FIRST_SEED + seed,
                }
            )
    return Oracle(root, families, ask_mergekit(jobs, root))


@pytest.fixture
def in_mergekit(oracle, tmp_path) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Put further jobs to mergekit: its answers by name."""
    return lambda jobs: ask_mergekit(jobs, tmp_path)


@pytest.fixture(scope="session")
def in_mergekit_of(oracle) -> Callable[[list[dict[str, Any]], Path], dict[str, Any]]:
    """The same for the fixtures of a whole file: jobs, and a folder to write to."""
    return ask_mergekit
