"""A finished merge as base or expert of the next, in the app."""

from __future__ import annotations

import gradio as gr
import pytest

from components.family import Family
from components.merge import events
from components.merge.html import result_html
from components.merge.next_stage import take_merge
from components.merge.recipe import default_recipe
from components.merge.yaml import from_yaml
from components.models.events import judge, with_model
from components.models.opening import MOST_EXPERTS, choose
from components.server.backend import job_store
from components.server.settings import Settings
from merging import Checkpoint, MergingError, Recipe

ADA, BOB = "a" * 32, "b" * 32
EMPTY = [""] * MOST_EXPERTS


@pytest.fixture(scope="module")
def settings(family, tmp_path_factory) -> Settings:
    runs = tmp_path_factory.mktemp("stages") / "runs"
    made = Settings(demo=family, runs=runs, device="cpu", single_owner=False, local_folders=False)
    yield made
    job_store(made).close()


def finished(settings: Settings, family: Family, method: str) -> str:
    id = events.start(settings, default_recipe(family, method), family, ADA)[0]
    assert job_store(settings).wait(ADA, id, 60).state == "done"
    return id


@pytest.fixture(scope="module")
def first(settings, family) -> str:
    """The id of a merge of ADA's."""
    return finished(settings, choose(settings, "demo:base", ["demo:one", "demo:two"]).family, "linear")


def test_a_merge_is_an_expert_of_the_next_under_a_name_that_tells_no_owner(settings, first):
    rows = take_merge(settings, False, first, ADA, 1, "demo:base", "demo:three", *EMPTY[1:])
    assert rows[0] == 2
    assert rows[3] == f"run:{first}"
    family = choose(settings, "demo:base", ["demo:three", rows[3]], ADA).family
    assert family.names == ("three", f"linear-{first[:6]}")
    assert ADA not in family.experts[1]
    second = job_store(settings).get(ADA, finished(settings, family, "task_arithmetic"))
    assert ADA not in second.recipe
    parent = "Linear (model soup) of one and two"
    assert second.result["lineage"] == f"Task arithmetic of three and linear-{first[:6]} ({parent}) over base"
    assert f"Lineage: {second.result['lineage']}." in result_html(second)
    card = (job_store(settings).model(ADA, second.id) / "README.md").read_text()
    assert f"linear-{first[:6]}`; a merge by `Linear (model soup)` of" in card
    assert ADA not in card
    assert family.experts[1] in second.recipe
    again, problems = from_yaml(second.recipe, family)
    assert not problems
    assert again.to_yaml() == Recipe.from_yaml(second.recipe).to_yaml()


def test_a_merge_is_the_base_of_the_next(settings, first):
    rows = take_merge(settings, True, first, ADA, 2, "demo:base", "demo:one", f"run:{first}", *EMPTY[2:])
    assert rows[0] == 1, "it is no expert of itself"
    assert rows[1] == f"run:{first}"
    cards = judge(settings, ADA, {}, 1, f"run:{first}", "demo:one", *EMPTY[1:])
    assert f"linear-{first[:6]}" in cards[0]
    assert "A merge: Linear (model soup) of one and two." in cards[0]
    family = cards[2 + MOST_EXPERTS]
    merged = job_store(settings).model(ADA, finished(settings, family, "slerp"))
    assert Checkpoint.open(merged).parameters


@pytest.mark.parametrize("stored", [BOB, None, "../" + ADA, ADA + "/"])
def test_nobody_uses_another_owners_merge(settings, first, stored):
    with pytest.raises(gr.Error, match="no such finished merge of yours"):
        take_merge(settings, False, first, stored, 0, "demo:base", *EMPTY)
    cards = judge(settings, stored, {}, 1, "demo:base", f"run:{first}", *EMPTY[1:])
    assert "no such finished merge of yours" in cards[1]
    assert cards[2 + MOST_EXPERTS].experts == ()


@pytest.mark.parametrize("id", ["", "..", "../../etc", None, 3, ["a"], "f" * 32, "x/../y"])
def test_ids_that_are_none_take_nothing(settings, id):
    with pytest.raises(gr.Error, match="no such finished merge"):
        take_merge(settings, False, id, ADA, 0, "demo:base", *EMPTY)
    assert choose(settings, "demo:base", [f"run:{id}"], ADA).family.experts == ()


def test_rows_that_are_full_or_hold_it_already():
    full = [f"demo:{n}" for n in range(MOST_EXPERTS)]
    with pytest.raises(MergingError, match="remove one"):
        with_model("run:x", False, MOST_EXPERTS, "demo:base", *full)
    there = with_model("run:x", False, 2, "demo:base", "run:x", "", *EMPTY[2:])
    assert there[:4] == [2, gr.skip(), gr.skip(), gr.skip()]
    filled = with_model("run:x", False, 2, "demo:base", "", "demo:one", *EMPTY[2:])
    assert filled[:4] == [2, gr.skip(), "run:x", gr.skip()]


def test_a_merge_that_was_deleted_is_no_model_any_more(settings, family):
    chosen = choose(settings, "demo:base", ["demo:one", "demo:two"]).family
    id = finished(settings, chosen, "linear")
    link = choose(settings, "demo:base", [f"run:{id}"], ADA).family.experts[0]
    events.delete(settings, id, chosen, ADA)
    assert "may have been deleted" in choose(settings, "demo:base", [f"run:{id}"], ADA).experts[0].problems[0]
    with pytest.raises(MergingError, match="no such folder"):
        Checkpoint.open(link)
