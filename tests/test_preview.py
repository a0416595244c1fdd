"""The preview in the Merge tab: handlers as plain functions."""

from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from benchmarks.family import make_family
from components.family import Family
from components.figures.fate import WORDS
from components.merge.recipe import at_root, check, default_recipe, to_form, to_recipe
from components.newest import Newest
from components.preview import events, views
from components.preview.events import AROUND, PICTURE, choice_of, follow, move, pick, place_of
from components.preview.store import Pages, Previews, asked_for
from components.preview.unmoved import unmoved_html
from components.preview.views import Choice
from components.server.settings import Settings
from components.tables import csv_text
from merging import Progress
from merging.inspecting import sampling
from merging.inspecting.sums import total
from merging.inspection import preview_plan
from merging.memory import whatif
from merging.reports.report import Preview
from tests.conftest import tune

CHOICE = ("kept", None, False, None)
STATUS, MAP, BARS, FIGURES, CELL, WHOLE, NUMBER, WHICH, FACTS, EXPLANATION, TABLE, CSV, SOURCE, LIVE = range(
    14
)


@pytest.fixture
def models(family) -> Family:
    return Family(str(family / "base"), tuple(str(family / name) for name in ("one", "two", "three")))


@pytest.fixture
def previews() -> Previews:
    return Previews()


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def large() -> Previews:
    """Previews over models that never fit into memory."""
    return Previews(residents=SimpleNamespace(fits=lambda plan: False))


def edited(recipe, models, **changes):
    values, _ = to_form(recipe, models)
    return to_recipe(recipe, models, {**values, **{k.replace("__", "."): v for k, v in changes.items()}})


def look(previews, pages, recipe, models, *, token="t", choice=CHOICE, listed=False) -> list:
    """The last outputs of `follow`."""
    steps = follow(previews, pages, token, Settings(device="cpu"), recipe, models, True, listed, *choice)
    *_, last = steps
    return last


def shown_by(previews, pages) -> Preview:
    """The preview that the page shows."""
    return previews.get(pages.shown("t").key)


def exact(recipe) -> Preview:
    *_, last = preview_plan(check(recipe).plan, device="cpu")
    return last


def skipped(value) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1


# what follows a changed recipe


def test_the_picture_of_a_recipe_is_its_preview(previews, pages, models):
    recipe = default_recipe(models)
    seen = look(previews, pages, recipe, models)
    assert len(seen) == 1 + PICTURE + AROUND
    cells = views.fate.fate_cells(exact(recipe))
    for expert, trace in enumerate(seen[MAP]["data"]):
        found = [[cells[block, kind].share(expert, "kept") for kind in trace["x"]] for block in range(3)]
        assert trace["z"] == [pytest.approx(line, abs=1e-6) for line in found]
    assert seen[MAP]["brush"]
    assert seen[BARS]["title"].endswith("whole model")
    assert seen[STATUS] == "", "nothing to say of what is exact"
    assert "one" in seen[FIGURES]
    assert shown_by(previews, pages).method == "ties"
    assert seen[SOURCE].method == "ties"
    assert seen[SOURCE].columns == tuple(seen[MAP]["data"][0]["x"])


def test_what_is_drawn_already_is_not_sent_again(previews, pages, models):
    recipe = default_recipe(models)
    first = look(previews, pages, recipe, models)
    again = look(previews, pages, recipe, models)
    assert all(skipped(again[part]) for part in (MAP, BARS, FIGURES, FACTS))
    other = look(previews, pages, edited(recipe, models, density__1=0.1), models)
    assert other[MAP]["data"][1]["z"] != first[MAP]["data"][1]["z"]


def test_nobody_is_shown_anything_before_they_come(previews, pages, models):
    steps = follow(previews, pages, "t", Settings(), default_recipe(models), models, False, False, *CHOICE)
    assert list(steps) == []


def test_a_recipe_that_cannot_run_says_what_to_do(previews, pages, models):
    broken = default_recipe(models).model_copy(update={"parameters": {"densty": 1}})
    seen = look(previews, pages, at_root(broken), models)
    assert seen[MAP] == {"empty": views.BROKEN}
    assert pages.shown("t") is None
    missing = look(previews, pages, default_recipe(models, "apl"), models)
    assert missing[MAP] == {"empty": views.NEEDS_IMPORTANCE}


def test_a_recipe_that_copies_everything_says_so(previews, pages, models):
    seen = look(
        previews, pages, at_root(default_recipe(models).model_copy(update={"exclude": ("*",)})), models
    )
    assert seen[MAP] == {"empty": views.ALL_COPIED}
    assert seen[BARS] == {"empty": views.ALL_COPIED}


def test_a_merge_that_would_fail_says_why(previews, pages, models):
    huge = edited(default_recipe(models, "task_arithmetic"), models, **{"lambda": 3e38, "weight__0": 3e38})
    seen = look(previews, pages, huge, models)
    assert "not finite" in seen[STATUS]
    assert seen[MAP] == {"empty": views.FAILED}


@pytest.mark.parametrize("method", ["linear", "karcher", "nuslerp"])
def test_methods_without_a_base_are_measured_from_the_family_s(previews, pages, models, method):
    recipe = default_recipe(models, method)
    assert recipe.base_model is None or method == "nuslerp"
    seen = look(previews, pages, at_root(recipe.model_copy(update={"base_model": None})), models)
    preview = shown_by(previews, pages)
    assert set(preview.tensors) == set(preview.dtypes)
    values = [value for line in seen[MAP]["data"][0]["z"] for value in line]
    assert all(0 < value < 1.5 for value in values)


def test_methods_without_fates_offer_what_they_have(previews, pages, models):
    seen = look(previews, pages, default_recipe(models, "karcher"), models)
    assert [key for _, key in seen[NUMBER]["choices"]] == ["presence", "nobody", "rounding", "parameters"]
    assert seen[NUMBER]["value"] == "presence"
    assert views.NO_FATES in seen[FACTS]


def test_what_a_method_lacks_comes_back_with_the_next(previews, pages, models):
    ties, slerp = default_recipe(models), default_recipe(models, "slerp")

    def chosen(recipe, number: str) -> str:
        return look(previews, pages, recipe, models, choice=(number, None, False, None))[NUMBER]["value"]

    assert chosen(ties, "outvoted") == "outvoted"
    assert chosen(slerp, "outvoted") == "presence"
    assert chosen(default_recipe(models, "karcher"), "presence") == "presence"
    assert chosen(ties, "presence") == "outvoted", "nobody chose presence"
    assert chosen(slerp, "outvoted") == "presence"
    assert chosen(slerp, "nobody") == "nobody"
    assert chosen(slerp, "presence") == "presence"
    assert chosen(ties, "presence") == "presence", "now somebody did"
    assert chosen(slerp, "<b>") == "presence"
    assert chosen(ties, "presence") == "presence", "what is no number is not what somebody wanted"


def test_a_click_keeps_what_is_to_come_back(previews, pages, models):
    slerp = default_recipe(models, "slerp")
    look(previews, pages, slerp, models)
    pick(previews, pages, "t", (1, 2), slerp, "presence", None, False, None)
    back = look(previews, pages, default_recipe(models), models, choice=("presence", None, False, None))
    assert back[NUMBER]["value"] == "kept"


def moved(previews, pages, models, before, after, number: str) -> str:
    """The facts after a change of the recipe, while a map is shown."""
    choice = (number, None, False, None)
    seen = look(previews, pages, before, models, choice=choice)
    assert "pv-unmoved" not in seen[FACTS]
    return look(previews, pages, after, models, choice=choice)[FACTS]


@pytest.mark.parametrize(
    ("method", "start", "change", "number", "said"),
    [
        ("ties", {}, {"weight__0": 1.6}, "kept", "does not depend on weight: the vote counts"),
        ("ties", {}, {"weight__0": 1.6}, "presence", ""),
        ("ties", {}, {"weight__0": 0.0}, "kept", ""),
        ("ties", {}, {"density__0": 0.3}, "kept", ""),
        ("ties", {}, {"lambda": 0.5}, "kept", "does not depend on lambda, which scales"),
        ("ties", {}, {"lambda": 0.5}, "presence", ""),
        ("ties", {}, {"normalize": False}, "outvoted", "does not depend on normalize: the vote"),
        ("ties", {"elect_on": "weighted"}, {"weight__0": 1.6}, "kept", ""),
        ("ties", {"experts": [0]}, {"weight__0": 1.6}, "presence", "same share of the average as before"),
        ("ties", {"elect_on": "weighted", "experts": [0]}, {"weight__0": 1.6}, "kept", "the same share"),
        ("ties", {"experts": [0], "normalize": False}, {"weight__0": 1.6}, "presence", ""),
        ("task_arithmetic", {}, {"weight__0": 1.6}, "kept", ""),
        ("task_arithmetic", {}, {"lambda": 0.7}, "cancelled", "does not depend on lambda"),
        ("slerp", {}, {"t": 0.9}, "presence", ""),
    ],
)
def test_a_map_that_stays_as_it_was_says_why(previews, pages, models, method, start, change, number, said):
    before = edited(default_recipe(models, method), models, **start)
    found = moved(previews, pages, models, before, edited(before, models, **change), number)
    assert ("pv-unmoved" in found, said in found) == (bool(said), True)


def test_all_weights_alike_leave_an_average_as_it_was(previews, pages, models):
    before = default_recipe(models)
    after = edited(before, models, weight__0=0.5, weight__1=0.5, weight__2=0.5)
    assert "Nothing changes with weight" in moved(previews, pages, models, before, after, "presence")
    for one, other in zip(exact(before).tensors.values(), exact(after).tensors.values(), strict=True):
        assert other.energy == one.energy
        assert other.along == pytest.approx(one.along, rel=1e-5)


def test_why_nothing_moved_is_said_until_something_does(previews, pages, models):
    first = default_recipe(models)
    second = edited(first, models, weight__0=1.5)
    seen = look(previews, pages, first, models)
    seen = look(previews, pages, second, models)
    assert "pv-unmoved" in seen[FACTS]
    assert skipped(look(previews, pages, second, models)[FACTS]), "it stays"
    seen = look(previews, pages, edited(second, models, density__0=0.2), models)
    assert seen[FACTS] == ""


def test_one_expert_more_is_another_map(models):
    fewer = Family(models.base, models.experts[:2])
    before, after = (
        exact(edited(default_recipe(family, "task_arithmetic"), family, weight__0=0.5))
        for family in (fewer, models)
    )
    assert unmoved_html(before, after, ("one", "two", "three"), Choice()) == ""


def test_a_method_without_parameters_offers_no_map_of_them(previews, pages, models):
    recipe = default_recipe(models, "arcee_fusion")
    seen = look(previews, pages, recipe, models, choice=("parameters", "weight", False, None))
    assert "parameters" not in [key for _, key in seen[NUMBER]["choices"]]
    assert (seen[NUMBER]["value"], seen[WHICH]["visible"]) == ("kept", False)
    assert 0 < seen[MAP]["data"][0]["z"][0][0] <= 1


@pytest.mark.parametrize("key", [key for _, key in views.NUMBERS])
def test_every_number_has_map_words_and_table(previews, pages, models, key):
    seen = look(previews, pages, default_recipe(models), models, choice=(key, None, False, None), listed=True)
    grids = [trace["z"] for trace in seen[MAP]["data"]]
    assert seen[NUMBER]["value"] == key
    assert len(seen[EXPLANATION]) > 100
    assert seen[WHICH]["visible"] == (key in ("rounding", "parameters"))
    numbers = [row[2:] for row in seen[TABLE]["data"]]
    assert len(numbers) == 21
    for place, row in enumerate(numbers):
        for grid, value in zip(grids, row, strict=True):
            assert value == pytest.approx(grid[place // 7][place % 7], rel=1e-3, abs=1e-9)


def test_norms_and_embeddings_come_when_asked(previews, pages, models):
    seen = look(previews, pages, default_recipe(models), models, choice=("kept", None, True, None))
    assert seen[MAP]["data"][0]["y"] == ["0", "1", "2", "outside"]
    assert "embedding" in seen[MAP]["data"][0]["x"]


def test_the_csv_holds_every_tensor_at_full_precision(previews, pages, models):
    recipe = default_recipe(models)
    seen = look(previews, pages, recipe, models, listed=True)
    rows = list(csv.DictReader(io.StringIO(unquote(seen[CSV].split("charset=utf-8,")[1].split('"')[0]))))
    preview = exact(recipe)
    assert [row["tensor"] for row in rows] == list(preview.tensors)
    row = rows[5]
    one = preview.tensors[row["tensor"]]
    assert float(row["two kept"]) == pytest.approx(one.share(1, "kept"), abs=1e-6)
    assert sum(float(row[f"three {WORDS[key].label}"]) for key in WORDS) == pytest.approx(1, abs=1e-6)
    assert csv_text(views.full_table(preview, ("=1", "b", "c"))).splitlines()[0].count("'=1") == 6


def test_junk_from_the_browser_means_the_first_choice(previews, pages, models):
    assert choice_of(3, 4, "x", "no cell") == Choice("kept", None, True, None)
    seen = look(previews, pages, default_recipe(models), models, choice=("<b>", ["x"], None, (99, "q")))
    assert seen[NUMBER]["value"] == "kept"
    assert seen[CELL] is None


# clicks


def test_a_clicked_cell_gets_its_bars_and_numbers(previews, pages, models):
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    cell, bars, figures, whole, outline = pick(previews, pages, "t", (2, 5), recipe, *CHOICE)
    assert cell == (2, "up")
    one = shown_by(previews, pages).tensors["model.layers.2.mlp.up_proj.weight"]
    assert [trace["x"][1] for trace in bars["data"]] == [one.share(1, key) for key in WORDS]
    assert bars["title"] == "Each expert's change: block 2, up"
    assert f"{one.share(2, 'kept'):.1%}" in figures
    assert "model.layers.2.mlp.up_proj.weight" in figures
    assert whole["visible"]
    assert outline["pointed"][:2] == [2, 5]
    answer = move(previews, pages, {"token": "t", "key": "density.1", "value": 0.1})
    changed = exact(edited(recipe, models, density__1=0.1)).tensors["model.layers.2.mlp.up_proj.weight"]
    lengths = dict(zip(answer["bars"]["keys"], answer["bars"]["update"]["x"], strict=True))
    assert lengths["dropped"][1] == pytest.approx(changed.share(1, "dropped"), abs=1e-6), "of this cell"
    again = look(previews, Pages(), recipe, models, choice=("kept", None, False, cell))
    assert again[MAP]["picked"] == [2, 5]
    assert again[BARS]["title"] == bars["title"]


@pytest.mark.parametrize("place", [(9, 0), (0, 99), None])
def test_a_click_beside_the_map_changes_nothing(previews, pages, models, place):
    recipe = default_recipe(models)
    assert all(map(skipped, pick(previews, pages, "t", (0, 0), recipe, *CHOICE))), "nothing is shown yet"
    look(previews, pages, recipe, models)
    assert all(map(skipped, pick(previews, pages, "t", place, recipe, *CHOICE)))
    assert pages.desk("t").choice.cell is None


def test_a_click_means_the_map_that_is_drawn(previews, pages, models):
    """The embeddings were asked for, and the map with them is on its way."""
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    asked_for_more = ("kept", None, True, None)
    assert pick(previews, pages, "t", (2, 5), recipe, *asked_for_more)[0] == (2, "up")
    everything = look(previews, pages, recipe, models, choice=asked_for_more)
    assert pick(previews, pages, "t", (2, 5), recipe, *asked_for_more)[0] != (2, "up")
    assert everything[MAP]["data"]


def test_a_click_is_drawn_over_and_then_drawn_with_its_outline(previews, pages, models):
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    cell = pick(previews, pages, "t", (2, 5), recipe, *CHOICE)[0]
    again = look(previews, pages, recipe, models, choice=("kept", None, False, cell))
    assert again[MAP]["picked"] == [2, 5]
    assert skipped(look(previews, pages, recipe, models, choice=("kept", None, False, cell))[MAP])


def test_one_block_and_one_module_by_name_are_a_cell(previews, pages, models):
    recipe = default_recipe(models)
    seen = look(previews, pages, recipe, models)
    place = place_of(seen[SOURCE], ["2"], ["up"])
    assert place == (2, 5)
    named = pick(previews, pages, "t", place, recipe, *CHOICE)
    clicked = pick(previews, pages, "t", (2, 5), recipe, *CHOICE)
    assert named[:4] == clicked[:4]
    everything = look(previews, pages, recipe, models, choice=("kept", None, True, None))[SOURCE]
    embedding = everything.columns.index("embedding")
    assert place_of(everything, ["outside"], ["embedding"]) == (3, embedding)


@pytest.mark.parametrize(
    ("blocks", "kinds"),
    [
        ([], []),
        (["2"], []),
        ([], ["up"]),
        (["1", "2"], ["up"]),
        (["2"], ["up", "q"]),
        (["9"], ["up"]),
        (["2"], ["<b>"]),
        (None, None),
        ([["2"]], [{}]),
    ],
)
def test_more_or_less_than_one_cell_by_name_is_none(previews, pages, models, blocks, kinds):
    source = look(previews, pages, default_recipe(models), models)[SOURCE]
    assert place_of(source, blocks, kinds) is None
    assert place_of(None, blocks, kinds) is None


def test_a_cell_that_is_copied_has_no_bars(previews, pages, models):
    recipe = at_root(default_recipe(models).model_copy(update={"exclude": ("*layers.1.mlp.up*",)}))
    seen = look(previews, pages, recipe, models)
    place = place_of(seen[SOURCE], ["1"], ["up"])
    assert place == (1, 5)
    assert all(map(skipped, pick(previews, pages, "t", place, recipe, *CHOICE)))


# a slider on its way


def test_a_moving_slider_gets_the_numbers_of_the_changed_recipe(previews, pages, models):
    recipe = default_recipe(models)
    seen = look(previews, pages, recipe, models, token="t")
    assert seen[LIVE]["token"] == "t"
    answer = move(previews, pages, {"token": "t", "key": "density.1", "value": 0.1})
    changed = exact(edited(recipe, models, density__1=0.1))
    cells = views.fate.fate_cells(changed)
    for expert, grid in enumerate(answer["map"]["update"]["z"]):
        assert grid[1][5] == pytest.approx(cells[1, "up"].share(expert, "kept"), abs=1e-6)
    assert answer["map"]["update"]["z"] != [trace["z"] for trace in seen[MAP]["data"]]
    whole = total(changed.tensors.values())
    lengths = dict(zip(answer["bars"]["keys"], answer["bars"]["update"]["x"], strict=True))
    assert lengths["dropped"][1] == pytest.approx(whole.share(1, "dropped"), abs=1e-6)
    full = look(previews, pages, edited(recipe, models, density__1=0.1), models)
    assert [trace["z"] for trace in full[MAP]["data"]] == answer["map"]["update"]["z"]
    assert [trace["x"] for trace in full[BARS]["data"]] == answer["bars"]["update"]["x"]
    assert [trace["text"] for trace in full[MAP]["data"]] == answer["map"]["update"]["text"]


def test_a_slider_moves_a_method_without_a_base(previews, pages, models):
    recipe = at_root(default_recipe(models, "linear").model_copy(update={"base_model": None}))
    assert previews.quick(asked_for(recipe, models)), "before anything was looked at"
    look(previews, pages, recipe, models, choice=("presence", None, False, None))
    grids = [
        move(previews, pages, {"token": "t", "key": "weight.0", "value": value})["map"]["update"]["z"][0]
        for value in (0.2, 0.9)
    ]
    before, after = ([value for line in grid for value in line] for grid in grids)
    assert all(more > less > 0 for less, more in zip(before, after, strict=True))


def test_parameters_of_the_whole_merge_move_as_well(previews, pages, models):
    recipe = default_recipe(models, "task_arithmetic")
    look(previews, pages, recipe, models, choice=("presence", None, False, (1, "q")))
    grids = [
        move(previews, pages, {"token": "t", "key": "lambda", "value": value})["map"]["update"]["z"][0][1][0]
        for value in (0.5, 1.0, 0.4, None)
    ]
    assert grids[1] == pytest.approx(2 * grids[0], rel=1e-3)
    assert grids[3] == grids[2], "a cleared field leaves the paper's value"


@pytest.mark.parametrize(
    "asked",
    [
        None,
        {},
        {"token": "u", "key": "density.1", "value": 0.1},
        {"token": "t", "key": "density.7", "value": 0.1},
        {"token": "t", "key": "__class__", "value": 0.1},
        {"token": "t", "key": "density.1", "value": float("nan")},
        {"token": "t", "key": "density.1", "value": "0.1"},
        {"token": "t", "key": "density.1", "value": True},
        {"token": "t", "key": "density.1", "value": 7},
        {"token": "t", "key": ["density.1"], "value": 0.1},
    ],
)
def test_what_no_slider_says_draws_nothing(previews, pages, models, asked):
    look(previews, pages, default_recipe(models), models)
    assert move(previews, pages, asked) is None


def test_two_visitors_see_their_own(previews, pages, family, tmp_path):
    tune(family / "base", tmp_path / "other", seed=9)
    first = Family(str(family / "base"), (str(family / "one"), str(family / "two")))
    second = Family(str(family / "base"), (str(family / "one"), str(tmp_path / "other")))
    assert pages.token("ada") != pages.token("bob")
    assert pages.token("ada") == pages.token("ada")
    seen = {}
    for page, models in (("ada", first), ("bob", second)):
        look(previews, pages, default_recipe(models), models, token=pages.token(page))
        asked = {"token": pages.token(page), "key": "density.1", "value": 0.2}
        seen[page] = move(previews, pages, asked)["map"]
    assert seen["ada"]["keys"] == ["one", "two"]
    assert seen["bob"]["keys"] == ["one", "other"]
    assert seen["ada"]["update"]["z"][1] != seen["bob"]["update"]["z"][1]


# large models, and rapid moves


@pytest.fixture
def read(large, monkeypatch) -> Previews:
    """`large`, without an estimate first, and every step of reading told."""
    monkeypatch.setattr(events, "REST", 0.0)
    monkeypatch.setattr(events, "TOLD", 0.0)
    monkeypatch.setattr(
        "components.preview.store.steps", lambda plan, _, device, origin: preview_plan(plan, device=device)
    )
    return large


def test_large_models_do_not_follow_a_slider_but_its_release(read, pages, models):
    recipe = default_recipe(models)
    steps = list(follow(read, pages, "t", Settings(device="cpu"), recipe, models, True, False, *CHOICE))
    assert all("progress" in step[STATUS] for step in steps[:-1])
    assert len(steps) > 5
    assert steps[-1][MAP]["data"]
    assert move(read, pages, {"token": "t", "key": "density.1", "value": 0.1}) is None


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Family:
    """Half a million parameters, in matrices that can be sampled."""
    folder = tmp_path_factory.mktemp("wide") / "family"
    make_family(folder, width=128, blocks=2, vocabulary=500)
    return Family(str(folder / "base"), tuple(str(folder / f"expert-{number}") for number in (1, 2)))


@pytest.fixture
def sampled(monkeypatch) -> Previews:
    """Previews in which `wide` counts as large and a sample takes some of its rows."""
    monkeypatch.setattr(whatif, "MOST_CHANGES", 1000)
    monkeypatch.setattr(sampling, "WHOLE", 4096)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 512)
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 400 << 10)
    monkeypatch.setattr(events, "REST", 0.0)
    monkeypatch.setattr(events, "TOLD", 0.0)
    return Previews()


def following(previews, pages, recipe, models, choice=CHOICE):
    return follow(previews, pages, "t", Settings(device="cpu"), recipe, models, True, False, *choice)


def estimated(previews, pages, recipe, models) -> tuple[list, Preview, Preview]:
    """All steps of `following`, and the previews that the page shows first and last."""
    running = following(previews, pages, recipe, models)
    first = next(running)
    guess = shown_by(previews, pages)
    return [first, *running], guess, shown_by(previews, pages)


def pictures(steps) -> list:
    return [step for step in steps if isinstance(step[MAP], dict) and "data" in step[MAP]]


def test_an_estimate_says_so_and_the_exact_picture_takes_its_place(sampled, pages, wide):
    recipe = default_recipe(wide)
    steps, guess, whole = estimated(sampled, pages, recipe, wide)
    first, last = pictures(steps)
    assert steps[0] is first
    assert steps[-1] is last
    assert guess.sample is not None
    assert whole.sample is None
    error = views.sample_error(guess, Choice())
    assert 0 < error < 0.05
    share = f"{100 * guess.sample.share:.2g} %"
    line = f"Estimated from a sample of {share} of the weights, ± {236.5 * error:.1g} points (95 %) over the whole model"
    assert line in first[STATUS]
    assert "exact values follow" in first[STATUS]
    progress = [step[STATUS] for step in steps[1:-1]]
    assert len(progress) > 3
    assert all(line in said and "progress" in said for said in progress), (
        "the estimate is still what is drawn"
    )
    assert last[STATUS] == ""
    for expert in (0, 1):
        shares = [total(one.tensors.values()).share(expert, "kept") for one in (guess, whole)]
        assert shares[0] != shares[1]
        assert abs(shares[0] - shares[1]) < 6 * error
    cells = views.fate.fate_cells(exact(recipe))
    assert last[MAP]["data"][1]["z"][1][5] == pytest.approx(cells[1, "up"].share(1, "kept"), abs=1e-9)
    again = list(following(sampled, Pages(), recipe, wide))
    assert len(again) == 1, "the exact picture is kept"
    assert again[0][MAP]["data"] == last[MAP]["data"]


def test_a_click_on_an_estimate_shows_the_cell_and_outlasts_it(sampled, pages, wide):
    recipe = default_recipe(wide)
    steps = following(sampled, pages, recipe, wide)
    next(steps)
    cell, bars, figures, *_ = pick(sampled, pages, "t", (1, 5), recipe, *CHOICE)
    assert cell == (1, "up")
    guess = shown_by(sampled, pages).tensors["model.layers.1.mlp.up_proj.weight"]
    assert [trace["x"][1] for trace in bars["data"]] == [guess.share(1, key) for key in WORDS]
    assert "model.layers.1.mlp.up_proj.weight" in figures
    *_, last = steps
    assert last[CELL] == (1, "up")
    assert last[MAP]["picked"] == [1, 5]
    true = shown_by(sampled, pages).tensors["model.layers.1.mlp.up_proj.weight"]
    assert [trace["x"][1] for trace in last[BARS]["data"]] == [true.share(1, key) for key in WORDS]
    assert guess.share(1, "kept") != true.share(1, "kept")


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_methods_without_a_base_are_estimated_too(sampled, pages, wide, method):
    recipe = at_root(default_recipe(wide, method).model_copy(update={"base_model": None}))
    assert not sampled.quick(asked_for(recipe, wide))
    steps, guess, whole = estimated(sampled, pages, recipe, wide)
    first, _ = pictures(steps)
    assert "Estimated from a sample" in first[STATUS]
    error = views.sample_error(guess, Choice("presence"))
    shares = [total(one.tensors.values()).projection(0) for one in (guess, whole)]
    assert abs(shares[0] - shares[1]) < max(6 * error, 1e-3)


def test_a_newer_request_ends_an_older_one(large, pages, models, monkeypatch):
    monkeypatch.setattr(events, "REST", 0.0)
    monkeypatch.setattr(events, "TOLD", 0.0)
    read = []

    def counted(plan, residents, device, origin):
        for event in preview_plan(plan, device=device):
            read.append(event)
            yield event

    monkeypatch.setattr("components.preview.store.steps", counted)
    recipe = default_recipe(models)
    running = follow(large, pages, "t", Settings(device="cpu"), recipe, models, True, False, *CHOICE)
    next(running)
    so_far = len(read)
    pages.begin("t")
    assert list(running) == []
    assert len(read) <= so_far + 1
    assert not any(isinstance(event, Preview) for event in read)
    assert all(isinstance(event, Progress) for event in read)


def test_a_newer_request_begins_when_the_older_one_has_sent_its_last_word(previews, pages, models):
    """The older one has drawn, its answer is on its way, and the number is back at what was drawn before."""
    recipe = default_recipe(models)
    settings = Settings(device="cpu")
    look(previews, pages, recipe, models)
    older = follow(
        previews, pages, "t", settings, edited(recipe, models, density__1=0.1), models, True, False, *CHOICE
    )
    assert next(older)[MAP]["data"]
    with ThreadPoolExecutor(1) as pool:
        newer = pool.submit(look, previews, pages, recipe, models)
        with pytest.raises(TimeoutError):
            newer.result(0.5)
        assert list(older) == []
        assert newer.result(30)[MAP]["data"], "else the page would go on showing what the older one drew"


def test_only_the_newest_of_those_that_wait_draws(previews, pages, models):
    recipe = default_recipe(models)
    older = follow(previews, pages, "t", Settings(device="cpu"), recipe, models, True, False, *CHOICE)
    next(older)
    with ThreadPoolExecutor(2) as pool:
        args = (previews, pages, "t", Settings(device="cpu"), recipe, models, True, False, *CHOICE)
        waiting = pool.submit(lambda: list(follow(*args)))
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        newest = pool.submit(lambda: list(follow(*args)))
        assert waiting.result(30) == []
        older.close()
        assert len(newest.result(30)) == 1


def test_what_a_slider_drew_over_is_drawn_again(previews, pages, models):
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    assert skipped(look(previews, pages, recipe, models)[MAP])
    assert move(previews, pages, {"token": "t", "key": "density.1", "value": 0.1})
    assert look(previews, pages, recipe, models)[MAP]["data"]


def test_a_click_while_a_request_waits_is_kept(previews, pages, models):
    recipe, settings = default_recipe(models), Settings(device="cpu")
    look(previews, pages, recipe, models)
    other = edited(recipe, models, density__1=0.1)
    older = follow(previews, pages, "t", settings, other, models, True, False, *CHOICE)
    next(older)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(look, previews, pages, recipe, models)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        assert pick(previews, pages, "t", (2, 5), other, *CHOICE)[0] == (2, "up")
        older.close()
        assert waiting.result(30)[CELL] == (2, "up")


def test_a_silent_request_is_not_waited_for_without_end(previews, pages, models, monkeypatch):
    monkeypatch.setattr("components.preview.store.PATIENCE", 0.2)
    recipe, settings = default_recipe(models), Settings(device="cpu")
    look(previews, pages, recipe, models)
    older = follow(previews, pages, "t", settings, recipe, models, True, False, *CHOICE)
    next(older)
    assert look(previews, pages, recipe, models)[MAP]["data"], "nobody knows what the older one drew"
    assert list(older) == []
    assert skipped(look(previews, pages, recipe, models)[MAP])


def test_what_failed_on_its_way_is_drawn_again(previews, pages, models, monkeypatch):
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    with monkeypatch.context() as patch:
        patch.setattr(events, "around", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            look(previews, pages, edited(recipe, models, density__1=0.1), models)
    assert look(previews, pages, recipe, models)[MAP]["data"]


def test_progress_does_not_outlast_a_number_taken_back(read, pages, models):
    recipe = default_recipe(models)
    look(read, pages, recipe, models)
    other = edited(recipe, models, density__1=0.1)
    running = follow(read, pages, "t", Settings(device="cpu"), other, models, True, False, *CHOICE)
    assert "progress" in next(running)[STATUS]
    running.close()
    assert look(read, pages, recipe, models)[STATUS] == ""


def test_closing_the_page_stops_the_work(large, pages, models, monkeypatch):
    monkeypatch.setattr(events, "REST", 0.0)
    monkeypatch.setattr(events, "TOLD", 0.0)
    ended = []

    def watched(plan, residents, device, origin):
        try:
            yield from preview_plan(plan, device=device)
        finally:
            ended.append(True)

    monkeypatch.setattr("components.preview.store.steps", watched)
    running = follow(
        large, pages, "t", Settings(device="cpu"), default_recipe(models), models, True, False, *CHOICE
    )
    next(running)
    running.close()
    assert ended == [True]


def test_an_older_picture_waits_while_a_slider_is_ahead(previews, pages, models, monkeypatch):
    monkeypatch.setattr(events, "REST", 1.5)
    recipe = default_recipe(models)
    look(previews, pages, recipe, models)
    move(previews, pages, {"token": "t", "key": "density.1", "value": 0.1})
    asked = asked_for(recipe, models)
    assert pages.moving("t", asked.key, 1.5)
    assert not pages.moving("t", asked_for(edited(recipe, models, density__1=0.1), models).key, 1.5)
    seen = look(previews, pages, recipe, models)
    assert not pages.moving("t", asked.key, 1.5), "it waited until the slider had come to rest"
    assert seen[MAP]["data"]


def test_tables_forget_what_was_not_asked_for_longest():
    table = Newest(2)
    for key in "ab":
        table.keep(key, key.upper())
    assert table.get("a") == "A"
    table.keep("c", "C")
    assert [table.get(key) for key in "abc"] == ["A", None, "C"]
    assert table.get(None) is None
