"""A merge in memory has the bits of the merge on disk, and answers as that one does."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from references.family import heavy_family
from references.fate import plan_of
from references.importance import made_up_importance
from safetensors.torch import load_file

import merging
from merging import METHODS, MergingError, Plan, Recipe
from merging.answering.model_cache import ModelCache
from merging.engine import MemorySink, run_plan
from merging.errors import CheckpointError
from merging.inference import LoadedModel, Sampling, stream
from merging.memory.unsaved import TOO_LARGE, load_unsaved, merge_in_memory
from merging.memory.whatif import Residents, preview
from merging.output import config_of
from tests.conftest import edit_config

DEMO = Path(__file__).parent.parent / "examples" / "demo"
EXPERTS = ("math", "code", "words")


@pytest.fixture(scope="module")
def residents() -> Residents:
    """One for all tests, so that what one recipe leaves there must be right for the others."""
    return Residents()


def demo_recipe(method: str, *, folder: Path = DEMO, names: tuple[str, ...] = EXPERTS, **keys) -> Recipe:
    experts = names[: METHODS[method].experts_wanted]
    base = str(folder / "base") if METHODS[method].needs_base else None
    models = tuple({"model": str(folder / name)} for name in experts)
    return Recipe(merge_method=method, base_model=base, models=models, **{"profile": "paper", **keys})


def same_bits(plan: Plan, residents: Residents, out: Path) -> dict[str, torch.Tensor]:
    made = merge_in_memory(plan, residents)
    written = load_file(merging.merge(plan.recipe, out) / "model.safetensors")
    assert made.keys() == written.keys()
    for name, tensor in written.items():
        assert (made[name].dtype, made[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(made[name].view(torch.uint8), tensor.view(torch.uint8)), name
    return made


METHOD = pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if not method.needs_importance]
)


@METHOD
def test_every_method_on_the_demo(method, residents, tmp_path):
    same_bits(merging.check(demo_recipe(method)), residents, tmp_path / "out")


@METHOD
def test_every_method_as_mergekit_has_it(method, residents, bf16_family, tmp_path):
    family = {"folder": bf16_family, "names": ("one", "two", "three")}
    same_bits(merging.check(demo_recipe(method, **family, profile="mergekit")), residents, tmp_path / "out")


@pytest.mark.parametrize(
    "keys",
    [
        {"out_dtype": "float32"},
        {"dtype": "float16", "profile": "mergekit"},
        {"scope": "model"},
        {"scope": "layer", "seed": 7},
        {"exclude": ("*mlp*", "*norm*")},
        {"parameters": {"density": [0.2, 0.9], "lambda": 1.4}, "scope": "tensor"},
    ],
    ids=str,
)
def test_what_else_a_recipe_may_say(keys, residents, tmp_path):
    plan = merging.check(demo_recipe("ties", **keys))
    preview(plan, residents)  # leaves its own in the same family
    same_bits(plan, residents, tmp_path / "out")


def stacked(*names: str) -> Recipe:
    """Two blocks of each model, one after the other."""
    slices = [{"sources": [{"model": str(DEMO / n), "layer_range": [2, 4]}]} for n in names]
    return Recipe(merge_method="passthrough", slices=slices)


def test_slices_of_the_same_models_in_another_order(residents, tmp_path):
    one = same_bits(merging.check(stacked("math", "code", "math")), residents, tmp_path / "one")
    other = same_bits(merging.check(stacked("math", "math", "code")), residents, tmp_path / "other")
    name = "model.layers.2.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])
    assert (
        load_unsaved(merging.check(stacked("math", "code", "math")), residents).model.config.num_hidden_layers
        == 6
    )


@pytest.mark.parametrize("drop", ["random", "magnitude"])
def test_importance_from_memory(drop):
    base, models = heavy_family(3, 61, torch.bfloat16)
    options = {"density": 0.4, "drop": drop, "importance": made_up_importance(base, models)}
    plan = plan_of(base, models, "apl", out=torch.bfloat16, **options)
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    for _ in run_plan(plan, sink, device="cpu"):
        pass
    made = merge_in_memory(plan, Residents())
    assert made.keys() == sink.tensors.keys()
    for name, tensor in sink.tensors.items():
        assert torch.equal(made[name], tensor), name


def said(model: LoadedModel, prompt: str) -> str:
    return "".join(stream(model, [{"role": "user", "content": prompt}], Sampling(max_new_tokens=12)))


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_it_answers_as_the_written_merge(method, residents, tmp_path):
    plan = merging.check(demo_recipe(method))
    model = load_unsaved(plan, residents)
    written = LoadedModel.load(merging.merge(plan.recipe, tmp_path / "out"))
    ours, theirs = model.model.state_dict(), written.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], theirs[name])
    assert model.model.lm_head.weight is model.model.model.embed_tokens.weight
    assert model.model.generation_config == written.model.generation_config
    assert (model.end_ids, model.pad_id, model.nbytes) == (written.end_ids, written.pad_id, written.nbytes)
    assert not model.model.training
    for prompt in ("12+7=", "2*3*4", "opposite of hot?"):
        assert said(model, prompt) == said(written, prompt)


def test_an_untied_head_and_no_generation_settings(family, write_recipe, tmp_path):
    plan = merging.check(write_recipe(family, "task_arithmetic"))
    model = load_unsaved(plan, Residents())
    written = LoadedModel.load(merging.merge(plan.recipe, tmp_path / "out"))
    assert model.model.lm_head.weight is not model.model.model.embed_tokens.weight
    assert torch.equal(model.model.lm_head.weight, written.model.lm_head.weight)
    assert said(model, "abc") == said(written, "abc")


def test_off_the_cpu_weights_keep_the_stored_dtype(residents):
    plan = merging.check(demo_recipe("ties"))
    tensors = merge_in_memory(plan, residents)
    model = LoadedModel.of(tensors, config_of(plan, plan.reference), DEMO / "base", device="cpu:0")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_the_recipes_chat_template_takes_the_place_of_the_models(residents):
    plan = merging.check(demo_recipe("linear", chat_template="{{ messages[0]['content'] }}"))
    model = load_unsaved(plan, residents)
    ids = model.prompt_ids([{"role": "user", "content": "1+2"}])
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["1", "+", "2"]


def test_models_that_do_not_fit_name_the_way(residents):
    plan = merging.check(demo_recipe("ties"))
    small = Residents(1 << 20)
    for attempt in (merge_in_memory, load_unsaved):
        with pytest.raises(MergingError) as refused:
            attempt(plan, small)
        assert str(refused.value) == TOO_LARGE


@pytest.fixture
def models(family, tmp_path) -> Path:
    """A copy of base and one expert, to be damaged."""
    for name in ("base", "one"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    return tmp_path / "f"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda base: (base / "config.json").unlink(), "base: has no config.json"),
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer: add its tokenizer.json."),
        (lambda base: edit_config(base, model_type="never-heard-of"), "never-heard-of"),
        (lambda base: edit_config(base, hidden_size=64), "the shapes of its weights are not those"),
        (
            lambda base: edit_config(base, num_hidden_layers=4),
            "weights that are not there (9, such as model.layers.3.",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(models, damage, reason, write_recipe):
    recipe = write_recipe(models, "task_arithmetic", ["one"])
    damage(models / "base")
    plan = merging.check(recipe)
    with pytest.raises(CheckpointError) as refused:
        load_unsaved(plan, Residents())
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_code_that_a_model_brings_is_not_run(models, write_recipe, tmp_path):
    mark = tmp_path / "ran"
    (models / "base" / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_config(models / "base", auto_map=auto)
    assert "auto_map" in json.loads((models / "base" / "config.json").read_text())
    load_unsaved(merging.check(write_recipe(models, "task_arithmetic", ["one"])), Residents())
    assert not mark.exists()


def test_the_cache_lets_go_of_what_it_forgets(residents):
    cache, plan = ModelCache(), merging.check(demo_recipe("ties"))
    model = cache.kept("one", lambda: load_unsaved(plan, residents))
    assert cache.kept("one", lambda: pytest.fail("it is there already")) is model
    weights = [weakref.ref(parameter) for parameter in model.model.parameters()]
    cache.forget("one")
    cache.forget("never there")
    del model
    gc.collect()
    assert len(cache) == 0
    assert [ref for ref in weights if ref() is not None] == []
