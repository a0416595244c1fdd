"""Figures of what a recipe makes of the experts' changes, from previews of real models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import merging
from components.family import Family
from components.figures import effective, fate, rounding
from components.figures.fate import MAPS, NOBODY, PRESENCE, WORDS
from merging.inspecting.fate import DTYPES, FATES
from merging.inspecting.sums import total
from merging.inspection import preview_plan
from merging.recipe import Override
from merging.reports.report import Preview

NAMES = ("one", "two", "three")
UP = "model.layers.1.mlp.up_proj.weight"
KINDS = ["q", "k", "v", "o", "gate", "up", "down"]


def preview_of(folder, method="ties", parameters=None, **keys) -> Preview:
    recipe = Family.demo(folder, NAMES).recipe(method, parameters, **keys)
    plan = merging.check(recipe.model_copy(update={"base_model": str(folder / "base")}))
    *_, last = preview_plan(plan, device="cpu")
    return last


def drawn(chart) -> list[dict]:
    return json.loads(chart.figure.to_json())["data"]


@pytest.fixture(scope="module")
def preview(family):
    return preview_of(family, parameters={"density": 0.3})


@pytest.fixture(scope="module")
def bf16(bf16_family):
    return preview_of(bf16_family, "task_arithmetic", {"lambda": 0.05})


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_fate_has_its_words_and_a_colour_that_can_be_read():
    assert set(WORDS) == set(FATES)
    for words in WORDS.values():
        assert contrast(words.colour, "#ffffff") >= 4.5
        assert contrast(words.colour, "#0b1120") >= 3
    assert len({(words.colour, words.pattern) for words in WORDS.values()}) == len(FATES)
    assert len({words.pattern for words in WORDS.values()}) >= 4, "colour is not the only difference"


def test_bars_of_an_expert_sum_to_one_and_are_the_preview_s_shares(preview):
    whole = total(preview.tensors.values())
    chart = fate.fate_bars(whole, NAMES, "whole model")
    traces = drawn(chart)
    assert [trace["name"] for trace in traces] == [words.label for words in WORDS.values()]
    for expert in range(3):
        assert sum(trace["x"][expert] for trace in traces) == pytest.approx(1, abs=1e-6)
        assert [trace["x"][expert] for trace in traces] == [whole.share(expert, key) for key in WORDS]
    kept = whole.share(0, "kept")
    assert traces[0]["text"][0] == f"{kept:.0%}"
    assert f"one kept {kept:.1%}" in chart.alt
    assert chart.figure.layout.xaxis.range == (0, 1)


def test_small_shares_have_no_number_in_their_bar():
    assert fate._label(0.069) == ""
    assert fate._label(0.07) == "7%"


@pytest.mark.parametrize("key", [*WORDS, PRESENCE])
def test_a_map_shows_each_expert_on_fixed_limits(preview, key):
    chart = fate.fate_chart(preview, NAMES, key)
    traces = drawn(chart)
    value = (lambda f, e: f.projection(e)) if key == PRESENCE else (lambda f, e: f.share(e, key))
    for expert, trace in enumerate(traces):
        assert trace["x"] == KINDS
        assert trace["y"] == ["0", "1", "2"]
        assert trace["z"][1][5] == value(preview.tensors[UP], expert)
    axis = chart.figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == ((-1, 1) if key == PRESENCE else (0, 1))
    assert chart.title == MAPS[key].title


def test_limits_and_frame_stay_when_the_recipe_changes(family, preview):
    other = fate.fate_chart(preview_of(family, parameters={"density": 0.9}), NAMES, "kept")
    first = fate.fate_chart(preview, NAMES, "kept")
    assert other.figure.layout.coloraxis.to_plotly_json() == first.figure.layout.coloraxis.to_plotly_json()
    assert other.narrow == first.narrow
    assert drawn(other)[0]["z"] != drawn(first)[0]["z"]


def test_hovering_lists_all_five_shares(preview):
    text = drawn(fate.fate_chart(preview, NAMES, "kept"))[1]["text"][1][5]
    one = preview.tensors[UP]
    assert text.split("<br>") == [f"{WORDS[key].label} {one.share(1, key):.1%}" for key in WORDS]


def test_what_is_nobody_s_has_one_map(preview):
    (trace,) = drawn(fate.fate_chart(preview, NAMES, NOBODY))
    assert trace["z"][1][5] == preview.tensors[UP].residual()
    assert 0 < trace["z"][1][5] < 1


def test_methods_without_fates_show_presence(family):
    preview = preview_of(family, "karcher")
    assert not preview.elementwise
    assert fate.available(preview) == [PRESENCE, NOBODY]
    whole = total(preview.tensors.values())
    chart = fate.story_bars(whole, NAMES, "whole model")
    (trace,) = drawn(chart)
    assert trace["x"] == [whole.projection(expert) for expert in range(3)]
    assert "no sum of scaled changes" in chart.note
    headers, rows = fate.share_rows(whole, NAMES)
    assert headers == ["expert", "presence"]
    assert rows[2] == ["three", f"{whole.projection(2):.3f}"]


def test_rounding_counts_each_format_and_names_one(bf16):
    headers, rows = rounding.rounding_rows(bf16)
    whole = total(bf16.tensors.values())
    assert [row[0] for row in rows] == ["float32", "bfloat16, as this recipe writes", "float16"]
    assert len(headers) == len(rows[0])
    assert whole.lost_share("bfloat16") > 0.3 > whole.lost_share("float32")
    assert rows[1][1] == f"{100 * whole.lost_share('bfloat16'):.1f} %"
    (trace,) = drawn(rounding.rounding_chart(bf16, "bfloat16"))
    assert trace["z"][1][5] == bf16.tensors[UP].lost_share("bfloat16")
    said = rounding.rounding_advice(bf16)
    assert said.startswith("bfloat16 loses ")
    assert "choose out_dtype: float" in said


def test_rounding_advises_against_what_overflows(preview):
    name = next(iter(preview.tensors))
    one = preview.tensors[name]
    casts = {dtype: replace(cast, overflow=7 * (dtype == "float16")) for dtype, cast in one.casts.items()}
    tensors = {name: replace(one, casts=casts)}
    half = replace(preview, tensors=tensors, dtypes={name: "F16"})
    assert rounding.output_dtype(half) == "float16"
    assert rounding.rounding_advice(half).startswith(
        "float16 cannot hold 7 of the merged weights: choose out_dtype"
    )
    assert rounding.rounding_rows(half)[1][2][3] == "7 weights"
    assert set(casts) == set(DTYPES)


def test_rounding_of_a_recipe_that_serves(preview):
    said = rounding.rounding_advice(preview)
    assert said.startswith("float32 loses nothing of the change's energy")


def test_parameters_are_mapped_as_each_tensor_gets_them(family):
    recipe_keys = {
        "overrides": (Override(tensors="*layers.1.*", parameters={"density": 0.25}),),
        "scope": "tensor",
    }
    preview = preview_of(family, parameters={"density": 0.5, "lambda": 2.0}, **recipe_keys)
    assert effective.parameters(preview)[0] == "density", "what varies comes first"
    assert effective.varies(preview, "density")
    assert not effective.varies(preview, "weight")
    shown = effective.parameter_panels(preview, NAMES, "density")
    assert [panel.name for panel in shown] == list(NAMES)
    assert [line[0] for line in shown[2].grid.values] == [0.5, 0.25, 0.5]
    chart = effective.parameter_chart(preview, NAMES, "lambda")
    (trace,) = drawn(chart)
    assert trace["z"][0][0] == 2.0
    assert (chart.figure.layout.coloraxis.cmin, chart.figure.layout.coloraxis.cmax) == (0, 2)
    assert effective.parameter_chart(preview, NAMES, "nothing") is None


def test_copied_tensors_are_marked_as_the_base_s(family):
    preview = preview_of(family, exclude=("*layers.0*",))
    assert any("layers.0" in name for name in preview.copied)
    chart = effective.parameter_chart(preview, NAMES, "weight")
    values, *_, marks = drawn(chart)
    assert values["z"][0] == [None] * len(KINDS)
    assert marks["z"] == [[0.0] * len(KINDS), [None] * len(KINDS), [None] * len(KINDS)]
    assert marks["texttemplate"] == "%{text}"
    assert marks["text"] == [["base"] * len(KINDS), [""] * len(KINDS), [""] * len(KINDS)], (
        "numbers stay readable"
    )
    kept = drawn(fate.fate_chart(preview, NAMES, "kept"))[0]
    assert kept["z"][0] == [None] * len(KINDS), "nothing is merged there"
    assert kept["y"] == ["0", "1", "2"], "copied blocks keep their row"
    assert effective.caption(preview).endswith(f"{len(preview.copied)} copied.")


def test_names_from_outside_are_no_markup(preview):
    chart = fate.fate_bars(total(preview.tensors.values()), ("<b>x</b>", "%{x}", "three"), "whole model")
    assert drawn(chart)[0]["y"] == ["&lt;b&gt;x&lt;/b&gt;", "%&#123;x}", "three"]


@pytest.mark.parametrize("key", fate.WORDS)
def test_rounded_away_says_all_that_it_means(key):
    """Also of a λ of 0 and of changes that cancel exactly: the merge writes the base there."""
    said = fate.MAPS[key].explanation
    assert "the output equals the base there" in said
    assert "too small for the number format, or nothing is left of it, as with λ 0" in said
    assert "cancel each other exactly" in said


def test_a_merge_with_lambda_0_is_rounded_away(family):
    preview = preview_of(family, parameters={"density": 1.0, "lambda": 0.0})
    whole = total(preview.tensors.values())
    assert whole.share(0, "rounded") + whole.share(0, "outvoted") == pytest.approx(1)
    assert whole.share(0, "rounded") > 0.5
    chart = fate.fate_bars(whole, NAMES, "whole model")
    (rounded,) = [trace for trace in drawn(chart) if trace["name"] == "rounded away"]
    assert "leaves the base's value in the output" in rounded["hovertemplate"]
    assert "nothing is left of it" in rounded["hovertemplate"]


def test_an_expert_without_a_change_is_named(family, tmp_path):
    for name in ("base", "one", "three"):
        shutil.copytree(family / name, tmp_path / name)
    shutil.copytree(family / "base", tmp_path / "two")
    preview = preview_of(tmp_path, parameters={"density": 0.3})
    bars = fate.fate_bars(total(preview.tensors.values()), NAMES, "whole model")
    said = "Nothing of two is here to be kept: no weight differs from the base."
    assert bars.note == said
    assert sum(trace["x"][1] for trace in drawn(bars)) == 0
    assert fate.fate_chart(preview, NAMES, "kept").note.endswith(said)
    assert said not in fate.fate_chart(preview, NAMES, NOBODY).note
