"""Licences of parents: found in their cards, kept through generations, and their conflicts named."""

from __future__ import annotations

import shutil

import pytest

import merging
from merging import Checkpoint
from merging.cards.front_matter import front_matter
from merging.cards.licences import Licensed, licence_notes, licence_of_merge, licences_in
from merging.cards.lineage import Ancestor, licensed, lineage_of_model, lineage_of_plan
from merging.extraction import extract

NC, ND, SA, GPL, LLAMA, GEMMA = (
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "llama3.1",
    "gemma",
)


def notes(**licences: str) -> str:
    parents = [Licensed(name, (said,) if said else ()) for name, said in licences.items()]
    return "\n".join(licence_notes(parents))


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        ({"one": NC, "two": NC}, "licence of one and two (cc-by-nc-4.0): forbids commercial use"),
        ({"one": "qwen-research"}, "(qwen-research): forbids commercial use"),
        ({"one": ND}, "forbids sharing changed versions, and a merge is one"),
        ({"one": GPL}, "asks that what is made from it is shared under the same licence"),
        ({"one": "agpl-3.0"}, "shared under the same licence"),
        ({"one": LLAMA}, "the merge's name begins with Llama, that its page says “Built with Llama”"),
        ({"one": "llama2"}, "its use policy, its notice"),
        ({"one": GEMMA}, "Gemma's terms and its list of forbidden uses"),
        ({"one": "bigscience-openrail-m"}, "forbids certain uses"),
        ({"one": "tongyi-qianwen"}, "(tongyi-qianwen): is none of the usual ones"),
        ({"one": "", "two": "mit", "three": "other"}, "licence of one and three: not stated."),
        (
            {"one": "mit", "two": "apache-2.0"},
            "licences differ: one mit; two apache-2.0. The merge has to keep",
        ),
        ({"one": GPL, "two": SA}, "each asks for itself as the merge's licence"),
        ({"one": "mit", "two": GPL, "three": NC}, "two (gpl-3.0) and three (cc-by-nc-4.0): one sets limits"),
    ],
)
def test_every_conflict_is_one_sentence_that_names_the_parents(licences, words):
    found = notes(**licences)
    assert words in found
    assert all(line.endswith(".") for line in found.splitlines())


def test_one_permissive_licence_asks_nothing():
    assert notes(one="apache-2.0", two="apache-2.0") == ""


def test_a_licence_is_the_same_however_it_is_written():
    assert notes(one="mit", two="MIT") == ""
    assert notes(one="GPL-3.0", two="gpl-3.0") == (
        "licence of one and two (gpl-3.0): asks that what is made from it is shared under the same licence."
    )


@pytest.mark.parametrize(
    ("licences", "written"),
    [
        (("mit", "mit"), {"license": "mit"}),
        (("mit", "apache-2.0"), {"license": "other", "license_name": "licences-of-the-parents"}),
        (("qwen-research",), {"license": "other", "license_name": "qwen-research"}),
        (("mit", ""), {}),
        ((), {}),
    ],
)
def test_the_card_grants_no_more_than_the_parents(licences, written):
    assert licence_of_merge([Licensed("x", (one,) if one else ()) for one in licences]) == written


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n# A model", ("mit",)),
        ("---\nlicense: [mit, apache-2.0]\n---\n", ("mit", "apache-2.0")),
        ("---\nlicense: other\nlicense_name: own-terms\n---\n", ("own-terms",)),
        ("---\nlicense: !!python/object/apply:os.system [ls]\n---\n", ()),
        ("---\na: &a [x]\nb: &b [*a, *a]\nlicense: mit\n" + "".join(f"c{n}: &c{n} [*b, *b]\n" for n in range(3)), ("mit",)),
        ("---\n" + "a: &a0 [x]\n" + "".join(f"k{n}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)) + "license: mit\n---\n", ()),
        ("---\nlicense: " + "x" * 500_000 + "\n---\n", ("x" * 60,)),
        ("---\nlicense: {a: 1}\n---\n", ()),
        ("no front matter", ()),
    ],
)  # fmt: skip
def test_a_readme_of_strangers_may_be_anything(tmp_path, text, found):
    (tmp_path / "README.md").write_text(text)
    assert licences_in(tmp_path) == found


def test_a_folder_without_a_readme_states_nothing(tmp_path):
    assert front_matter(tmp_path) == {}
    assert licences_in(tmp_path / "none") == ()


def test_licences_go_with_a_merge_into_the_next(family, licensed_as, write_recipe, tmp_path):
    models = licensed_as(base="mit", one=NC, two="mit")
    plan = merging.check(write_recipe(models, "task_arithmetic"))
    assert any("licence of one (cc-by-nc-4.0): forbids commercial use" in text for text in plan.warnings)
    first = merging.merge(write_recipe(models, "task_arithmetic"), tmp_path / "both" / "first")
    shutil.copytree(models / "base", tmp_path / "both" / "base")
    for gone in ("one", "two"):
        shutil.rmtree(models / gone)
    parent = lineage_of_model(merging.Checkpoint.open(first), "first")
    found = licensed(Ancestor("", parents=(parent,)))
    assert found == [
        Licensed("base in first", ("mit",)),
        Licensed("one in first", (NC,)),
        Licensed("two in first", ("mit",)),
    ]
    second = merging.check(write_recipe(tmp_path / "both", "task_arithmetic", ["first"]))
    assert "licence of one in first (cc-by-nc-4.0): forbids commercial use" in "\n".join(second.warnings)
    assert lineage_of_plan(second).parents[1].licences == ("licences-of-the-parents",)


def test_an_adapter_keeps_the_licence_of_the_model_that_it_is_of(licensed_as, tmp_path, write_recipe):
    models = licensed_as(base="apache-2.0", one=NC)
    (_, lora) = [
        *extract(Checkpoint.open(models / "base"), Checkpoint.open(models / "one"), tmp_path / "lora", 2)
    ][-2:]
    assert licences_in(lora.path) == (NC,)
    recipe = write_recipe(models, "task_arithmetic", [f"base+{lora.path}"])
    plan = merging.check(recipe)
    assert lineage_of_plan(plan).parents[1].licences == ("apache-2.0", NC)
    assert any("licence of base+lora (cc-by-nc-4.0): forbids" in text for text in plan.warnings)
    (lora.path / "README.md").unlink()
    plan = merging.check(recipe)
    assert any("licence of base+lora: not stated." in text for text in plan.warnings)
    assert licence_of_merge(licensed(lineage_of_plan(plan))) == {}


def test_folders_that_state_no_licence_are_no_warning_before_they_are_shared(family, write_recipe):
    assert merging.check(write_recipe(family, "ties")).warnings == ()


@pytest.fixture
def licensed_as(family, tmp_path):
    """Copies of the family's models whose READMEs state licences."""

    def copied(**licences):
        for name, licence in licences.items():
            folder = shutil.copytree(family / name, tmp_path / "licensed" / name)
            (folder / "README.md").write_text(
                f"---\nlicense: {licence}\nlanguage: [en, 'no']\n---\n# {name}\n"
            )
        return tmp_path / "licensed"

    return copied
