"""Pieces on several threads: in order, nothing left over after an error or an early end, and the same bits."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch
from references.family import number_of_experts, small_family
from references.importance import made_up_importance

import merging
from merging import METHODS, MergingError, merge_state_dicts
from merging.engine import run_plan
from merging.executors import AHEAD, Executor, Inline, Threads, wanted_until
from merging.heartbeats import Stopped
from merging.reading import Pieces
from tests.conftest import threads_of_another

WORKERS = 5
OPTIONS = {"density": 0.4, "t": 0.3}


class Work:
    """Waits a little, the longer the smaller the number, and counts what begins and what is under way."""

    def __init__(self, broken: frozenset[int] = frozenset()):
        self.broken = broken
        self.begun: list[int] = []
        self.busy = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> int:
        with self._lock:
            self.begun.append(number)
            self.busy += 1
        time.sleep(0.02 / (1 + number % WORKERS))
        with self._lock:
            self.busy -= 1
        if number in self.broken:
            raise ValueError(number)
        return -number


def at_rest(work: Work) -> bool:
    """Nothing is under way, and nothing more begins."""
    begun = len(work.begun)
    if work.busy:
        return False
    time.sleep(0.1)
    return len(work.begun) == begun


@pytest.mark.parametrize("executor", [Inline(), Threads(1), Threads(2), Threads(WORKERS)])
def test_results_come_in_the_order_of_the_things(executor):
    assert list(executor.map(Work(), range(40))) == [-number for number in range(40)]
    assert list(executor.map(Work(), [])) == []


def test_only_so_many_are_under_way():
    taken = []

    def things():
        for number in range(100):
            taken.append(number)
            yield number

    results = Threads(2).map(Work(), things())
    next(results)
    assert len(taken) == AHEAD * 2
    results.close()
    assert len(taken) == AHEAD * 2


def test_the_first_error_in_order_ends_all():
    work = Work(frozenset({3, 4, 5}))
    with pytest.raises(ValueError, match=r"^3$"):
        list(Threads(WORKERS).map(work, range(100)))
    assert at_rest(work)
    assert len(work.begun) <= 4 + AHEAD * WORKERS


def test_closing_early_waits_for_what_is_under_way():
    work = Work()
    results = Threads(WORKERS).map(work, range(100))
    assert [next(results), next(results)] == [0, -1]
    results.close()
    assert at_rest(work)
    assert len(work.begun) <= 2 + AHEAD * WORKERS


def test_an_interrupted_wait_waits_for_what_is_under_way():
    work = Work()
    slow = threading.Event()

    def interrupt(*_: object) -> None:
        threading.Timer(0.05, slow.set).start()
        raise KeyboardInterrupt

    def hold(number: int) -> int:
        work.busy += 1
        slow.wait(10)
        work.busy -= 1
        return number

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(Threads(1).map(hold, [1]))
        assert work.busy == 0
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("how", ["closed", "unwanted"])
def test_an_early_end_does_not_wait_for_ever(how):
    """As for a loop that is being compiled: what is under way goes on alone, and nothing more begins."""
    begun, under_way, release, stop = [], threading.Event(), threading.Event(), threading.Event()

    def hold(number: int) -> int:
        begun.append(number)
        if number == 1:
            under_way.set()
            release.wait(60)
        return number

    with wanted_until(stop.is_set):
        results = Threads(1).map(hold, range(9))
        assert next(results) == 0
        under_way.wait(10)
        if how == "closed":
            results.close()
        else:
            stop.set()
            with pytest.raises(Stopped):
                next(results)
    assert not release.is_set()
    release.set()
    assert list(Threads(1).map(str, [7])) == ["7"]
    assert begun == [0, 1]


@pytest.mark.parametrize("executor", [Inline(), Threads(2)])
@pytest.mark.parametrize(
    ("method", "options"),
    [("task_arithmetic", {}), ("ties", {"scope": "model"}), ("pcb", {})],
)
def test_after_a_stop_only_what_is_under_way_is_worked_on(
    monkeypatch, family, write_recipe, executor, method, options
):
    """At any point: in every scan and in the merge, of one group of tensors and of many side by side."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    use(monkeypatch, executor)
    plan = merging.check(write_recipe(family, method, profile="paper", **options))
    loaded: list[int] = []

    def load(self, spot, original=Pieces.load):
        loaded.append(spot.start)
        return original(self, spot)

    monkeypatch.setattr(Pieces, "load", load)
    list(run_plan(plan, Sink(pause=0), device="cpu"))
    whole, points = len(loaded), 9
    for point in range(points):
        loaded.clear()
        stop_at = 1 + point * (whole - 20) // points
        with wanted_until(lambda at=stop_at: len(loaded) >= at), pytest.raises(Stopped):
            list(run_plan(plan, Sink(pause=0), device="cpu"))
        assert stop_at <= len(loaded) <= stop_at + executor.workers


def test_threads_leave_torch_s_number_of_threads_to_others():
    before = torch.get_num_threads()
    for workers in range(8, 24):  # pools of their own: it is the threads that start together that may meet
        inside = list(Threads(workers).map(lambda _: torch.get_num_threads(), range(2 * workers)))
        assert set(inside) == {1}
    assert torch.get_num_threads() == before
    assert threads_of_another() == before


def use(monkeypatch, executor: Executor) -> None:
    monkeypatch.setattr("merging.engine.executor_for", lambda device, elements: executor)


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_the_workers(monkeypatch, method):
    """With pieces that are kept between scans and with pieces that are read anew."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 800)
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    base, models = small_family(number_of_experts(method), shape=(24, 6))
    known = METHODS[method].parameters()
    options = {name: value for name, value in OPTIONS.items() if name in known}
    if METHODS[method].needs_importance:
        options |= {"importance": made_up_importance(base, models, "row"), "drop": "magnitude"}
    for scope in ("tensor", "layer", "model") if "scope" in known else (None,):
        options |= {"scope": scope} if scope else {}
        found = []
        for executor in (Inline(), Threads(2), Threads(WORKERS)):
            for kept in (1 << 28, 0):
                monkeypatch.setattr("merging.reading.KEEP_BYTES", kept)
                use(monkeypatch, executor)
                found.append(merge_state_dicts(base, models, method, **options))
        for other in found[1:]:
            for name, values in found[0].items():
                assert torch.equal(values.view(torch.uint8), other[name].view(torch.uint8)), (name, scope)


def test_merges_at_the_same_time_do_not_meet(monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 800)
    use(monkeypatch, Threads(2))
    base, models = small_family(shape=(48, 6))
    methods = ["ties", "dare_ties", "della", "pcb"]
    alone = {method: merge_state_dicts(base, models, method) for method in methods}
    together: dict[int, dict[str, torch.Tensor]] = {}

    def merge(number: int) -> None:
        together[number] = merge_state_dicts(base, models, methods[number % len(methods)])

    threads = [threading.Thread(target=merge, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 8
    for number, merged in together.items():
        expected = alone[methods[number % len(methods)]]
        assert all(torch.equal(values, expected[name]) for name, values in merged.items())


class Sink:
    """Counts writes; the one of this number fails, as on a full disk."""

    def __init__(self, fails: int = -1, pause: float = 0.01):
        self.fails, self.writes, self.pause = fails, 0, pause
        self.closed = False
        self._lock = threading.Lock()

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        assert not self.closed, "a piece is written after the run has ended"
        with self._lock:
            self.writes += 1
            number = self.writes
        time.sleep(self.pause)
        if number == self.fails:
            raise OSError("full")


def test_a_full_disk_and_an_early_end_leave_no_thread_writing(monkeypatch, family, write_recipe):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    use(monkeypatch, Threads(2))
    plan = merging.check(write_recipe(family, "task_arithmetic", parameters={"weight": 0.5}))
    whole, full, ended = Sink(), Sink(fails=4), Sink()
    list(run_plan(plan, whole, device="cpu"))
    with pytest.raises(OSError, match="full"):
        list(run_plan(plan, full, device="cpu"))
    events = run_plan(plan, ended, device="cpu")
    next(events)
    events.close()
    for sink in (full, ended):
        sink.closed = True
        written = sink.writes
        assert 0 < written < whole.writes
        time.sleep(0.1)
        assert sink.writes == written


def test_an_expert_that_is_not_finite_is_named_and_nothing_is_left(
    monkeypatch, tmp_path, family, write_recipe
):
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    use(monkeypatch, Threads(WORKERS))
    damaged = tmp_path / "family"
    damaged.mkdir()
    (damaged / "base").symlink_to(family / "base")
    (damaged / "one").symlink_to(family / "one")
    (damaged / "two").mkdir()
    tensors = load_file(family / "two" / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        tensors[name][-1, 0] = torch.nan
    save_file(tensors, damaged / "two" / "model.safetensors")
    recipe = write_recipe(damaged, "ties", profile="paper")
    out = tmp_path / "results" / "out"
    for _ in range(3):  # whichever thread is first, the message is that of the first piece
        with pytest.raises(
            MergingError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight': .*two holds 1 NaN"
        ):
            merging.merge(recipe, out)
    assert list(out.parent.iterdir()) == []
