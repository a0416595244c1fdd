"""What a recipe's gradients, filters, slices and overrides come to, tensor by tensor."""

from __future__ import annotations

import json

import pytest

import merging
from merging.effective import Names, summary


@pytest.fixture
def varied(family, write_recipe):
    models = [
        {"model": "one", "parameters": {"density": [0.2, 0.8]}},
        {"model": "two", "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 1}]}},
    ]
    return write_recipe(
        family,
        "ties",
        models,
        parameters={"lambda": [{"filter": "q_proj", "value": 0.5}, {"value": 1}]},
        exclude=["*norm*"],
        overrides=[{"tensors": "lm_head*", "parameters": {"normalize": False}}],
    )


def test_every_tensor_has_its_values(family, varied):
    found = {one.tensor: one for one in merging.check(varied).effective()}
    assert len(found) == 30
    up = found["model.layers.1.mlp.up_proj.weight"]
    assert up.models == (str(family / "one"), str(family / "two"))
    assert up.inputs == ("model.layers.1.mlp.up_proj.weight",) * 2
    assert up.values == {
        "weight": (1.0, 0.3),
        "density": (0.5, 1.0),
        "scope": "tensor",
        "count": "floor",
        "rescale": "none",
        "lambda": 1.0,
        "normalize": True,
        "zero_divisor": "one",
        "sign": "total",
        "elect_on": "weighted",
        "zero_sum": "plus",
    }
    assert found["model.layers.2.self_attn.q_proj.weight"].values["lambda"] == 0.5
    assert found["lm_head.weight"].values["normalize"] is False
    assert found["model.norm.weight"].copied
    assert found["model.norm.weight"].values == {}


def test_machines_get_every_tensor(family, varied, command_line):
    done = command_line("check", varied, "--effective", "--json")
    assert done.returncode == 0, done.stderr
    found = {one["tensor"]: one for one in json.loads(done.stdout)["effective"]}
    assert len(found) == 30
    values = found["model.layers.2.mlp.up_proj.weight"]["values"]
    assert values["density"] == {str(family / "one"): 0.8, str(family / "two"): 1.0}
    assert values["weight"] == {str(family / "one"): 1.0, str(family / "two"): 0.3}
    assert values["lambda"] == 1.0
    assert found["model.norm.weight"]["copied"] is True
    assert "effective" not in json.loads(command_line("check", varied, "--json").stdout)


def test_people_get_groups_of_tensors(varied, command_line):
    lines = command_line("check", varied, "--effective").stdout.splitlines()
    expected = [
        "everywhere: scope tensor, count floor, rescale none, zero_divisor one, sign total, elect_on weighted, "
        "zero_sum plus",
        "block 0 k, v, o; model.embed_tokens.weight: weight 1, density one=0.2 two=1, lambda 1, normalize true",
        "lm_head.weight: weight 1, density one=0.2 two=1, lambda 1, normalize false",
        "blocks 0-2 attention norm, mlp norm; model.norm.weight: copied",
    ]
    for block, one in enumerate((0.2, 0.5, 0.8)):
        density = f"density one={one} two=1"
        expected.append(f"block {block} q: weight 1, {density}, lambda 0.5, normalize true")
        expected.append(
            f"block {block} gate, up, down: weight one=1 two=0.3, {density}, lambda 1, normalize true"
        )
        if block:
            expected.append(f"block {block} k, v, o: weight 1, {density}, lambda 1, normalize true")
    assert lines[2] == expected[0]
    assert lines[-1] == expected[3]
    assert sorted(lines[2:]) == sorted(expected)


def test_one_line_where_all_is_equal(family, write_recipe):
    lines = summary(
        merging.check(write_recipe(family, "task_arithmetic", parameters={"weight": 0.5})).effective()
    )
    assert lines == ["everywhere: weight 0.5, lambda 1, normalize false, zero_divisor one"]


def test_slices_show_whose_tensors_are_merged(family, tmp_path):
    one, two = str(family / "one"), str(family / "two")
    scale = [{"filter": "o_proj", "value": 0}, {"value": 1}]
    content = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": one, "layer_range": [0, 2]}]},
            {"sources": [{"model": two, "layer_range": [1, 3], "parameters": {"scale": scale}}]},
        ],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(content))
    found = merging.check(tmp_path / "r.yaml").effective()
    assert summary(found) == [
        "blocks 0-1; model.embed_tokens.weight (one): scale 1",
        "blocks 2-3 attention norm, mlp norm, q, k, v, gate, up, down; lm_head.weight; model.norm.weight (two): scale 1",
        "blocks 2-3 o (two): scale 0",
    ]
    inputs = {one.tensor: one.inputs for one in found}
    assert inputs["model.layers.3.mlp.up_proj.weight"] == ("model.layers.2.mlp.up_proj.weight",)


def test_modules_of_one_kind_keep_their_own_names():
    names = [f"model.layers.{block}.experts.{expert}.w1.weight" for block in (0, 1) for expert in (0, 1)]
    words = Names(names)
    assert words.pattern(names) == "blocks 0-1"
    assert words.pattern(names[::2]) == "blocks 0-1 experts.0.w1.weight"
    assert words.pattern([names[0], names[3]]) == "block 0 experts.0.w1.weight; block 1 experts.1.w1.weight"
