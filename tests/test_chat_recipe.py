"""The recipe of the Merge tab in the chat: merged in memory when it is asked, and freed when it is left."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path

import pytest

import merging
from components.chat import columns, events, views
from components.chat import recipe as chat_recipe
from components.chat.models import COLUMNS, Visit, parent_key
from components.chat.recipe import LABEL, RECIPE, page_merges, summary
from components.family import Family
from components.merge.recipe import at_root, default_recipe
from components.server.backend import job_store, model_cache
from components.server.settings import Settings
from merging import METHODS
from merging.inference import LoadedModel, Sampling, stream
from merging.memory.unsaved import TOO_LARGE
from merging.memory.whatif import Residents
from tests.conftest import edit_config

ADA, BOB = "a" * 32, "b" * 32
DRAWN = ("", 0.0, 1.0, 0, 1.0, 12, 0)
ALONE = [RECIPE, "", "", ""]


@pytest.fixture
def models(family, tmp_path) -> Family:
    """Copies, so that a test may damage them."""
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / "models" / name)
    return Family(
        str(tmp_path / "models" / "base"), tuple(str(tmp_path / "models" / n) for n in ("one", "two"))
    )


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", demo=tmp_path / "demo", device="cpu", single_owner=False)
    yield made
    job_store(made).close()


def recipe_of(models, density=0.5, **keys):
    recipe = default_recipe(models)
    return at_root(recipe.model_copy(update={"parameters": {"density": density}, **keys}))


def visit(settings, models, recipe=None, session="s", owner=ADA) -> Visit:
    return Visit(settings, session, models, recipe or recipe_of(models), owner)


def ask(page: Visit, keys=ALONE, talk=None, prompt="abc") -> dict:
    """What the page shows once everybody has answered."""
    *_, last = events.ask(page, prompt, talk or views.silence(), (), keys, *DRAWN)
    return {
        "notes": last[COLUMNS : 2 * COLUMNS],
        "talk": last[2 * COLUMNS],
        "question": last[events.QUESTION],
    }


def written(recipe, folder) -> str:
    """What the merge on disk says."""
    model = LoadedModel.load(merging.merge(recipe, folder))
    question = [{"role": "user", "content": "abc"}]
    return "".join(stream(model, question, Sampling(max_new_tokens=12)))


def weights(settings) -> list[weakref.ref]:
    """Every weight of every model that is kept."""
    kept = model_cache(settings)._models.values()
    return [weakref.ref(parameter) for model in kept for parameter in model.model.parameters()]


def are_freed(found: list[weakref.ref]) -> bool:
    assert found
    for thread in threading.enumerate():
        if thread.name in ("chat", "reply"):
            thread.join(5)
    gc.collect()
    return all(weight() is None for weight in found)


def test_it_answers_as_the_merge_on_disk_and_writes_nothing(settings, models, tmp_path):
    told = ask(visit(settings, models))
    assert told["talk"][0][1]["content"] == written(recipe_of(models), tmp_path / "out")
    assert "TIES · density 0.5 · one, two · " in told["notes"][0]
    assert "tokens/s" in told["notes"][0]
    assert not settings.runs.exists() or not any(settings.runs.rglob("*.safetensors"))
    assert job_store(settings).list(ADA) == []


def test_a_moved_slider_is_merged_anew_and_the_earlier_one_is_freed(settings, models, tmp_path):
    first = ask(visit(settings, models))
    earlier = weights(settings)
    changed = recipe_of(models, 1.0, merge_method="task_arithmetic")
    changed = at_root(changed.model_copy(update={"parameters": {"lambda": 3.0}}))
    second = ask(visit(settings, models, changed), talk=first["talk"])
    assert "Task arithmetic · lambda 3 · " in second["notes"][0]
    assert [said["role"] for said in second["talk"][0]] == ["user", "assistant"] * 2
    assert are_freed(earlier)
    assert len(model_cache(settings)) == 1
    fresh = ask(visit(settings, models, changed))
    assert fresh["talk"][0][1]["content"] == written(changed, tmp_path / "out")


def test_the_same_recipe_is_merged_once(settings, models, monkeypatch):
    made = []
    load = chat_recipe.load_unsaved
    monkeypatch.setattr(chat_recipe, "load_unsaved", lambda *values: made.append(1) or load(*values))
    for session in ("s", "s", "t"):
        ask(visit(settings, models, session=session), [RECIPE, RECIPE, "", ""])
    assert len(made) == 1


def test_it_is_freed_once_no_column_asks_it(settings, models):
    page, keys = visit(settings, models), [RECIPE, RECIPE, "", ""]
    ask(page, keys)
    kept = weights(settings)
    *_, keys = columns.choose(1, page, "", views.silence(), keys)
    assert not are_freed(kept)
    *_, keys = columns.choose(0, page, parent_key("base", models.base), views.silence(), keys)
    assert are_freed(kept)
    assert len(model_cache(settings)) == 0


def test_it_is_freed_with_the_last_page_that_asks_it(settings, models):
    for session in ("s", "t"):
        ask(visit(settings, models, session=session))
    kept = weights(settings)
    page_merges(settings).leave("s")
    page_merges(settings).leave("never asked")
    assert not are_freed(kept)
    page_merges(settings).leave("t")
    assert are_freed(kept)


def test_a_page_that_is_left_while_it_merges_keeps_nothing(settings, models, monkeypatch):
    load = chat_recipe.load_unsaved

    def leave_first(*values):
        page_merges(settings).leave("s")
        return load(*values)

    monkeypatch.setattr(chat_recipe, "load_unsaved", leave_first)
    assert len(ask(visit(settings, models))["talk"][0]) == 2
    assert len(model_cache(settings)) == 0
    page_merges(settings).model("s", recipe_of(models), "cpu")
    assert len(model_cache(settings)) == 0


def test_every_page_asks_its_own_recipe(settings, models, tmp_path):
    """Owners meet in one cache, and yet each only gets what its own page shows."""
    ours, theirs = recipe_of(models), recipe_of(models, merge_method="task_arithmetic")
    theirs = at_root(theirs.model_copy(update={"parameters": {"lambda": 3.0}}))
    for _ in range(2):
        for recipe, session, owner in ((ours, "s", ADA), (theirs, "t", BOB)):
            page = visit(settings, models, recipe, session, owner)
            told = ask(page)
            assert told["talk"][0][1]["content"] == written(recipe, tmp_path / session)
            assert METHODS[recipe.merge_method].title in told["notes"][0]
    assert len(model_cache(settings)) == 2


def test_other_files_beside_the_same_weights_make_another_model(settings, models):
    ask(visit(settings, models))
    earlier = weights(settings)
    edit_config(Path(models.base), max_position_embeddings=3)
    told = ask(visit(settings, models))
    assert "reads at most 3" in told["notes"][0]
    assert are_freed(earlier)


def test_a_recipe_that_cannot_run_says_why_and_the_others_answer(settings, models):
    base = parent_key("base", models.base)
    before = ask(visit(settings, models), [RECIPE, base, "", ""])["talk"]
    bad = recipe_of(models, 7.0)
    told = ask(visit(settings, models, bad), [RECIPE, base, "", ""], talk=before)
    assert "This recipe cannot run: " in told["notes"][0]
    assert 'role="alert"' in told["notes"][0]
    assert told["talk"][0] == before[0], "what was said stays"
    assert len(told["talk"][1]) == 4


def test_models_that_vanished_are_named(settings, models):
    shutil.rmtree(models.experts[1])
    told = ask(visit(settings, models))
    assert "This recipe cannot run: " in told["notes"][0]
    assert "no such folder" in told["notes"][0]
    assert told["question"] == "abc"


def test_models_that_vanish_while_they_are_read(settings, models, monkeypatch):
    def gone(*_):
        raise FileNotFoundError("secret")

    monkeypatch.setattr(chat_recipe, "preview_key", gone)
    assert chat_recipe.GONE in ask(visit(settings, models))["notes"][0]


# who may choose it


def options(updates) -> list[str]:
    return [key for _, key in updates[0]["choices"]]


def test_it_is_one_more_choice_and_nobodys_default(settings, models):
    updates = columns.refresh(visit(settings, models), views.silence(), [""] * COLUMNS)
    assert (LABEL, RECIPE) in updates[0]["choices"]
    keys = [parent_key("base", models.base), *(parent_key("expert", one) for one in models.experts), ""]
    assert [update["value"] for update in updates[:COLUMNS]] == keys
    looked = columns.look(visit(settings, models), keys)
    assert looked[:COLUMNS] == [{"choices": updates[0]["choices"], "__type__": "update"}] * COLUMNS
    assert views.RECIPE_TOO in looked[COLUMNS]


def test_it_is_no_choice_where_it_cannot_run(settings, models):
    bad = visit(settings, models, recipe_of(models, 7.0))
    keys = [parent_key("base", models.base), "", "", ""]
    looked = columns.look(bad, keys)
    assert RECIPE not in options(looked)
    assert views.RECIPE_TOO not in looked[COLUMNS]
    assert RECIPE in options(columns.look(bad, ALONE)), (
        "a column that asks it keeps it, and says what is wrong"
    )
    said = [[{"role": "user", "content": "1"}], [], [], []]
    refreshed = columns.refresh(bad, said, ALONE)
    assert (refreshed[0]["value"], refreshed[3 * COLUMNS]) == (RECIPE, said)


def test_models_that_do_not_fit_into_memory_are_to_be_merged_first(settings, models, monkeypatch):
    monkeypatch.setattr(Residents, "fits", lambda *_: False)
    assert RECIPE not in options(columns.look(visit(settings, models), [""] * COLUMNS))
    assert TOO_LARGE in ask(visit(settings, models))["notes"][0]


def test_it_stays_where_it_was_chosen(settings, models):
    said = [[{"role": "user", "content": str(number)}] for number in range(COLUMNS)]
    keys = [RECIPE, parent_key("expert", models.experts[0]), "", ""]
    smaller = Family(models.base, models.experts[1:])
    updates = columns.take_family(visit(settings, smaller, recipe_of(models)), said, keys)
    assert (updates[3 * COLUMNS + 1][0], updates[3 * COLUMNS][0]) == (RECIPE, said[0])
    id = job_store(settings).start(
        ADA, "merge", lambda out: merging.run(recipe_of(models), out), title="TIES", recipe=""
    )
    job_store(settings).wait(ADA, id, 60)
    updates = columns.take_fresh(visit(settings, models), said, keys, id)
    assert updates[3 * COLUMNS + 1][:3] == [f"job:{id}", keys[1], RECIPE], (
        "it makes room and goes on beside it"
    )
    assert updates[3 * COLUMNS][2] == said[0]


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {}, "TIES · density 0.2 · one, two"),
        ("ties", {"density": 0.7, "lambda": 1.5}, "TIES · density 0.7 lambda 1.5 · one, two"),
        ("task_arithmetic", {}, "Task arithmetic · lambda 0.4 · one, two"),
        ("linear", {"weight": [0, 1]}, "Linear (model soup) · weight varied · one, two"),
        ("ram", {}, "RAM · one, two"),
    ],
)
def test_the_note_says_method_and_main_parameter(models, method, parameters, words):
    recipe = default_recipe(models).model_copy(update={"merge_method": method, "parameters": parameters})
    assert summary(recipe, models) == words


def test_the_main_parameter_of_each_expert(models):
    recipe = recipe_of(models)
    entries = tuple(
        one.model_copy(update={"parameters": {"density": 0.1 + number}})
        for number, one in enumerate(recipe.models)
    )
    recipe = recipe.model_copy(update={"parameters": {}, "models": entries})
    assert summary(recipe, models) == "TIES · one density 0.1, two density 1.1"
