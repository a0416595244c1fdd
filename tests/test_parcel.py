"""What leaves this machine with a merge: a card for strangers, pictures that were measured, and nothing of the machine."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import merging
from merging import MergingError, Recipe
from merging.cards import pictures as card_pictures
from merging.cards.lineage import Ancestor, lineage_of_plan
from merging.cards.model_card import model_card
from merging.cards.parcel import CHANGED, GONE, NO_BASE, parcel
from merging.cards.scores import card_scores
from merging.evaluation import ItemResult, Perplexity, SuiteResult
from merging.hub.pinning import names_elsewhere
from merging.judging.history import FILE, LOCAL_OWNER, Draft, History
from merging.judging.intervals import Interval
from merging.judging.suites import Item, Suite
from merging.recipe import ModelEntry
from merging.reports.report import Grid
from tests.conftest import edit_config
from tests.families import save_family
from tests.hub_server import TOKEN

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def own(family, tmp_path_factory):
    """The family in a folder of this module's own, and a TIES merge of it."""
    root = tmp_path_factory.mktemp("someone") / "private"
    shutil.copytree(family, root)
    edit_config(root / "base", drafter={"_name_or_path": str(root / "base")})
    said = root / "one" / "tokenizer_config.json"
    places = {"name_or_path": str(root), "special_tokens_map_file": str(root / "special_tokens_map.json")}
    said.write_text(json.dumps({**json.loads(said.read_text()), **places}))
    recipe = Recipe(
        merge_method="ties",
        base_model=str(root / "base"),
        models=(ModelEntry(model=str(root / "one")), ModelEntry(model=str(root / "two"))),
        parameters={"density": 0.5},
        tokenizer_source=str(root / "one"),
        profile="paper",
    )
    return root, merging.merge(recipe, root / "merged")


@pytest.fixture(scope="module")
def packed(own):
    return parcel(own[1], name="me/my-merge")


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_all_that_a_stranger_needs(own, packed):
    card = packed["README.md"].decode()
    found = front(card)
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-generation"
    assert found["tags"] == ["merge", "mergescope", "ties"]
    headings = re.findall(r"^## (.*)$", card, re.M)
    wanted = ["How to use it", "Parents", "Licences", "Maps", "What was attained", "How it was made"]
    assert [one for one in headings if one in wanted] == wanted
    taken = "TIES took what sets one and two (the experts) apart from base (the base)"
    assert f"{taken}, and put it together into one model." in card
    assert re.search(r"Made with Mergescope \S+, torch \S+, transformers \S+ and Python 3", card)
    assert "no legal advice" in card
    assert "FOLDER" not in card.split("## Parents")[0]
    assert "In place of `FOLDER` write where this model lies." in (own[1] / "README.md").read_text()


def test_its_lines_of_code_run(own, packed):
    """With the folder in place of the name on the Hub."""
    code = packed["README.md"].decode().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    exec(code.replace("me/my-merge", str(own[1])), {})


def test_every_picture_is_in_the_card_and_is_one(packed):
    card = packed["README.md"].decode()
    shown = re.findall(r"!\[([^\]]+)\]\((pictures/\w+\.png)\)", card)
    assert [file for _, file in shown] == [f"pictures/{n}.png" for n in ("change", "conflict", "fate")]
    assert {name for name in packed if name.endswith(".png")} == {file for _, file in shown}
    for alt, file in shown:
        assert re.search(r"\d", alt), alt
        image = Image.open(io.BytesIO(packed[file]))
        assert image.width == 1400
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_nothing_of_this_machine_is_in_any_file(own, packed, tmp_path):
    root, merged = own
    home = tmp_path / "home"
    shutil.copytree(merged, home)
    for name, content in packed.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(content)
    for file in (one for one in home.rglob("*") if one.is_file()):
        content = file.read_bytes()
        assert str(root.parent).encode() not in content, file
        assert b"someone" not in content, file
    recipe = Recipe.load(home / "mergescope.yaml")
    assert (recipe.base_model, recipe.tokenizer_source) == ("base", "one")
    assert [entry.model for entry in recipe.models] == ["one", "two"]
    assert str(root / "one") in (merged / "mergescope.yaml").read_text(), "where it was made, paths stay"


def test_weights_that_tell_of_this_machine_stay_here(own, tmp_path):
    root, merged = own
    folder = shutil.copytree(merged, tmp_path / "merged")
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"recipe": f"base_model: {root}/base"})
    with pytest.raises(MergingError, match=r"merged: its weights name folders of this machine.*Merge again"):
        parcel(folder)


def test_what_goes_home_is_merged_again_beside_its_parents(own, packed, tmp_path):
    root, merged = own
    for name in ("base", "one", "two"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "mergescope.yaml").write_bytes(packed["mergescope.yaml"])
    again = merging.merge(tmp_path / "mergescope.yaml", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("harm", "words"), [("gone", GONE), ("changed", CHANGED)])
def test_no_picture_is_invented(family, tmp_path, write_recipe, harm, words):
    shutil.copytree(family, tmp_path / "family")
    merged = merging.merge(write_recipe(tmp_path / "family", "ties"), tmp_path / "merged")
    shutil.rmtree(tmp_path / "family" / "two")
    if harm == "changed":
        shutil.copytree(tmp_path / "family" / "three", tmp_path / "family" / "two")
    files = parcel(merged)
    assert set(files) == {"README.md", "mergescope.yaml"}
    assert words in files["README.md"].decode()


def test_a_merge_without_a_base_has_no_maps(family, tmp_path, write_recipe):
    merged = merging.merge(write_recipe(family, "linear", base_model=None), tmp_path / "merged")
    assert NO_BASE in parcel(merged)["README.md"].decode()


def test_a_readme_of_ones_own_keeps_its_words(own, tmp_path):
    shutil.copytree(own[1], tmp_path / "merged")
    (tmp_path / "merged" / "README.md").write_text("# My words\n")
    card = parcel(tmp_path / "merged")["README.md"].decode()
    assert card.startswith("# My words\n\n## Maps")


def test_scores_stand_in_a_table_with_their_intervals(own, tmp_path):
    history, owner = History(tmp_path / "history.sqlite"), "a" * 32
    plan = merging.check(own[1] / "mergescope.yaml")
    run = history.add(owner, Draft.of(plan))
    suite = Suite("sums | <b>", (Item("1 + 1", "2"), Item("2 + 2", "4")))
    for subject, right in ((run.subject, 2), (run.models[1].fingerprint, 1)):
        scored(history, owner, subject, suite, right)
        history.put_perplexity(
            owner, subject, Perplexity("a tale", 40, 2.5, 12.345, Interval(11, 13.5)), "text"
        )
    card = parcel(own[1], scores=card_scores(history, owner, own[1]))["README.md"].decode()
    assert card.index("## Scores") < card.index("## Maps")
    assert "| model | `sums / <b>` | `a tale, perplexity` |" in card
    assert "| `this merge` | 100.0 % (34.2 % to 100.0 %) | 12.35 (11 to 13.5) |" in card
    assert "| `one` | 50.0 % (9.5 % to 90.5 %) | 12.35 (11 to 13.5) |" in card
    assert "lower is better" in card
    assert card_scores(history, "b" * 32, own[1]) == [], "another owner has measured nothing"


def scored(history: History, owner: str, subject: str, suite: Suite, right: int) -> None:
    items = tuple(
        ItemResult(one.prompt, one.answer, "?", number < right) for number, one in enumerate(suite.items)
    )
    history.put_score(owner, subject, SuiteResult(suite.name, items), suite)


def test_other_questions_under_the_same_name_are_another_column(own, tmp_path):
    history, owner = History(tmp_path / "history.sqlite"), "a" * 32
    run = history.add(owner, Draft.of(merging.check(own[1] / "mergescope.yaml")))
    one, two = (Suite("sums", (Item("1 + 1", "2"), Item(prompt, "4"))) for prompt in ("2 + 2", "1 + 3"))
    scored(history, owner, run.subject, one, 2)
    scored(history, owner, run.subject, two, 1)
    scored(history, owner, run.models[1].fingerprint, two, 0)
    card = parcel(own[1], scores=card_scores(history, owner, own[1]))["README.md"].decode()
    rows = dict(line.split(" | ", 1) for line in card.splitlines() if line.startswith("| "))
    columns = rows["| model"].strip(" |").split(" | ")
    assert sorted(columns) == ["`sums (2)`", "`sums`"]
    cells = {
        model: dict(zip(columns, rows[f"| `{model}`"].strip(" |").split(" | "), strict=True))
        for model in ("this merge", "one")
    }
    found = {
        cells["this merge"][name].partition(" (")[0]: cells["one"][name].partition(" (")[0]
        for name in columns
    }
    assert found == {"100.0 %": "–", "50.0 %": "0.0 %"}


def test_the_command_line_takes_the_scores_of_the_app(own, tmp_path, hub, command_line, monkeypatch):
    monkeypatch.setenv("MERGESCOPE_RUNS", str(tmp_path))
    said = command_line("push", own[1], "mira/merge").stderr
    assert "run `hf auth login`, or set HF_TOKEN" in said
    history = History(tmp_path / FILE)
    run = history.add(LOCAL_OWNER, Draft.of(merging.check(own[1] / "mergescope.yaml")))
    scored(history, LOCAL_OWNER, run.subject, Suite("sums", (Item("1 + 1", "2"),)), 1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert command_line("push", own[1], "mira/merge").returncode == 0
    model = hub.models["mira/merge"]
    card = model.commits[model.branches["main"]]["README.md"].read_text()
    assert "| `this merge` | 100.0 %" in card
    assert 'model="mira/merge"' in card


@pytest.mark.parametrize("name", ["BertMasked", "T5"])
def test_other_kinds_of_models_are_used_in_their_own_way(tmp_path, name):
    for seed, folder in enumerate(("base", "one")):
        save_family(name, tmp_path / folder, seed=seed)
    recipe = Recipe(
        merge_method="slerp",
        base_model=str(tmp_path / "base"),
        models=(ModelEntry(model=str(tmp_path / "one")),),
        parameters={"t": 0.5},
    )
    card = merging.merge(recipe, tmp_path / "out").joinpath("README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace('"FOLDER"', repr(str(tmp_path / "out"))), {})
    assert front(card).get("pipeline_tag") == {"BertMasked": "fill-mask", "T5": None}[name]


def test_parents_on_the_hub_are_linked_at_their_commit(family, write_recipe, tmp_path):
    plan = merging.check(write_recipe(family, "ties"))
    finished = [*merging.run(write_recipe(family, "ties"), tmp_path / "out")][-1]
    lineage = Ancestor(
        "",
        method="ties",
        parents=(
            Ancestor(f"org/base@{COMMIT}", is_base=True, licences=("apache-2.0",)),
            Ancestor(f"org/math@{COMMIT}+org/lora@{COMMIT}", licences=("apache-2.0",)),
            Ancestor("<script>x</script>|`](y)", licences=("no, [x](y) <b>",)),
        ),
    )  # fmt: skip
    card = model_card(plan, finished, lineage, {})
    link = f"https://huggingface.co/org/base/tree/{COMMIT}"
    assert f"- [org/base]({link}) (the base); licence `apache-2.0`" in card
    assert f"with the adapter [org/lora](https://huggingface.co/org/lora/tree/{COMMIT})" in card
    facts = front(card)
    assert facts["base_model"] == ["org/base", "org/math"]
    assert facts["base_model_relation"] == "merge"
    assert facts["license"] == "other"
    outside_code = re.sub(r"`[^`\n]*`|\\.", "", card)
    assert "<script" not in outside_code
    assert "<b>" not in outside_code
    assert front(model_card(plan, finished, lineage_of_plan(plan), {})).get("base_model") is None


def test_names_elsewhere_are_short_and_differ(tmp_path):
    places = [tmp_path / "a" / "model", tmp_path / "b" / "model", tmp_path / "c" / "x.safetensors"]
    recipe = Recipe(
        merge_method="ties",
        base_model="org/base@main",
        models=(
            *(ModelEntry(model=str(place)) for place in places),
            ModelEntry(model=f"{places[0]}+org/lora"),
        ),
        importance=str(tmp_path / "importance.safetensors"),
    )
    assert names_elsewhere(recipe, {"org/base@main": f"org/base@{COMMIT}"}) == {
        "org/base@main": f"org/base@{COMMIT}",
        str(places[0]): "model",
        str(places[1]): "model-2",
        str(places[2]): "c",
        f"{places[0]}+org/lora": "model+org/lora",
    }


def test_a_map_of_any_number_of_modules_is_drawn():
    columns = 600
    grid = Grid([0], [f"kind {number}" for number in range(columns)], [[0.5] * columns])
    panel = card_pictures._Panel("one", grid, lambda row, column: 0.5, "{:.2f}".format)
    assert card_pictures._maps("Change", [panel], card_pictures.CIVIDIS, ["a", "b", "c"]).startswith(
        b"\x89PNG"
    )


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.0015, 0.0025, 1.0])
def test_a_share_too_thin_for_a_gap_is_drawn_all_the_same(share):
    rows = [[("kept", (0, 0, 0), share), ("trimmed", (90, 90, 90), 1 - share)]]
    assert card_pictures._bars("Fate", ["one"], rows).startswith(b"\x89PNG")
