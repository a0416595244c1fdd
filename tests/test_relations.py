"""What a merge says about its models once it has seen all of them."""

from __future__ import annotations

import re

import pytest
import torch

import merging.plan
from merging import MergingError, Recipe
from merging.checkpoint import StateDict
from merging.engine import MemorySink, run_plan
from merging.events import Finished
from merging.plan import plan_sources
from merging.recipe import ModelEntry

NAMES = ("one", "two", "three")


def warnings_of(base, models, method="task_arithmetic", **keys):
    names = NAMES[: len(models)]
    recipe = Recipe(
        merge_method=method, models=tuple({"model": name} for name in names), profile="paper", **keys
    )
    sources = [(ModelEntry(model=n), StateDict(m, n)) for n, m in zip(names, models, strict=True)]
    plan = plan_sources(recipe, StateDict(base, "base") if base else None, sources)
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    finished = [event for event in run_plan(plan, sink, device="cpu") if isinstance(event, Finished)]
    return finished[0].warnings


@pytest.fixture
def family():
    generator = torch.Generator().manual_seed(0)

    def noise(scale):
        return {name: torch.randn(40, 30, generator=generator) * scale for name in ("a.weight", "b.weight")}

    base = noise(1.0)
    return (
        base,
        [{n: v + d[n] for n, v in base.items()} for d in (noise(0.02), noise(0.03), noise(0.02))],
        noise,
    )


def test_a_usual_family_raises_no_eyebrows(family):
    base, models, _ = family
    assert warnings_of(base, models) == ()


def test_an_expert_that_equals_the_base(family):
    base, models, _ = family
    (text,) = warnings_of(base, [models[0], dict(base)])
    assert text.startswith("two: equals the base in all merged tensors")


def test_two_equal_experts(family):
    base, models, _ = family
    (text,) = warnings_of(base, [models[0], models[1], dict(models[0])])
    assert text.startswith("one and three are the same model")


def test_experts_that_differ_in_one_value_are_not_equal(family):
    base, models, _ = family
    twin = {name: value.clone() for name, value in models[0].items()}
    twin["b.weight"][-1, -1] += 1e-4
    assert warnings_of(base, [models[0], twin]) == ()


def test_equal_models_without_a_base(family):
    _, models, _ = family
    assert warnings_of(None, [models[0], dict(models[0])], "linear") == ("one and two are the same model.",)


def test_a_model_of_another_base(family):
    base, models, noise = family
    (text,) = warnings_of(base, [models[0], models[1], noise(1.0)])
    assert re.match(r"three: its change is 1[34]\d% ", text)
    assert "Was it really tuned from this base?" in text


def test_two_models_of_one_other_base(family):
    base, models, noise = family
    other = noise(1.0)
    relatives = [
        {name: value + change[name] for name, value in other.items()} for change in (noise(0.02), noise(0.02))
    ]
    texts = warnings_of(base, [models[0], *relatives])
    assert [text.split(":")[0] for text in texts] == ["two", "three"]


def test_a_strong_tune_in_the_bases_direction_is_no_stranger(family):
    base, models, _ = family
    strong = {name: value + 40 * (models[0][name] - value) for name, value in base.items()}
    assert not any("really tuned" in text for text in warnings_of(base, [models[0], strong]))


@pytest.mark.parametrize(("density", "warned"), [(0.4, True), (0.5, False)])
def test_dare_on_a_strongly_tuned_expert(family, density, warned):
    base, models, _ = family
    strong = {name: value + 10 * (models[0][name] - value) for name, value in base.items()}
    texts = warnings_of(
        base, [strong, models[1]], "dare_ties", parameters={"density": density, "scope": "tensor"}
    )
    assert any(re.match(r"one: its change is (19|20|21)% .*DARE", text) for text in texts) == warned
    assert not any(text.startswith("two") for text in texts)


def test_pcb_says_when_the_disagreeing_take_part(family):
    base, models, _ = family
    texts = warnings_of(base, models, "pcb", parameters={"ratio": 0.9})
    assert len([text for text in texts if "threshold is below 0" in text]) == 3
    assert warnings_of(base, models, "pcb", parameters={"ratio": 0.1}) == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "expert"])
def test_a_bad_value_that_would_not_reach_the_result_is_found(family, value, where, monkeypatch):
    """Weight 0 multiplies it away, or density drops it: it is named all the same."""
    base, models, _ = family
    damaged = base if where == "base" else models[1]
    damaged["b.weight"][17, 3] = value
    monkeypatch.setattr(merging.tensor_plan, "PIECE_BYTES", 4096)
    label = "the base" if where == "base" else "two"
    with pytest.raises(MergingError, match=rf"'b.weight'.*{label} holds 1 NaN or infinite"):
        warnings_of(base, models, "magnitude", parameters={"density": 0.01})


def test_large_but_finite_values_are_no_error(family):
    base, models, _ = family
    models[0]["a.weight"][0, 0] = 3e30
    assert warnings_of(base, models, "linear") == ()
    assert not any("inf" in text or "nan" in text for text in warnings_of(base, models))


def test_model_stock_says_where_it_keeps_the_base(family):
    base, models, _ = family
    opposite = {name: 2 * value - models[0][name] for name, value in base.items()}
    texts = warnings_of(base, [models[0], opposite], "model_stock")
    assert texts == (
        "model_stock: where the experts' changes do not point the same way on average, the base is kept.",
    )
    same = {name: value + 0.5 * (models[0][name] - value) for name, value in base.items()}
    assert warnings_of(base, [models[0], same], "model_stock") == ()


def test_one_expert_alone(family):
    base, models, _ = family
    (text,) = warnings_of(base, models[:1], "ties")
    assert text.startswith("only one model to merge")
    assert warnings_of(base, models[:1], "slerp") == ()
