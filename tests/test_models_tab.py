"""The Models tab: what is judged, what is refused, and what a card says."""

from __future__ import annotations

import dataclasses
import shutil

import gradio as gr
import pytest

from components.family import Family
from components.hub.sources import open_typed
from components.models.cards import card_html, estimate_html
from components.models.events import add_expert, judge, remove_expert, restore, take_demo
from components.models.opening import MOST_EXPERTS, choose
from components.models.tab import build_models_tab
from components.numbers import count, size
from components.server.settings import Settings
from components.shared import build_shared
from merging import MergingError
from tests.conftest import edit_config


@pytest.fixture
def settings(family, tmp_path):
    return Settings(demo=family, runs=tmp_path / "runs")


def shown(settings, base, *experts):
    """What `judge` returns for these rows: cards, estimate, family, two button updates."""
    padded = [*experts, *[""] * (MOST_EXPERTS - len(experts))]
    result = judge(settings, None, {}, len(experts), base, *padded)
    return result[: 1 + len(experts)], result[1 + MOST_EXPERTS], result[2 + MOST_EXPERTS], result[-2]


def test_a_family_that_fits(settings, family):
    cards, estimate, chosen, following = shown(settings, "demo:base", "demo:one", str(family / "two"))
    assert chosen == Family(str(family / "base"), (str(family / "one"), str(family / "two")))
    assert "All experts are compared with it" in cards[0]
    assert all("Fits the base" in card for card in cards[1:])
    assert "3 × 32" in cards[1]
    assert "float32" in cards[1]
    assert "base + 2 experts" in estimate
    assert following["interactive"]


def test_facts_come_from_headers_and_the_readme(settings, family, tmp_path):
    folder = shutil.copytree(family / "one", tmp_path / "licensed")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    facts = choose(settings, "demo:base", [str(folder)]).experts[0].facts
    assert facts.licence == "apache-2.0"
    assert (facts.blocks, facts.width, facts.vocabulary, facts.dtypes) == (3, 32, 48, ("float32",))
    assert facts.head == "own"
    assert facts.nbytes == 4 * facts.parameters


@pytest.mark.parametrize(
    "text", ["no front matter", "---\n: [\n---\n", "---\nlicense: {a: b}\n---\n", "---\n- a\n---\n"]
)
def test_a_readme_that_names_no_licence_is_no_error(settings, family, tmp_path, text):
    folder = shutil.copytree(family / "one", tmp_path / "odd")
    (folder / "README.md").write_text(text)
    card = choose(settings, "demo:base", [str(folder)]).experts[0]
    assert card.facts.licence is None
    assert card.problems == ()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("demo:nothing", "There is no demo model 'nothing'. Those that exist: demo:base, demo:one"),
        ("demo:../base", "There is no demo model"),
        ("a\0b", "there is no such folder"),
        ("~nobody-of-that-name/x", "no such user"),
        ("x" * 5000, "5,000 letters, and a name has at most 1,000"),
    ],
)
def test_a_bad_path_is_one_sentence_at_its_card(settings, typed, words):
    cards, estimate, chosen, following = shown(settings, "demo:base", "demo:one", typed)
    assert "Cannot be read" in cards[2]
    assert words in cards[2].replace("&#x27;", "'")
    assert cards[2].count('class="card-say"') == 1
    assert len(chosen.experts) == 1, "the others stay"
    assert "base + 1 of 2 experts" in estimate
    assert following["interactive"]


def test_an_expert_that_does_not_fit_is_left_out_with_the_reason(settings, family, tmp_path):
    folder = shutil.copytree(family / "two", tmp_path / "other")
    edit_config(folder, num_attention_heads=8)
    cards, _, chosen, _ = shown(settings, "demo:base", "demo:one", str(folder))
    assert "Does not fit" in cards[2]
    assert "num_attention_heads = 8" in cards[2]
    assert "Left out" in cards[2]
    assert [path.rsplit("/", 1)[1] for path in chosen.experts] == ["one"]


def test_a_difference_that_only_needs_a_note(settings, family, tmp_path):
    folder = shutil.copytree(family / "two", tmp_path / "noted")
    edit_config(folder, rope_theta=12345.0)
    cards, _, chosen, _ = shown(settings, "demo:base", str(folder))
    assert "Fits, with a note" in cards[1]
    assert "rope_theta" in cards[1]
    assert len(chosen.experts) == 1


def test_base_as_expert_and_the_same_expert_twice(settings, family):
    cards, _, chosen, _ = shown(settings, "demo:base", "demo:base", "demo:one", str(family / "one"))
    assert "This is the base itself" in cards[1]
    assert "Already listed" in cards[3]
    assert len(chosen.experts) == 1


def test_without_a_base_nothing_can_go_on_and_nothing_is_lost(settings):
    cards, estimate, chosen, following = shown(settings, "/gone", "demo:one", "")
    assert "Cannot be read" in cards[0]
    assert "before the base can be read" in cards[1]
    assert "3 × 32" in cards[1], "its facts stay"
    assert "press Enter" in cards[2]
    assert chosen.experts == ()
    assert "No family yet" in estimate
    assert not following["interactive"]


def test_a_shared_server_opens_only_the_demo(settings, family):
    shared = dataclasses.replace(settings, local_folders=False, single_owner=False)
    with pytest.raises(MergingError, match="only the demo models"):
        open_typed(shared, "", str(family / "one"))
    assert open_typed(shared, "", "demo:one").reference == str(family / "one")
    cards, _, chosen, _ = shown(shared, "demo:base", str(family / "one"))
    assert "This server opens only the demo models" in cards[1]
    assert chosen.experts == ()


def test_names_are_escaped(settings):
    card = choose(settings, "demo:base", ["/x/<img src=x onerror=alert(1)>"]).experts[0]
    assert "<img" not in card_html(card, is_base=False)


def test_rows_are_added_and_removed_in_place():
    typed = ["demo:base", "a", "b", "c", *[""] * 5]
    after = remove_expert(1, 3, *typed)
    assert after[0] == 2
    untouched = gr.skip()
    assert after[1:5] == [untouched, untouched, "c", ""]
    assert [update["visible"] for update in after[10:18]] == [True] * 2 + [False] * 6
    assert add_expert(3, *typed)[:10] == [4, *[untouched] * 9]
    full = add_expert(8, "demo:base", *"abcdefgh")
    assert full[0] == 8
    assert not full[-1]["interactive"]


def test_demo_comes_back_whole(settings):
    after = take_demo(settings, 1, "/gone", *["x"] * 8)
    assert after[0:5] == [3, "demo:base", "demo:math", "demo:code", "demo:words"]


def test_what_was_typed_is_kept_and_comes_back(settings, family, tmp_path):
    copy = shutil.copytree(family / "two", tmp_path / "two")
    kept = judge(settings, None, {}, 3, "demo:base", "demo:one", str(copy), "", *[""] * 5)[-1]
    assert kept == {"base": "demo:base", "experts": ["demo:one", str(copy), ""]}
    shutil.rmtree(copy)
    rows = restore(settings, kept, Family.demo(family))
    assert rows[:5] == [3, "demo:base", "demo:one", str(copy), ""]
    assert [update["visible"] for update in rows[10:18]] == [True] * 3 + [False] * 5
    cards, chosen = rows[20:29], rows[30]
    assert "Fits the base" in cards[1]
    assert "there is no such folder" in cards[2]
    assert chosen == Family(str(family / "base"), (str(family / "one"),))
    assert rows[-1] == gr.skip(), "the family changes, so nobody need be told that the page is open"


@pytest.mark.parametrize(
    "stored",
    [
        None,
        7,
        [],
        {},
        {"base": "x"},
        {"base": None, "experts": []},
        {"base": "x", "experts": "demo:one"},
        {"base": "x", "experts": [3]},
        {"base": "x", "experts": ["y"] * 9},
        {"base": "x" * 5000, "experts": []},
        {"base": "\ud800", "experts": []},
    ],
)
def test_who_has_nothing_kept_or_something_odd_keeps_the_page_as_built(stored):
    settings = Settings()
    rows = restore(settings, stored, Family.demo(settings.demo))
    whole = len(restore(settings, {"base": "demo:base", "experts": []}, Family.demo(settings.demo)))
    assert rows == [gr.skip()] * (whole - 1) + [True]


def test_the_page_is_built_with_the_demo_judged(settings, family):
    for name in ("math", "code", "words", "math-long"):
        shutil.copytree(family / "one", family / name)
    with gr.Blocks() as app:
        assert build_shared(app, settings).family.value == Family.demo(family)
        tab = build_models_tab(settings)
    assert tab.next.interactive
    assert tab.add_long.visible
    assert all("Fits the base" in row.card.value for row in tab.experts[:3])


def test_without_a_demo_nothing_is_chosen(tmp_path):
    settings = Settings(demo=tmp_path / "gone")
    with gr.Blocks() as app:
        assert build_shared(app, settings).family.value == Family("", ())
        tab = build_models_tab(settings)
    assert not tab.next.interactive
    assert not tab.add_long.visible


@pytest.mark.parametrize("base", ["", "/gone", "a\0b", "demo:nothing"])
def test_a_kept_base_that_cannot_be_read_is_told_at_its_field(settings, family, base):
    rows = restore(settings, {"base": base, "experts": ["demo:one"]}, Family.demo(family))
    assert rows[1:3] == [base, "demo:one"]
    assert ("Cannot be read" in rows[20]) == bool(base)
    assert "before the base can be read" in rows[21]
    assert rows[30] == Family("", ())


def test_estimate_follows_from_the_plan(settings, family):
    plan = choose(settings, "demo:base", ["demo:one", "demo:two"]).plan
    header = (family / "base" / "model.safetensors").stat().st_size - plan.bytes_to_write
    assert 0 < header < 10_000
    shown = estimate_html(plan, listed=3)
    assert "base + 2 of 3 experts" in shown
    assert size(plan.memory) in shown


@pytest.mark.parametrize(
    ("number", "text"), [(998_000, "998 k"), (999_900, "1.00 M"), (7_241_732_096, "7.24 B"), (12, "12")]
)
def test_counts_keep_three_digits(number, text):
    assert count(number) == text


def test_sizes():
    assert size(2_000_000) == "2.00 MB"
    assert size(14_500_000_000) == "14.5 GB"
    assert size(10) == "10 bytes"


def test_a_damaged_tokenizer_is_a_problem_on_the_card(tmp_path):
    for name in ("base", "math"):
        shutil.copytree(Settings().demo / name, tmp_path / name)
    (tmp_path / "math" / "tokenizer.json").write_text('{"model": {"vocab": 5}}')
    choice = choose(Settings(), str(tmp_path / "base"), [str(tmp_path / "math")])
    assert "vocabulary is malformed" in choice.experts[0].problems[0]


@pytest.mark.parametrize(
    ("folders", "download", "words"),
    [
        (True, None, "a folder, demo:math or org/name of the Hub"),
        (False, None, "demo:math or org/name of the Hub"),
        (True, 0, "a folder or demo:math"),
        (False, 0, "demo:math"),
    ],
)
def test_a_field_names_only_what_may_be_typed_here(settings, folders, download, words):
    here = dataclasses.replace(settings, local_folders=folders, largest_download=download)
    with gr.Blocks():
        tab = build_models_tab(here)
    assert {field.placeholder for field in tab.fields} == {words}
