"""Every kind of long work, once, with what came of it; started as a program it is what a ZeroGPU Space would run."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from components.server import zero_gpu  # before all that may touch CUDA, as app.py does

# isort: split
import torch
from gradio.context import LocalContext

from components.chat.lent import answer, size_of
from components.chat.loading import asked_models, take_turns
from components.chat.models import Visit, choices
from components.chat.recipe import RECIPE
from components.chat.replies import Reply
from components.compare import grid_job, job, methods_job, tune_job
from components.compare.suites import Ruler, Text
from components.compare.who import parents, wanted
from components.family import Family
from components.importance.job import Request as ImportanceRequest
from components.importance.job import work as measure
from components.merge.events import start as start_merge
from components.merge.recipe import at_root, default_recipe
from components.server.backend import job_store, run_history
from components.server.settings import Settings
from merging import METHODS, inference, lending
from merging.answering.drawing import Sampling
from merging.importances.measuring import Measurement
from merging.judging.grid import Axis
from merging.judging.suites import Item, Suite

OWNER = "a" * 32
VISITOR = "who visits"
SUITE = Suite("letters", tuple(Item(prompt, answer) for prompt, answer in ("ab", "cd", "ef")))
TEXT = Text("text", "abcdefgh " * 12)


SOME_METHODS = {"task_arithmetic", "ties", "apl", "slerp"}


def settings_of(family: Path, runs: Path, device: str = "auto") -> Settings:
    return Settings(demo=family, runs=runs, device=device, single_owner=False, local_folders=True)


def everything(settings: Settings) -> dict[str, object]:
    """What came of every kind of job and of a question, without the seconds it took."""
    family = Family.demo(settings.demo, ("one", "two", "three"))
    recipe = default_recipe(family, "task_arithmetic")
    start_merge(settings, default_recipe(family, "ties"), family, OWNER)
    merge = job_store(settings).list(OWNER)[0].id
    found = {"merge": [*_ended(settings, merge), _files(job_store(settings).model(OWNER, merge))]}
    works = {
        "importance": measure(
            settings,
            ImportanceRequest(family, dict.fromkeys(family.experts, SUITE), Measurement(samples=2), False),
        ),
        "scores": _scores(settings, family, recipe),
        "grid": grid_job.work(settings, _grid(recipe)),
        "methods": methods_job.work(settings, methods_job.Request(OWNER, family, recipe, (SUITE,))),
        "tune": tune_job.work(settings, tune_job.Request(OWNER, recipe, (SUITE,), "tpe", 2, None)),
        "final": tune_job.final_work(
            settings, OWNER, {"job": "0", "before": recipe.to_yaml(), "after": recipe.to_yaml()}, (SUITE,)
        ),
    }
    for kind, work in works.items():
        found[kind] = _ended(settings, job_store(settings).start(OWNER, kind, work))
    found["importance files"] = _files(settings.runs / ".importance")
    found["runs"] = sorted(run.subject for run in run_history(settings).list(OWNER))
    found["chat"] = said(settings, family)
    return found


def _scores(settings, family, recipe):
    ruler = Ruler((SUITE,), (TEXT,))
    done = job_store(settings).list(OWNER)[0].id
    subjects = [*parents(settings, family), *wanted(settings, OWNER, family, recipe, [RECIPE, f"job:{done}"])]
    return job.work(settings, job.Request(OWNER, tuple(subjects), ruler))


def _grid(recipe):
    return grid_job.Request(
        recipe, Axis("lambda", 0.5, 1.0, 2), Axis("weight", 0.5, 1.0, 2, recipe.models[0].model), (SUITE,)
    )


def said(settings: Settings, family: Family) -> list[object]:
    """What a saved merge, the recipe, an expert and a model that is gone say to one question."""
    recipe = at_root(default_recipe(family, "ties"))
    visit = Visit(settings, "page", family, recipe, OWNER)
    keys = [key for _, key in choices(job_store(settings), OWNER, family, recipe=True)][:3]
    models = asked_models(visit, [*keys, "job:gone"])
    sampling = Sampling(max_new_tokens=8, temperature=0.7, seed=3)
    messages = [{"role": "user", "content": "abc"}]
    replies = {column: Reply(model.load, messages) for column, model in models.items()}
    rounds = [[replies[column] for column in columns] for columns in take_turns(visit, models).rounds]
    for _ in answer(rounds, sampling, threading.Event(), size_of(models, sampling)):
        pass
    return [[r.text, r.tokens, r.ids.reply, r.notes, r.error, r.ended] for r in replies.values()]


def _ended(settings: Settings, id: str) -> list[object]:
    job = job_store(settings).wait(OWNER, id, 200)
    return [job.state, job.error, _timeless(job.result)]


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key != "seconds"}
    return [_timeless(one) for one in value] if isinstance(value, list | tuple) else value


def _files(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*.safetensors"))
    }


def main(family: Path, runs: Path) -> None:
    import spaces

    torch.mm(
        torch.ones(999, 999), torch.ones(999, 999)
    )  # torch's own threads are there before the first fork
    LocalContext.request.set(SimpleNamespace(headers={"x-ip-token": VISITOR}))
    for name in METHODS.keys() - SOME_METHODS:
        del METHODS[name]
    settings = settings_of(family, runs)
    found, lent = everything(settings), [*spaces.lent]
    told = {
        "found": found,
        "lent": lent,
        "said while a model was loaded": _said_in_a_fork_of_one_that_loads(settings),
        "touched": torch.cuda.is_initialized(),
        "forbidden": _touch(),
    }
    print(json.dumps(told))


def _said_in_a_fork_of_one_that_loads(settings: Settings) -> object:
    """What a new worker says that was forked while a thread of this process loads a model for longer than a fork waits."""
    import spaces

    spaces.workers.pop().process.kill()
    lending.LONGEST_WAIT = 0.1
    with inference.LOADING:
        return said(settings, Family.demo(settings.demo, ("one", "two", "three")))


def _touch() -> str:
    try:
        return str(torch.zeros(1, device="cuda"))
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    zero_gpu.WORTH_LENDING = 0
    main(Path(sys.argv[1]), Path(sys.argv[2]))
