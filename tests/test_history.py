"""The run history: what is put comes back, to its owner alone, whatever happens to the file."""

from __future__ import annotations

import math
import multiprocessing
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from merging.errors import MergingError
from merging.evaluation import ItemResult, Perplexity, SuiteResult
from merging.judging.history import Draft, History, ModelRef, text_fingerprint
from merging.judging.history_file import STEPS, HistoryFile
from merging.judging.intervals import Interval
from merging.judging.suites import Item, Suite

ADA, BOB = "a" * 32, "b" * 32
MODELS = (ModelRef("base", "/models/base", "00"), ModelRef("Übersetzer", "/models/de", "01"))
SUITE = Suite("sums/test", (Item("1 + 1", "2"), Item("2 + 2", "4"), Item("3 + 3", "6")))
RESULT = SuiteResult(
    "sums/test",
    (
        ItemResult("1 + 1", "2", "2", True),
        ItemResult("2 + 2", "4", "four\x00 \ud800", False, "no end"),
        ItemResult("3 + 3", "6", "", False, "too long"),
    ),
    plain=True,
)
HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("PRAGMA locking_mode = " + sys.argv[2])
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


def draft(title: str = "first", **facts) -> Draft:
    known = {"recipe": "merge_method: ties\nbase_model: /models/base\n", "models": MODELS, "subject": "5b"}
    return Draft(title=title, **{**known, **facts})


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "kept" / "history.sqlite"


@pytest.fixture
def history(file) -> History:
    return History(file)


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    try:
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            pytest.skip("no disk may be mounted here")
    except FileNotFoundError:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def held(file: Path, mode: str) -> subprocess.Popen:
    """Another process that has the file to itself until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def aside(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.name}.damaged-*"))


def test_a_run_survives_a_restart(file):
    kept = History(file).add(ADA, draft(seconds=1.5, note=" good ", job="7"))
    assert (kept.note, kept.seconds, kept.job, kept.models) == ("good", 1.5, "7", MODELS)
    assert len(kept.id) == 32
    assert History(file).get(ADA, kept.id) == kept
    assert History(file).list(ADA) == (kept,)
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_the_newest_run_is_first(history):
    runs = [history.add(ADA, draft(str(number))) for number in range(5)]
    assert [run.id for run in history.list(ADA)] == [run.id for run in reversed(runs)]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", "first second"),
        ("DARE_ties", "second"),
        ("übersetzer", "first second"),
        ("/models/de dare", "second"),
        ("100%", "second"),
        ("%", "second"),
        ("_%", ""),
        ("base_model", "first"),
        ("baseXmodel", ""),
        ("keep it", "first"),
        ("it' OR '1'='1", ""),
    ],
)
def test_search(history, search, found):
    history.add(ADA, draft("first", note="Keep   it"))
    history.add(ADA, draft("second", recipe="merge_method: dare_ties", note="100% of it lost"))
    assert sorted(run.title for run in history.list(ADA, search)) == found.split()


def test_what_is_another_owners_does_not_exist(history):
    run = history.add(ADA, draft())
    history.put_score(ADA, run.subject, RESULT, SUITE)
    assert history.list(BOB) == ()
    assert history.get(BOB, run.id) is None
    assert not history.note(BOB, run.id, "mine")
    assert not history.delete(BOB, run.id)
    assert history.scores(BOB, [run.subject]) == {}
    assert history.totals(BOB, [run.subject]) == {}
    assert history.get(ADA, run.id) == run
    assert len(history.scores(ADA, [run.subject])) == 1


def test_ids_and_owners_that_are_none(history):
    history.add(ADA, draft())
    for odd in ("", "../x", "\ud800", "' OR 1=1 --", "a" * 500, None, 7):
        assert history.get(ADA, odd) is None
        assert history.list(odd) == ()
        assert history.scores(odd, ["5b"]) == {}
        assert not history.delete(ADA, odd)
        assert not history.note(ADA, odd, "")
        with pytest.raises(MergingError, match="no identity"):
            history.add(odd, draft())
        with pytest.raises(MergingError, match="no identity"):
            history.put_score(odd, "5b", RESULT, SUITE)


def test_note_and_delete(history):
    run, other = history.add(ADA, draft()), history.add(ADA, draft("other"))
    history.put_score(ADA, run.subject, RESULT, SUITE)
    assert history.note(ADA, run.id, "the\nbest \ud800")
    assert history.get(ADA, run.id) == replace(run, note="the\nbest ?")
    with pytest.raises(MergingError, match=r"2,000 characters and this one has 2,001"):
        history.note(ADA, run.id, "x" * 2001)
    assert history.delete(ADA, run.id)
    assert not history.delete(ADA, run.id)
    assert history.list(ADA) == (other,)
    assert history.scores(ADA, [run.subject])  # the other run's too
    history.delete(ADA, other.id)
    assert history.scores(ADA, [run.subject]) == {}


def test_a_result_comes_back_as_it_was(history, file):
    history.put_score(ADA, "5b", RESULT, SUITE, 2.5)
    history.put_score(ADA, "5c", replace(RESULT, plain=False), SUITE)
    chosen = Suite("animals", (Item("a cat is", "small", ("small", "large")),), "choice")
    result = SuiteResult("animals", (ItemResult("a cat is", "small", "large", False),), "choice")
    history.put_score(ADA, "5b", result, chosen)
    assert History(file).scores(ADA, ["5b", "none"]) == {
        ("5b", SUITE.fingerprint): RESULT,
        ("5b", chosen.fingerprint): result,
    }
    total = History(file).totals(ADA, ["5b"])["5b", SUITE.fingerprint]
    assert (total.suite, total.scoring, total.n, total.correct, total.seconds) == (
        "sums/test",
        "exact",
        3,
        1,
        2.5,
    )
    assert (total.value, total.interval) == (RESULT.score, RESULT.interval)


def test_a_new_score_takes_the_place_of_the_old(history):
    better = replace(RESULT, items=tuple(replace(item, correct=True) for item in RESULT.items))
    history.put_score(ADA, "5b", RESULT, SUITE)
    history.put_score(ADA, "5b", better, SUITE)
    assert history.scores(ADA, ["5b"]) == {("5b", SUITE.fingerprint): better}


def test_perplexities(history):
    found = Perplexity("poem", 40, 1.2, math.exp(1.2), Interval(3.0, 3.6))
    endless = Perplexity("noise", 3, math.inf, math.inf, None)
    history.put_perplexity(ADA, "5b", found, "a poem")
    history.put_perplexity(ADA, "5b", endless, "noise")
    history.put_score(ADA, "5b", RESULT, SUITE)
    assert history.perplexities(ADA, ["5b"]) == {
        ("5b", text_fingerprint("a poem")): found,
        ("5b", text_fingerprint("noise")): endless,
    }
    assert len(history.scores(ADA, ["5b"])) == len(history.totals(ADA, ["5b"])) == 1


def test_the_oldest_runs_without_a_note_go_first(file):
    history = History(file, most_runs=3)
    for number in range(6):
        history.add(ADA, draft(str(number), note="" if number else "keep"))
    history.add(BOB, draft("his"))
    assert [run.title for run in history.list(ADA)] == ["5", "4", "0"]
    for number in range(4):
        history.add(ADA, draft(f"noted {number}", note="keep"))
    assert [run.title for run in history.list(ADA)] == ["noted 3", "noted 2", "noted 1"]
    assert len(history.list(BOB)) == 1


def test_the_oldest_scores_make_room(file):
    history = History(file, most_bytes=1500)
    for number in range(20):
        history.put_score(ADA, f"{number}", RESULT, SUITE)
    left = history.scores(ADA, map(str, range(20)))
    assert 2 < len(left) < 20
    assert list(left.values()) == [RESULT] * len(left)
    assert {subject for subject, _ in left} == {str(19 - number) for number in range(len(left))}
    history = History(file, most_bytes=1)
    history.put_score(ADA, "last", RESULT, SUITE)
    assert len(history.scores(ADA, ["last"])) == 1


def test_a_recipe_without_end(history):
    with pytest.raises(MergingError, match="200,000 characters"):
        history.add(ADA, draft(recipe="x" * 200_001))


def write(file: Path, owner: str) -> None:
    history = History(file)
    for number in range(20):
        history.add(owner, draft(str(number)))
        history.put_score(owner, str(number), RESULT, SUITE)


def test_threads_and_a_process_write_at_once(file):
    processes = multiprocessing.get_context("fork")
    writers = [processes.Process(target=write, args=(file, BOB))]
    writers += [threading.Thread(target=write, args=(file, ADA)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    history = History(file)
    assert len(history.list(ADA)) == 40
    assert len(history.list(BOB)) == 20
    assert len(history.scores(ADA, map(str, range(20)))) == 20


def test_one_file_is_begun_by_many_threads(file):
    histories = [History(file) for _ in range(8)]
    threads = [threading.Thread(target=history.add, args=(ADA, draft())) for history in histories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(History(file).list(ADA)) == 8


@pytest.mark.parametrize("made", ["missing", "zero bytes", "no tables"])
def test_from_version_0(file, history, made):
    file.parent.mkdir()
    if made == "zero bytes":
        file.touch()
    if made == "no tables":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("VACUUM")
        assert file.stat().st_size
    history.add(ADA, draft())
    assert len(History(file).list(ADA)) == 1
    assert (history.remark, aside(file)) == ("", [])


def test_an_older_version_keeps_what_it_holds(file, history):
    run = history.add(ADA, draft())
    later = HistoryFile(file, (*STEPS, ("ALTER TABLE runs ADD COLUMN colour TEXT DEFAULT 'red'",)))
    with later.use() as connection:
        assert connection.execute("SELECT id, colour FROM runs").fetchall() == [(run.id, "red")]
    with later.use() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_step_that_fails_changes_nothing(file, history):
    run = history.add(ADA, draft())
    broken = HistoryFile(file, (*STEPS, ("ALTER TABLE runs ADD COLUMN colour TEXT", "no SQL")))
    with pytest.raises(MergingError, match="cannot be used"), broken.use():
        pass
    assert History(file).list(ADA) == (run,)


def test_a_later_version_is_left_alone(file, history):
    history.add(ADA, draft())
    with HistoryFile(file, (*STEPS, ("CREATE TABLE more (x)",))).use():
        pass
    before = file.read_bytes()
    for use in (history.list, lambda owner: history.add(owner, draft())):
        with pytest.raises(MergingError, match=r"later Mergescope \(version 2 of the file, 1 is"):
            use(ADA)
    assert file.read_bytes() == before
    assert aside(file) == []


def test_another_programs_database_is_left_alone(file, history):
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (mine)")
        connection.commit()
    before = file.read_bytes()
    with pytest.raises(MergingError, match="another program"):
        history.add(ADA, draft())
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "text", "garbage inside", "cut header"])
def test_a_damaged_file_is_kept_aside(file, damage):
    earlier = History(file)
    for number in range(50):
        earlier.put_score(ADA, str(number), RESULT, SUITE)
    whole = file.read_bytes()
    broken = {
        "truncated": whole[: len(whole) // 2],
        "text": b"a history\n" * 20,
        "garbage inside": whole[:4096] + b"\xff" * (len(whole) - 4096),
        "cut header": whole[:50],
    }[damage]
    file.write_bytes(broken)
    history = History(file)
    run = history.add(ADA, draft())
    (kept,) = aside(file)
    assert kept.read_bytes() == broken
    assert history.remark == f"The run history was damaged. It is kept as {kept.name}; a new one was begun."
    assert History(file).list(ADA) == (run,)
    assert History(file).remark == ""


def test_many_find_the_damage_at_once(file):
    file.parent.mkdir()
    file.write_bytes(b"no database\n" * 1000)
    threads = [threading.Thread(target=write, args=(file, ADA)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(aside(file)) == 1
    assert len(History(file).list(ADA)) == 80


def test_damage_under_a_running_program(file, history):
    history.add(ADA, draft())
    for times in (1, 2):
        file.write_bytes(b"something else, and no database at all\n" * 100)
        with pytest.raises(MergingError, match=r"is kept as history\.sqlite\.damaged-.*Try again\."):
            history.list(ADA)
        assert history.list(ADA) == ()
        assert history.add(ADA, draft()) in history.list(ADA)
        assert len(aside(file)) == times


def test_any_flipped_bits_end_in_a_sentence_at_most(file, tmp_path):
    history = History(file)
    for number in range(3):
        run = history.add(ADA, draft(str(number)))
        history.put_score(ADA, "5b", RESULT, SUITE)
    uses = (
        lambda history: history.list(ADA, "ties"),
        lambda history: history.scores(ADA, ["5b"]),
        lambda history: history.totals(ADA, ["5b"]),
        lambda history: history.note(ADA, run.id, "x"),
        lambda history: history.add(ADA, draft()),
    )
    whole, chance = file.read_bytes(), random.Random(0)
    for number in range(25):
        broken = bytearray(whole)
        for _ in range(8):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        copy = tmp_path / f"{number}.sqlite"
        copy.write_bytes(broken)
        for use in uses:
            with suppress(MergingError):
                use(History(copy))


def test_a_folder_in_its_place(file, history):
    file.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(MergingError, match="is a folder"):
            history.list(ADA)
    file.rmdir()
    assert history.list(ADA) == ()


def test_a_file_where_its_folder_should_be(file, history):
    file.parent.write_text("in the way")
    with pytest.raises(MergingError, match="cannot be kept there"):
        history.add(ADA, draft())


@pytest.mark.parametrize("mode", ["NORMAL", "EXCLUSIVE"])
def test_a_file_that_another_process_holds(file, mode):
    first = History(file).add(ADA, draft())
    history = History(file, patience=0.1)
    with held(file, mode) as other:
        with pytest.raises(MergingError, match=r"held by another program; nothing was lost\. Try again"):
            history.add(ADA, draft("second"))
        other.communicate("")
    assert history.list(ADA) == (first,)
    assert history.add(ADA, draft("second")) in history.list(ADA)
    assert (history.remark, aside(file)) == ("", [])


def test_a_file_that_another_process_holds_for_a_moment(file, history):
    history.add(ADA, draft())
    with held(file, "EXCLUSIVE") as other:
        threading.Timer(0.2, lambda: other.communicate("")).start()
        history.add(ADA, draft("second"))
    assert len(history.list(ADA)) == 2


def test_a_full_disk(disk):
    history = History(disk / "history.sqlite")
    (disk / "filler").write_bytes(bytes(500_000))
    kept = []
    with pytest.raises(MergingError, match="the disk is full"):
        for _ in range(100):
            kept.append(history.add(ADA, draft(recipe="x" * 50_000)))
    assert kept
    assert history.list(ADA) == tuple(reversed(kept))
    (disk / "filler").unlink()
    assert history.add(ADA, draft()) in history.list(ADA)


def test_a_disk_that_may_not_be_written(disk):
    history = History(disk / "history.sqlite")
    history.add(ADA, draft())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(MergingError, match="check the rights"):
        history.add(ADA, draft())
    with pytest.raises(MergingError, match="cannot be kept there"):
        History(disk / "deeper" / "history.sqlite").list(ADA)
