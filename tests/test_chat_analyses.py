"""The Chat tab's token view and its bars of one part put back: what is chosen, shown and refused."""

from __future__ import annotations

import math
import re
import threading
import time

import gradio as gr
import pytest

from components.chat import layers, tokens
from components.chat.heard import Columns
from components.chat.log import Said, Turn
from components.chat.models import Visit, parent_key
from components.chat.recipe import RECIPE
from components.family import Family
from components.figures.layers import DOWN, UP, layers_chart, worded
from components.merge.recipe import default_recipe
from components.server.backend import job_store, model_cache
from components.server.settings import Settings
from merging.answering import put_back
from merging.answering.drawing import Sampling
from merging.answering.put_back import EVERYTHING, NOTHING, PartPutBack
from merging.answering.token_view import Candidate, ComparedToken, Prediction, TokenView, token_view
from merging.inference import LoadedModel, stream
from merging.tokenizing.prompts import TokenIds
from tests.conftest import save_llama

QUESTION = [{"role": "user", "content": "a+b="}]
SKIP = gr.skip()


@pytest.fixture
def models(family) -> Family:
    return Family(str(family / "base"), (str(family / "one"), str(family / "two")))


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", demo=tmp_path / "demo", device="cpu", single_owner=True)
    yield made
    job_store(made).close()


@pytest.fixture
def visit(settings, models) -> Visit:
    return Visit(settings, "page", models, default_recipe(models), None)


@pytest.fixture
def keys(models) -> list[str]:
    return [parent_key("base", models.base), *(parent_key("expert", one) for one in models.experts), ""]


def asked(visit: Visit, keys, *columns: int, recipe: str = "") -> Columns:
    """Columns of which some have replied, in truth, to one question."""
    talk: list = [[] for _ in keys]
    replies = []
    for column in columns:
        ids = TokenIds()
        folder = [visit.family.base, *visit.family.experts][column]
        text = "".join(stream(LoadedModel.load(folder), QUESTION, Sampling(max_new_tokens=6), ids=ids))
        talk[column] = [*QUESTION, {"role": "assistant", "content": text}]
        replies.append(Said(column, keys[column], "it", recipe, text, ids, len(ids.reply), None, ()))
    return Columns(talk, keys, (Turn("a+b=", "", Sampling(), tuple(replies)),))


def test_a_reply_is_found_with_its_tokens_until_something_else_is_there(visit, keys):
    columns = asked(visit, keys, 0, 1)
    assert columns.heard == [0, 1]
    assert columns.last(1).ids.reply
    other = Columns(columns.talk, [*keys[:1], keys[2], *keys[2:]], columns.log)
    assert other.heard == [0]
    cleared = Columns([[] for _ in keys], keys, ())
    assert cleared.heard == []


def test_the_panel_offers_columns_with_a_model_and_chooses_one_that_replied(visit, keys):
    reply, judge, show = tokens.follow(visit, asked(visit, keys, 1), None, None)
    assert [label for label, _ in reply["choices"]] == ["1 · base", "2 · one", "3 · two"]
    assert (reply["value"], judge["value"], show["interactive"]) == ("1", "0", True)
    kept = tokens.follow(visit, asked(visit, keys, 0, 1), "1", "2")
    assert [kept[0]["value"], kept[1]["value"]] == ["1", "2"]
    silent = tokens.follow(visit, Columns([[]] * 4, keys, ()), "1", "2")
    assert not silent[2]["interactive"]
    alone = tokens.follow(visit, asked(visit, [keys[0], "", "", ""], 0), None, None)
    assert (alone[1]["value"], alone[2]["interactive"]) == (None, False)


def test_shown_tokens_are_those_of_the_reply(visit, keys, models):
    columns = asked(visit, keys, 1)
    *_, (said, view, table, button) = tokens.show(visit, columns, "1", "0")
    ids = columns.last(1).ids
    cache = model_cache(visit.settings)
    found = token_view(cache.get(models.experts[0]), cache.get(models.base), ids.prompt, ids.reply).tokens
    assert [token["text"] for token in view["tokens"]] == [token.text for token in found]
    assert [token["nats"] for token in view["tokens"]] == [tokens.nats(token.divergence) for token in found]
    assert (said, button["interactive"], view["names"]) == ("", True, ["2 · one", "1 · base"])
    assert table.count("<tr>") == 1 + len(found)


@pytest.mark.parametrize(
    ("reply", "judge", "words"),
    [
        ("0", "1", "not replied yet"),
        ("1", "1", "same model"),
        ("3", "1", "has no model now"),
        ("9", "1", "has no model now"),
        (None, ["1"], "has no model now"),
        ("1", "-1", "has no model now"),
        pytest.param("9" * 5000, "1", "has no model now", id="huge"),
    ],
)
def test_tokens_that_cannot_be_compared_are_explained(visit, keys, reply, judge, words):
    *_, (said, view, table, _) = tokens.show(visit, asked(visit, keys, 1), reply, judge)
    assert words in said
    assert (view, table) == ({"empty": tokens.EMPTY}, "")


def test_a_model_that_is_gone_or_fails_is_explained(visit, keys, monkeypatch, caplog):
    lost = [*keys[:2], "expert:000000000000", ""]
    *_, (said, _, _, _) = tokens.show(visit, asked(visit, lost, 1), "1", "2")
    assert "no longer there" in said

    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(tokens, "token_view", broken)
    *_, (said, _, _, _) = tokens.show(visit, asked(visit, keys, 1), "1", "0")
    assert "went wrong" in said
    assert "secret" not in said
    assert "ZeroDivisionError" in caplog.text


def compared(text: str, divergence: float = 0.5, rank: int = 3) -> ComparedToken:
    best = (Candidate(text, 0.75), Candidate("=1+1", 0.00001))
    return ComparedToken(7, text, divergence, Prediction(0.75, 1, best), Prediction(0.25, rank, best))


def test_texts_of_models_are_never_html_and_csv_runs_nothing():
    view = TokenView((compared("<img src=x onerror=alert(1)>"), compared("=1+1")))
    table = tokens.table_html(view, ("1 · <b>", "2 · ${alert(1)}"))
    assert "<img" not in table
    assert "<b>" not in table
    assert "%27%3D1%2B1" in table


def test_shades_and_numbers():
    steps = [tokens.view_value(TokenView((compared("a", kl, rank),)), ("1", "2"))["tokens"][0] for kl, rank in (
        (0.0, 1), (0.001, 2), (0.05, 5), (2.9, 6), (math.inf, 999),
    )]  # fmt: skip
    assert [one["divergence"] for one in steps] == [0, 1, 4, 7, 8]
    assert [one["rank"] for one in steps] == [0, 2, 4, 6, 8]
    assert [one["nats"] for one in steps] == ["0", "0.001", "0.05", "2.9", "∞"]
    assert [tokens.share(value) for value in (1.0, 0.0123, 0.00005, 0.0)] == [
        "100.0 %",
        "1.23 %",
        "< 0.01 %",
        "0.00 %",
    ]
    cut = tokens.view_value(TokenView((compared("a"),), 9), ("1", "2"))
    assert "first 1 tokens; 9 follow" in cut["title"]


def test_text_on_every_shade_can_be_read_in_light_and_dark():
    def luminance(colour: str) -> float:
        long = colour * 2 if len(colour) == 3 else colour
        parts = [int(long[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    rules = re.findall(r'data-step="(\d)"\] \{ background: var\(--tk-\d\); color: (.+?); \}', tokens.CSS)
    assert [step for step, _ in rules] == list("12345678")
    for theme in re.findall(r"\{ (--tk-1.*?) \}", tokens.CSS, re.DOTALL):
        colours = dict(re.findall(r"(--tk-\w+): #(\w+)", theme))
        for step, ink in rules:
            name = re.search(r"--tk-\w+", ink)
            letters = colours[name.group()] if name else ink.removeprefix("#")
            light, dark = sorted((luminance(colours[f"--tk-{step}"]), luminance(letters)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (step, theme)


# which layers did it


def run(visit, columns, column, donor, answer) -> list:
    return list(layers.run(visit, columns, column, donor, answer))


def test_the_layers_panel_follows_the_columns(visit, keys):
    columns = asked(visit, keys, 0, 1)
    column, donor, answer, button = layers.follow(visit, columns, None, None)
    assert (column["value"], donor["value"], button["interactive"]) == ("1", keys[0], True)
    assert [label for label, _ in donor["choices"]] == ["base", "one", "two"]
    assert answer == columns.last(1).text
    kept = layers.follow(visit, columns, "0", keys[2])
    assert [one["value"] for one in kept[:2]] == ["0", keys[2]]
    assert layers.choose(visit, columns, "2") == layers.choose(visit, columns, "x") == ""


def test_a_merge_that_replied_is_chosen_before_its_parents(visit, keys):
    spoken = asked(visit, keys, 1, 2)
    chosen = [keys[0], keys[1], RECIPE, ""]
    log = tuple(
        Turn("a", "", Sampling(), tuple(Said(*_with_key(one, chosen)) for one in turn.replies))
        for turn in spoken.log
    )
    column, donor, _, _ = layers.follow(visit, Columns(spoken.talk, chosen, log), None, None)
    assert (column["value"], donor["value"]) == ("2", keys[0])


def _with_key(said: Said, chosen) -> tuple:
    return (said.column, chosen[said.column], said.model, "", said.text, said.ids, said.tokens, None, ())


def test_a_run_shows_every_part_and_ends_with_the_donor(visit, keys, models):
    columns = asked(visit, keys, 1)
    said = columns.last(1)
    updates = run(visit, columns, "1", keys[0], said.text)
    last = updates[-1]
    cache = model_cache(visit.settings)
    swap = put_back.PutBack(
        cache.get(models.experts[0]), cache.get(models.base), said.ids.prompt, said.ids.reply
    )
    expected = [one.change for one in swap.run()]
    assert last[1]["data"][0]["y"] == pytest.approx(expected[1:-1])
    assert (last[0], last[3]["interactive"], last[4]["interactive"]) == ("", True, False)
    assert "everything (base itself)" in last[2]
    assert not updates[0][3]["interactive"]
    assert len([update for update in updates if update[0] != SKIP]) == 1 + len(expected) + 1
    assert layers._running == {}


def test_the_answer_can_be_another_one_and_then_its_end_counts(visit, keys, models):
    columns = asked(visit, keys, 1)
    model = LoadedModel.load(models.experts[0])
    ids = [*model.tokenizer("xyz")["input_ids"], *model.end_ids]
    first = next(put_back.PutBack(model, model, columns.last(1).ids.prompt, ids).run())
    *_, last = run(visit, columns, "1", keys[0], "xyz")
    assert f"{first.log_likelihood:.4f}" in last[2]


@pytest.mark.parametrize(
    ("column", "donor", "answer", "words"),
    [
        ("0", 1, "x", "not replied yet"),
        ("3", 0, "x", "has no model now"),
        ("1", 1, "x", "holds that model already"),
        ("1", 0, " ", "no answer to measure"),
        ("1", 0, None, "no answer to measure"),
        ("1", 0, "a" * 4001, "has 4,001 characters"),
        ("1", 0, "a" * 80, "reads at most 64"),
        ("1", 3, "x", "no longer there"),
        ("1", None, "x", "no longer there"),
    ],
)
def test_runs_that_make_no_sense_are_explained(visit, keys, column, donor, answer, words):
    chosen = keys[donor] if donor is not None else "job:../.."
    *_, last = run(visit, asked(visit, keys, 1), column, chosen, answer)
    assert words in last[0]
    assert (last[1], last[3]["interactive"], last[4]["interactive"]) == (None, True, False)


def test_a_donor_of_another_shape_is_refused_in_a_sentence(settings, models, keys, tmp_path):
    wide = str(save_llama(tmp_path / "wide", intermediate_size=64))
    family = Family(models.base, (models.experts[0], wide))
    visit = Visit(settings, "page", family, default_recipe(models), None)
    *_, last = run(visit, asked(visit, keys, 1), "1", parent_key("expert", wide), "x")
    assert "different shapes" in last[0]


def test_a_cancelled_run_keeps_its_bars_and_ends_at_once(visit, keys, monkeypatch):
    real = put_back.PutBack.run

    def slow(self):
        for number, one in enumerate(real(self)):
            yield one
            if number == 2 and not self._stop.wait(20):
                raise AssertionError("nobody cancelled")

    monkeypatch.setattr(put_back.PutBack, "run", slow)
    columns = asked(visit, keys, 1)
    running = layers.run(visit, columns, "1", keys[0], "xyz")
    for update in running:
        if update[0] != SKIP and "2 of" in update[0]:
            break
    (busy,) = run(visit, columns, "1", keys[0], "xyz")
    assert "measures already" in busy[0]
    assert not layers.follow(visit, columns, "1", keys[0])[3]["interactive"]
    pressed = time.monotonic()
    layers.cancel(gr.Request(session_hash="another page"))
    layers.cancel(gr.Request(session_hash="page"))
    *_, last = running
    assert time.monotonic() - pressed < 1
    assert "Cancelled: 2 of 6 measured" in last[0]
    assert last[1]["data"][0]["y"][2:] == [None] * 3
    assert layers._running == {}


def test_a_cancel_does_not_wait_for_models_that_load(visit, keys, monkeypatch):
    loads = threading.Event()
    monkeypatch.setattr(layers, "model_of", lambda *_: loads.wait(20))
    running = layers.run(visit, asked(visit, keys, 1), "1", keys[0], "xyz")
    next(running)
    assert next(running)[0] == SKIP
    pressed = time.monotonic()
    layers.cancel(gr.Request(session_hash="page"))
    *_, last = running
    assert time.monotonic() - pressed < 2
    assert "before anything was measured" in last[0]
    loads.set()


def test_a_page_that_goes_away_ends_its_run(visit, keys):
    running = layers.run(visit, asked(visit, keys, 1), "1", keys[0], "xyz")
    next(running)
    next(running)
    running.close()
    assert layers._running == {}
    for thread in threading.enumerate():
        if thread.name == "measuring":
            thread.join(60)
            assert not thread.is_alive()


def test_a_bar_for_every_part_and_a_gap_where_none_is_measured():
    found = [
        PartPutBack(NOTHING, -2.0, 0.0),
        PartPutBack("embeddings", -1.0, 1.0),
        PartPutBack("block 0", -4.0, -2.0),
    ]
    chart = layers_chart(("embeddings", "block 0", "block 1", "final norm"), found, "merge", "a <base>")
    (bars,) = chart.figure.data
    assert list(bars.x) == ["emb", "0", "1", "norm"]
    assert list(bars.y) == [1.0, -2.0, None, None]
    assert list(bars.marker.color)[:2] == [UP, DOWN]
    assert "From -2 nats (block 0) to +1 nats (embeddings)" in chart.alt
    assert "put back to a <base>" in chart.alt, "it is read out, not drawn"
    whole = layers_chart(("block 0",), [*found, PartPutBack(EVERYTHING, -3.0, -1.0)], "merge", "base")
    assert "everything put back, which is base itself, -3." in whole.note
    assert layers_chart(("block 0",), [], "merge", "base") is None
    assert worded(math.log(2)) == "the answer is 2 times likelier"
    assert worded(-800) == "the answer is 1e+304 times less likely"
    assert worded(0.001) == "the answer is as likely as before"
