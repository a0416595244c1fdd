"""The section on importance: examples, the job, finding results again, and what an APL merge takes of them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from urllib.parse import unquote

import gradio as gr
import pytest

import components.inspect.tab as inspect_tab
import merging
from components.family import Family
from components.figures.importance_maps import MAPS
from components.importance import events
from components.importance.examples import (
    DEMO,
    MOST_BYTES,
    MOST_EXAMPLES,
    OWN,
    demo_file,
    read_examples,
    read_upload,
)
from components.importance.job import DETAILS, cache_of, find, is_kept
from components.importance.merge import follow, settle, show_notice, with_importance
from components.importance.views import NOT_MEASURED, scores_of, show_importance_story, status_html
from components.inspect.reports import Reports, Stops
from components.merge.form import build_merge_form
from components.merge.picker import build_picker
from components.merge.recipe import check, default_recipe
from components.merge.yaml import from_yaml
from components.server.backend import job_store
from components.server.settings import Settings
from merging import Importance, MergingError
from merging.inference import LoadedModel

EXPERTS = ("one", "two")
TEXT = '{"prompt": "ab", "answer": "cd"}\nba\tdc\n\nabc\td\n'


def said(how="gradient", at="base", unit="module", samples=3, details=True, elements=False, text=TEXT):
    return [how, at, unit, samples, details, elements, *[OWN] * events.ROWS, *[text] * events.ROWS]


def measured(settings, family, **options):
    """Start a measurement as the page does and wait for its end."""
    id, *_ = events.start(settings, options.pop("compare", False), family, None, *said(**options))
    return job_store(settings).wait("local", id, 120)


@pytest.fixture(scope="module")
def chosen(family):
    return Family.demo(family, EXPERTS)


@pytest.fixture(scope="module")
def done(family, chosen, tmp_path_factory):
    """Settings with one finished measurement of the family."""
    settings = Settings(demo=family, runs=tmp_path_factory.mktemp("runs"), device="cpu")
    job = measured(settings, chosen)
    assert job.state == "done", job.error
    return settings


@pytest.fixture
def settings(family, tmp_path):
    return Settings(demo=family, runs=tmp_path / "runs", device="cpu")


def test_lines_are_json_or_prompt_tab_answer():
    suite = read_examples(TEXT, "one")
    assert [(item.prompt, item.answer) for item in suite.items] == [("ab", "cd"), ("ba", "dc"), ("abc", "d")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one: no examples yet"),
        ("a b", "one, line 1: no example"),
        ("a\tb\n\n{broken", "one, line 3: begins like JSON"),
        ('{"prompt": 1, "answer": "b"}', "line 1: needs the texts"),
        ("[1]", "line 1: no example"),
        ('{"prompt": "a"}', "line 1: needs the texts"),
        ("a\t ", "line 1: prompt and answer must not be empty"),
        ("a\tb\n" * (MOST_EXAMPLES + 1), f"{MOST_EXAMPLES + 1} examples; at most {MOST_EXAMPLES}"),
        ("a\t" + "b" * MOST_BYTES, "more than 200 kB"),
        ("a\t" + "b" * 8000, "line 1: 8,001 letters"),
        ("{" * 5000, "begins like JSON"),
    ],
)
def test_what_is_no_example_is_named_with_its_line(text, words):
    with pytest.raises(MergingError, match=words.replace("(", r"\(")):
        read_examples(text, "one")


def test_uploads_are_read_within_the_limit(tmp_path, chosen):
    file = tmp_path / "mine.jsonl"
    file.write_text("\ufeff" + TEXT, encoding="utf-8")
    text, problem = events.take_upload(0, chosen, str(file))
    assert text == TEXT
    assert "3 examples." in problem
    file.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(MergingError, match="200 kB"):
        read_upload(file, "one")
    file.write_bytes(b"\xff\xfe\xfa")
    assert "cannot be read as text" in events.take_upload(1, chosen, str(file))[1]
    assert events.take_upload(7, chosen, str(file)) == [gr.skip(), gr.skip()]


def test_the_demo_family_brings_its_examples():
    settings = Settings()
    family = Family.demo(settings.demo)
    assert demo_file(settings, family.experts[0]).parent.name == "math"
    assert demo_file(settings, str(settings.demo / "math-long")).parent.name == "math"
    assert demo_file(settings, "/elsewhere/math") is None
    assert events.has_defaults(settings, family)
    updates = events.fill_rows(settings, family)
    assert updates[1]["value"] == DEMO
    assert updates[1]["label"] == "Examples for math"
    assert [updates[5 * row]["visible"] for row in range(events.ROWS)] == [True] * 3 + [False] * 5


def test_other_families_have_to_give_examples(settings, chosen):
    updates = events.fill_rows(settings, chosen)
    assert updates[1]["choices"] == [("paste or upload", OWN)]
    assert updates[2]["visible"]
    assert not events.has_defaults(settings, chosen)
    with pytest.raises(gr.Error, match="one: no examples yet"):
        events.start_default(settings, chosen, None)


def test_a_job_measures_modules_heads_and_rows(done, chosen):
    found = find(done, "local", chosen)
    assert found.unit == "module"
    assert [name for name, _ in found.files] == ["module", *DETAILS]
    assert all(is_kept(str(cache_of(done) / name)) for _, name in found.files)
    module = found.load("module")
    assert module.description.samples == 3
    suite = read_examples(TEXT, "one")
    alone = merging.importance(chosen.recipe(), suite, samples=3, device="cpu")
    assert module.signed.tolist() == alone.signed.tolist()
    assert len(found.load("row").partitions) > len(found.load("head").partitions) > len(module.partitions)


def test_what_was_measured_is_found_again_without_running_a_model(done, chosen, monkeypatch):
    monkeypatch.setattr(LoadedModel, "load", lambda *_: pytest.fail("a model was loaded"))
    restarted = Settings(demo=done.demo, runs=done.runs, device="cpu")
    watched, _, progress, compute, compare, cancel, status = events.attach(restarted, chosen, None)
    assert (watched, progress) == ("", "")
    assert compute["interactive"]
    assert compare["interactive"]
    assert not cancel["visible"]
    assert "Measured:</strong> gradients at the base, 3 examples an expert" in status
    assert events.refresh(restarted, chosen, None) == find(done, "local", chosen)


def test_the_same_question_again_is_answered_from_the_cache(done, chosen, monkeypatch):
    monkeypatch.setattr(LoadedModel, "load", lambda *_: pytest.fail("a model was loaded"))
    before = find(done, "local", chosen)
    job = measured(done, chosen)
    assert job.state == "done"
    assert find(done, "local", chosen).files == before.files
    assert len(list(cache_of(done).iterdir())) == 3


def test_other_weights_other_people_and_smaller_families(done, chosen, family, tmp_path):
    copy = shutil.copytree(family, tmp_path / "copy")
    assert find(done, "local", Family.demo(copy, EXPERTS)) is not None, "content counts, not the place"
    shutil.copy(copy / "three" / "model.safetensors", copy / "two" / "model.safetensors")
    assert find(done, "local", Family.demo(copy, EXPERTS)) is None
    assert find(done, "f" * 32, chosen) is None
    assert find(done, "local", Family.demo(family, ("two",))).places == (1,)
    assert find(done, "local", Family.demo(family, ("two", "one"))).places == (1, 0)
    assert find(done, "local", Family("", ())) is None


def test_a_measurement_is_cancelled_within_a_second_and_keeps_nothing(settings, chosen):
    id, timer, _, compute, _, cancel, _ = events.start(settings, True, chosen, None, *said(samples=3))
    assert timer.active
    assert not compute["interactive"]
    assert cancel["visible"]
    store = job_store(settings)
    while store.get("local", id).progress is None:
        time.sleep(0.01)
    assert (
        "step" in events.tick(settings, id, chosen, None)[2]
        or "loading" in events.tick(settings, id, chosen, None)[2]
    )
    started = time.perf_counter()
    events.cancel(settings, id, None)
    job = store.wait("local", id, 10)
    assert time.perf_counter() - started < 1.5
    assert job.state == "cancelled"
    assert find(settings, "local", chosen) is None
    assert "Cancelled. Nothing was kept." in events.attach(settings, chosen, None)[6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "examples: 0"),
        ({"samples": 1000}, "examples: 1000"),
        ({"samples": "x"}, "examples"),
        ({"how": "nonsense"}, "unknown"),
        ({"at": "nowhere"}, "unknown"),
        ({"unit": "atom"}, "unknown"),
        ({"how": "exact", "unit": "row"}, "only a sample of heads or rows"),
        ({"text": "a b"}, "one, line 1"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(settings, chosen, options, words):
    with pytest.raises(gr.Error, match=words):
        events.start(settings, False, chosen, None, *said(**options))
    assert job_store(settings).list("local") == []


def test_a_failure_says_why(settings, chosen):
    job = measured(settings, chosen, text="a" * 70 + "\tb")
    assert job.state == "failed"
    assert "reads at most 64" in job.error
    assert job.error.split(":")[0] in events.attach(settings, chosen, None)[6]


def test_the_report_belongs_to_the_scores_it_was_made_for(settings, chosen):
    assert measured(settings, chosen, compare=True, details=False).state == "done"
    compared = find(settings, "local", chosen)
    report = compared.agreement
    assert {expert.expert for expert in report.experts} == set(EXPERTS)
    measured(settings, chosen)
    again = find(settings, "local", chosen)
    assert again.job != compared.job
    assert again.agreement == report, "the same scores, so the same report"
    measured(settings, chosen, samples=2)
    assert find(settings, "local", chosen).agreement is None


@pytest.fixture(scope="module")
def kept(chosen):
    reports = Reports()
    *_, last = inspect_tab.measure(reports, Stops(), Settings(device="cpu"), chosen)
    return reports, last[4]


@pytest.mark.parametrize("key", MAPS)
def test_without_importance_a_map_says_what_to_do(kept, key):
    reports, report = kept
    chart, explanation, table = inspect_tab.show_metric(reports, report, key, False, (0, "q"), None)
    assert chart == {"empty": NOT_MEASURED}
    assert MAPS[key].explanation[:30] in explanation
    assert table["data"] == []
    assert inspect_tab.open_importance(key, None)["open"]
    assert inspect_tab.open_importance("change", None) == gr.skip()


def test_the_map_keeps_the_outlined_cell_and_has_a_table(kept, done, chosen):
    reports, report = kept
    found = find(done, "local", chosen)
    chart, _, table = inspect_tab.show_metric(reports, report, "importance", False, (2, "v"), found)
    assert chart["picked"] == [2, 2]
    assert chart["title"] == MAPS["importance"].title
    assert table["headers"] == ["block", "module", "one", "two"]
    assert len(table["data"]) == 3 * 7
    whole = inspect_tab.show_report(reports, report, "owner", True, (2, "v"), found)
    assert whole[5]["headers"][2:] == ["owner", "share of the claims, %"]


def test_the_csv_holds_signed_importance_beside_the_changes(kept, done, chosen):
    reports, report = kept
    found = find(done, "local", chosen)
    link = inspect_tab.show_csv(reports, report, True, found)
    rows = list(csv.DictReader(io.StringIO(unquote(link.split("utf-8,")[1].split('"')[0]))))
    row = next(row for row in rows if (row["block"], row["module"]) == ("1", "gate"))
    scores = scores_of(reports.get(report), found)
    assert float(row["two signed importance (nats)"]) == scores.signed[1, "gate"][1]
    assert "importance" not in inspect_tab.show_csv(reports, report, True, None)


def test_a_click_shows_signed_importance_heads_and_rows(kept, done, chosen):
    reports, report = kept
    found = find(done, "local", chosen)
    visible, table, heads, rows = show_importance_story(reports.get(report), (1, "q"), found)
    assert visible["visible"]
    assert table.count("<tr>") == 1 + 2
    assert "(helps)" in table or "(harms)" in table
    assert len(heads["data"]) == 2
    assert len(heads["data"][0]["x"]) == 4
    assert len(rows["data"][0]["x"]) == 32
    *_, heads, rows = show_importance_story(reports.get(report), (1, "up"), found)
    assert heads == {"empty": "This module has no attention heads."}
    assert len(rows["data"][0]["x"]) == 48
    assert not show_importance_story(reports.get(report), (1, "q"), None)[0]["visible"]
    assert not show_importance_story(reports.get(report), None, found)[0]["visible"]


def test_importance_of_another_family_is_not_shown(kept, done, family):
    reports, report = kept
    other = find(done, "local", Family.demo(family, ("two", "one")))
    chart, *_ = inspect_tab.show_metric(reports, report, "importance", False, None, other)
    assert chart == {"empty": NOT_MEASURED}


def test_an_expert_no_better_than_the_base_is_doubted(done, chosen):
    text = status_html(find(done, "local", chosen))
    facts = find(done, "local", chosen).load("module").experts
    doubted = [one.name for one in facts if one.expert_loss >= one.base_loss]
    for name in EXPERTS:
        assert (f"{name} is no better than the base" in text) == (name in doubted)


def test_an_apl_merge_uses_what_was_measured(done, chosen, tmp_path):
    found = find(done, "local", chosen)
    recipe = with_importance(default_recipe(chosen, "apl"), found, newest=False)
    assert recipe.importance == str(found.path)
    assert check(recipe).plan is not None
    out = merging.merge(recipe, tmp_path / "merged", device="cpu")
    assert (out / "model.safetensors").is_file()
    visible, text, compute = show_notice(done, recipe, chosen, found)
    assert visible["visible"]
    assert "gradients at the base, 3 examples an expert" in text
    assert "not recommended over simpler methods" in text
    assert not compute["visible"]
    back = with_importance(default_recipe(chosen).model_copy(update={"importance": "x"}), found, newest=False)
    assert back.importance is None, "TIES does not use it"


def test_missing_importance_is_said_and_offered(settings, chosen):
    visible, text, compute = show_notice(settings, default_recipe(chosen, "apl"), chosen, None)
    assert visible["visible"]
    assert "Importance is missing." in text
    assert not compute["visible"], "there are no examples to measure it on"
    demo = Settings()
    family = Family.demo(demo.demo)
    assert show_notice(demo, default_recipe(family, "apl"), family, None)[2]["visible"]
    assert not show_notice(demo, default_recipe(family), family, None)[0]["visible"]
    assert follow("<progress>")[1:] == [
        gr.update(interactive=False),
        gr.update(visible=True, interactive=True),
    ]


def test_the_form_takes_a_new_measurement_and_leaves_other_recipes_alone(done, chosen):
    with gr.Blocks():
        form = build_merge_form(chosen, build_picker(default_recipe(chosen), chosen))
    found = find(done, "local", chosen)
    first = settle(done, form, False, default_recipe(chosen, "apl"), chosen, "", found)
    assert first[0].importance == str(found.path)
    assert f"importance: {found.path}" in " ".join(first[1].split())
    settled = settle(done, form, False, first[0], chosen, "", found)
    assert settled[:7] == [gr.skip()] * 7
    assert len(settled) == len(first) == 7 + len(form.outputs) + 3
    foreign = settle(done, form, True, default_recipe(chosen, "apl"), Family("", ()), "", found)
    assert foreign[0] == gr.skip(), "measured on another family"


def test_yaml_from_people_names_no_files_of_the_server(done, chosen):
    found = find(done, "local", chosen)
    recipe = with_importance(default_recipe(chosen, "apl"), found, newest=True)
    assert from_yaml(recipe.to_yaml(), chosen)[0].importance == str(found.path)
    for path in ("/etc/passwd", str(found.path.with_name("x.safetensors")), f"{found.path}/../../job"):
        imported, problems = from_yaml(recipe.model_copy(update={"importance": path}).to_yaml(), chosen)
        assert imported is None
        assert any("files are not read by this page" in problem for problem in problems)
    without = recipe.model_copy(update={"importance": None})
    assert from_yaml(without.to_yaml(), chosen)[0].merge_method == "apl", "the page adds what was measured"


def test_every_weight_is_kept_for_taylor(settings, chosen):
    job = measured(settings, chosen, elements=True, details=False)
    assert job.state == "done"
    found = find(settings, "local", chosen)
    assert Importance.load(found.path).sources is not None
    recipe = with_importance(default_recipe(chosen, "apl"), found, newest=True)
    taylor = recipe.model_copy(update={"parameters": {"drop": "taylor"}})
    assert check(taylor).problems == ()


def test_visitors_of_a_shared_server_need_an_identity(done, family, chosen):
    shared = Settings(demo=family, runs=done.runs, device="cpu", single_owner=False)
    with pytest.raises(gr.Error, match="no identity yet"):
        events.start(shared, False, chosen, "local", *said())
    assert "Not measured" in events.attach(shared, chosen, "f" * 32)[6]
    assert json.loads(json.dumps(job_store(done).list("local")[0].result))["unit"] == "module"
