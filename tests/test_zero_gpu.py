"""A GPU that is lent: work in a forked worker has the bits of work done here, and comes back, or fails, as it does here."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import gradio as gr
import pytest
import torch

import merging
from components.chat.lent import answer
from components.chat.replies import Reply
from components.server import zero_gpu
from components.server.backend import model_cache
from components.server.zero_gpu import MOST_SECONDS, TAKEN_BACK, TO_START, Size, on_gpu
from merging import METHODS, MergingError, inference, lending
from merging.answering.drawing import Sampling
from merging.errors import CheckpointError, PlanError
from merging.events import Finished, Progress
from merging.executors import Inline, Threads
from merging.inference import LoadedModel
from merging.jobs import NO_MEMORY, UNEXPECTED, JobStore
from tests.zero_gpu.kinds import SOME_METHODS, VISITOR, everything, settings_of

HERE = Path(__file__).parent
ADA = "a" * 32
LARGE = Size(zero_gpu.WORTH_LENDING)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*")
visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


@pytest.fixture(scope="module")
def on_a_space(family, tmp_path_factory):
    """What a process that starts as on a ZeroGPU Space came to, in all kinds of work."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        "PYTHONPATH": os.pathsep.join((str(HERE / "zero_gpu"), str(HERE.parent))),
        "SPACES_ZERO_GPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    program = [
        sys.executable,
        str(HERE / "zero_gpu" / "kinds.py"),
        str(family),
        str(tmp_path_factory.mktemp("lent")),
    ]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def here(family, tmp_path_factory):
    """The same, done in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS.keys() - SOME_METHODS:
            patch.delitem(METHODS, name)
        settings = settings_of(family, tmp_path_factory.mktemp("here"), device="cpu")
        return json.loads(json.dumps(everything(settings)))


@pytest.mark.parametrize(
    "kind", ["merge", "importance", "importance files", "scores", "grid", "methods", "tune", "final", "runs"]
)
def test_a_job_in_a_worker_comes_to_the_same_bits(on_a_space, here, kind):
    if kind not in ("importance files", "runs"):
        assert here[kind][:2] == ["done", None]
    assert on_a_space["found"][kind] == here[kind]


def test_a_chat_in_a_worker_says_the_same(on_a_space, here):
    assert on_a_space["found"]["chat"] == here["chat"]
    said, gone = here["chat"][0], here["chat"][-1]
    assert said[1] == 8
    assert "no longer there" in gone[4]
    again = on_a_space["said while a model was loaded"]
    assert [one[4] for one in again] == [one[4] for one in here["chat"]], (
        "it waits for no thread that it does not have"
    )
    assert again[-2] == here["chat"][-2]


def test_every_job_and_question_is_one_call_for_its_visitor(on_a_space):
    assert len(on_a_space["lent"]) == 8
    assert {call["visitor"] for call in on_a_space["lent"]} == {VISITOR}
    assert {call["process"] for call in on_a_space["lent"]} != {os.getpid()}
    assert all(TO_START <= call["seconds"] <= MOST_SECONDS for call in on_a_space["lent"])
    assert not on_a_space["touched"]
    assert on_a_space["forbidden"].startswith("CUDA was touched")


@pytest.fixture
def lender(monkeypatch):
    """The emulation in this process, and what is lent there."""
    monkeypatch.syspath_prepend(str(HERE / "zero_gpu"))
    import spaces

    monkeypatch.setattr(zero_gpu, "LENT", True)
    monkeypatch.setattr(zero_gpu, "_with_gpu", spaces.GPU(duration=zero_gpu._asked_for)(zero_gpu._with_gpu))
    yield spaces
    while spaces.workers:
        spaces.workers.pop().process.kill()
    spaces.lent.clear()


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "runs")
    yield store
    store.close()


def ended(store, size, work, *values):
    id = store.start(ADA, "work", on_gpu(size, work, *values))
    job = store.wait(ADA, id, 60)
    assert not job.active
    return job


def where(*_):
    yield {"process": os.getpid(), "parent": os.getppid()}


def test_small_work_stays_here_and_gradients_never_do(lender, store):
    assert ended(store, Size(1000), where).result["process"] == os.getpid()
    assert not lender.lent
    assert ended(store, LARGE, where).result["parent"] == os.getpid()
    assert ended(store, Size(1000, gradients=True), where).result["parent"] == os.getpid()
    assert Size(10**12, 50, 10**6).seconds == MOST_SECONDS


def test_without_a_lent_gpu_nothing_is_between():
    work = on_gpu(Size(10**12), where, 1, 2)
    assert (work.func, work.args) == (where, (1, 2))


def fail(kind, out):
    yield Progress("going on", 1, 2, 0, 0.5, 0.1)
    raise {
        "sentence": CheckpointError("the file is damaged"),
        "problems": PlanError(["one", "two"]),
        "memory": torch.OutOfMemoryError("no room"),
        "bug": KeyError("what nobody thought of"),
        "quota": gr.Error(
            "You have exceeded your quota (60s requested vs. 3s left).", title="ZeroGPU quota exceeded"
        ),
    }[kind]


def test_errors_come_back_as_themselves(lender, store, capfd):
    assert ended(store, LARGE, fail, "sentence").error == "the file is damaged"
    assert "1. one\n  2. two" in ended(store, LARGE, fail, "problems").error
    assert ended(store, LARGE, fail, "memory").error == NO_MEMORY
    assert ended(store, LARGE, fail, "bug").error == UNEXPECTED
    with pytest.raises(PlanError) as raised:
        list(on_gpu(LARGE, fail, "problems")(Path("out")))
    assert raised.value.problems == ["one", "two"]
    assert len({call["process"] for call in lender.lent}) == 1


def refuse(*_):
    raise gr.Error(
        "You have exceeded your quota (60s requested vs. 3s left).", title="ZeroGPU quota exceeded"
    )
    yield


def test_a_gpu_that_is_not_lent_is_one_sentence(lender, store, monkeypatch):
    monkeypatch.setattr(zero_gpu, "_with_gpu", refuse)
    job = ended(store, LARGE, where)
    assert job.error.startswith(
        "No GPU could be had: You have exceeded your quota (60s requested vs. 3s left). "
    )


@pytest.mark.parametrize(
    ("title", "message", "said"),
    [
        (
            "ZeroGPU queue timeout",
            "No GPU was available after 60s [Create a free account](https://huggingface.co/join) to get a higher priority in "
            "ZeroGPU queues.",
            "No GPU could be had: No GPU was available after 60s. Try again later. Who",
        ),
        (
            "ZeroGPU quota exceeded",
            "Space app has reached its GPU limit. Try re-running outside of examples if it happened after clicking one",
            "No GPU could be had: Space app has reached its GPU limit. Try again later. Who",
        ),
        ("ZeroGPU client error", "Expired ZeroGPU proxy token", zero_gpu.WAITED_TOO_LONG),
    ],
)
def test_what_is_said_of_no_gpu_is_for_visitors_of_this_page(title, message, said):
    assert zero_gpu._sentence(gr.Error(message, title=title)).startswith(said)


def does_not_answer(*_):
    raise ConnectionError("refused")
    yield


def test_a_service_that_does_not_answer_is_one_sentence(lender, store, monkeypatch):
    monkeypatch.setattr(zero_gpu, "_with_gpu", does_not_answer)
    assert ended(store, LARGE, where).error == zero_gpu.NO_ANSWER


def wait_for_a_gpu(*_):
    waiting.set()
    go_on.wait(60)
    yield visitor.get()
    begun.append("work")
    yield {}


waiting, go_on = threading.Event(), threading.Event()
begun: list[str] = []


def test_who_waits_for_a_gpu_may_stop_and_gets_none(lender, store, monkeypatch):
    monkeypatch.setattr(zero_gpu, "_with_gpu", wait_for_a_gpu)
    id = store.start(ADA, "work", on_gpu(LARGE, where))
    assert waiting.wait(10)
    store.cancel(ADA, id)
    assert store.wait(ADA, id, 10).state == "cancelled"
    assert ended(store, Size(1000), where).state == "done", "others do not wait for it"
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    reply = Reply(load_slowly, [{"role": "user", "content": "ab"}])
    list(answer([[reply]], Sampling(), stop, LARGE))
    assert (reply.stopped, reply.ended, reply.error) == (True, True, "")
    go_on.set()
    while any(thread.name == "measuring" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not begun, "a GPU that comes then is given back unused"


def test_a_worker_that_hangs_is_waited_for_as_long_as_it_has_its_gpu(lender, monkeypatch):
    monkeypatch.setattr(zero_gpu, "LONGEST_QUEUE", 0.5)
    with pytest.raises(MergingError, match="taken back"):
        list(zero_gpu._borrow(0, hang))


def hang():
    time.sleep(60)
    yield


def test_a_lock_that_is_held_for_long_neither_stops_forks_nor_is_lost(monkeypatch):
    """Two threads that fork at once, while a third loads a model."""
    monkeypatch.setattr(lending, "LONGEST_WAIT", 0.05)
    turn = lending._Turn(threading.Lock())
    turn.take()
    in_another_thread(lambda: (turn.take(), turn.give()))
    turn.give()
    assert not turn._lock.locked()


def test_no_gpu_is_asked_for_while_a_fork_would_wait(lender, store, monkeypatch):
    loading = threading.Lock()
    monkeypatch.setattr(lending, "_turns", [lending._Turn(loading)])
    with loading:
        id = store.start(ADA, "work", on_gpu(LARGE, where))
        store.wait(ADA, id, 0.5)
        assert not lender.lent
    assert store.wait(ADA, id, 30).state == "done"


def in_another_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)


def test_numba_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba.core.compiler_lock", None)
    assert list(lending._of_unfinished_work()) == [inference.LOADING]


def die(out):
    out.with_name(".model.partial").mkdir()
    yield Progress("going on", 1, 2, 0, 0.5, 0.1)
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def test_a_lost_worker_is_one_sentence_and_the_next_work_has_another(lender, store):
    lost = ended(store, LARGE, die)
    assert lost.error == TAKEN_BACK
    assert [file.name for file in (store.folder / ADA / lost.id).iterdir()] == ["job.json"]
    assert ended(store, LARGE, where).state == "done"
    reply = Reply(die_loading, [{"role": "user", "content": "ab"}])
    list(answer([[reply]], Sampling(), threading.Event(), LARGE))
    assert reply.error == TAKEN_BACK
    assert reply.ended


def die_loading():
    os.kill(os.getpid(), signal.SIGKILL)


def write_slowly(out):
    """Writes as a merge does, and comes to no yield."""
    draft = out.with_name(".model.partial")
    draft.mkdir(parents=True)
    try:
        yield Progress("going on", 0, 2, 0, 0.1, 0.1)
        for _ in Inline().map(time.sleep, [0.02] * 5000):
            pass
        yield {}
    finally:
        draft.rmdir()


def test_a_cancelled_job_stops_in_its_worker_within_a_second(lender, store):
    id = store.start(ADA, "work", on_gpu(LARGE, write_slowly))
    folder = store.folder / ADA / id
    deadline = time.monotonic() + 20
    while not (folder / ".model.partial").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    begun = time.monotonic()
    store.cancel(ADA, id)
    assert store.wait(ADA, id, 10).state == "cancelled"
    assert time.monotonic() - begun < 2  # a second, on a machine that does nothing else
    assert [file.name for file in folder.iterdir()] == ["job.json"]
    assert ended(store, LARGE, where).result["process"] == lender.lent[0]["process"]


def test_a_stopped_chat_stops_in_its_worker(lender, family):
    reply = Reply(load_slowly, [{"role": "user", "content": "ab"}])
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    begun = time.monotonic()
    list(answer([[reply]], Sampling(), stop, LARGE))
    assert time.monotonic() - begun < 10
    assert (reply.stopped, reply.ended, reply.error) == (True, True, "")


def load_slowly():
    time.sleep(60)


def all_threads(recipe, out):
    for event in merging.run(merging.Recipe.from_yaml(recipe), out, device="cpu"):
        yield event if not isinstance(event, Finished) else {}


def test_a_fork_does_not_wait_for_threads_it_does_not_have(lender, store, family, monkeypatch):
    """Pools that this process used have no threads in its forks, and a loading that was under way never ends there."""
    monkeypatch.setattr("merging.executors.WORTH_WAKING", 1)
    recipe = merging.Recipe.from_yaml(
        f"merge_method: ties\nbase_model: {family}/base\nmodels: [{{model: {family}/one}}, {{model: {family}/two}}]"
    )
    here = merging.merge(recipe, store.folder / "here", device="cpu")
    assert list(Threads(2).map(abs, [-1, -2])) == [1, 2]
    job = ended(store, LARGE, all_threads, recipe.to_yaml())
    assert job.state == "done", job.error
    there = store.model(ADA, job.id) / "model.safetensors"
    assert there.read_bytes() == (here / "model.safetensors").read_bytes()


def test_a_worker_keeps_nothing_of_its_parent_or_of_the_call_before(lender, store, family):
    settings = settings_of(family, store.folder.parent / "other", device="cpu")
    model_cache(settings).get(family / "base")
    assert ended(store, LARGE, keep, settings).result == {"before": 0, "after": 1}
    assert ended(store, LARGE, keep, settings).result == {"before": 0, "after": 1}
    assert len(model_cache(settings)) == 1


def keep(settings, out):
    before = len(model_cache(settings))
    model_cache(settings).get(settings.demo / "one")
    yield {"before": before, "after": len(model_cache(settings))}


def test_a_job_and_a_reply_know_who_visits(store, family):
    seen = []

    def work(out):
        seen.append(visitor.get())
        yield {}

    def load():
        seen.append(visitor.get())
        return LoadedModel.load(family / "one")

    visitor.set("somebody")
    id = store.start(ADA, "work", work)
    visitor.set("somebody else")
    store.wait(ADA, id, 10)
    list(
        answer(
            [[Reply(load, [{"role": "user", "content": "ab"}])]],
            Sampling(max_new_tokens=1),
            threading.Event(),
            Size(0),
        )
    )
    assert seen == ["somebody", "somebody else"]


def test_every_error_of_ours_can_be_sent():
    def kinds(kind):
        return {kind}.union(*map(kinds, kind.__subclasses__()))

    for kind in kinds(MergingError):
        error = PlanError(["this"]) if kind is PlanError else kind("this")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))
