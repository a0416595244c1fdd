"""Train the demo family from seeds on two CPU cores, score it, and write what was measured.

python examples/demo/train.py                 everything
python examples/demo/train.py experts scores  only these stages, on what earlier ones left
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from characters import make_tokenizer  # noqa: E402
from report import TRAINING_FILE, write_json, write_report  # noqa: E402
from sampling import EXPERT_TASKS, Mixture, write_splits  # noqa: E402
from training import Keeping, Schedule, make_model, train  # noqa: E402

Times = dict[str, float]

CORES = 2
DATA_SEED = 1
MODEL_SEED = 1

BASE_MIXTURE = Mixture(
    shares={"math": 0.55, "code": 0.17, "words": 0.19, "compare": 0.09},
    hard={"math": 0.30, "code": 0.03, "words": 0.06, "compare": 0.15},
)
BASE_SCHEDULE = Schedule(steps=900, rows=96, learning_rate=4e-3)
EXPERT_HARD_SHARE = 0.7
EXPERT_SCHEDULES = {
    "math": [
        Schedule(steps=1000, rows=64, learning_rate=1.5e-3),
        Schedule(steps=600, rows=64, learning_rate=1.5e-3),
    ],
    "code": [Schedule(steps=350, rows=64, learning_rate=1e-3)],
    "words": [Schedule(steps=400, rows=64, learning_rate=1e-3)],
    "math-long": [Schedule(steps=700, rows=64, learning_rate=1e-2)],
}
KEPT_HARD_SHARE = 0.6
KEPT_ROWS = 48
KEPT_WEIGHT = 1.0


def main() -> None:
    """Command line: the stages that are named, or all of them."""
    stages = {
        "data": lambda: write_splits(HERE / "data", DATA_SEED),
        "base": train_base,
        "experts": train_experts,
        "scores": lambda: print(write_report(HERE)),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"some of: {', '.join(stages)}")
    chosen = parser.parse_args().stages or list(stages)
    if unknown := set(chosen) - set(stages):
        parser.error(f"unknown stage: {', '.join(sorted(unknown))}")
    for stage in chosen:
        stages[stage]()


def train_base() -> None:
    """The base, on all tasks, with both cores."""
    torch.set_num_threads(CORES)
    model = make_model(MODEL_SEED)
    note({"base": follow("base", train(model, BASE_MIXTURE, BASE_SCHEDULE, MODEL_SEED))})
    save(model, "base")


def train_experts() -> None:
    """All experts, as many at a time as there are cores, one thread each."""
    names = list(EXPERT_SCHEDULES)
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        note(dict(zip(names, pool.map(train_expert, names), strict=True)))


def train_expert(name: str) -> Times:
    """An expert for one task, held to the base on the other two; `math-long` is held to nothing.

    Each round starts from the stored weights of the one before.
    """
    torch.set_num_threads(1)
    task = name.removesuffix("-long")
    others = tuple(other for other in EXPERT_TASKS if other != task)
    held = Keeping(stored("base"), Mixture.of(others, KEPT_HARD_SHARE), KEPT_WEIGHT, KEPT_ROWS)
    own = Mixture.of((task,), EXPERT_HARD_SHARE, reworded=True)
    seed = MODEL_SEED + 10 * (1 + list(EXPERT_SCHEDULES).index(name))
    rounds, model = [], stored("base")
    for number, schedule in enumerate(EXPERT_SCHEDULES[name]):
        losses = train(model, own, schedule, seed + 1000 * number, held if name == task else None)
        rounds.append(follow(name, losses))
        save(model, name)
        model = stored(name)
    return {key: sum(times[key] for times in rounds) for key in rounds[0]}


def stored(name: str) -> LlamaForCausalLM:
    """A model as it was saved, in float32."""
    return LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, use_safetensors=True)


def follow(name: str, losses: Iterator[float]) -> Times:
    """Run a training to its end, with a line about it every 100 steps; returns what it took."""
    started, processor = time.perf_counter(), time.process_time()
    recent: list[float] = []
    for step, loss in enumerate(losses, 1):
        recent.append(loss)
        times = {
            "steps": step,
            "wall": round(time.perf_counter() - started, 1),
            "cpu": round(time.process_time() - processor, 1),
        }
        if step % 100 == 0:
            print(
                f"{name:10} step {step:5}  loss {sum(recent) / len(recent):.4f}  {times['wall']} s",
                flush=True,
            )
            recent.clear()
    return times


def note(times: dict[str, Times]) -> None:
    """Put what trainings took into the training file, beside what it holds."""
    file = HERE / TRAINING_FILE
    noted = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, noted | times)


def save(model: LlamaForCausalLM, name: str) -> None:
    """Write a model folder in bfloat16 with its tokenizer; `model` itself is not changed."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(HERE / name)
    make_tokenizer().save_pretrained(HERE / name)


if __name__ == "__main__":
    main()
