"""Real families beside the demo: the file, when they are offered, and one of them taken from a stand-in Hub."""

from __future__ import annotations

import dataclasses
import time

import pytest

from components.family import Family
from components.hub import downloads
from components.hub.reach import Reach
from components.merge.recipe import default_recipe
from components.models.events import judge, look_up, take_preset
from components.models.opening import MOST_EXPERTS
from components.models.presets import FILE, preset_html, presets, read_presets
from components.server.backend import download_store
from components.server.settings import ROOT, Settings
from merging import MergingError, check
from merging.hub.client import Hub
from merging.references import COMMIT, Reference
from tests.test_real_models import qwen  # noqa: F401

SHIPPED = ROOT / "examples" / FILE
GOOD = """
- title: Small
  purpose: to see whether it works
  base: {model: org/base, bytes: 1000}
  experts: [{model: org/one@v1, bytes: 2000}]
  parameters: 5000
  licence: MIT
"""


def test_the_presets_that_are_shipped():
    families = read_presets(SHIPPED)
    assert len(families) == 2
    for family in families:
        assert len(family.experts) == 2
        assert all(COMMIT.fullmatch(Reference.parse(text).revision) for text in family.typed)
        assert all(model.bytes >= 2 * family.parameters for model in (family.base, *family.experts))
    text = preset_html(families[0])
    assert (
        "3 models of 494 M parameters · Apache 2.0 · 2.96 GB to download, about 4 min at 100 Mbit/s" in text
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- [", "not valid YAML in line 1"),
        ("a: 1", "the file: Input should be a valid tuple"),
        (GOOD + "  colour: red\n", "1.colour: Extra inputs are not permitted"),
        (GOOD.replace("org/base", "../../etc"), "1.base.model: write org/name@revision"),
        (GOOD.replace("org/base", "org/base+org/lora"), "1.base.model: write org/name@revision"),
        (GOOD.replace("5000", "7_000_000_000"), "1.parameters: Input should be less than or equal to"),
        (GOOD.replace("bytes: 1000", "bytes: -1"), "1.base.bytes: Input should be greater than 0"),
        (GOOD + "  speaks_as: org/two\n", "1: speaks_as has to name one of the family's models"),
        ("- !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_a_malformed_file_is_one_sentence_and_offers_nothing(text, said, tmp_path, capsys):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(MergingError) as error:
        read_presets(tmp_path / FILE)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / FILE))
    assert "\n" not in str(error.value)
    assert presets(Settings(demo=tmp_path / "demo")) == ()
    assert said in capsys.readouterr().err


def test_what_a_server_may_not_download_is_not_offered(tmp_path):
    (tmp_path / FILE).write_text(GOOD)
    settings = Settings(demo=tmp_path / "demo")
    assert [one.title for one in presets(settings)] == ["Small"]
    assert presets(dataclasses.replace(settings, largest_download=2000))
    assert presets(dataclasses.replace(settings, largest_download=1999)) == ()
    assert presets(dataclasses.replace(settings, largest_download=0)) == ()
    assert presets(dataclasses.replace(settings, largest_model=4999)) == ()
    assert presets(Settings(demo=tmp_path / "elsewhere" / "demo")) == (), "without a file there is none"


def test_the_hub_is_asked_once_and_nobody_waits(hub):
    hub.fail("/api/models", pause=0.3, times=1)
    reach = Reach(Hub())
    before = time.monotonic()
    assert not reach.known()
    assert not reach.known()
    assert time.monotonic() - before < 0.2
    while not reach.known():
        time.sleep(0.01)
    assert [seen[2] for seen in hub.seen] == [None], "asked once, as nobody"


def test_a_silent_hub_offers_nothing(hub, monkeypatch):
    hub.fail("/api/models", status=503, times=1)
    reach = Reach(Hub())
    assert not reach.ask()
    assert not reach.known()
    assert len(hub.seen) == 1, "a silence is believed for a while"
    monkeypatch.setattr("components.hub.reach.time.monotonic", lambda: time.time())
    assert reach.ask()
    hub.fail("/api/models", pause=2)
    assert not Hub().answers(0.05)
    hub.close()
    assert not Hub().answers(1)


@pytest.mark.usefixtures("qwen")
def test_a_family_is_taken_downloaded_and_speaks_as_its_chat_model(hub, tmp_path):
    preset = read_presets(SHIPPED)[0]
    for text in preset.typed:
        reference = Reference.parse(text)
        branches = hub.models[reference.model].branches
        branches[reference.revision] = branches["main"]
    settings = Settings(demo=tmp_path, runs=tmp_path / "runs", device="cpu")
    shown, *rows = take_preset(preset, 3, "demo:base", "demo:math", *[""] * (MOST_EXPERTS - 1))
    fields, words = rows[: 1 + MOST_EXPERTS], rows[-1]
    texts = [text if isinstance(text, str) else "" for text in fields]
    assert texts[:3] == preset.typed
    first = judge(settings, None, words, shown, *texts)
    look_up(settings, first[MOST_EXPERTS + 5], None)
    id = downloads.start(settings, "local", Family("", ()), shown, *texts)
    assert download_store(settings).wait("local", id, 60).state == "done"
    chosen = judge(settings, None, words, shown, *texts)[MOST_EXPERTS + 2]
    download_store(settings).close()
    assert chosen.names == ("Qwen2.5-0.5B-Instruct", "Qwen2.5-Coder-0.5B")
    recipe = default_recipe(chosen)
    assert recipe.special_tokens == recipe.chat_template == chosen.experts[0]
    assert check(recipe).bytes_to_write
