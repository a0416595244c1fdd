"""Suites: what a file of them may hold, what is refused, and how all bad lines are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merging.errors import MergingError
from merging.importances.calibration import Calibration
from merging.judging.suites import MOST_BYTES, MOST_ITEMS, Item, Suite


def lines(*items: object) -> str:
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)


GOOD = {"prompt": "1+1=", "answer": "2"}
CHOICE = {"prompt": "Is fire hot?", "answer": "yes", "choices": ["yes", "no"]}


def test_scoring_is_asked_for_or_named_or_follows_from_choices(tmp_path):
    assert Suite.parse(lines(GOOD), "s").scoring == "exact"
    assert Suite.parse(lines(CHOICE), "s").scoring == "choice"
    assert Suite.parse(lines(CHOICE), "s", "exact").scoring == "exact"
    assert Suite.parse(lines({"scoring": "normalised"}, GOOD), "s").scoring == "normalised"
    assert Suite.parse(lines({"scoring": "normalised"}, GOOD), "s", "exact").scoring == "exact"
    file = tmp_path / "s.jsonl"
    file.write_text("\ufeff" + lines({"scoring": "normalised"}, GOOD, CHOICE))
    suite = Suite.load(file, name="mine")
    assert (suite.name, suite.scoring, len(suite)) == ("mine", "normalised", 2)
    assert suite.items[1] == Item("Is fire hot?", "yes", ("yes", "no"))
    assert Calibration.of(file, 2).places == (f"{file}, line 2", f"{file}, line 3")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"prompt": "a", "answer": "  "}, "its answer is empty"),
        ({"prompt": "a", "answer": "c", "choices": ["a", "b"]}, "its answer 'c' is not among its choices"),
        ({"prompt": "a", "answer": "a", "choices": "ab"}, "'choices' is not a list of strings"),
        ({"prompt": "a", "answer": "a", "choices": ["a", ""]}, "'choices' is not a list of strings"),
        ({"prompt": "a", "answer": "a", "choices": ["a"]}, "two or more choices that differ"),
        ({"prompt": "a", "answer": "a", "choices": ["a", "a"]}, "two or more choices that differ"),
        ({"prompt": "a", "answer": 5}, "'answer' is missing or is not a string"),
    ],
)
def test_a_bad_item_says_what_is_wrong(item, reason):
    with pytest.raises(MergingError, match=rf"^s, line 3: .*{reason}"):
        Suite.parse(lines(GOOD) + "\n\n" + json.dumps(item), "s")


def test_half_a_character_and_json_without_end_are_bad_lines():
    with pytest.raises(MergingError, match="half a character"):
        Suite.parse('{"prompt": "a", "answer": "\\ud83d"}', "s")
    with pytest.raises(MergingError, match="not valid JSON"):
        Suite.parse("[" * 100_000, "s")


def test_all_bad_lines_are_counted_and_the_first_few_named():
    text = "\n".join([json.dumps(GOOD)] * 4 + ['{"prompt": "a"}'] * 7)
    with pytest.raises(MergingError) as caught:
        Suite.parse(text, "s")
    said = str(caught.value)
    assert said.startswith("s: 7 of 11 lines are no items of a suite (line 5: 'answer' is missing")
    assert said.endswith("line 7: 'answer' is missing or is not a string; and 4 more).")


@pytest.mark.parametrize("items", [[GOOD, CHOICE], [CHOICE, GOOD]])
def test_choices_for_some_items_only_need_a_scoring(items):
    with pytest.raises(MergingError, match=r"line 2: has (no )?choices"):
        Suite.parse(lines(*items), "s")
    assert len(Suite.parse(lines(*items), "s", "exact")) == 2


def test_empty_suites_and_unknown_scorings_are_refused():
    for text, reason in (
        ("\n \n", "holds no items"),
        (lines({"scoring": "exact"}), "holds no items. Add some"),
    ):
        with pytest.raises(MergingError, match=reason):
            Suite.parse(text, "s")
    with pytest.raises(MergingError, match=r"no scoring 'normalized'\. Did you mean 'normalised'"):
        Suite.parse(lines({"scoring": "normalized"}, GOOD), "s")


def test_uploads_have_a_limit_and_files_of_ones_own_have_none(tmp_path: Path):
    for text in (
        lines(GOOD) + "\n" * MOST_BYTES,
        "\n".join([json.dumps(GOOD)] * (MOST_ITEMS + 1)),
    ):
        with pytest.raises(MergingError, match="too large: at most 5 MB and 20,000 items"):
            Suite.parse(text, "s")
        (tmp_path / "s.jsonl").write_text(text)
        with pytest.raises(MergingError, match="too large"):
            Suite.load(tmp_path / "s.jsonl", limited=True)
        assert len(Suite.load(tmp_path / "s.jsonl")) > 0


def test_the_fingerprint_is_of_scoring_and_items_in_order():
    one, two = Item("a", "b"), Item("c", "d", ("d", "e"))
    suite = Suite("s", (one, two))
    assert len(suite.fingerprint) == 16
    assert Suite("other", (one, two)).fingerprint == suite.fingerprint
    others = [
        Suite("s", (two, one)),
        Suite("s", (one, two), "normalised"),
        Suite("s", (one, Item("c", "d"))),
        Suite("s", (one, two, one)),
        Suite("s", (Item("a", "b\nc"),)),
    ]
    assert len({suite.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_duplicates_and_separators_inside_of_strings_are_kept():
    suite = Suite.parse(lines(GOOD, GOOD, {"prompt": "x\u2028y\u0085", "answer": "z"}), "s")
    assert [item.prompt for item in suite.items] == ["1+1=", "1+1=", "x\u2028y\u0085"]
