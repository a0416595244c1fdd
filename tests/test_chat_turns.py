"""Asking in the Chat tab: one after another where memory is short, once more, with a system prompt, and for a record."""

from __future__ import annotations

import json
import re
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from components.chat import events, views
from components.chat.export import as_json, as_markdown, forget_chat, zip_chat
from components.chat.models import COLUMNS, Visit, parent_key
from components.chat.recipe import RECIPE, page_merges
from components.chat.replies import LENGTH, NO_SYSTEM, PLAIN, PLAIN_ALONE
from components.family import Family
from components.merge.events import start_default
from components.merge.recipe import default_recipe
from components.server.backend import job_store, model_cache
from components.server.settings import Settings
from merging.inference import LoadedModel, Sampling, stream

ADA, BOB = "a" * 32, "b" * 32
DRAWN = ("", 0.0, 1.0, 0, 1.0, 12, 0)
SAMPLED = ("", 1.5, 1.0, 0, 1.0, 12, 7)
WITH_SYSTEM = ("xyz", *DRAWN[1:])
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}="
ALL = ("base", "one", "two", "three")


@pytest.fixture
def models(family, tmp_path) -> Family:
    """Copies, so that a test may damage them."""
    for name in ALL:
        shutil.copytree(family / name, tmp_path / "models" / name)
    base, *experts = (str(tmp_path / "models" / name) for name in ALL)
    return Family(base, tuple(experts))


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", demo=tmp_path / "demo", device="cpu", single_owner=False)
    yield made
    job_store(made).close()


@pytest.fixture
def short_of_memory(settings, models) -> int:
    """Room for one model and a half."""
    size = LoadedModel.load(models.base).nbytes
    model_cache(settings).limit = size * 3 // 2
    return size


def visit(settings, models, session="s", owner=ADA) -> Visit:
    return Visit(settings, session, models, default_recipe(models), owner)


def keys_of(models, *names) -> list[str]:
    known = {name: parent_key("expert", folder) for name, folder in zip(ALL[1:], models.experts, strict=True)}
    known["base"] = parent_key("base", models.base)
    return [*(known.get(name, name) for name in names), *[""] * (COLUMNS - len(names))]


def asking(here, keys, *, prompt="abc", talk=None, log=(), drawn=DRAWN):
    return events.ask(here, prompt, talk or views.silence(), log, keys, *drawn)


def shown(update) -> dict:
    return {
        "notes": update[COLUMNS : 2 * COLUMNS],
        "talk": update[2 * COLUMNS],
        "log": update[2 * COLUMNS + 1],
        "question": update[events.QUESTION],
    }


def ask(*values, **more) -> dict:
    return shown(list(asking(*values, **more))[-1])


def alone(folder, **drawn) -> str:
    question = [{"role": "user", "content": "abc"}]
    return "".join(stream(LoadedModel.load(folder), question, Sampling(max_new_tokens=12, **drawn)))


def replies(told) -> list[str]:
    return [said[-1]["content"] for said in told["talk"] if said]


# one after another


def test_models_that_do_not_fit_together_answer_in_turn(settings, models, short_of_memory):
    waiting, most = set(), 0
    for update in asking(visit(settings, models), keys_of(models, *ALL)):
        notes = shown(update)["notes"]
        waiting |= {column for column, note in enumerate(notes) if "waiting" in note}
        most = max(most, len(model_cache(settings)))
    told = shown(update)
    assert replies(told) == [alone(folder) for folder in (models.base, *models.experts)]
    assert (waiting, most) == ({1, 2, 3}, 1)
    assert "one after another" not in told["notes"][0]
    for note in told["notes"][1:]:
        assert "one after another: the models take" in note
        assert "there is room for" in note


def test_models_that_fit_answer_at_once(settings, models):
    told = ask(visit(settings, models), keys_of(models, *ALL))
    assert not any("one after another" in note for note in told["notes"])
    assert len(model_cache(settings)) == 4


def test_on_a_shared_server_one_visitor_asks_one_question_at_a_time(settings, models, monkeypatch):
    """Else four pages of one would take the four places that there are."""
    keys, said = keys_of(models, "one"), []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    first = asking(visit(settings, models, "one"), keys)
    next(first)
    assert next(asking(visit(settings, models, "two"), keys)) == events.NOTHING
    assert said == [
        "A question of yours is being answered on another page. Others wait too: let it end, or stop it there."
    ]
    other = replace(visit(settings, models, "three"), stored=BOB)
    alone = replace(visit(settings, models, "four"), settings=replace(settings, single_owner=True))
    for here in (other, alone):
        assert next(asking(here, keys)) != events.NOTHING
    first.close()
    assert next(asking(visit(settings, models, "two"), keys)) != events.NOTHING


def test_a_model_in_two_columns_needs_no_second_turn(settings, models, short_of_memory):
    told = ask(visit(settings, models), keys_of(models, "one", "one", "two"))
    assert ["one after another" in note for note in told["notes"]] == [False, False, True, False]


def test_the_recipe_takes_its_turn(settings, models, short_of_memory):
    told = ask(visit(settings, models), [RECIPE, *keys_of(models, "one")[:3]])
    assert "one after another" in told["notes"][1]
    assert replies(told)[1] == alone(models.experts[0])
    page_merges(settings).leave("s")


def test_a_stop_reaches_those_that_wait(settings, models, short_of_memory):
    running = asking(visit(settings, models), keys_of(models, *ALL), drawn=("", 0.0, 1.0, 0, 1.0, 60, 0))
    for update in running:
        if len(shown(update)["talk"][0]) == 2:
            events.stop(gr.Request(session_hash="s"))
            break
    told = shown(list(running)[-1])
    assert told["talk"][0]
    assert told["talk"][1:] == [[], [], []]
    assert all("stopped" in note for note in told["notes"][1:])
    assert events.running == {}
    assert len(model_cache(settings)) == 1


# what one column cannot do


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_file_that_breaks_after_it_was_chosen_spoils_one_column(settings, models, asked_before):
    keys = keys_of(models, *ALL)
    log, talk = (), None
    if asked_before:
        before = ask(visit(settings, models), keys)
        log, talk = before["log"], before["talk"]
    file = Path(models.experts[1]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    told = ask(visit(settings, models), keys, talk=talk, log=log)
    assert "problem" in told["notes"][2]
    assert "model.safetensors" in told["notes"][2]
    assert "Traceback" not in told["notes"][2]
    assert "went wrong" not in told["notes"][2]
    assert [len(said) for said in told["talk"]] == ([4, 4, 2, 4] if asked_before else [2, 2, 0, 2])
    assert [said.error != "" for said in told["log"][-1].replies] == [False, False, True, False]


def test_a_template_that_fails_spoils_one_column(settings, models):
    (Path(models.base) / "chat_template.jinja").write_text("{{ 1 // 0 }}")
    told = ask(visit(settings, models), keys_of(models, "base", "one"))
    assert "chat template fails" in told["notes"][0]
    assert replies(told) == [alone(models.experts[0])]


def test_every_column_says_by_what_it_was_asked(settings, models):
    id = start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, id, 60)
    (Path(models.experts[0]) / "chat_template.jinja").write_text(TEMPLATE)
    keys = [f"job:{id}", RECIPE, *keys_of(models, "base", "one")[:2]]
    notes = ask(visit(settings, models), keys)["notes"]
    assert [PLAIN in note for note in notes] == [True, True, True, False]
    notes = ask(visit(settings, models), keys, drawn=WITH_SYSTEM)["notes"]
    assert [PLAIN_ALONE in note for note in notes] == [True, True, True, False]
    page_merges(settings).leave("s")


def test_a_system_prompt_is_heard_where_the_template_takes_it(settings, models):
    takes, refuses = models.experts[:2]
    (Path(takes) / "chat_template.jinja").write_text(TEMPLATE)
    (Path(refuses) / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    told = ask(visit(settings, models), keys_of(models, "one", "two"), drawn=WITH_SYSTEM)
    assert [NO_SYSTEM in note for note in told["notes"]] == [False, True, False, False]
    heard = [said.ids.prompt for said in told["log"][0].replies]
    tokenizer = LoadedModel.load(takes).tokenizer
    assert [tokenizer.decode(ids).replace(" ", "") for ids in heard] == ["xyzabc=", "abc="]
    assert told["talk"][0][0] == {"role": "user", "content": "abc"}, "a later question may have another"


def test_a_system_prompt_that_is_too_long_is_refused(settings, models):
    with pytest.warns(UserWarning, match="The system prompt has 4,001 characters"):
        (update,) = asking(visit(settings, models), keys_of(models, "base"), drawn=("x" * 4001, *DRAWN[1:]))
    assert update == events.NOTHING
    assert events.running == {}


def test_a_model_without_end_stops_at_the_length(settings, models):
    edit = Path(models.base) / "generation_config.json"
    edit.write_text(json.dumps({**json.loads(edit.read_text()), "eos_token_id": 10_000}))
    notes = ask(visit(settings, models), keys_of(models, "base"))["notes"]
    assert "12 tokens" in notes[0]
    assert LENGTH in notes[0]
    notes = ask(visit(settings, models), keys_of(models, "base"), drawn=("", 0, 1, 0, 1, 512, 0))["notes"]
    assert "reached the end of its context, 64 tokens" in notes[0]


def test_two_visitors_ask_at_the_same_time(settings, models):
    """Each hears its own question; a stop on one does not reach the other."""
    told: dict[str, dict] = {}
    first = asking(visit(settings, models, "one page"), keys_of(models, "base", "one"))
    next(first)

    def other() -> None:
        told["other"] = ask(
            visit(settings, models, "another", BOB), keys_of(models, "base", "two"), prompt="xyz"
        )

    thread = threading.Thread(target=other)
    thread.start()
    events.stop(gr.Request(session_hash="a third"))
    told["first"] = shown(list(first)[-1])
    thread.join(30)
    assert replies(told["first"]) == [alone(models.base), alone(models.experts[0])]
    assert [said[0]["content"] for said in told["other"]["talk"] if said] == ["xyz", "xyz"]
    assert not any("stopped" in note for one in told.values() for note in one["notes"])
    assert events.running == {}


# once more


def retry(here, told, keys, drawn=DRAWN) -> tuple[dict, int]:
    update = list(events.retry(here, told["talk"], told["log"], keys, *drawn))[-1]
    return shown(update), update[-1]


def test_another_try_takes_the_next_seed_and_the_place_of_the_first(settings, models):
    here, keys = visit(settings, models), keys_of(models, "base", "one")
    first = ask(here, keys, drawn=SAMPLED)
    again, seed = retry(here, first, keys, SAMPLED)
    assert seed == 8
    assert replies(again) == [
        alone(folder, temperature=1.5, seed=8) for folder in (models.base, models.experts[0])
    ]
    assert replies(again) != replies(first)
    assert [len(said) for said in again["talk"]] == [2, 2, 0, 0]
    assert [turn.sampling.seed for turn in again["log"]] == [8]
    assert again["question"] == gr.skip(), "what is being typed stays"


def test_another_try_at_temperature_0_says_the_same_and_why(settings, models, capsys):
    here, keys = visit(settings, models), keys_of(models, "base")
    first = ask(here, keys)
    again, seed = retry(here, first, keys)
    assert (replies(again), seed) == (replies(first), 0)
    assert events.GREEDY in capsys.readouterr().out


def test_another_try_asks_those_that_failed_and_keeps_what_came_before(settings, models):
    here, keys = visit(settings, models), keys_of(models, "base", "one")
    first = ask(here, keys, prompt="xyz")
    file = Path(models.experts[0]) / "config.json"
    config = file.read_text()
    file.write_text("{")
    model_cache(settings).forget(next(key for key in model_cache(settings)._models if "one" in key[0]))
    second = ask(here, keys, talk=first["talk"], log=first["log"])
    assert [len(said) for said in second["talk"]] == [4, 2, 0, 0]
    file.write_text(config)
    again, _ = retry(here, second, keys)
    assert [len(said) for said in again["talk"]] == [4, 4, 0, 0]
    assert [turn.question for turn in again["log"]] == ["xyz", "abc"]


def test_there_is_nothing_to_retry_before_the_first_question_and_while_one_runs(
    settings, models, monkeypatch
):
    here, keys = visit(settings, models), keys_of(models, "base")
    assert list(events.retry(here, views.silence(), (), keys, *DRAWN)) == [[*events.NOTHING, gr.skip()]]
    told = ask(here, keys)
    monkeypatch.setitem(events.running, "s", events.Asking())
    assert list(events.retry(here, told["talk"], told["log"], keys, *SAMPLED)) == [
        [*events.NOTHING, gr.skip()]
    ]


def test_clearing_forgets_everything():
    update = events.clear(["base", "", "", ""])
    assert update[2 * COLUMNS : 2 * COLUMNS + 2] == [views.silence(), ()]
    assert [button["interactive"] for button in update[2 * COLUMNS + 2 :]] == [False] * 3


# for a record


@pytest.fixture
def said(settings, models) -> tuple:
    """Two questions to a merge that is not saved, a parent, and a model that is gone."""
    here, keys = visit(settings, models), [RECIPE, *keys_of(models, "one", "expert:000000000000")[:3]]
    first = ask(here, keys, drawn=WITH_SYSTEM)
    log = ask(here, keys, prompt="```\n# <b>x", talk=first["talk"], log=first["log"], drawn=SAMPLED)["log"]
    page_merges(settings).leave("s")
    return log


def test_the_record_holds_all_columns_with_models_settings_and_recipe(said, models):
    record = json.loads(json.dumps(as_json(said)))
    first, second = record["turns"]
    assert (first["question"], first["system_prompt"], second["system_prompt"]) == ("abc", "xyz", "")
    assert second["sampling"] == {
        "temperature": 1.5,
        "top_p": 1.0,
        "max_new_tokens": 12,
        "seed": 7,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }
    merge, parent, gone = first["replies"]
    assert (merge["column"], merge["recipe"], parent["recipe"]) == (1, 1, None)
    assert record["recipes"] == [default_recipe(models).to_yaml()]
    assert merge["model"].endswith("(not saved)")
    assert (parent["model"], parent["reply"], parent["tokens"]) == ("one", alone(models.experts[0]), 12)
    assert "no longer there" in gone["error"]


def test_the_record_can_be_read_and_nothing_said_leaves_its_fence(said):
    text = as_markdown(said)
    assert text.count("\n## Question ") == 2
    assert "temperature 1.5" in text
    assert "````text\n```\n# <b>x\n````" in text
    assert re.search(r"## Recipe 1\n\n```yaml\nmerge_method: ties", text)


def test_a_page_has_one_file_and_takes_it_along(said, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "upload"))
    first = zip_chat(said, "s")
    other = zip_chat(said, "another")
    second = Path(events.export(said, gr.Request(session_hash="s"))["value"])
    assert not first.exists()
    assert second.is_relative_to(tmp_path / "upload")
    with zipfile.ZipFile(second) as archive:
        assert archive.namelist() == ["mergescope-chat/chat.json", "mergescope-chat/chat.md"]
        assert json.loads(archive.read("mergescope-chat/chat.json")) == as_json(said)
    events.close(settings, gr.Request(session_hash="s"))
    assert not second.parent.exists()
    assert other.exists()
    forget_chat("another")


def test_there_is_nothing_to_export_before_the_first_question():
    with pytest.raises(gr.Error, match="Nothing was asked yet"):
        events.export((), gr.Request(session_hash="s"))
