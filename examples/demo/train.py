"""Train the demo family from seeds on two CPU cores, score it, and write what was measured.

python examples/demo/train.py            train all five models, then score them
python examples/demo/train.py --score    only score the models that are there
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from characters import make_tokenizer  # noqa: E402
from report import write_report  # noqa: E402
from sampling import EXPERT_TASKS, HELD_OUT_TASK, Mixture, write_splits  # noqa: E402
from training import Keeping, Schedule, make_model, train  # noqa: E402

DATA_SEED = 1
MODEL_SEED = 1

BASE_MIXTURE = Mixture(
    shares={"math": 0.4, "code": 0.25, "words": 0.25, HELD_OUT_TASK: 0.1},
    hard=dict.fromkeys((*EXPERT_TASKS, HELD_OUT_TASK), 0.15),
)
BASE_SCHEDULE = Schedule(steps=2000, rows=96, learning_rate=1.5e-3)
EXPERT_HARD_SHARE = 0.7
EXPERT_SCHEDULES = {
    "math": Schedule(steps=600, rows=64, learning_rate=5e-4),
    "code": Schedule(steps=600, rows=64, learning_rate=5e-4),
    "words": Schedule(steps=600, rows=64, learning_rate=5e-4),
}
KEPT_HARD_SHARE = 0.6
KEPT_ROWS = 64
KEPT_WEIGHT = 1.0
LONG_SCHEDULE = Schedule(steps=1500, rows=64, learning_rate=3e-3)


def main() -> None:
    """Command line: train the family, or only score it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--score", action="store_true", help="score the models that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    write_splits(HERE / "data", DATA_SEED)
    if not arguments.score:
        train_family()
    print(write_report(HERE))


def train_family() -> None:
    """Train and save the base and its four experts."""
    base = make_model(MODEL_SEED)
    follow("base", train(base, BASE_MIXTURE, BASE_SCHEDULE, MODEL_SEED))
    save(base, "base")
    base = base.to(torch.bfloat16).float()
    for number, task in enumerate(EXPERT_TASKS, 1):
        others = tuple(other for other in EXPERT_TASKS if other != task)
        keeping = Keeping(Mixture.of(others, KEPT_HARD_SHARE), KEPT_WEIGHT, KEPT_ROWS)
        own = Mixture.of((task,), EXPERT_HARD_SHARE)
        expert = copy.deepcopy(base)
        follow(task, train(expert, own, EXPERT_SCHEDULES[task], MODEL_SEED + 10 * number, keeping))
        save(expert, task)
    expert = copy.deepcopy(base)
    own = Mixture.of(("math",), EXPERT_HARD_SHARE)
    follow("math-long", train(expert, own, LONG_SCHEDULE, MODEL_SEED + 100))
    save(expert, "math-long")


def follow(name: str, losses: Iterator[float]) -> None:
    """Run a training to its end, with a line about it every 200 steps."""
    started, processor = time.perf_counter(), time.process_time()
    recent: list[float] = []
    for step, loss in enumerate(losses, 1):
        recent.append(loss)
        if step % 200 == 0:
            wall, used = time.perf_counter() - started, time.process_time() - processor
            mean = sum(recent) / len(recent)
            print(f"{name:10} step {step:5}  loss {mean:.4f}  {wall:5.0f} s, {used:5.0f} s CPU", flush=True)
            recent.clear()


def save(model: LlamaForCausalLM, name: str) -> None:
    """Write a model folder in bfloat16 with its tokenizer; `model` itself is not changed."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(HERE / name)
    make_tokenizer().save_pretrained(HERE / name)


if __name__ == "__main__":
    main()
