"""The Chat tab: the same question to several models, side by side, for this owner only."""

from __future__ import annotations

import json
import shutil
import threading
import time
import warnings
from pathlib import Path

import gradio as gr
import pytest

from components.chat import columns, events, views
from components.chat.models import (
    COLUMNS,
    Visit,
    choices,
    default_keys,
    examples,
    is_demo,
    locate,
    parent_key,
)
from components.chat.replies import PLAIN, UNEXPECTED
from components.compare.events import beside
from components.compare.who import candidates
from components.family import Family
from components.merge.events import start_default
from components.merge.recipe import default_recipe
from components.models.cards import card_html
from components.models.facts import Card, read_facts
from components.server.backend import job_store
from components.server.settings import Settings
from merging.checkpoint import Checkpoint
from merging.inference import LoadedModel, Sampling, stream
from merging.jobs import JobStore
from tests.conftest import tune
from tests.families import save_family

ADA, BOB = "a" * 32, "b" * 32
LONG = ("", 0.0, 1.0, 0, 1.0, 60, 0)
DRAWN = ("", 0.0, 1.0, 0, 1.0, 12, 0)
SKIP = gr.skip()


@pytest.fixture
def models(family) -> Family:
    return Family(str(family / "base"), tuple(str(family / name) for name in ("one", "two", "three")))


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", demo=tmp_path / "demo", device="cpu", single_owner=False)
    yield made
    job_store(made).close()


@pytest.fixture
def merged(settings, models) -> str:
    id = start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, id, 60)
    return id


def keys_of(models, names) -> list[str]:
    """The keys of models by their names; what is no name of the family stays as it is."""
    known = {
        name: parent_key("expert", folder) for name, folder in zip(models.names, models.experts, strict=True)
    }
    known["base"] = parent_key("base", models.base)
    return [known.get(name, name) for name in names]


def visit(settings, models, owner=ADA, session="s", recipe=None) -> Visit:
    """A page that shows a recipe over these models."""
    return Visit(settings, session, models, recipe or default_recipe(models), owner)


def ask(settings, models, keys, prompt="abc", *, talk=None, log=(), drawn=DRAWN, **page):
    """All that the page is sent while the models answer."""
    talk = views.silence() if talk is None else talk
    here = visit(settings, models, **page)
    return list(events.ask(here, prompt, talk, log, keys_of(models, keys), *drawn))


def parts(update: list) -> dict:
    return {
        "chats": [chat["value"] for chat in update[:COLUMNS]],
        "notes": update[COLUMNS : 2 * COLUMNS],
        "talk": update[2 * COLUMNS],
        "log": update[2 * COLUMNS + 1],
        "question": update[events.QUESTION],
        "send": update[events.QUESTION + 1].get("interactive"),
        "stop": update[events.QUESTION + 2]["interactive"],
        "after": {update[events.QUESTION + place]["interactive"] for place in (3, 4, 5)},
    }


def alone(folder, prompt="abc") -> str:
    """What a model says by itself."""
    return "".join(
        stream(LoadedModel.load(folder), [{"role": "user", "content": prompt}], Sampling(max_new_tokens=12))
    )


def test_every_column_says_what_its_model_says_alone(settings, models, merged):
    keys = [f"job:{merged}", "base", "one", "three"]
    updates = [parts(update) for update in ask(settings, models, keys)]
    folders = [job_store(settings).model(ADA, merged), models.base, models.experts[0], models.experts[2]]
    last = updates[-1]
    for column, folder in enumerate(folders):
        question, answer = last["talk"][column]
        assert question == {"role": "user", "content": "abc"}
        assert answer == {"role": "assistant", "content": alone(folder)}
        assert "tokens/s" in last["notes"][column]
    assert [update["send"] for update in updates] == [False] * (len(updates) - 1) + [None]
    assert [update["after"] for update in updates] == [{False}] * (len(updates) - 1) + [{True}]
    assert [update["stop"] for update in updates] == [True] * (len(updates) - 1) + [False]
    assert updates[0]["question"] == ""
    assert len(updates) > 3, "the replies are streamed"


def test_a_model_without_a_chat_template_says_so(settings, models):
    last = parts(ask(settings, models, ["base", "", "", ""])[-1])
    assert PLAIN in last["notes"][0]
    assert last["chats"][1:] == [[], [], []]


def test_the_conversation_goes_on(settings, models):
    first = parts(ask(settings, models, ["base", "", "", ""])[-1])
    second = parts(ask(settings, models, ["base", "", "", ""], "xyz", talk=first["talk"])[-1])
    assert [said["role"] for said in second["talk"][0]] == ["user", "assistant", "user", "assistant"]


def test_what_people_and_models_write_is_shown_as_text(settings, models):
    last = parts(ask(settings, models, ["base", "", "", ""], "<img src=x> & b")[-1])
    assert last["chats"][0][0]["content"] == "&lt;img src=x&gt; &amp; b"
    assert last["talk"][0][0]["content"] == "<img src=x> & b"


@pytest.mark.parametrize(
    ("prompt", "keys"), [("  ", ["base", "", "", ""]), (None, ["base"] * 4), ("abc", [""] * 4)]
)
def test_nothing_to_ask_or_nobody_to_ask_changes_nothing(settings, models, prompt, keys):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (update,) = ask(settings, models, keys, prompt)
    assert update == events.NOTHING
    assert [str(warning.message) for warning in told] == (
        ["Choose a model in one of the columns first."] if prompt == "abc" else []
    )


def test_a_question_that_is_too_long_is_refused_and_stays(settings, models):
    with pytest.warns(UserWarning, match="has 4,001 characters, and at most 4,000"):
        (update,) = ask(settings, models, ["base", "", "", ""], "a" * 4001)
    assert update == events.NOTHING


def test_the_question_comes_back_when_every_column_failed(settings, models):
    every = parts(ask(settings, models, ["expert:000000000000", "job:x", "", ""])[-1])
    assert every["question"] == "abc"
    some = parts(ask(settings, models, ["expert:000000000000", "base", "", ""])[-1])
    assert some["question"] == SKIP


@pytest.mark.parametrize(("prompt", "ready"), [("a", True), ("", False), (" \n", False), (None, False)])
def test_there_is_nothing_to_send_without_a_question(prompt, ready, monkeypatch):
    assert events.typed(prompt, gr.Request(session_hash="s"))["interactive"] == ready
    monkeypatch.setitem(events.running, "s", events.Asking())
    assert not events.typed(prompt, gr.Request(session_hash="s"))["interactive"]


def test_a_stop_keeps_what_was_said(settings, models, monkeypatch):
    running = events.ask(
        visit(settings, models),
        "abc",
        views.silence(),
        (),
        keys_of(models, ["base", "", "", ""]),
        *LONG,
    )
    monkeypatch.setattr("components.chat.replies.stream", slowly)
    for update in running:
        if update[0]["value"][1:]:
            break
    events.stop(gr.Request(session_hash="another page"))
    assert not parts(update)["send"]
    pressed = time.monotonic()
    events.stop(gr.Request(session_hash="s"))
    last = parts(list(running)[-1])
    assert time.monotonic() - pressed < 1
    assert 0 < len(last["talk"][0][1]["content"]) < 100
    assert "stopped" in last["notes"][0]
    assert (last["stop"], last["after"]) == (False, {True})
    assert events.running == {}


def test_a_stop_does_not_wait_for_models_that_load(settings, models, monkeypatch):
    loads = threading.Event()

    def slow(*_):
        loads.wait(20)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr("components.chat.loading._load", slow)
    keys = keys_of(models, ["base", "one", "", ""])
    running = events.ask(visit(settings, models), "abc", views.silence(), (), keys, *DRAWN)
    assert "loading" in parts(next(running))["notes"][0]
    events.stop(gr.Request(session_hash="s"))
    pressed = time.monotonic()
    last = parts(list(running)[-1])
    assert time.monotonic() - pressed < 1
    loads.set()
    assert all("stopped" in note for note in last["notes"][:2])
    assert last["talk"] == views.silence()
    assert last["question"] == "abc"


def slowly(model, messages, sampling, stop, ids):
    for _ in range(200):
        if stop.wait(0.02):
            return
        yield "a"


def test_a_page_that_goes_away_stops_its_models(settings, models, monkeypatch):
    monkeypatch.setattr("components.chat.replies.stream", slowly)
    running = events.ask(
        visit(settings, models),
        "abc",
        views.silence(),
        (),
        keys_of(models, ["base", "two", "", ""]),
        *LONG,
    )
    next(running)
    next(running)
    running.close()
    for thread in threading.enumerate():
        if thread.name == "chat":
            thread.join(5)
            assert not thread.is_alive()
    assert events.running == {}


def test_a_page_is_asked_one_question_at_a_time(settings, models, monkeypatch):
    monkeypatch.setattr("components.chat.replies.stream", slowly)
    running = events.ask(
        visit(settings, models), "abc", views.silence(), (), keys_of(models, ["base", "", "", ""]), *LONG
    )
    next(running)
    (update,) = ask(settings, models, ["base", "", "", ""], session="s")
    assert update == events.NOTHING, "the first reply can still be stopped"
    running.close()


def test_a_model_that_is_gone_says_so_and_the_others_answer(settings, models, merged):
    keys = [f"job:{merged}", "base", "expert:000000000000", ""]
    job_store(settings).delete(ADA, merged)
    last = parts(ask(settings, models, keys)[-1])
    assert "no longer there" in last["notes"][0]
    assert "no longer there" in last["notes"][2]
    assert last["talk"][0] == last["talk"][2] == []
    assert len(last["talk"][1]) == 2


def test_an_unexpected_error_is_logged_and_told_plainly(settings, models, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret")
        yield

    monkeypatch.setattr("components.chat.replies.stream", broken)
    last = parts(ask(settings, models, ["base", "", "", ""])[-1])
    assert UNEXPECTED.split(";")[0] in last["notes"][0]
    assert "secret" not in last["notes"][0]
    assert "ZeroDivisionError" in caplog.text


def test_a_conversation_that_is_too_long_is_explained(settings, models):
    last = parts(ask(settings, models, ["base", "", "", ""], "a" * 80)[-1])
    assert "reads at most 64" in last["notes"][0]
    assert last["talk"][0] == []


@pytest.mark.parametrize(
    ("drawn", "taken"),
    [
        (
            ("", 99, 99, 10**9, 99, 10**9, -5),
            Sampling(temperature=2, top_p=1, top_k=1000, repetition_penalty=2, max_new_tokens=512, seed=0),
        ),
        (
            (None, -1, -1, -1, -1, -1, None),
            Sampling(temperature=0, top_p=0, top_k=0, repetition_penalty=1, max_new_tokens=1, seed=0),
        ),
        (
            (["x"], 0.5, float("nan"), "3", True, 8.7, 2**80),
            Sampling(temperature=0.5, max_new_tokens=8, seed=2**53 - 1),
        ),
    ],
)
def test_numbers_out_of_their_limits_are_brought_back(settings, models, drawn, taken):
    last = parts(ask(settings, models, ["base", "", "", ""], drawn=drawn)[-1])
    assert len(last["talk"][0]) == 2
    assert last["log"][0].sampling == taken
    assert last["log"][0].system == ""


def test_the_same_seed_answers_the_same(settings, models):
    def say(seed):
        return parts(ask(settings, models, ["base"] + [""] * 3, drawn=("", 1.5, 1.0, 0, 1.0, 20, seed))[-1])[
            "talk"
        ]

    assert say(3) == say(3)
    assert say(3) != say(4)


# who can be asked


def test_merges_come_first_and_the_parents_follow(settings, models, merged):
    store = job_store(settings)
    keys = [key for _, key in choices(store, ADA, models)]
    assert keys == keys_of(models, [f"job:{merged}", "base", "one", "two", "three", ""])
    assert default_keys(keys) == keys_of(models, [f"job:{merged}", "one", "two", "three"])
    others = [key for _, key in choices(store, BOB, models)]
    assert default_keys(others) == keys_of(models, ["base", "one", "two", "three"])
    assert choices(store, ADA, Family(models.base, ()))[1:] == [("nobody", "")]


@pytest.mark.parametrize(
    "key", ["", None, 3, "expert:-1", "expert:3", "expert:x", "job:", "job:../..", "/etc", ["base"]]
)
def test_keys_that_name_no_model(settings, models, key):
    assert locate(job_store(settings), ADA, models, key) is None


def test_nobody_talks_to_another_owners_merge(settings, models, merged):
    for owner in (BOB, "", None, "../" + ADA):
        assert locate(job_store(settings), owner, models, f"job:{merged}") is None
    last = parts(ask(settings, models, [f"job:{merged}", "", "", ""], owner=BOB)[-1])
    assert "no longer there" in last["notes"][0]


def page(settings, models, keys, *more, event=columns.refresh, talk=None, **whose) -> dict:
    """What an event makes of the tab, with the short names of the models."""
    updates = event(visit(settings, models, **whose), talk or views.silence(), keys, *more)
    names = dict(zip(keys_of(models, ["base", *models.names]), ["base", *models.names], strict=True))
    chosen = updates[3 * COLUMNS + 1]
    assert [update["value"] for update in updates[:COLUMNS]] == chosen
    return {
        "keys": [names.get(key, key) for key in chosen],
        "chosen": chosen,
        "talk": updates[3 * COLUMNS],
        "chats": [update["value"] for update in updates[COLUMNS : 2 * COLUMNS]],
        "intro": updates[3 * COLUMNS + 2],
    }


@pytest.fixture
def said() -> list:
    """Another question in every column."""
    return [[{"role": "user", "content": str(number)}] for number in range(COLUMNS)]


def test_a_fresh_merge_takes_the_first_column(settings, models, merged, said, monkeypatch):
    before = keys_of(models, ["base", "one", "two", "three"])
    after = page(settings, models, before, merged, event=columns.take_fresh, talk=said)
    assert after["keys"] == [f"job:{merged}", "one", "two", "three"]
    assert after["talk"] == [[], *said[1:]]
    assert "No merge" not in after["intro"]
    later = page(settings, models, keys_of(models, ["base", "base", "", ""]))
    assert later["keys"] == ["base", "base", "", ""], "only a fresh merge moves in by itself"
    monkeypatch.setitem(events.running, "s", events.Asking())
    busy = page(settings, models, before, merged, event=columns.take_fresh, talk=said)
    assert busy["keys"] == ["base", "one", "two", "three"], "nobody is interrupted"


def test_a_certain_merge_takes_the_first_column(settings, models, merged, said):
    newer = start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, newer, 60)
    before = keys_of(models, [f"job:{newer}", "one", "two", "three"])
    after = page(settings, models, before, merged, event=columns.take_merge, talk=said)
    assert after["keys"] == [f"job:{merged}", "one", "two", "three"]
    assert after["talk"] == [[], *said[1:]]
    elsewhere = keys_of(models, ["base", "one", f"job:{merged}", ""])
    moved = page(settings, models, elsewhere, merged, event=columns.take_merge, talk=[*said[:3], []])
    assert moved["keys"] == [f"job:{merged}", "one", "base", ""]
    assert moved["talk"] == [said[2], said[1], said[0], []], "what was said moves along"


@pytest.mark.parametrize("id", ["", "../..", "0" * 32, None, ["x"]])
def test_an_id_that_names_no_merge_changes_no_column(settings, models, merged, id):
    before = keys_of(models, ["base", "one", "two", "three"])
    assert page(settings, models, before, id, event=columns.take_merge)["keys"] == [
        "base",
        "one",
        "two",
        "three",
    ]


def test_another_owners_merge_takes_no_column(settings, models, merged):
    before = keys_of(models, ["base", "one", "two", "three"])
    updates = columns.take_merge(visit(settings, models, BOB), views.silence(), before, merged)
    assert updates[3 * COLUMNS + 1] == before


def test_without_a_merge_the_page_says_what_to_do(settings, models):
    shown = page(settings, models, ["", "", "", ""])
    assert shown["keys"] == ["base", "one", "two", "three"]
    assert "make one under Merge" in shown["intro"]


def test_a_deleted_merge_leaves_its_column(settings, models, merged):
    keys = keys_of(models, [f"job:{merged}", "one", "two", "three"])
    job_store(settings).delete(ADA, merged)
    after = page(settings, models, keys, "", event=columns.take_fresh)
    assert after["keys"] == ["base", "one", "two", "three"]


# another family


def test_another_model_in_the_same_place_has_not_heard_the_talk(settings, models, said):
    before = keys_of(models, ["base", "one", "two", "three"])
    other = Family(models.base, (models.experts[2], models.experts[1]))
    after = page(settings, other, before, event=columns.take_family, talk=said)
    assert after["keys"] == ["base", "", "two", "three"]
    assert after["talk"] == [said[0], [], said[2], said[3]]
    assert after["chats"] == after["talk"]


def test_a_reply_that_is_under_way_stays_out_of_a_column_with_another_model(settings, models, monkeypatch):
    monkeypatch.setattr("components.chat.replies.stream", slowly)
    keys = keys_of(models, ["base", "one", "two", ""])
    running = events.ask(visit(settings, models), "abc", views.silence(), (), keys, *LONG)
    next(running)
    other = Family(models.base, models.experts[1:])
    columns.take_family(visit(settings, other), views.silence(), keys)
    columns.choose(2, visit(settings, models), "", views.silence(), keys)
    events.stop(gr.Request(session_hash="s"))
    last = list(running)[-1]
    assert "value" in last[0]
    for column in (1, 2):
        assert last[column] == last[COLUMNS + column] == SKIP
        assert last[2 * COLUMNS][column] == []


def test_a_family_typed_model_by_model_fills_the_columns(settings, models, merged):
    demo = keys_of(models, [f"job:{merged}", "one", "two", "three"])
    base, *experts = (models.base, *models.experts)
    shown = page(settings, Family(experts[0], ()), demo, event=columns.take_family)
    assert shown["keys"] == [f"job:{merged}", "", "", ""]
    shown = page(settings, Family(base, ()), shown["chosen"], event=columns.take_family)
    for count, names in enumerate((["one", "base", ""], ["one", "two", "base"], ["one", "two", "three"]), 1):
        typed = Family(base, tuple(experts[:count]))
        shown = page(settings, typed, shown["chosen"], event=columns.take_family)
        assert shown["keys"] == [f"job:{merged}", *names]


def test_fewer_models_leave_columns_and_more_fill_them(settings, models):
    all_four = keys_of(models, ["base", "one", "two", "three"])
    smaller = Family(models.base, models.experts[:1])
    assert page(settings, smaller, all_four, event=columns.take_family)["keys"] == ["base", "one", "", ""]
    few = keys_of(models, ["base", "one", "", ""])
    after = page(settings, models, few, event=columns.take_family)
    assert after["keys"] == ["base", "one", "two", "three"]


def test_choosing_another_model_clears_its_column_only(settings, models, said):
    before = keys_of(models, ["base", "one", "two", "three"])
    shown, chat, note, talk, chosen = columns.choose(2, visit(settings, models), "other", said, before)
    assert (shown, chat["value"], note) == ("other", [], "")
    assert talk == [said[0], said[1], [], said[3]]
    assert chosen == [*before[:2], "other", before[3]]


def test_leaving_the_list_of_models_keeps_what_was_said(settings, models, said):
    before = keys_of(models, ["base", "one", "two", "three"])
    assert columns.choose(2, visit(settings, models), before[2], said, before) == [SKIP] * 5


# the demo's questions


@pytest.fixture
def demo(settings, family):
    """A demo folder with one task whose answer is what the base says."""
    shutil.copytree(family / "base", settings.demo / "base")
    shutil.copytree(family / "one", settings.demo / "one")
    data = settings.demo / "data" / "task"
    data.mkdir(parents=True)
    right = alone(family / "base").strip()
    (data / "test.jsonl").write_text(f'{{"prompt": "abc", "answer": "{right}"}}\n')
    return Family(str(settings.demo / "base"), (str(settings.demo / "one"),))


def test_known_answers_are_judged(settings, demo):
    assert [example.prompt for example in examples(settings.demo)] == ["abc"]
    last = parts(ask(settings, demo, ["base", "one", "", ""])[-1])
    assert "badge-good" in last["notes"][0]
    one = alone(demo.experts[0]).strip()
    assert ("badge-good" in last["notes"][1]) == (one == examples(settings.demo)[0].answer)


def test_the_limits_are_told_for_the_demo_only(settings, demo, models):
    assert is_demo(settings, demo)
    assert not is_demo(settings, models)
    assert views.LIMITS in views.intro_html(settings, demo, merged=True)
    assert views.intro_html(settings, models, merged=True) == ""


@pytest.mark.parametrize("results", [None, "", "[1]", '{"base": 1}', '{"base": {"math": ["x"]}}'])
def test_examples_do_without_recorded_replies(tmp_path, results):
    assert [example.prompt for example in examples(recorded_demo(tmp_path, results))] == ["one", "two"]


def test_examples_are_those_that_tell_the_models_apart(tmp_path):
    said = {
        "base": {"math": ["1", "x", "x"]},
        "math": {"math": ["1", "x", "3"]},
        "code": {"math": ["1", "x", "x"]},
    }
    demo = recorded_demo(tmp_path, json.dumps(said))
    assert [example.prompt for example in examples(demo)] == ["three", "one"]


def recorded_demo(folder, results) -> Path:
    """A folder with three questions of one task, and `results` as the recorded replies."""
    (folder / "data" / "math").mkdir(parents=True)
    lines = [f'{{"prompt": "{word}", "answer": "{n}"}}' for n, word in enumerate(("one", "two", "three"), 1)]
    (folder / "data" / "math" / "test.jsonl").write_text("\n".join(lines))
    if results is not None:
        (folder / "results.json").write_text(results)
    return folder


def test_without_the_demo_there_are_no_examples(settings):
    assert examples(settings.demo / "nowhere") == ()


@pytest.mark.parametrize("name", ["BertClassifier", "T5"])
def test_the_page_offers_what_a_model_that_does_not_write_can_do(name, tmp_path):
    base = save_family(name, tmp_path / "base")
    family = Family(str(base), (str(tune(base, tmp_path / "one", seed=1)),))
    card = card_html(Card("base", read_facts(Checkpoint.open(base))), is_base=True)
    intro = views.intro_html(Settings(), family, merged=True)
    offered = choices(JobStore(tmp_path / "jobs"), "me", family)
    if name == "T5":
        assert len(offered) == 3
        assert "<dd>tied</dd>" in card
    else:
        assert [key for _, key in offered] == [""]
        assert "inspected, merged and saved" in intro
        assert "inspected, merged and saved" in beside(family)
        assert candidates(Settings(), "me", family, default_recipe(family)) == []
        assert "inspected, merged and saved" in card
