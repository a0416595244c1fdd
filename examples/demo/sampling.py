"""Which problems are drawn, and which of them training never sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from problems import TASKS, Draw

EXPERT_TASKS = ("math", "code", "words")
HELD_OUT_TASK = "compare"
SPLITS = {"test": 300, "validation": 200, "calibration": 64}
TEST_HARD_SHARE = 0.75
INVENTED_SHARE = 0.5

Problem = tuple[str, str]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the quarter that is kept for the splits, decided by its SHA-1."""
    return hashlib.sha1(prompt.encode()).digest()[0] < 64


@dataclass(frozen=True)
class Mixture:
    """How often each task is drawn, the share of hard instances in each, and whether wordings vary."""

    shares: dict[str, float]
    hard: dict[str, float]
    reworded: bool = False

    @classmethod
    def of(cls, tasks: tuple[str, ...], hard: float, reworded: bool = False) -> Mixture:
        """The given tasks in equal shares, all with the same share of hard instances."""
        return cls(dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, hard), reworded)

    def stream(self, seed: int) -> Iterator[Problem]:
        """Training problems without end: never one that is held out."""
        rng = Random(seed)
        tasks, weights = list(self.shares), list(self.shares.values())
        while True:
            task = rng.choices(tasks, weights)[0]
            hard = rng.random() < self.hard[task]
            problem = rng.choice(TASKS[task])(Draw(rng, hard, INVENTED_SHARE, self.reworded))
            if not is_held_out(problem[0]):
                yield problem


def held_out_problems(task: str, count: int, seed: int) -> list[Problem]:
    """`count` different held-out problems of a task, in equal shares of its generators, real words only."""
    rng = Random(f"{seed} {task}")
    problems: dict[str, str] = {}
    while len(problems) < count:
        hard = rng.random() < TEST_HARD_SHARE
        generator = rng.choice(TASKS[task])
        for _ in range(100):
            prompt, answer = generator(Draw(rng, hard, reworded=True))
            if is_held_out(prompt) and prompt not in problems:
                problems[prompt] = answer
                break
    return list(problems.items())


def write_splits(folder: Path, seed: int) -> None:
    """Write `<task>/<split>.jsonl` for every task; no prompt is in two splits."""
    for task in TASKS:
        problems = held_out_problems(task, sum(SPLITS.values()), seed)
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, count in SPLITS.items():
            chosen, problems = problems[:count], problems[count:]
            lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in chosen]
            (folder / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
