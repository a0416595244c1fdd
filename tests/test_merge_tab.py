"""The Merge tab: widgets that show a recipe, and jobs that end on a card."""

from __future__ import annotations

import shutil
import threading
import time
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from safetensors.torch import load_file, save_file

import merging
from components.export.parcels import zip_merge
from components.family import Family
from components.late_choice import LateCheckboxGroup, LateDropdown, LateRadio
from components.merge import events
from components.merge.fields import at_field
from components.merge.form import MergeForm, about_html, build_merge_form, preset_note, profile_note
from components.merge.html import kept_words, plan_html, progress_html, result_html, seconds, share
from components.merge.picker import build_picker, groups, picked, picker_value, unfit
from components.merge.recipe import check, default_recipe, to_form, to_recipe
from components.server.backend import job_store
from components.server.settings import Settings
from merging import METHODS, Recipe
from merging.engine import Progress
from merging.inference import LoadedModel
from merging.job_records import Job
from merging.recipe import Override

LATE = (LateCheckboxGroup, LateDropdown, LateRadio)
ADA, BOB = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def models(family) -> Family:
    return Family(str(family / "base"), tuple(str(family / name) for name in ("one", "two", "three")))


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(runs=tmp_path / "runs", device="cpu", single_owner=False)
    yield made
    job_store(made).close()


@pytest.fixture(scope="module")
def form(models) -> MergeForm:
    with gr.Blocks():
        return build_merge_form(models, build_picker(default_recipe(models), models))


def edited(recipe: Recipe, models: Family, **changes) -> Recipe:
    """What the form gives when a visitor changes these of its values."""
    values, _ = to_form(recipe, models)
    return to_recipe(recipe, models, {**values, **{k.replace("__", "."): v for k, v in changes.items()}})


def named(form: MergeForm, updates: list) -> dict:
    """Updates by the key of their widget, those of parameters by name."""
    keys = [key for key in form.inputs if key not in form.fields.inputs]
    keys += [*form.fields.wide, *form.fields.own, *(f"{name}.section" for name in form.fields.sections)]
    keys += [f"{name}.head" for name in form.fields.heads]
    assert len(updates) == len(form.outputs)
    return dict(zip(keys, updates, strict=False))


# the widgets


def test_the_form_shows_only_what_the_method_has(form, models):
    recipe = default_recipe(models, "linear")
    updates = form.show(recipe, models)
    shown = named(form, updates)
    assert shown["weight.0"]["visible"]
    assert not shown["density.0"]["visible"]
    assert not shown["weight.3"]["visible"]
    assert [key for key in form.fields.wide if shown[key]["visible"]] == ["normalize/switch"]
    assert shown["weight.section"]["visible"]
    assert not shown["density.section"]["visible"]


def test_experts_keep_their_names_and_sliders_widen(form, models):
    recipe = edited(default_recipe(models), models, weight__1=3.5)
    shown = named(form, form.show(recipe, models))
    assert shown["weight.1"]["label"].startswith("two")
    assert (shown["weight.1"]["value"], shown["weight.1"]["maximum"]) == (3.5, 4)


def test_leaving_slerp_brings_all_experts_back(form, models):
    slerp = edited(default_recipe(models), models, method="slerp", partner=1)
    shown = named(form, form.show(slerp, models))
    assert (shown["partner"]["visible"], shown["experts"]["visible"]) == (True, False)
    assert shown["partner"]["value"] == 1
    values = [shown[key].get("value") for key in form.inputs]
    values[list(form.inputs).index("method")] = {"method": "ties"}
    back, *_ = events.restructure(form, slerp, models, "", *values)
    shown = named(form, form.show(back, models))
    assert (shown["partner"]["visible"], shown["experts"]["value"]) == (False, [0, 1, 2])


def test_another_method_drops_what_was_set_for_single_tensors_and_says_so(form, models):
    override = Override(tensors="model.layers.0.*", parameters={"density": 0.3, "weight": 2.0})
    recipe = default_recipe(models).model_copy(update={"overrides": (override,), "scope": "tensor"})
    values = [named(form, form.show(recipe, models))[key].get("value") for key in form.inputs]
    values[list(form.inputs).index("method")] = {"method": "task_arithmetic"}
    updates = events.restructure(form, recipe, models, "", *values)
    assert [found.parameters for found in updates[0].overrides] == [{"weight": 2.0}]
    assert check(updates[0]).plan is not None
    assert "Left out: density for single tensors" in updates[7:][form.outputs.index(form.note)]


def test_values_only_the_yaml_can_say_are_locked(form, models):
    recipe = default_recipe(models).model_copy(update={"parameters": {"density": [0.1, 0.9]}})
    shown = named(form, form.show(recipe, models))
    assert shown["density.0"]["interactive"] is False
    assert shown["weight.0"]["interactive"] is True


def test_applying_a_broken_recipe_changes_nothing_but_the_message(form, models):
    updates = events.apply_yaml(form, "merge_method: <b>tis</b>", default_recipe(models), models, "")
    recipe, yaml, apply, message, ready, merge, *rest = updates
    skip = gr.skip()
    assert [recipe, yaml, apply] == [skip] * 3
    assert ready is False
    assert all(update == skip for update in rest)
    assert merge["interactive"] is False
    assert "&lt;b&gt;" in message
    assert "<b>" not in message


def test_edited_yaml_must_be_applied_before_anything_can_be_merged(settings, models):
    apply, plan, ready, merge = events.yaml_edited()
    assert apply["interactive"] is True
    assert "Apply the YAML" in plan
    assert ready is False
    assert merge["interactive"] is False
    attached = events.attach(settings, ready, models, None)
    assert attached[4]["interactive"] is False


def test_huge_numbers_reach_the_browser(form, models):
    import orjson

    for number in ("1e20", "1e308", "123456789012345678"):
        text = f"{default_recipe(models).to_yaml()}  lambda: {number}\n".replace("profile: paper\n", "")
        updates = events.apply_yaml(form, text + "profile: paper\n", default_recipe(models), models, "")
        values = [update.get("value") for update in updates if isinstance(update, dict)]
        assert orjson.dumps(values)


def test_merge_can_only_be_pressed_when_it_can_work(form, models):
    recipe, yaml, _, plan, ready, merge = events.judge(form, default_recipe(models), models, "")[:6]
    assert (ready, merge["interactive"]) == (True, True)
    assert "3 experts" in plan
    assert Recipe.from_yaml(yaml).model_dump() == recipe.model_dump()
    assert events.judge(form, recipe, models, "running")[5]["interactive"] is False
    nothing = events.judge(form, edited(recipe, models, experts=[]), models, "")
    assert (nothing[4], nothing[5]["interactive"]) == (False, False)
    assert "models: missing" in nothing[3]


def test_another_family_starts_anew_with_the_same_method(form, models):
    smaller = Family(models.base, models.experts[:2])
    updates = events.take_family(form, default_recipe(models, "linear"), smaller, "")
    assert updates[0] == default_recipe(smaller, "linear")
    assert updates[-1]["value"] == "Merge these two now"
    none = events.take_family(form, updates[0], Family(models.base, ()), "")
    assert none[-1]["interactive"] is False
    assert none[4] is False


def test_every_method_says_what_it_is_and_where_it_is_from():
    for method in METHODS.values():
        assert method.paper in about_html(method)


def test_widgets_are_shared_by_name_and_kind(form, models):
    slerp, near = ("t/slider", "t/number")
    for method, seen, hidden in (("slerp", slerp, near), ("nearswap", near, slerp)):
        shown = named(form, form.show(default_recipe(models, method), models))
        assert (shown[seen]["visible"], shown[hidden]["visible"]) == (True, False)
    della = named(form, form.show(default_recipe(models, "della"), models))
    assert della["lambda/number"]["value"] == 1.1
    assert "paper 1.1, mergekit 1" in della["lambda/number"]["info"]
    ids = [component.elem_id for component in form.inputs.values() if component.elem_id]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("method", METHODS)
def test_the_form_of_every_method_reads_back_what_it_shows(form, models, method):
    recipe = default_recipe(models, method)
    shown = named(form, form.show(recipe, models))
    values = [shown[key].get("value") for key in form.inputs]
    assert to_recipe(recipe, models, form.read(values, recipe)) == recipe


def test_a_problem_stands_at_its_field(form, models):
    recipe = edited(default_recipe(models, "della"), models, epsilon__0=0.4)
    updates = events.judge(form, recipe, models, "")
    marks = dict(zip([*form.fields.wide, *form.fields.heads], updates[7:], strict=True))
    assert "Epsilon 0.4 does not fit density 0.7" in marks["epsilon"]
    assert 'role="alert"' not in marks["density"]
    recipe = edited(default_recipe(models, "dppa"), models, levels="0.9, x")
    updates = events.judge(form, recipe, models, "")
    marks = dict(zip([*form.fields.wide, *form.fields.heads], updates[7:], strict=True))
    assert "is no list of numbers" in marks["levels/numbers"]["info"]
    assert "mg-wrong" in marks["levels/numbers"]["elem_classes"]
    assert marks["amplify/numbers"]["elem_classes"] == ["mg-field"]
    assert marks["ratio/slider"] == gr.skip()
    assert updates[5]["interactive"] is False


def test_problems_find_the_parameter_they_name_first():
    problems = [
        "ties: the weights add up to 0, so there is no mean",
        "ties: density: 7 is too large.",
        "models: none.",
    ]
    assert at_field(METHODS["ties"], problems) == {
        "weight": "The weights add up to 0, so there is no mean",
        "density": "Density: 7 is too large.",
    }


def test_a_switch_of_the_profile_says_what_changed(form, models):
    recipe = edited(default_recipe(models), models, **{"lambda": 0.6})
    values = [named(form, form.show(recipe, models))[key].get("value") for key in form.inputs]
    values[list(form.inputs).index("profile")] = "mergekit"
    updates = events.restructure(form, recipe, models, "", *values)
    assert updates[0].profile == "mergekit"
    assert updates[0].parameters == {"density": 0.5, "lambda": 0.6}
    note = updates[7:][form.outputs.index(form.note)]
    assert "scope model → tensor" in note
    assert "As you set it: density" in note
    assert "nothing you left alone differs" in profile_note("mergekit", {}, [])


def test_presets_and_seeds_are_one_click(form, models):
    recipe = edited(default_recipe(models, "pcb"), models, ratio=0.3)
    updates = events.preset(form, recipe, models, "")
    assert updates[0] == default_recipe(models, "pcb")
    title = next(iter(METHODS["pcb"].presets))
    updates = events.preset(form, recipe, models, "", title)
    assert updates[0].parameters == {"ratio": 0.05}
    assert "ratio 0.05" in updates[7:][form.outputs.index(form.note)]
    assert events.take_published(form, recipe, models, "", title) == updates
    for left in (None, {"odd": 1}, "of another method"):
        assert events.take_published(form, recipe, models, "", left) == [gr.skip()] * len(updates)
    assert "back at its paper&#x27;s value" in preset_note(default_recipe(models, "pcb"), None)


def test_a_new_seed_takes_what_the_form_shows(form, models):
    recipe = default_recipe(models, "dare_ties")
    shown = named(form, form.show(recipe, models))
    values = [shown[key].get("value") for key in form.inputs]
    values[list(form.inputs).index("density.1")] = 0.37
    found = [events.new_seed(form, recipe, models, "", *values)[0] for _ in range(8)]
    assert len({one.seed for one in found}) > 1
    assert all(one.models[1].parameters == {"density": 0.37} for one in found)

    drawn = {**recipe.parameters, "density": [0.2, 0.9]}
    fixed = events.new_seed(
        form, recipe.model_copy(update={"parameters": drawn, "seed": 2**60}), models, "", *values
    )[0]
    assert fixed.parameters == {"density": [0.2, 0.9]}
    assert fixed.seed < events.NEW_SEEDS


def test_no_choice_of_an_older_form_is_an_error_of_gradio_s(form, models, settings):
    """Gradio's own check answers such a choice with a toast that says nothing but Error."""
    choices = [one for one in (*form.inputs.values(), form.published) if hasattr(one, "choices")]
    late = [widget for widget in choices if isinstance(widget, LATE)]
    assert [widget.label for widget in choices if widget not in late] == ["Values", "out_dtype"]
    for widget in late:
        sent = ["gone"] if isinstance(widget, gr.CheckboxGroup) else "gone"
        assert widget.preprocess(sent) == sent
    recipe = default_recipe(models)
    shown = named(form, form.show(recipe, models))
    values = [shown[key].get("value") for key in form.inputs]
    values[list(form.inputs).index("experts")] = [0, 7, "gone"]
    assert [entry.model for entry in events.edit(form, recipe, models, "", *values)[0].models] == [
        models.experts[0]
    ]
    assert events.show(settings, "gone", ADA)[0] == ""


# the list of methods


def test_every_method_is_in_one_group_of_the_list():
    listed = [method.name for _, methods in groups() for method in methods]
    assert sorted(listed) == sorted(METHODS)


def test_methods_that_do_not_fit_say_why(models):
    recipe = default_recipe(models)
    reasons = picker_value(recipe, models)["reasons"]
    assert set(reasons) == {name for name, method in METHODS.items() if method.needs_importance}
    one = Family(models.base, models.experts[:1])
    assert unfit(METHODS["nuslerp"], recipe, one) == "Needs 2 experts, there is 1."
    assert "at least two models" in unfit(METHODS["model_stock"], recipe, one)
    assert unfit(METHODS["ties"], recipe, Family(models.base, ())) == "Needs 1 expert, there are 0."
    with_file = recipe.model_copy(update={"importance": "scores.safetensors"})
    assert unfit(METHODS["apl"], with_file, models) == ""


@pytest.mark.parametrize(
    "sent", [None, "ties", {}, {"method": "rm -rf"}, {"method": ["ties"]}, {"method": None}, 3]
)
def test_what_the_browser_sends_as_a_method_may_be_anything(sent):
    assert picked(sent, "linear") == "linear"
    assert picked({"method": "ties", "reasons": "?"}, "linear") == "ties"


# jobs


def finish(settings: Settings, started: list, models: Family, owner: str = ADA) -> dict:
    """Tick until the job is over; what the page shows then."""
    watched = started[0]
    names = ("watched", "timer", "progress", "cancel", "merge", "default")
    card = ("shown", "result", "next", "download", "reuse", "as_base", "as_expert", "delete", "history")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        updates = events.tick(settings, watched, True, models, owner)
        if updates[0] != gr.skip():
            return dict(zip((*names, *card), updates, strict=True))
        time.sleep(0.02)
    raise AssertionError("the job did not end")


def test_one_click_makes_a_model_that_answers(settings, models):
    started = events.start_default(settings, models, ADA)
    assert len(started[0]) == 32
    assert started[1].active
    assert started[3]["interactive"]
    assert not started[4]["interactive"]
    page = finish(settings, started, models)
    assert (page["watched"], page["shown"]) == ("", started[0])
    assert not page["timer"].active
    assert page["merge"]["interactive"]
    assert page["default"]["interactive"]
    assert "Task arithmetic · lambda 0.8" in page["result"]
    assert page["history"]["value"] == started[0]
    assert events.newest(settings, ADA) == started[0]
    model = LoadedModel.load(job_store(settings).model(ADA, started[0]))
    assert model.model.config.num_hidden_layers == 3


def test_the_card_of_a_trimming_method_tells_what_each_expert_kept(settings, models):
    page = finish(settings, events.start(settings, default_recipe(models), models, ADA), models)
    assert "to keep" in page["result"]
    assert page["result"].count("50.0 %") == 6


def test_a_reload_finds_the_running_job_and_a_cancel_ends_it(settings, models, monkeypatch):
    hold, begun = threading.Event(), threading.Event()
    real = merging.run

    def slow(recipe, out, device):
        for event in real(recipe, out, device=device):
            begun.set()
            hold.wait(0.05)
            yield event

    monkeypatch.setattr(merging, "run", slow)
    started = events.start(settings, default_recipe(models), models, ADA)
    begun.wait(20)
    time.sleep(0.2)
    reloaded = events.attach(settings, True, models, ADA)
    assert reloaded[0] == started[0]
    assert reloaded[1].active
    assert "tensors" in reloaded[2]
    assert "TIES" in reloaded[2]
    assert events.attach(settings, True, models, BOB)[0] == ""
    events.cancel(settings, started[0], BOB)
    assert job_store(settings).get(ADA, started[0]).state == "running"
    pressed = time.monotonic()
    events.cancel(settings, started[0], ADA)
    page = finish(settings, started, models)
    assert time.monotonic() - pressed < 1
    assert "Cancelled" in page["result"]
    assert page["next"]["visible"] is False
    assert page["reuse"]["visible"] is True


def test_a_job_that_fails_says_why_and_the_form_keeps_everything(settings, models, monkeypatch):
    def fail(recipe, out, device):
        raise merging.MergingError("the disk <is> full")
        yield

    monkeypatch.setattr(merging, "run", fail)
    page = finish(settings, events.start(settings, default_recipe(models), models, ADA), models)
    assert "the disk &lt;is&gt; full" in page["result"]
    assert page["merge"]["interactive"]
    assert "value" not in page["merge"]


def test_a_recipe_that_cannot_run_is_not_queued(settings, models):
    broken = default_recipe(models).model_copy(update={"parameters": {"density": 7}})
    with pytest.raises(gr.Error, match="density") as error:
        events.start(settings, broken, models, ADA)
    assert error.value.title == "The merge was not started"
    assert job_store(settings).list(ADA) == []


def test_what_the_form_shows_is_merged_before_the_recipe_has_followed(settings, models, form):
    recipe = default_recipe(models)
    shown, _ = to_form(recipe, models)
    wide = {slot.partition("/")[0]: slot for slot in form.fields.wide}
    values = [shown.get(key, shown.get(key.partition("/")[0])) for key in form.inputs]
    values[list(form.inputs).index(wide["lambda"])] = 0.25
    id = events.start_shown(form, settings, recipe, models, ADA, *values)[0]
    written = Recipe.from_yaml(job_store(settings).get(ADA, id).recipe)
    assert written.to_yaml() == edited(recipe, models, **{"lambda": 0.25}).to_yaml()
    assert written.parameters["lambda"] == 0.25


def test_nobody_reaches_another_owners_merge(settings, models, form):
    id = events.start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, id, 60)
    for stored in (BOB, None, "../" + ADA, ADA + "/", {"owner": ADA}):
        assert events.show(settings, id, stored)[0] == ""
        events.delete(settings, id, models, stored)
        assert events.newest(settings, stored) == ""
        with pytest.raises(gr.Error, match="no longer there") as error:
            events.download(settings, id, stored)
        assert error.value.title == "The download was not made"
        with pytest.raises(gr.Error, match="no longer there") as error:
            events.reuse(form, settings, id, stored, default_recipe(models), models, "")
        assert error.value.title == "The recipe was not loaded"
    assert job_store(settings).model(ADA, id) is not None


@pytest.mark.parametrize("id", ["", "..", "../../etc", None, 3, ["a"], "f" * 32, "x/../y"])
def test_ids_that_are_none_find_nothing(settings, models, id):
    assert events.show(settings, id, ADA)[0] == ""
    assert events.tick(settings, id, True, models, ADA)[0] == ""
    events.cancel(settings, id, ADA)
    with pytest.raises(gr.Error):
        events.download(settings, id, ADA)


def test_the_download_is_the_whole_folder(settings, models, tmp_path):
    id = events.start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, id, 60)
    path = Path(events.download(settings, id, ADA)["value"])
    assert path.name == "task-arithmetic-lambda-0-8-one-two-three.zip"
    assert path.is_relative_to(get_upload_folder())
    assert zip_merge(settings, ADA, id) == path
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / "task-arithmetic-lambda-0-8-one-two-three"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        f.name for f in folder.iterdir()
    }
    LoadedModel.load(folder)
    events.delete(settings, id, models, ADA)
    assert not path.exists()


def test_deleting_shows_the_merge_before(settings, models):
    first = events.start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, first, 60)
    second = events.start(settings, default_recipe(models, "linear"), models, ADA)[0]
    job_store(settings).wait(ADA, second, 60)
    card = events.show(settings, second, ADA)
    assert [id for _, id in card[-1]["choices"]] == [second, first]
    assert events.delete(settings, second, models, ADA)[0] == first
    assert events.delete(settings, first, models, ADA)[-1]["visible"] is False


def test_the_card_is_about_the_chosen_models_and_the_list_about_all(settings, models):
    pair = Family(models.base, models.experts[:2])
    three = events.start_default(settings, models, ADA)[0]
    job_store(settings).wait(ADA, three, 60)
    names = ("shown", "result", "next", "download", "reuse", "as_base", "as_expert", "delete", "history")

    def card(updates: list) -> dict:
        return dict(zip(names, updates[-9:], strict=True))

    away = card(events.other_family(settings, three, pair, ADA))
    assert (away["shown"], away["next"]["visible"], away["delete"]["visible"]) == ("", False, False)
    assert "No merge of these models yet" in away["result"]
    assert [id for _, id in away["history"]["choices"]] == [three]
    assert away["history"]["value"] is None
    assert card(events.attach(settings, True, pair, ADA))["shown"] == ""
    assert card(events.show(settings, three, ADA))["shown"] == three, "the list still leads to it"

    two = events.start(settings, default_recipe(pair, "linear"), pair, ADA)[0]
    job_store(settings).wait(ADA, two, 60)
    assert card(events.attach(settings, True, pair, ADA))["shown"] == two
    assert card(events.other_family(settings, two, models, ADA))["shown"] == two, (
        "these are models of it, too"
    )
    other = Family(models.experts[2], models.experts[:2])
    task = events.start(settings, default_recipe(pair, "task_arithmetic"), pair, ADA)[0]
    job_store(settings).wait(ADA, task, 60)
    assert card(events.other_family(settings, task, other, ADA))["shown"] == two, "from another base"
    assert card(events.delete(settings, two, other, ADA))["shown"] == ""
    assert card(events.tick(settings, task, True, other, ADA))["shown"] == task, "it was watched"
    assert [id for _, id in card(events.show(settings, "", ADA))["history"]["choices"]] == [task, three]


def test_an_earlier_recipe_comes_back_into_the_form(settings, models, form):
    used = edited(default_recipe(models), models, density__1=0.9, **{"lambda": 0.8})
    id = events.start(settings, used, models, ADA)[0]
    job_store(settings).wait(ADA, id, 60)
    updates = events.reuse(form, settings, id, ADA, default_recipe(models, "slerp"), models, "")
    assert updates[0] == used
    assert named(form, updates[7:])["density.1"]["value"] == 0.9


# words


def job(**changes) -> Job:
    return Job(id="a", owner="b", kind="merge", title="<i>T", created=0, **{"state": "running", **changes})


def test_progress_has_real_units():
    running = Progress("merging", 128, 291, 31_000_000_000, 0.5, 10.0)
    text = progress_html(job().model_copy(update={"progress": running}))
    for part in ("128/291 tensors", "3.10 GB/s", "0:10 left", 'value="0.5000"', "&lt;i&gt;T"):
        assert part in text
    assert "<i>" not in text
    waiting = job(state="queued").model_copy(update={"ahead": 2})
    assert "2 jobs before it" in progress_html(waiting)
    assert progress_html(None) == progress_html(job(state="done")) == ""


def test_the_card_escapes_names_and_warnings():
    recipe = "merge_method: ties\nmodels:\n- model: a/<b>\n"
    result = {
        "density": [0.25],
        "asked": [0.5],
        "tied": [3],
        "warnings": ["<u>odd", "a/<b>: far"],
        "relative_change": 0.05,
        "seconds": 1,
    }
    text = result_html(job(state="done", recipe=recipe, result=result))
    assert all(part in text for part in ("&lt;b&gt;", "&lt;u&gt;odd", "&lt;i&gt;T", "25.0 %", "5.00 %"))
    assert not any(part in text for part in ("<u>", "<i>"))
    assert ">&lt;b&gt;: far<" in text
    assert "Interrupted" in result_html(job(state="interrupted"))
    assert "No merge yet" in result_html(None)


def test_a_share_that_was_not_attained_is_explained():
    facts = [(0.5, 0.431, 1), (0.2, 0.2, 12345), (0.5, 0.49999, 0)]
    missed, tied = kept_words(("code", "math", "words"), facts)
    assert missed.startswith("code: 50.0 % was to be kept, but only 43.1 % of the weights changed")
    assert tied.startswith("Changes of exactly the size at which the cut lies: math 12,345.")


def test_a_job_that_is_done_before_the_answer_is_still_watched(settings, models, monkeypatch):
    store = job_store(settings)
    real = store.start

    def start_and_wait(owner, *arguments, **options):
        id = real(owner, *arguments, **options)
        store.wait(owner, id, 60)
        return id

    monkeypatch.setattr(store, "start", start_and_wait)
    started = events.start(settings, default_recipe(models), models, ADA)
    assert started[1].active
    assert "Merging" in started[6]
    page = finish(settings, started, models)
    assert page["next"]["visible"]
    assert "TIES" in page["result"]


def test_shares_never_round_to_a_lie():
    assert [seconds(v) for v in (0, 0.04, 0.05, 61.25)] == ["below 0.1 s", "below 0.1 s", "0.1 s", "61.2 s"]
    assert [share(v) for v in (0, 1e-9, 0.0123, 0.5, 1)] == [
        "0 %",
        "below 0.01 %",
        "1.23 %",
        "50.0 %",
        "100 %",
    ]


def test_a_plan_with_problems_lists_each(models):
    broken = default_recipe(models).model_copy(update={"parameters": {"density": 7, "lamda": 1}})
    text = plan_html(check(broken))
    assert text.count("<li>") >= 2
    assert "lambda" in text


def test_a_list_is_taken_from_its_text_alone(form, models):
    recipe = default_recipe(models, "dppa")
    changed = events.edit_list(form, "levels", recipe, models, "", "0.9, 0.6")
    assert changed[0].parameters == {"levels": [0.9, 0.6]}
    assert changed[5]["interactive"] is True
    assert len(changed) == 7 + len(form.fields.marked)
    for name, text, shown in (("levels", "0.9 0.8", recipe), ("levels", "0.5", default_recipe(models))):
        assert all(update == gr.skip() for update in events.edit_list(form, name, shown, models, "", text))
    wrong = events.edit_list(form, "levels", recipe, models, "", "0.9, ")
    assert wrong[0].parameters == {"levels": [0.9]}
    assert "levels has 1 values and amplify 2" in wrong[3]


def test_a_merge_that_fails_names_tensor_and_model_as_the_page_does(settings, models, tmp_path):
    broken = tmp_path / "two"
    shutil.copytree(models.experts[1], broken)
    tensors = load_file(broken / "model.safetensors")
    where = "model.layers.1.mlp.down_proj.weight"
    tensors[where].view(-1)[:3] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    spoilt = Family(models.base, (models.experts[0], str(broken), models.experts[2]))
    page = finish(settings, events.start(settings, default_recipe(spoilt), spoilt, ADA), spoilt)
    assert "The merge failed" in page["result"]
    assert f"{where}&#x27;: two holds 3 NaN or infinite values there. Use an intact model." in page["result"]
    assert str(tmp_path) not in page["result"]
    assert "No model was written." in page["result"]
    assert page["next"]["visible"] is False
    assert page["reuse"]["visible"] is True
