"""The Models tab and the Hub: looked up, judged before a weight is here, downloaded as a job; tokens stay in memory."""

from __future__ import annotations

import dataclasses
import shutil

import gradio as gr
import pytest

from components.family import Family
from components.hub import downloads, search, token
from components.merge.recipe import check, default_recipe
from components.merge.yaml import from_yaml
from components.models.cards import card_html
from components.models.events import judge, judge_anew, look_up, restore, with_model
from components.models.opening import MOST_EXPERTS, choose
from components.server.backend import download_store, hub_desk
from components.server.settings import Settings
from tests.hub_server import TOKEN

PADDING = [""] * MOST_EXPERTS


@pytest.fixture
def settings(family, tmp_path):
    made = Settings(demo=family, runs=tmp_path / "runs", device="cpu")
    yield made
    download_store(made).close()


def put_up(hub, family, **facts) -> None:
    for name in ("base", "one", "two"):
        hub.add(f"org/{name}", family / name, tags=("license:mit",), **facts)


def judged(settings, *typed, stored=None, how=judge):
    """What `judge` gives after whatever it asks of the Hub was looked up."""
    rows = [*typed, *PADDING][: 1 + MOST_EXPERTS]
    first = how(settings, stored, {}, len(typed) - 1, *rows)
    asked = first[MOST_EXPERTS + 5]
    if isinstance(asked, tuple):
        assert look_up(settings, asked, stored) == asked[0]
        return judge(settings, stored, {}, len(typed) - 1, *rows)
    return first


def finish(settings, owner, *typed) -> None:
    id = downloads.start(settings, owner, Family("", ()), len(typed) - 1, *typed, *PADDING)
    job = download_store(settings).wait(owner, id, 60)
    assert job.state == "done", job.error


def test_what_is_typed_is_only_looked_up_in_a_second_step(hub, family, settings):
    put_up(hub, family)
    first = judge(settings, None, {}, 1, "org/base", "org/one", *PADDING[1:])
    assert "Asking the Hub" in first[0]
    restored = restore(settings, {"base": "org/base", "experts": ["org/one"]}, Family("", ()))
    assert "Not looked up yet" in restored[20]
    assert hub.seen == [], "neither judging nor opening the page calls out"
    result = judged(settings, "org/base", "org/one")
    assert "Fits the base" in result[1]
    assert "to download" in result[1]
    assert "mit" in result[1]
    assert result[MOST_EXPERTS + 2] == Family("", ()), "its weights are not here"
    assert result[-2]["value"] == "Download first"
    assert hub.bytes_of(".safetensors") < 40_000, "headers only"


def test_downloaded_models_are_the_family_at_their_commits(hub, family, settings):
    put_up(hub, family)
    judged(settings, "org/base", "org/one", "demo:two")
    finish(settings, "local", "org/base", "org/one", "demo:two")
    result = judged(settings, "org/base", "org/one", "demo:two")
    chosen = result[MOST_EXPERTS + 2]
    base, one = hub.models["org/base"].branches["main"], hub.models["org/one"].branches["main"]
    assert (chosen.base, chosen.experts[0]) == (f"org/base@{base}", f"org/one@{one}")
    assert chosen.names == ("one", "two")
    assert "downloaded" in result[0]
    assert result[-2]["interactive"]
    recipe = default_recipe(chosen)
    assert f"org/one@{one}" in recipe.to_yaml()
    assert check(recipe).plan is not None
    assert from_yaml(recipe.to_yaml(), chosen)[1] == []
    with pytest.raises(Exception, match="Nothing is missing"):
        finish(settings, "local", "org/base", "org/one")


def test_a_cancelled_download_goes_on_where_it_stopped(hub, family, settings):
    put_up(hub, family)
    judged(settings, "org/base", "org/one")
    slow = hub.fail("/storage/*", pause=0.02)
    id = downloads.start(settings, "local", Family("", ()), 1, "org/base", "org/one", *PADDING[1:])
    store = download_store(settings)
    while not ((job := store.get("local", id)).progress and job.progress.bytes_done):
        assert job.active
    assert " of " in downloads.progress_html(store.get("local", id))
    store.cancel("local", id)
    assert store.wait("local", id, 30).state == "cancelled"
    before = choose(settings, "org/base", ["org/one"], "local").missing
    hub.faults.remove(slow)
    sent = hub.bytes_of(".safetensors")
    finish(settings, "local", "org/base", "org/one")
    assert hub.bytes_of(".safetensors") - sent <= before
    assert choose(settings, "org/base", ["org/one"], "local").missing == 0


def test_a_gated_model_waits_for_a_token_that_is_written_nowhere(hub, family, settings, caplog):
    put_up(hub, family, gated="manual")
    result = judged(settings, "org/base", "org/one")
    assert "gated" in result[0]
    assert "Cannot be read" in result[0]
    field, forget, note = token.take(settings, f" {TOKEN} ", None)
    assert (field, forget["visible"]) == ("", True)
    result = judged(settings, "org/base", "org/one", how=judge_anew)
    assert "Fits the base" in result[1]
    finish(settings, "local", "org/base", "org/one")
    kept = [file for file in settings.runs.rglob("*") if file.is_file()]
    assert kept
    assert not any(TOKEN.encode() in file.read_bytes() for file in kept)
    assert TOKEN not in repr(hub_desk(settings)) + repr(result) + note + caplog.text
    token.forget(settings, None)
    assert not hub_desk(settings).has_token("local")
    assert "no access token" in token.take(settings, "two words", None)[2]


def test_nobody_sees_what_another_looked_up(hub, family, settings):
    shared = dataclasses.replace(
        settings,
        runs=settings.runs / "shared",
        single_owner=False,
        local_folders=False,
        largest_download=10**6,
    )
    put_up(hub, family, private=True)
    ada, bob = "a" * 32, "b" * 32
    token.take(shared, TOKEN, ada)
    assert "Fits the base" in judged(shared, "org/base", "org/one", stored=ada)[1]
    finish(shared, ada, "org/base", "org/one")
    other = judged(shared, "org/base", "org/one", stored=bob)
    assert "Cannot be read" in other[0]
    assert other[MOST_EXPERTS + 2] == Family("", ()), "though its weights are on this server"
    assert token.take(shared, TOKEN, None)[2] == token._note(token.NO_IDENTITY)


def test_a_server_says_how_much_it_downloads(hub, family, settings):
    put_up(hub, family)
    closed = dataclasses.replace(settings, largest_download=0, local_folders=False)
    assert "does not ask the Hub" in judged(closed, "org/base")[0]
    small = dataclasses.replace(settings, largest_download=1000)
    assert "this server allows 1.00 kB" in judged(small, "org/base")[0]


def test_what_the_search_finds_becomes_a_row(hub, family, settings):
    put_up(hub, family)
    found = search.search(settings, {"ask": "org"}, None)["found"]
    assert {one["id"] for one in found} == {"org/base", "org/one", "org/two"}
    assert "1.23 k downloads · 5 likes · mit · updated 2025" in found[0]["about"]
    assert search.search(settings, 3, None) == {"found": [], "note": ""}
    assert "At most 100 letters" in search.search(settings, {"ask": "x" * 500}, None)["note"]
    hub.fail("/api/models", status=500)
    assert search.search(settings, {"ask": "org"}, None)["again"]
    event = gr.EventData(None, {"id": "org/one", "role": "expert"})
    assert search.selected(event) == ("org/one", "expert")
    assert search.selected(gr.EventData(None, {"id": "../x", "role": "expert"})) == ("", "")
    rows = with_model("org/one", False, 2, "demo:base", "demo:two", "", *PADDING[2:])
    assert rows[0] == 2
    assert rows[3] == "org/one"


def test_an_adapter_alone_is_one_over_the_base(family, settings, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family / "base")
    made = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, made).save_pretrained(tmp_path / "lora")
    choice = choose(settings, "demo:base", ["demo:one", str(tmp_path / "lora")])
    card = choice.experts[1]
    assert (card.adapter.ranks, card.adapter.alphas, card.adapter.targets) == ((2,), (4,), ("q_proj",))
    assert "rank" in card_html(card, is_base=False)
    assert choice.family.experts[1] == f"{family / 'base'}+{tmp_path / 'lora'}"
    assert choice.family.names == ("one", "lora")
    assert check(default_recipe(choice.family)).plan is not None
    alone = choose(settings, str(tmp_path / "lora"), ["demo:one"])
    assert "Name its base first" in alone.base.problems[0]


def test_other_tokens_are_decided_and_become_keys_of_the_recipe(family, settings, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(family / "one")
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.eos_token, tokenizer.chat_template = "<|end|>", "{{ messages[0].content }}<|end|>"
    model = AutoModelForCausalLM.from_pretrained(family / "one")
    model.resize_token_embeddings(52)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    chat = str(tmp_path / "chat")
    model.save_pretrained(chat)
    tokenizer.save_pretrained(chat)

    def family_of(words):
        return choose(settings, "demo:base", [chat, "demo:two"], words=words).family

    assert choose(settings, "demo:base", ["demo:one", "demo:two"]).family.words == ()
    choice = choose(settings, "demo:base", [chat, "demo:two"])
    assert [one.key for one in choice.decisions] == ["tokenizer_source", "special_tokens", "chat_template"]
    assert "Decide below" in choice.experts[0].warnings[0]
    assert choice.family.words == (("tokenizer_source", "base"),)
    wanted = {"tokenizer_source": "union", "special_tokens": chat, "chat_template": "something else"}
    result = judge(settings, None, wanted, 2, "demo:base", chat, "demo:two", *PADDING[2:])
    assert "44 its own" not in result[MOST_EXPERTS + 7]
    assert "1 of another model" in result[MOST_EXPERTS + 7]
    chosen = result[MOST_EXPERTS + 2]
    assert chosen.words == (("tokenizer_source", "union"), ("special_tokens", chat))
    recipe = default_recipe(chosen)
    assert (recipe.tokenizer_source, recipe.special_tokens) == ("union", chat)
    assert check(recipe).plan.tokens.tokens == check(default_recipe(family_of({}))).plan.tokens.tokens + 1
    elsewhere = shutil.copytree(chat, tmp_path / "elsewhere")
    text = recipe.to_yaml().replace("tokenizer_source: union", f"tokenizer_source: {elsewhere}")
    assert "none of the chosen models" in from_yaml(text, chosen)[1][0]
