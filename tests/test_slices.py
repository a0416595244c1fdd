"""Slices: the blocks of the output come from chosen blocks of the models, with mergekit's rules."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import MergingError, PlanError
from merging.noise import uniform
from tests.conftest import edit_config, save_llama, tune

OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def weights(folder):
    return load_file(folder / "model.safetensors")


def source(family, model, first, stop, **parameters):
    return {"model": str(family / model), "layer_range": [first, stop], "parameters": parameters}


@pytest.fixture
def write(tmp_path):
    """Write a recipe in slices form: each slice a list of sources, or a table."""

    def write(method, *slices, name="slices.yaml", **keys):
        content = [part if isinstance(part, dict) else {"sources": part} for part in slices]
        file = tmp_path / name
        file.write_text(json.dumps({"merge_method": method, "slices": content, **keys}))
        return file

    return write


def problems(recipe):
    with pytest.raises(PlanError) as caught:
        merging.check(recipe)
    return "\n".join(caught.value.problems)


def methods(plan):
    return {tensor.info.name: tensor.method for tensor in plan.tensors}


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_ties", "della_linear", "linear"])
def test_one_slice_of_all_blocks_is_the_models_form(family, write, write_recipe, tmp_path, method):
    density = {} if method in {"linear", "task_arithmetic"} else {"density": [0.4, 0.8]}
    base = {} if method == "linear" else {"base_model": str(family / "base")}
    keys = {"parameters": {"weight": [0.5, 1.0], **density}, "dtype": "float32"}
    models = write_recipe(family, method, **{"base_model": None, **base}, **keys)
    names = ["one", "two"] if method == "linear" else ["one", "base", "two"]
    sliced = write(method, [source(family, name, 0, 3) for name in names], **base, **keys)
    one = weights(merging.merge(models, tmp_path / "models"))
    other = weights(merging.merge(sliced, tmp_path / "sliced"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_passthrough_stacks_the_blocks_of_two_models(family, write, tmp_path):
    recipe = write("passthrough", [source(family, "one", 0, 2)], [source(family, "two", 1, 3)])
    merged = weights(merging.merge(recipe, tmp_path / "out"))
    one, two = weights(family / "one"), weights(family / "two")
    expected = {"model.embed_tokens.weight": one["model.embed_tokens.weight"]}
    expected |= {name: two[name] for name in OUTSIDE[1:]}
    for output, (model, block) in enumerate([(one, 0), (one, 1), (two, 1), (two, 2)]):
        for name, value in model.items():
            if f"layers.{block}." in name:
                expected[name.replace(f"layers.{block}.", f"layers.{output}.")] = value
    assert merged.keys() == expected.keys()
    assert all(torch.equal(value, merged[name]) for name, value in expected.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4


def test_a_stacked_model_is_loaded_by_transformers(family, write, tmp_path):
    from transformers import AutoModelForCausalLM

    recipe = write("passthrough", [source(family, "one", 0, 3)], [source(family, "one", 1, 3)])
    out = merging.merge(recipe, tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert len(model.model.layers) == 5
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()


def test_blocks_are_merged_with_those_of_another_depth(family, write, tmp_path):
    recipe = write(
        "task_arithmetic",
        [source(family, "base", 0, 1), source(family, "one", 2, 3, weight=0.5)],
        base_model=str(family / "base"),
    )
    merged = weights(merging.merge(recipe, tmp_path / "out"))
    base, one = weights(family / "base"), weights(family / "one")
    name = "model.layers.{}.mlp.up_proj.weight"
    start = base[name.format(0)]
    assert torch.equal(merged[name.format(0)], start + 0.5 * (one[name.format(2)] - start))
    assert len(merged) == 9 + len(OUTSIDE)


def test_every_slice_has_its_own_models_base_and_parameters(family, write, tmp_path):
    first = {
        "sources": [source(family, "base", 0, 1), source(family, "one", 0, 1)],
        "parameters": {"weight": 0.25},
    }
    second = {
        "sources": [source(family, "three", 1, 3), source(family, "two", 1, 3, weight=2.0)],
        "base_model": str(family / "three"),
    }
    recipe = write(
        "task_arithmetic",
        first,
        second,
        base_model=str(family / "base"),
        parameters={"weight": 9, "lambda": 1},
    )
    plan = merging.check(recipe)
    assert plan.names == (str(family / "one"), str(family / "two"))
    merged = weights(merging.merge(recipe, tmp_path / "out"))
    base, one, two, three = (weights(family / name) for name in ("base", "one", "two", "three"))
    for name, value in merged.items():
        in_first = "layers.0." in name or "embed" in name
        before, model, weight = (base, one, 0.25) if in_first else (three, two, 2.0)
        assert torch.equal(value, before[name] + weight * (model[name] - before[name])), name


def test_gradients_run_over_each_slice_and_stand_at_0_outside(family, write):
    def part(first, stop):
        return [source(family, "base", first, stop), source(family, "one", first, stop, weight=[0.0, 1.0])]

    plan = merging.check(
        write("task_arithmetic", part(0, 3), part(1, 2), part(0, 2), base_model=str(family / "base"))
    )
    found = methods(plan)
    name = "model.layers.{}.mlp.up_proj.weight"
    expected = [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    assert [found[name.format(block)].weight for block in range(6)] == [(value,) for value in expected]
    assert {found[name].weight for name in OUTSIDE} == {(0.0,)}


def test_own_values_see_the_inputs_name_and_shared_ones_the_outputs(family, write):
    def filtered(inside):
        return [{"filter": f"layers.{inside}.", "value": 0.5}, {"value": 2.0}]

    recipe = write(
        "task_arithmetic",
        [source(family, "base", 0, 1), source(family, "one", 2, 3, weight=filtered(2))],
        [source(family, "base", 2, 3), source(family, "one", 2, 3, weight=filtered(1))],
        base_model=str(family / "base"),
        parameters={"lambda": filtered(1)},
    )
    found = methods(merging.check(recipe))
    first, second = (found[f"model.layers.{block}.mlp.up_proj.weight"] for block in (0, 1))
    assert (first.weight, first.lambda_) == ((0.5,), 2.0)
    assert (second.weight, second.lambda_) == ((2.0,), 0.5)


def test_precedence_source_slice_recipe_default(family, write):
    part = {
        "sources": [
            source(family, "base", 0, 3),
            source(family, "one", 0, 3, weight=[{"filter": "mlp", "value": 0.1}]),
            source(family, "two", 0, 3),
        ],
        "parameters": {"weight": [{"filter": "q_proj", "value": 0.2}], "density": 0.6},
    }
    recipe = write(
        "ties",
        part,
        base_model=str(family / "base"),
        parameters={"weight": [{"filter": "k_proj", "value": 0.3}], "density": 0.9},
        overrides=[{"tensors": "*.1.*down_proj*", "parameters": {"weight": 7}}],
    )
    found = methods(merging.check(recipe))
    block = "model.layers.1."
    assert found[block + "mlp.up_proj.weight"].weight == (0.1, 1.0)
    assert found[block + "mlp.down_proj.weight"].weight == (7, 7)
    assert found[block + "self_attn.q_proj.weight"].weight == (0.2, 0.2)
    assert found[block + "self_attn.k_proj.weight"].weight == (0.3, 0.3)
    assert found[block + "self_attn.v_proj.weight"].weight == 1.0
    assert found[block + "mlp.up_proj.weight"].density == (0.6, 0.6)


@pytest.mark.parametrize("order", [("base", "one"), ("one", "base")])
def test_slerp_as_people_write_it(family, write, order):
    recipe = write(
        "slerp",
        [source(family, name, 0, 3) for name in order],
        base_model=str(family / "base"),
        parameters={
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.25]},
                {"filter": "mlp", "value": [1, 0.5, 0]},
                {"value": 0.75},
            ]
        },
        dtype="bfloat16",
    )
    plan = merging.check(recipe)
    found = methods(plan)
    assert plan.names == (str(family / "one"),)
    for block, attention, mlp in ((0, 0, 1), (1, 0.5, 0.5), (2, 0.25, 0)):
        assert found[f"model.layers.{block}.self_attn.o_proj.weight"].t == attention
        assert found[f"model.layers.{block}.mlp.gate_proj.weight"].t == mlp
        assert found[f"model.layers.{block}.input_layernorm.weight"].t == 0.75
    assert {found[name].t for name in OUTSIDE} == {0.75}


def test_random_masks_follow_the_place_in_the_slice_and_the_outputs_name(family, write, tmp_path):
    recipe = write(
        "dare_linear",
        [source(family, "base", 0, 1), source(family, "one", 0, 1), source(family, "two", 0, 1)],
        [source(family, "two", 2, 3), source(family, "base", 2, 3)],
        base_model=str(family / "base"),
        parameters={"density": 0.5, "rescale": False},
        seed=4,
    )
    merged = weights(merging.merge(recipe, tmp_path / "out"))
    base, two = weights(family / "base"), weights(family / "two")
    before, output = "model.layers.2.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    kept = (uniform(4, 0, output, 0, base[before].numel()) < 1 << 23).view_as(base[before])
    assert torch.equal(merged[output], base[before] + kept * (two[before] - base[before]))
    assert 0.4 < kept.float().mean() < 0.6


def test_a_whole_models_ranking_needs_the_same_models_everywhere(family, write):
    base = str(family / "base")
    recipe = write(
        "ties",
        [source(family, "base", 0, 1), source(family, "one", 0, 1)],
        [source(family, "base", 1, 3), source(family, "two", 1, 3)],
        base_model=base,
        scope="model",
    )
    assert "scope: layer" in problems(recipe)
    same = write(
        "ties",
        [source(family, "base", 0, 1), source(family, "one", 0, 1)],
        [source(family, "base", 1, 3), source(family, "one", 1, 3)],
        base_model=base,
        scope="model",
        parameters={"density": 0.5},
    )
    assert set(merging.check(same).groups) == {("model", "")}


def test_layers_are_ranked_by_their_place_in_the_output(family, write):
    both = [source(family, "base", 0, 1), source(family, "one", 0, 1)]
    plan = merging.check(write("ties", both, both, base_model=str(family / "base"), scope="layer"))
    assert {key for key in plan.groups if key[0] == "layer"} == {("layer", "0"), ("layer", "1")}


def test_what_is_wrong_with_slices_is_told_at_once(family, write):
    recipe = write(
        "ties",
        [source(family, "base", 0, 2), source(family, "one", 0, 3)],
        [source(family, "one", 0, 2), source(family, "two", 0, 2)],
        [source(family, "base", 0, 1), source(family, "one", 0, 1), source(family, "one", 1, 2)],
        [source(family, "base", 2, 5), source(family, "one", 2, 2)],
        [source(family, "base", 0, 1), source(family, "nowhere", 0, 1)],
        [],
        {"sources": [source(family, "base", 0, 1, densty=1)], "parameters": {"wieght": 1}},
        base_model=str(family / "base"),
    )
    text = problems(recipe)
    for part in (
        "slices.1: its sources give unequal numbers of blocks: 2",
        "slices.2: the base",
        "is not among its sources",
        f"slices.3: {family / 'one'} is listed twice",
        "has no block 3; it has 3, 0 to 2, and layer_range [2, 5] asks for 2 to 4",
        "layer_range [2, 2]",
        "nowhere",
        "slices.6: has no sources",
        "slices.7: only the base is among its sources",
        "Did you mean 'weight'",
    ):
        assert part in text, part


def test_one_form_at_a_time(family, write):
    recipe = write("passthrough", [source(family, "one", 0, 3)], models=[{"model": str(family / "one")}])
    assert "a recipe has one of them" in problems(recipe)


def test_passthrough_takes_one_model_a_slice(family, write):
    both = [source(family, "one", 0, 3), source(family, "two", 0, 3)]
    assert "slices.1: Passthrough takes exactly 1 model, not 2" in problems(write("passthrough", both))


def test_slerp_takes_two(family, write):
    three = [source(family, name, 0, 3) for name in ("base", "one", "two")]
    assert "exactly 1 other model, not 2" in problems(write("slerp", three, base_model=str(family / "base")))


def test_models_of_unlike_width_do_not_stack(family, write, tmp_path):
    save_llama(tmp_path / "wide", intermediate_size=64)
    recipe = write("passthrough", [source(family, "one", 0, 2)], [source(tmp_path, "wide", 0, 1)])
    text = problems(recipe)
    assert "slices.2" in text
    assert "do not make one model" in text


def test_tensors_missing_in_the_blocks_of_a_slice(family, write, tmp_path):
    tune(family / "base", tmp_path / "hole", seed=9)
    tensors = weights(tmp_path / "hole")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "hole" / "model.safetensors")

    def recipe(block):
        return write(
            "ties",
            [source(family, "base", 0, 1), source(tmp_path, "hole", block, block + 1)],
            base_model=str(family / "base"),
        )

    assert "lacks 1 tensor ('model.layers.2.mlp.up_proj.weight')" in problems(recipe(2))
    assert len(merging.check(recipe(1)).tensors) == 12


def test_lists_with_an_entry_a_block_are_cut_anew(family, write, tmp_path):
    for name, types in (("a", "xyz"), ("b", "uvw")):
        tune(family / "base", tmp_path / name, seed=1)
        edit_config(tmp_path / name, layer_types=list(types), mlp_only_layers=[1])
    recipe = write("passthrough", [source(tmp_path, "a", 0, 2)], [source(tmp_path, "b", 1, 3)])
    assert any("mlp_only_layers = [1]" in warning for warning in merging.check(recipe).warnings)
    config = json.loads((merging.merge(recipe, tmp_path / "out") / "config.json").read_text())
    assert config["layer_types"] == ["x", "y", "v", "w"]
    assert config["num_hidden_layers"] == 4


def test_an_excluded_tensor_is_the_bases_of_its_slice(family, write, tmp_path):
    recipe = write(
        "task_arithmetic",
        [source(family, "base", 2, 3), source(family, "one", 0, 1)],
        base_model=str(family / "base"),
        exclude=["*.0.mlp.up_proj.weight"],
    )
    merged = weights(merging.merge(recipe, tmp_path / "out"))
    base = weights(family / "base")
    assert torch.equal(merged["model.layers.0.mlp.up_proj.weight"], base["model.layers.2.mlp.up_proj.weight"])


def test_unlike_slices_are_not_inspected(family, write):
    recipe = write("passthrough", [source(family, "one", 0, 2)], [source(family, "two", 1, 3)])
    with pytest.raises(MergingError, match="different models"):
        merging.inspect(recipe)


def test_a_sliced_recipe_survives_dump_and_load(family, write, tmp_path):
    recipe = merging.Recipe.load(
        write(
            "ties",
            {
                "sources": [source(family, "base", 0, 3), source(family, "one", 0, 3, weight=0.5)],
                "parameters": {"density": 0.5},
                "base_model": str(family / "base"),
            },
        )
    )
    recipe.dump(tmp_path / "again.yaml")
    assert merging.Recipe.load(tmp_path / "again.yaml") == recipe


def test_sizes_of_a_sliced_plan(family, write):
    plan = merging.check(write("passthrough", [source(family, "one", 0, 3)], [source(family, "two", 0, 3)]))
    whole = merging.check(write("passthrough", [source(family, "one", 0, 3)]))
    outside = sum(weights(family / "one")[name].nbytes for name in OUTSIDE)
    assert plan.bytes_to_write == 2 * whole.bytes_to_write - outside
    assert plan.bytes_to_read == plan.bytes_to_write
