"""The Compare tab: what is measured, the job, the board, two rows on the same items, and the history of runs."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from dataclasses import replace
from urllib.parse import unquote

import gradio as gr
import pytest

from components.chat.recipe import RECIPE
from components.compare import events, runs, suites
from components.compare import shown as board_part
from components.compare.board import Board, Column, Row, TextScore, board_table, score_models
from components.compare.page import Asked
from components.compare.rows import make_board
from components.compare.suites import Ruler
from components.compare.views import NOTHING_YET, board_html, comparison_html
from components.compare.who import JOB, STANDING, candidates, parents, wanted
from components.family import Family
from components.figures.scores import TaskScore
from components.merge import events as merge_events
from components.merge.form import build_merge_form
from components.merge.picker import build_picker
from components.merge.recipe import at_root, default_recipe, to_form
from components.server.backend import job_store, run_history
from components.server.settings import Settings
from merging import Checkpoint, MergingError
from merging.evaluation import ItemResult, SuiteResult
from merging.inference import LoadedModel
from merging.judging.history import subject_of_model
from merging.judging.intervals import compare
from merging.judging.suites import Suite

ADA, BOB = "a" * 32, "b" * 32
EXPERTS = ("one", "two")
LINES = [{"prompt": letter, "answer": letter * 2} for letter in "abcdefgh"]
SMALL = "\n".join(map(json.dumps, LINES))


@pytest.fixture(scope="module")
def models(family) -> Family:
    return Family(str(family / "base"), tuple(str(family / name) for name in EXPERTS))


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", demo=tmp_path / "demo", device="cpu", single_owner=False)
    yield made
    job_store(made).close()


def small(name="small", lines=LINES) -> Suite:
    return Suite.parse("\n".join(map(json.dumps, lines)), name)


def asked(settings, models, *given: Suite, recipe=None, owner=ADA) -> Asked:
    """A page on which some suites of the visitor's own are chosen."""
    keys = [suite.fingerprint for suite in given]
    return Asked(settings, models, recipe or default_recipe(models), owner, Ruler(given), keys, "test")


def measured(page: Asked, who=(RECIPE,)):
    """The job after a click on Measure."""
    id = events.start(page, list(who))[0]
    return job_store(page.settings).wait(page.owner, id, 120)


def merged(settings, models, owner=ADA, **keys) -> str:
    """The id of a finished merge."""
    recipe = default_recipe(models).model_copy(update=keys)
    id = merge_events.start(settings, at_root(recipe), models, owner)[0]
    assert job_store(settings).wait(owner, id, 60).state == "done"
    return id


# what is measured


def test_the_demo_brings_its_tasks_and_other_families_none(settings, models):
    demo = Settings()
    tasks = suites.demo_tasks(demo, Family.demo(demo.demo))
    assert tasks == ["math", "code", "words", "compare"]
    assert suites.demo_tasks(settings, models) == []
    chosen = suites.chosen(
        demo, Family.demo(demo.demo), Ruler(), ["demo:code", "demo:nonsense", 7], "validation"
    )
    assert [(suite.name, len(suite)) for suite in chosen.suites] == [("code/validation", 200)]
    assert len(suites.chosen(settings, models, Ruler(), ["demo:code"], "test")) == 0


def test_an_uploaded_suite_is_added_and_chosen(settings, models, tmp_path):
    file = tmp_path / "my quiz.jsonl"
    file.write_text(SMALL, encoding="utf-8")
    own, choice, words = events.take_suite(asked(settings, models), str(file))
    assert choice["choices"] == [("my quiz (8)", own.suites[0].fingerprint)]
    assert choice["value"] == [own.suites[0].fingerprint]
    assert "Added my quiz: 8 items" in words
    again, *_ = events.take_suite(Asked(settings, models, None, ADA, own, [], "test"), str(file))
    assert len(again) == 1, "the same file twice is one suite"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no items"),
        (b'{"prompt": "a"}\nnonsense\n', "2 of 2 lines are no items"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b'{"prompt": "<script>", "answer": " "}', "its answer is empty"),
        (b"x" * 5_000_001, "too large"),
    ],
)
def test_what_is_no_suite_is_one_sentence(settings, models, tmp_path, content, words):
    file = tmp_path / "quiz.jsonl"
    file.write_bytes(content)
    own, choice, problem = events.take_suite(asked(settings, models), str(file))
    assert own == choice == gr.skip()
    assert words in problem
    assert str(tmp_path) not in problem
    assert problem.count("</p>") == 1


def test_a_page_keeps_only_so_much_of_ones_own(settings, models):
    page = asked(
        settings,
        models,
        *(small(lines=LINES[: n + 1]) for n in range(8)),
        *(small(lines=LINES[n:]) for n in range(1, 5)),
    )
    assert "at most" in events.take_text(page, "word " * 20)[2]
    assert "says too little" in events.take_text(asked(settings, models), "short")[2]
    assert "at most" in events.take_text(asked(settings, models), "long " * 50_000)[2]


# who is measured


def test_parents_are_always_measured_and_merges_as_chosen(settings, models):
    merge = merged(settings, models)
    page = asked(settings, models, small())
    people = candidates(settings, ADA, models, page.recipe)
    assert [key for _, key in people] == [RECIPE, JOB + merge]
    assert people[0][0] == STANDING
    assert [subject.name for subject in parents(settings, models)] == ["base", "one", "two"]
    both = wanted(settings, ADA, models, page.recipe, [RECIPE, JOB + merge])
    assert len(both) == 1, "the saved merge is the recipe's own: one measurement tells of both"
    assert candidates(settings, BOB, models, page.recipe) == [(STANDING, RECIPE)]
    assert wanted(settings, BOB, models, page.recipe, [JOB + merge, "job:../..", None, 3]) == []


def test_a_merge_without_a_run_becomes_one_when_it_is_measured(settings, models):
    merge = merged(settings, models)
    history = run_history(settings)
    history.delete(ADA, history.list(ADA)[0].id)
    page = asked(settings, models, small())
    assert measured(page, [JOB + merge]).state == "done"
    (run,) = history.list(ADA)
    folder = job_store(settings).model(ADA, merge)
    assert (run.job, run.subject) == (merge, subject_of_model(Checkpoint.open(folder)))
    assert len(make_board(settings, ADA, models, page.ruler).runs) == 1


def test_an_offer_leaves_alone_what_is_chosen_and_takes_a_new_merge_once(settings, models):
    merge = merged(settings, models)
    page = asked(settings, models, small())
    what, _, who, _, fresh = events.offer(page, [RECIPE], merge, "")
    assert "value" not in what
    assert who["value"] == [RECIPE, JOB + merge]
    _, _, who, _, _ = events.offer(page, [RECIPE], merge, fresh)
    assert "value" not in who
    gone = Asked(settings, models, page.recipe, ADA, Ruler(), ["demo:math"], "test")
    assert events.offer(gone, [RECIPE, "job:gone"])[0]["value"] == []
    assert events.offer(gone, [RECIPE, "job:gone"])[2]["value"] == [RECIPE]
    forged = replace(gone, what=[{}, ["x"]])
    assert "value" not in events.offer(forged, [RECIPE, [RECIPE]])[2]


# the job


def test_measuring_fills_the_board_and_asks_nothing_twice(settings, models, monkeypatch):
    page = asked(settings, models, small())
    assert "4 models × 1 task = 4 scores, none known yet" in events.estimate(page, [RECIPE])
    job = measured(page)
    assert (job.state, job.result["measured"]) == ("done", 4), job.error
    board = make_board(settings, ADA, models, page.ruler)
    assert [(row.name, row.kind) for row in board.rows] == [
        ("base", "base"),
        ("one", "expert"),
        ("two", "expert"),
        ("TIES · density 0.5", "run"),
    ]
    assert all(board.rows[n].score(board.columns[0]) is not None for n in range(4))
    assert "all known already" in events.estimate(page, [RECIPE])
    monkeypatch.setattr(LoadedModel, "load", lambda *_: pytest.fail("a model was loaded"))
    assert measured(page).result["measured"] == 0
    renamed = asked(settings, models, small(name="another name"))
    assert measured(renamed).result["measured"] == 0, "what counts is what is asked, not what it is called"


def test_a_measurement_is_cancelled_within_a_second_and_keeps_what_it_has(settings, models):
    long = small(lines=[{"prompt": f"{n:06}", "answer": "abcdefghij" * 4} for n in range(4000)])
    page = asked(settings, models, small(), long)
    id, timer, *_, cancel, _ = events.start(page, [RECIPE])
    assert timer.active
    assert cancel["visible"]
    store = job_store(settings)
    deadline = time.monotonic() + 60
    while (
        "2/2 tasks" not in (getattr(store.get(ADA, id).progress, "stage", "")) and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert "1/4 models · 2/2 tasks" in events.tick(page, id, 0, *[None] * 5)[2]
    started = time.perf_counter()
    events.cancel(settings, id, ADA)
    job = store.wait(ADA, id, 10)
    assert time.perf_counter() - started < 1.5
    assert job.state == "cancelled"
    assert "is kept" in events.attach(page)[-1]
    assert len(run_history(settings).totals(ADA, [subject_of_model(Checkpoint.open(models.base))])) == 1


def test_perplexity_of_a_text_stands_beside_the_scores(settings, models):
    own, choice, words = events.take_text(asked(settings, models), "abc def " * 60)
    assert "letters" in words
    assert choice["choices"][0][0] == "perplexity of “abc def abc…”"
    page = Asked(settings, models, default_recipe(models), ADA, own, choice["value"], "test")
    assert measured(page).result["measured"] == 4
    assert measured(page).result["measured"] == 0
    shown = board_part.refresh(page, *[None] * 5)
    assert "lower is better" in shown[0]
    assert "478 tokens" in shown[0], "the first is only given"
    assert "Mean" not in shown[0]
    assert shown[4]["choices"] == [], "a perplexity is no task"
    later = Asked(settings, models, page.recipe, ADA, Ruler(), [], "test")
    assert make_board(settings, ADA, models, later.ruler).columns[0].is_text, (
        "it is still shown after a reload"
    )


def test_a_model_that_does_not_load_does_not_spoil_the_others(settings, models, family, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "config.json"):
        (broken / name).write_bytes((family / "one" / name).read_bytes())
    page = asked(settings, Family(models.base, (str(broken), models.experts[1])), small())
    job = measured(page, [])
    assert (job.state, job.result["measured"]) == ("done", 2)
    assert "broken" in events.attach(page)[-1]
    assert "no tokenizer" in events.attach(page)[-1]


def test_two_pages_that_judge_at_once_both_end_right(settings, models):
    first, second = asked(settings, models, small()), asked(settings, models, small("more", LINES[:3]))
    ids = [events.start(page, [RECIPE])[0] for page in (first, second)]
    ended = [job_store(settings).wait(ADA, id, 120) for id in ids]
    assert [(job.state, job.result["measured"]) for job in ended] == [("done", 4), ("done", 4)]
    board = make_board(settings, ADA, models, second.ruler)
    assert [len(column.name) for column in board.columns] == [4, 5], "the other page's suite is shown too"
    assert all(len(row.results) == 2 for row in board.rows)
    assert [column.name for column in board.counted] == ["more"], "means are over what everybody can be asked"


def test_a_page_finds_the_job_again(settings, models):
    page = asked(settings, models, small())
    id = events.start(page, [RECIPE])[0]
    reloaded = Asked(settings, models, page.recipe, ADA, Ruler(), [], "test")
    watched = events.attach(reloaded)[0]
    assert watched in (id, "")
    job_store(settings).wait(ADA, id, 120)
    assert events.attach(reloaded)[0] == ""
    assert "small" in board_part.refresh(reloaded, *[None] * 5)[0], "what was uploaded before is still shown"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (lambda s, m: asked(s, m), "Choose at least one task"),
        (lambda s, m: asked(s, Family("", ()), small()), "no expert yet"),
        (lambda s, m: asked(s, m, small(), owner="nobody"), "no identity yet"),
        (
            lambda s, m: asked(
                s,
                m,
                small(),
                recipe=at_root(default_recipe(m).model_copy(update={"seed": 1, "base_model": "/gone"})),
            ),
            "cannot run",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(settings, models, page, words):
    with pytest.raises(gr.Error, match=words):
        events.start(page(settings, models), [RECIPE])
    assert job_store(settings).list(ADA) == []


# the board


def scored(value, n=10):
    return TaskScore(value, value / 2, (1 + value) / 2, n)


@pytest.fixture
def board() -> Board:
    columns = (
        Column("m", "math/test", "exact", 10),
        Column("q", "quiz", "choice", 4),
        Column("t", "“A text”"),
    )
    return Board(
        (
            Row("b", "base", "base", {"m": scored(0.4), "q": scored(0.75)}),
            Row("e", "math", "expert", {"m": scored(0.8), "q": scored(0.25)}),
            Row(
                "f",
                "words",
                "expert",
                {"m": scored(0.9), "q": scored(0.5), "t": TextScore(12.5, None, None, 40)},
            ),
            Row("r", "=TIES · <b>", "run", {"m": scored(0.6), "q": scored(0.25)}, "noted"),
            Row("s", "DARE", "run", {"m": scored(0.2)}),
        ),
        columns,
    )


def test_retention_is_over_the_own_expert_else_the_best_one(board):
    math, quiz, text = board.columns
    assert (board.own(math).name, board.is_named(math)) == ("math", True), "though words scores better"
    assert (board.own(quiz).name, board.is_named(quiz)) == ("words", False)
    ties, dare = board.runs
    assert board.retention(ties, math) == pytest.approx(0.75)
    assert board.retention(ties, quiz) == pytest.approx(0.5)
    assert board.retention(board.rows[1], math) is None, "parents keep nothing, they are the measure"
    assert board.mean(ties) == pytest.approx(0.425)
    assert board.mean_retention(ties) == pytest.approx(0.625)
    assert board.mean(dare) is None, "a mean over fewer tasks would compare what cannot be compared"
    assert board.tasks == (math, quiz)
    assert text.is_text


def test_the_table_says_it_all_and_runs_nothing(board):
    shown = board_html(board)
    assert "&lt;b&gt;" in shown
    assert "<b>&" not in shown
    assert "75 % kept" in shown
    assert "own expert: math" in shown
    assert "best expert: words" in shown
    assert 'data-sort="0.600000"' in shown
    assert shown.index("own expert</span>") > 0
    link = shown.split('href="data:text/csv;charset=utf-8,')[1].split('"')[0]
    rows = list(csv.reader(io.StringIO(unquote(link))))
    assert rows[4][0] == "'=TIES · <b>", "a spreadsheet must not take a name for a formula"
    assert rows[0][3:8] == [
        "math/test score",
        "math/test low",
        "math/test high",
        "math/test n",
        "math/test retention",
    ]
    assert [float(cell) for cell in rows[4][3:8]] == pytest.approx([0.6, 0.3, 0.8, 10, 0.75])
    assert rows[3][-6:-2] == ["12.5", "", "", "40"]
    assert len(board_table(board).rows) == 5


def test_the_figures_get_only_what_was_measured(board):
    found, names = score_models(board)
    assert names == ["math", "quiz"]
    assert [model.parent for model in found] == [True, True, True, False, False]
    assert found[4].scores[1] is None


def test_without_anything_measured_the_page_says_what_to_do(settings, models):
    assert board_part.refresh(asked(settings, models, small()), *[None] * 5)[0] == NOTHING_YET
    assert "Models tab" in board_part.refresh(asked(settings, Family("", ()), small()), *[None] * 5)[0]
    assert "Models tab" in events.estimate(asked(settings, Family("", ()), small()), [])


def test_choices_from_the_browser_are_checked(settings, models):
    page = asked(settings, models, small())
    measured(page, [])
    shown = board_part.refresh(page, {"a": 1}, [], "nobody", None, 7)
    assert shown[7]["value"] in [row.key for row in make_board(settings, ADA, models, page.ruler).rows]
    assert board_part.show_comparison(page, ["x"], {}, "y") == board_part.PICK_TWO
    assert board_part.show_pareto(page, {}, None) == {"empty": board_part.FEWER}


# two rows on the same items


def result(*pairs) -> SuiteResult:
    """Replies to the same questions; a pair is (reply, correct)."""
    return SuiteResult("quiz", tuple(ItemResult(f"<i>{n}", "&", *pair) for n, pair in enumerate(pairs)))


def test_gained_and_lost_items_are_listed_with_both_replies():
    before = result(("no", False), ("yes", True), ("<b>old", True), ("", False))
    after = result(("ok", True), ("yes", True), ("new", False), ("", False))
    shown = comparison_html(("A<", "B"), before, after, compare(before, after))
    assert "Gained: 1 item<" in shown
    assert "Lost: 1 item<" in shown
    assert "&lt;b&gt;old" in shown
    assert "<i>" not in shown
    assert "cannot be told apart" in shown
    assert "p = 1<" in shown
    assert "+0.0 points" in shown


def test_a_clear_difference_is_called_one():
    before, after = result(*[("x", False)] * 12), result(*[("x", True)] * 12)
    shown = comparison_html(("A", "B"), before, after, compare(before, after))
    assert "<strong>B</strong> is better than <strong>A</strong> by 100.0 points" in shown
    assert "p = 0.00049" in shown
    assert "Lost" not in shown


def test_two_measured_rows_are_compared(settings, models):
    page = asked(settings, models, small())
    measured(page)
    *_, before, after, task, words = board_part.refresh(page, *[None] * 5)
    found = make_board(settings, ADA, models, page.ruler)
    assert found.row(after["value"]).kind == "run"
    assert found.row(before["value"]).kind == "expert"
    assert "McNemar" in words
    assert board_part.show_comparison(page, before["value"], after["value"], task["value"]) == words
    assert (
        board_part.show_comparison(
            Asked(settings, models, page.recipe, BOB, page.own, page.what, "test"),
            before["value"],
            after["value"],
            task["value"],
        )
        == board_part.PICK_TWO
    )


# the history


@pytest.fixture(scope="module")
def form(models):
    with gr.Blocks():
        return build_merge_form(models, build_picker(default_recipe(models), models))


def listed(settings, owner=ADA, search="", chosen=None) -> list[str]:
    """The lines of the list of runs."""
    return [line for line, _ in runs.look(settings, owner, search, chosen)[0]["choices"]]


def test_every_finished_merge_and_every_measured_recipe_is_a_run(settings, models):
    merge = merged(settings, models)
    other = default_recipe(models, "linear")
    page = asked(settings, models, small(), recipe=other)
    assert measured(page).state == "done"
    assert measured(page).state == "done"
    linear, ties = run_history(settings).list(ADA)
    assert (ties.job, linear.job) == (merge, None)
    assert ties.seconds > 0
    assert linear.recipe == other.to_yaml()
    assert listed(settings)[0].startswith(linear.title)
    assert "small" in listed(settings)[0]
    assert "not measured" in listed(settings)[1]
    assert listed(settings, search="ties") == listed(settings)[1:]
    assert listed(settings, BOB) == []
    assert runs.look(settings, BOB, "", None)[1] == runs.EMPTY
    assert runs.look(settings, ADA, "nonsense", None)[1] == runs.NO_MATCH


def test_a_merge_succeeds_where_the_history_cannot_be_written(settings, models):
    settings.history.parent.mkdir(parents=True)
    settings.history.mkdir()
    merged(settings, models)
    with pytest.raises(MergingError, match="is a folder"):
        run_history(settings).list(ADA)


def test_reload_of_a_run_restores_its_form(settings, models, form):
    wanted_recipe = at_root(
        default_recipe(models).model_copy(
            update={"merge_method": "dare_ties", "parameters": {"density": 0.3, "lambda": 1.2}, "seed": 7}
        )
    )
    weighted = wanted_recipe.models[0].model_copy(update={"parameters": {"weight": 0.4}})
    wanted_recipe = at_root(
        wanted_recipe.model_copy(update={"models": (weighted, *wanted_recipe.models[1:])})
    )
    page = asked(settings, models, small(), recipe=wanted_recipe)
    assert measured(page).state == "done"
    (run,) = run_history(settings).list(ADA)
    updates = runs.reload(form, settings, run.id, ADA, default_recipe(models), models, "")
    loaded = updates[0]
    assert to_form(loaded, models) == to_form(wanted_recipe, models)
    assert loaded.merge_method == "dare_ties"
    assert loaded.seed == 7
    assert to_form(loaded, models)[0]["weight.0"] == 0.4
    assert len(updates) == 7 + len(form.outputs)


def test_a_run_over_other_models_is_not_loaded_and_says_which(settings, models, form, family):
    page = asked(settings, models, small())
    measured(page)
    (run,) = run_history(settings).list(ADA)
    others = Family(models.base, (str(family / "three"),))
    with pytest.raises(gr.Error, match="none of the chosen models"):
        runs.reload(form, settings, run.id, ADA, default_recipe(others), others, "")
    with pytest.raises(gr.Error, match="no longer there"):
        runs.reload(form, settings, run.id, BOB, default_recipe(models), models, "")
    with pytest.raises(gr.Error, match="no longer there"):
        runs.reload(form, settings, ["x"], ADA, default_recipe(models), models, "")
    assert make_board(settings, ADA, others, page.ruler).runs == (), (
        "and it stands beside its own parents only"
    )


def test_notes_differences_and_deleting_asks_twice(settings, models):
    for recipe in (default_recipe(models), default_recipe(models, "linear")):
        measured(asked(settings, models, small(), recipe=recipe))
    linear, ties = run_history(settings).list(ADA)
    assert "Saved" in runs.save_note(settings, linear.id, "<b>mine</b>", ADA)
    assert "no longer there" in runs.save_note(settings, linear.id, "theirs", BOB)
    assert "2,000" in runs.save_note(settings, linear.id, "x" * 3000, ADA)
    assert "<b>mine</b>" in listed(settings)[0]
    assert "&lt;b&gt;mine" in board_html(make_board(settings, ADA, models, Ruler((small(),))))
    shown = runs.differ(settings, linear.id, ties.id, ADA)
    assert "<td>ties</td><td>linear</td>" in shown
    assert "Nothing" in runs.differ(settings, ties.id, ties.id, ADA)
    assert "no longer there" in runs.differ(settings, linear.id, ties.id, BOB)
    hidden, sure = runs.ask_again(True)
    assert (hidden["visible"], sure["visible"]) == (False, True)
    runs.delete(settings, linear.id, BOB, "")
    assert len(run_history(settings).list(ADA)) == 2
    after = runs.delete(settings, linear.id, ADA, "")
    assert [key for _, key in after[0]["choices"]] == [ties.id]
    assert after[2] == ties.id


def test_a_held_or_damaged_history_is_one_sentence(settings, models, monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Warning", lambda words, **_: said.append(words))
    settings.history.parent.mkdir(parents=True)
    settings.history.write_bytes(b"no database " * 1000)
    assert runs.look(settings, ADA, "", None)[1] == runs.EMPTY
    runs.look(settings, ADA, "", None)
    assert len(said) == 1, "said once"
    assert "was damaged" in said[0]
    run_history(settings)._file.patience = 0.1
    held = sqlite3.connect(settings.history)
    held.execute("BEGIN EXCLUSIVE")
    with pytest.raises(gr.Error, match="held by another program"):
        runs.delete(settings, "a" * 32, ADA, "")
    held.close()
