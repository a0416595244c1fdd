"""A brush on the map becomes overrides and exclusions of exactly the tensors of its cells."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import merging
from components.clickable_plot import brushed_cells, clicked_cell, payload
from components.figures.chart import Chart, new_figure
from components.preview.brush import (
    NOTHING_CHOSEN,
    BackToRecipe,
    KeepBase,
    SetParameter,
    apply,
    brushable,
    settled,
    tensors_of,
)
from components.preview.brush_globs import escaped, globs_for, matching, number_globs
from merging import METHODS, Recipe
from merging.anatomy import kinds, locate
from merging.plan import make_plan
from merging.recipe import Override

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
LLAMA_PARTS = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
GPT2_PARTS = tuple(
    f"{part}.{leaf}"
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for leaf in ("weight", "bias")
)


def llama(blocks: int) -> list[str]:
    inside = [f"model.layers.{block}.{part}" for block in range(blocks) for part in LLAMA_PARTS]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"]


NAMES = {
    "llama": llama(12),
    "gpt2": [
        "wte.weight",
        "wpe.weight",
        *(f"h.{block}.{part}" for block in range(12) for part in GPT2_PARTS),
        "ln_f.weight",
        "ln_f.bias",
    ],
    "experts": [
        "model.embed_tokens.weight",
        *(
            f"model.layers.{block}.mlp.{part}.weight"
            for block in range(4)
            for part in ("gate", *(f"experts.{e}.{w}" for e, w in product(range(12), ("w1", "w2", "w3"))))
        ),
    ],
    "two stacks": [
        *(f"encoder.block.{b}.layer.{p}.weight" for b, p in product(range(5), ("q", "k", "wi"))),
        *(f"decoder.block.{b}.layer.{p}.weight" for b, p in product(range(7), ("q", "k", "wi", "x"))),
    ],
    "unknown": [
        "a[0].*.3.x",
        "a[0].*.13.x",
        "a[0].?.3.y",
        "b.03.q",
        "b.3.q",
        "b.3",
        "b.3.q.r",
        "zz?",
        "zzz",
        "[!a]",
        "q.1.2.3.w",
        "q.1.2.4.w",
        "q.2.2.3.w",
        "model.layers.3.",
    ],
    "200 blocks": llama(200),
}


def cells_of(names):
    rows = sorted({locate(n).block for n in names}, key=lambda block: (block is None, block or 0))
    return rows, kinds(names)


@st.composite
def brushes(draw):
    """A key of `NAMES` and the tensors of a random rectangle of its map."""
    kind = draw(st.sampled_from(sorted(NAMES)))
    names = NAMES[kind]
    rows, columns = cells_of(names)
    top, left = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(columns) - 1))
    bottom, right = draw(st.integers(top, len(rows) - 1)), draw(st.integers(left, len(columns) - 1))
    cells = product(rows[top : bottom + 1], columns[left : right + 1])
    return kind, tensors_of(cells, names)


@settings(max_examples=40, deadline=None, phases=QUICK)
@given(brushes(), st.data())
def test_globs_match_exactly_the_tensors_of_a_rectangle_and_of_what_is_left(brush, data):
    kind, chosen = brush
    names = NAMES[kind]
    odd = data.draw(st.lists(st.sampled_from(names), max_size=8)) if data.draw(st.booleans()) else []
    for wanted in ({*chosen}, {*names} - {*chosen}, {*chosen} ^ {*odd}):
        globs = globs_for(wanted, names)
        assert {name for glob in globs for name in matching(glob, names)} == wanted
        assert len(globs) <= len(wanted)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 250), max_size=60))
def test_globs_of_numbers(numbers):
    written = [str(number) for number in range(1300)]
    assert sorted(int(n) for glob in number_globs(numbers) for n in matching(glob, written)) == sorted(
        numbers
    )


@pytest.mark.parametrize(
    ("kind", "wanted", "globs"),
    [
        ("llama", lambda n: ".3." in n, ["model.layers.3.*"]),
        ("llama", lambda n: "down_proj" in n, ["*.mlp.down_proj.weight"]),
        ("llama", lambda n: "self_attn" in n, ["*.self_attn.*"]),
        ("llama", lambda n: ".layers." in n, ["model.layers.*"]),
        ("llama", lambda n: n in ("lm_head.weight",), ["lm_head.weight"]),
        ("llama", lambda n: locate(n).block in (2, 3, 4, 10), ["model.layers.[2-4].*", "model.layers.10.*"]),
        ("llama", lambda n: locate(n).block in (2, 3) and any(k in n for k in ("q_proj", "k_proj", "v_proj")),
         ["model.layers.[23].self_attn.[qkv]_proj.weight"]),
        ("llama", lambda n: True, ["*"]),
        ("llama", lambda n: False, []),
        ("gpt2", lambda n: locate(n).block in (1, 2) and "mlp.c_proj" in n, ["h.[12].mlp.c_proj.*"]),
        ("experts", lambda n: locate(n).block == 2 and "w1" in n, ["model.layers.2.mlp.experts.*.w1.weight"]),
        ("200 blocks", lambda n: "q_proj" in n and (locate(n).block or 0) // 10 == 17,
         ["model.layers.17[0-9].self_attn.q_proj.weight"]),
    ],
)  # fmt: skip
def test_globs_are_short(kind, wanted, globs):
    assert globs_for([name for name in NAMES[kind] if wanted(name)], NAMES[kind]) == globs


def test_brackets_and_stars_in_names_are_no_patterns():
    names = ["a[0].*.x", "a0.b.x", "zz?", "zzz"]
    assert escaped("a[0].*.x") == "a[[]0].[*].x"
    assert globs_for(["a[0].*.x", "zz?"], names) == ["a[[]0].[*].x", "zz[?]"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> dict[str, Path]:
    """Families of tiny tensors under the names of `NAMES`."""
    found = {}
    for kind, names in NAMES.items():
        root = tmp_path_factory.mktemp(kind.replace(" ", "-"))
        for folder in ("base", "one", "two"):
            (root / folder).mkdir()
            save_file({name: torch.zeros(2) for name in names}, root / folder / "model.safetensors")
        found[kind] = root
    return found


def recipe_of(root: Path, method: str = "ties", **keys) -> Recipe:
    models = [{"model": str(root / name)} for name in ("one", "two")]
    content = {"merge_method": method, "base_model": str(root / "base"), "models": models, "profile": "paper"}
    return Recipe.model_validate({**content, **keys})


def values(recipe: Recipe, parameter: str) -> dict[str, object]:
    """What every merged tensor gets of a parameter."""
    return {one.tensor: one.values.get(parameter) for one in make_plan(recipe).effective() if not one.copied}


def copied(recipe: Recipe) -> set[str]:
    return {one.tensor for one in make_plan(recipe).effective() if one.copied}


@settings(max_examples=15, deadline=None, phases=QUICK)
@given(
    brush=brushes(), value=st.floats(0, 3).map(lambda v: round(v, 3)), expert=st.sampled_from([None, 0, 1])
)
def test_new_values_on_exactly_those_tensors(many, brush, value, expert):
    kind, chosen = brush
    names = NAMES[kind]
    recipe = recipe_of(many[kind], "task_arithmetic", parameters={"weight": 0.7})
    model = None if expert is None else recipe.models[expert].model
    changed, sentence = apply(recipe, chosen, names, SetParameter("weight", value, model))
    if not chosen:
        assert (changed, sentence) == (recipe, NOTHING_CHOSEN)
        return
    wanted = [0.7, 0.7]
    for number in range(2) if expert is None else [expert]:
        wanted[number] = value
    found = values(changed, "weight")
    assert {name: weight for name, weight in found.items() if name in set(chosen)} == dict.fromkeys(
        chosen, tuple(wanted)
    )
    assert {weight for name, weight in found.items() if name not in set(chosen)} <= {(0.7, 0.7)}
    assert Recipe.from_yaml(changed.to_yaml()).model_dump() == changed.model_dump()
    assert f"in {len(chosen)} tensor" in sentence
    back, _ = apply(changed, chosen, names, BackToRecipe())
    assert back.to_yaml() == recipe.to_yaml()


@settings(max_examples=12, deadline=None, phases=QUICK)
@given(data=st.data())
def test_the_last_brush_wins_and_nothing_piles_up(many, data):
    names = NAMES["llama"]
    recipe = start = recipe_of(many["llama"], "task_arithmetic", exclude=["*norm*"])
    painted = {name: 1.0 for name in names if "norm" not in name}
    for _ in range(data.draw(st.integers(1, 6))):
        rows, columns = cells_of(names)
        cells = product(
            data.draw(st.sets(st.sampled_from(rows), min_size=1)),
            data.draw(st.sets(st.sampled_from(columns), min_size=1)),
        )
        chosen = tensors_of(cells, names)
        action = data.draw(
            st.sampled_from([SetParameter("weight", v) for v in (0.25, 0.5)] + [KeepBase(), BackToRecipe()])
        )
        recipe, _ = apply(recipe, chosen, names, action)
        for name in chosen:
            if isinstance(action, KeepBase):
                painted.pop(name, None)
            else:
                painted[name] = action.value if isinstance(action, SetParameter) else 1.0
        assert values(recipe, "weight") == {name: (w, w) for name, w in painted.items()}
        reaches = [set(matching(o.tensors, names)) for o in recipe.overrides]
        for place, reach in enumerate(reaches):
            assert not reach <= set().union(*reaches[:place]), "an override that nothing is left to"
    assert apply(recipe, names, names, BackToRecipe())[0].overrides == ()
    assert start.overrides == ()


def test_going_back_leaves_no_override_without_a_tensor(many):
    """What is left of a cut override may be hidden by an earlier one: it goes too."""
    names, recipe = NAMES["llama"], recipe_of(many["llama"], "task_arithmetic")
    attention = [f"model.layers.{block}.self_attn.{part}_proj.weight" for block in (0, 1) for part in "qk"]
    q, k = attention[::2], attention[1::2]
    recipe = recipe.model_copy(
        update={
            "overrides": (
                Override(tensors="model.layers.[01].self_attn.q_proj.weight", parameters={"weight": 0.25}),
                Override(tensors="model.layers.0.self_attn.[qk]_proj.weight", parameters={"weight": 0.5}),
            )
        }
    )
    back, _ = apply(recipe, [k[0]], names, BackToRecipe())
    assert back.overrides == recipe.overrides[:1]
    assert {name: values(back, "weight")[name] for name in attention} == {
        **dict.fromkeys(q, (0.25, 0.25)),
        **dict.fromkeys(k, (1.0, 1.0)),
    }


def test_a_second_brush_on_the_same_cells_replaces_the_first(many):
    names, recipe = NAMES["llama"], recipe_of(many["llama"], "task_arithmetic")
    block = [name for name in names if ".3." in name]
    for value in (0.2, 0.4, 0.9):
        recipe, _ = apply(recipe, block, names, SetParameter("weight", value))
    recipe, _ = apply(recipe, block, names, SetParameter("lambda", 0.5))
    assert recipe.overrides == (
        Override(tensors="model.layers.3.*", parameters={"weight": 0.9, "lambda": 0.5}),
    )
    recipe, _ = apply(recipe, names[:1], names, SetParameter("weight", 0.9))
    recipe, _ = apply(
        recipe, [n for n in names if ".4." in n], names, SetParameter("weight", 0.3, recipe.models[1].model)
    )
    recipe, _ = apply(
        recipe, [n for n in names if ".5." in n], names, SetParameter("weight", 0.3, recipe.models[1].model)
    )
    assert [(o.tensors, o.parameters) for o in recipe.overrides] == [
        ("model.layers.[45].*", {"weight": 0.3}),
        ("model.embed_tokens.weight", {"weight": 0.9}),
        ("model.layers.3.*", {"weight": 0.9, "lambda": 0.5}),
    ]


def test_an_override_of_all_experts_hides_those_of_one_and_not_the_other_way_round(many):
    names, recipe = NAMES["llama"], recipe_of(many["llama"], "task_arithmetic")
    block, one = [name for name in names if ".3." in name], recipe.models[0].model
    recipe, _ = apply(recipe, block, names, SetParameter("weight", 0.5))
    recipe, _ = apply(recipe, block, names, SetParameter("weight", 0.1, one))
    assert [o.model for o in recipe.overrides] == [one, None]
    assert values(recipe, "weight")[block[0]] == (0.1, 0.5)
    recipe, sentence = apply(recipe, block, names, SetParameter("weight", 0.3))
    assert [(o.model, o.parameters) for o in recipe.overrides] == [(None, {"weight": 0.3})]
    assert sentence == "weight is 0.3 for all experts in 9 tensors (block 3)."


def test_back_splits_a_glob_that_covers_more(many):
    names = NAMES["llama"]
    recipe = recipe_of(
        many["llama"],
        "task_arithmetic",
        overrides=[
            {"tensors": "*.mlp.*", "parameters": {"weight": 0.5, "lambda": 0.8}},
            {"tensors": "*q_proj*", "parameters": {"weight": 0.1}},
        ],
    )
    changed, sentence = apply(recipe, ["model.layers.3.mlp.up_proj.weight"], names, BackToRecipe())
    assert sentence == "The recipe's own values hold again in 1 tensor (block 3 up)."
    assert changed.overrides[-1] == recipe.overrides[1]
    before, after = values(recipe, "weight"), values(changed, "weight")
    assert {name for name in names if before[name] != after[name]} == {"model.layers.3.mlp.up_proj.weight"}
    assert after["model.layers.3.mlp.up_proj.weight"] == (1.0, 1.0)
    again, sentence = apply(changed, ["model.layers.3.mlp.up_proj.weight"], names, BackToRecipe())
    assert again == changed
    assert sentence == "The recipe's own values hold already in 1 tensor (block 3 up)."


def test_what_cannot_be_split_into_few_is_left_to_the_yaml(tmp_path):
    names = [f"tensor {number:04d} of something" for number in range(300)]
    for folder in ("base", "one", "two"):
        (tmp_path / folder).mkdir()
        save_file({name: torch.zeros(1) for name in names}, tmp_path / folder / "model.safetensors")
    recipe = recipe_of(tmp_path, "task_arithmetic", exclude=["*0*"])
    unchanged, sentence = apply(recipe, names[:1], names, BackToRecipe())
    assert unchanged == recipe
    covered = len(matching("*0*", names)) - 1
    assert sentence == (
        f"Nothing changed. '*0*' covers {covered} tensors more than the chosen ones and would become {covered} "
        "entries; change it in the YAML."
    )
    unchanged, sentence = apply(recipe, names[1:250], names, SetParameter("weight", 0.5))
    assert unchanged == recipe
    assert "would" in sentence


def test_keep_the_base_copies_its_bytes(family, tmp_path):
    recipe = recipe_of(family, "task_arithmetic", exclude=["lm_head.weight"])
    names = [tensor.info.name for tensor in make_plan(recipe).tensors]
    chosen = tensors_of([(1, "q"), (1, "k"), (2, "q"), (2, "k")], names)
    kept, sentence = apply(recipe, chosen, names, KeepBase())
    assert sentence == "The base is kept in 4 tensors (blocks 1-2 q, k)."
    assert copied(kept) == {*chosen, "lm_head.weight"}
    out = merging.merge(kept, tmp_path / "out")
    merged, base = load_file(out / "model.safetensors"), load_file(family / "base" / "model.safetensors")
    same = {name for name in base if torch.equal(merged[name], base[name])}
    assert same == {*chosen, "lm_head.weight"}
    assert apply(kept, chosen, names, KeepBase())[1].startswith("The base is kept already in 4 tensors")
    again, sentence = apply(kept, chosen[:1], names, SetParameter("weight", 0.5))
    assert copied(again) == {*chosen[1:], "lm_head.weight"}
    assert sentence.endswith("What kept the base there is merged again.")


def test_keep_the_base_drops_what_was_set_there(family):
    recipe = recipe_of(family, "task_arithmetic")
    names = [tensor.info.name for tensor in make_plan(recipe).tensors]
    block = [name for name in names if locate(name).block == 1]
    recipe, _ = apply(recipe, block, names, SetParameter("weight", 0.5))
    kept, _ = apply(recipe, block, names, KeepBase())
    assert (kept.overrides, kept.exclude) == ((), ("model.layers.1.*",))
    everything, _ = apply(kept, names, names, KeepBase())
    assert everything.exclude == ("*",)
    assert copied(everything) == set(names)


@pytest.mark.parametrize("scope", [None, "model", "layer"])
def test_a_share_that_differs_is_ranked_by_tensor_and_says_so(many, scope):
    names = NAMES["llama"]
    keys = {"scope": scope} if scope else {}
    recipe = recipe_of(many["llama"], "ties", parameters={"density": 0.5}, **keys)
    chosen = [name for name in names if ".3.mlp" in name]
    changed, sentence = apply(recipe, chosen, names, SetParameter("density", 0.9))
    assert changed.scope == "tensor"
    assert f"scope is now tensor: with scope {scope or 'model'}," in sentence
    found = values(changed, "density")
    assert {name for name, shares in found.items() if shares == (0.9, 0.9)} == set(chosen)
    assert {shares for name, shares in found.items() if name not in set(chosen)} == {(0.5, 0.5)}
    weighted, sentence = apply(recipe, chosen, names, SetParameter("weight", 0.9))
    assert weighted.scope == scope
    assert "scope" not in sentence
    back, sentence = apply(changed, chosen, names, BackToRecipe())
    assert (back.scope, back.overrides) == ("tensor", ())
    assert sentence.endswith("scope stays tensor; the method's own is model.")


def test_a_scope_among_the_parameters_is_not_given_twice(many):
    recipe = recipe_of(many["llama"], "magnitude", parameters={"scope": "layer", "density": 0.5})
    chosen = ["model.layers.3.mlp.up_proj.weight"]
    changed, _ = apply(recipe, chosen, NAMES["llama"], SetParameter("density", 0.9))
    assert (changed.scope, changed.parameters) == ("tensor", {"density": 0.5})
    assert values(changed, "density")[chosen[0]] == (0.9, 0.9)


@pytest.mark.parametrize(
    ("method", "action", "words"),
    [
        ("task_arithmetic", SetParameter("density", 0.5), "Task arithmetic has no parameter 'density'; it has: weight"),
        ("ties", SetParameter("density", 1.5), "density: 1.5 should be less than or equal to 1"),
        ("ties", SetParameter("density", True), "density: True"),
        ("ties", SetParameter("weight", None), "weight needs a value"),
        ("ties", SetParameter("weight", float("nan")), "weight: nan"),
        ("ties", SetParameter("weight", [1.0]), "weight needs a value"),
        ("ties", SetParameter("scope", "layer"), "scope is one value for the whole merge"),
        ("ties", SetParameter("lambda", 0.5, "one"), "lambda is one value for all experts"),
        ("ties", SetParameter("weight", 0.5, "elsewhere"), "none of the recipe's models"),
        ("dare_linear", SetParameter("seed", 3), "seed is one value for the whole merge"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_refused_in_a_sentence(many, method, action, words):
    recipe = recipe_of(many["llama"], method)
    unchanged, sentence = apply(recipe, NAMES["llama"][:3], NAMES["llama"], action)
    assert unchanged is recipe
    assert sentence.startswith("Nothing changed. ")
    assert words in sentence


def test_without_a_base_there_is_none_to_keep(many):
    recipe = recipe_of(many["llama"], "linear", base_model=None)
    unchanged, sentence = apply(recipe, NAMES["llama"][:3], NAMES["llama"], KeepBase())
    assert unchanged is recipe
    assert sentence == (
        "Nothing changed. Linear (model soup) merges here without a base, so there is none to keep; give it weight 0."
    )


def test_a_recipe_that_cannot_be_merged_comes_back_as_it_was(many):
    recipe = recipe_of(many["llama"], "ties", parameters={"weight": 0.0, "normalize": True})
    broken = recipe.model_copy(update={"merge_method": "slerp"})
    unchanged, sentence = apply(broken, NAMES["llama"][:3], NAMES["llama"], SetParameter("t", 0.5))
    assert unchanged is broken
    assert sentence.startswith("Nothing changed. ")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_offers_what_a_tensor_may_have(name):
    offered = brushable(METHODS[name])
    own = METHODS[name].per_model()
    assert set(offered) <= set(METHODS[name].parameters()) - {"seed", "scope", "levels", "amplify"}
    assert set(offered[: len(own)]) == own


def test_another_method_keeps_only_the_overrides_it_knows(many):
    recipe = recipe_of(many["llama"], "ties", scope="tensor")
    one = recipe.models[0].model
    recipe = recipe.model_copy(
        update={
            "overrides": (
                Override(tensors="*.mlp.*", parameters={"density": 0.5, "weight": 0.5}),
                Override(tensors="*q_proj*", model=one, parameters={"density": 0.5}),
                Override(tensors="*k_proj*", model="gone", parameters={"weight": 0.5}),
            )
        }
    )
    other = recipe.model_copy(update={"merge_method": "task_arithmetic", "scope": None})
    kept, sentence = settled(other)
    assert kept.overrides == (Override(tensors="*.mlp.*", parameters={"weight": 0.5}),)
    assert sentence.startswith("Left out: density, weight for single tensors, which Task arithmetic")
    assert settled(kept) == (kept, "")
    assert make_plan(kept).effective()


class Event:
    def __init__(self, data):
        self._data = data


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        {"cells": None},
        {"cells": "0123"},
        {"cells": [0, 1, 2]},
        {"cells": [0, 1, 2, 3, 4]},
        {"cells": [0, 1, 2, 3.0]},
        {"cells": [0, 1, 2, True]},
        {"cells": [0, 1, 2, "3"]},
        {"cells": [-1, 1, 2, 3]},
        {"cells": [2, 1, 2, 3]},
        {"cells": [1, 2, 3, 2]},
        {"cells": [[0], 1, 2, 3]},
        {"cells": {"0": 1}},
    ],
)
def test_a_brush_from_the_browser_that_is_no_rectangle(data):
    assert brushed_cells(Event(data)) is None
    assert clicked_cell(Event(data)) is None


def test_a_brush_from_the_browser():
    assert brushed_cells(Event({"cells": [1, 3, 0, 0]})) == (1, 3, 0, 0)
    assert clicked_cell(Event({"index": [1, 3], "cells": [1, 3, 0, 0]})) == (1, 3)
    assert brushed_cells(object()) is None


def test_a_chart_that_is_not_brushed_is_sent_as_ever():
    chart = Chart(new_figure(height=10), "title", "note", "alt")
    plain = payload(chart, (1, 2))
    assert "brush" not in plain
    assert "brushed" not in plain
    brushed = payload(chart, (1, 2), brush=True, brushed=[(0, 1, 2, 3)])
    assert brushed == {**plain, "brush": True, "brushed": [[0, 1, 2, 3]]}
    assert payload(chart, brush=True, brushed=[])["brushed"] == []
