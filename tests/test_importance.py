"""APL's importance against autograd on whole models, against interventions by hand, and its file."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging.checkpoint import Checkpoint, StateDict
from merging.errors import MergingError
from merging.heartbeats import Stopped, heartbeats
from merging.importances.artefact import fingerprint
from merging.importances.attribution import Elements, MovedModel, gradient_sums
from merging.importances.calibration import AnswerTask, Calibration
from merging.importances.measuring import ExpertMeasures, Measured, Measurement
from merging.inference import LoadedModel
from merging.judging.suites import Item, Suite
from merging.partitions import make_partitions
from merging.recipe import ModelEntry, Recipe

SUITE = Suite(
    "letters",
    tuple(
        Item(prompt, answer)
        for prompt, answer in [("ab", "ba"), ("12+7=", "19"), ("a", "bcdef"), ("xyz", "z"), ("q-q", "0")]
    ),
)


class Scalars(torch.nn.Module):
    """f(x) = w1·w2·x."""

    def __init__(self):
        super().__init__()
        self.w1 = torch.nn.Parameter(torch.tensor(0.0))
        self.w2 = torch.nn.Parameter(torch.tensor(0.0))


class Squared:
    """(f(1) − 2)²/2: the loss of the worked example, as a task of one example."""

    weights = torch.ones(1, dtype=torch.float64)
    batches = ((0,),)

    def sums(self, model, chosen):
        return ((model.w1 * model.w2 - 2).square() / 2).reshape(1)

    def shuffled(self, seed):
        return self


def recipe_of(family: Path, *experts: str) -> Recipe:
    return Recipe(
        merge_method="task_arithmetic",
        base_model=str(family / "base"),
        models=tuple(ModelEntry(model=str(family / name)) for name in experts),
    )


def answers_and_labels(model: LoadedModel, item: Item):
    prompt = model.prompt_ids([{"role": "user", "content": item.prompt}])
    answer = [*model.tokenizer(item.answer, add_special_tokens=False)["input_ids"], model.end_ids[0]]
    return prompt + answer, [-100] * len(prompt) + answer


def loss_of(model, loaded: LoadedModel) -> torch.Tensor:
    """transformers' own loss of every example, weighted by its answer's tokens."""
    total, tokens = 0.0, 0
    for item in SUITE.items:
        ids, labels = answers_and_labels(loaded, item)
        count = sum(label != -100 for label in labels)
        total = total + model(torch.tensor([ids]), labels=torch.tensor([labels])).loss * count
        tokens += count
    return total / tokens


def gradients_by_hand(family: Path, expert: str, share: float) -> dict[str, torch.Tensor]:
    """δ·g of every element by plain autograd in float64."""
    loaded = LoadedModel.load(family / expert)
    model = loaded.model.double()
    base, tuned = (load_file(family / name / "model.safetensors") for name in ("base", expert))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(base[name].double() + share * (tuned[name].double() - base[name].double()))
    loss_of(model, loaded).backward()
    return {n: (tuned[n].double() - base[n].double()) * p.grad for n, p in parameters.items()}


@pytest.mark.parametrize(
    ("how", "at", "key"),
    [
        ("exact", "base", "exact"),
        *(("gradient", at, f"gradient_{at}") for at in ("base", "expert", "midpoint", "trapezoid")),
    ],
)
def test_the_worked_numbers_of_a_net_of_two_scalars(how, at, key):
    content = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())
    [case] = [case for case in content["cases"] if case["id"] == "apl-importance-scalar-net"]
    base = StateDict({"w1": torch.tensor(1.0), "w2": torch.tensor(1.0)})
    expert = StateDict({"w1": torch.tensor(1.5), "w2": torch.tensor(1.2)})
    partitions = make_partitions({"w1": (), "w2": ()}, {}, "module")
    moved = MovedModel(Scalars(), base, expert)
    measures = ExpertMeasures("net", moved, Squared(), partitions, Measurement(how=how, at=at))
    *_, result = measures.run()
    expected = torch.tensor(case["expected"][key], dtype=torch.float64)
    torch.testing.assert_close(result.signed.abs(), expected, atol=1e-6, rtol=0)
    assert (result.signed < 0).all()
    assert result.base_loss == pytest.approx(0.5)
    assert result.expert_loss == pytest.approx(0.02)
    torch.testing.assert_close(result.change, torch.tensor([0.25, 0.04], dtype=torch.float64))


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "head", "row"])
@pytest.mark.parametrize("at", ["base", "expert", "midpoint", "trapezoid"])
def test_gradient_scores_are_those_of_autograd(family, granularity, at):
    found = merging.importance(recipe_of(family, "one"), SUITE, partition=granularity, at=at, device="cpu")
    shares = {"base": [0], "expert": [1], "midpoint": [0.5], "trapezoid": [0, 1]}[at]
    expected = torch.zeros(len(found.partitions), dtype=torch.float64)
    for share in shares:
        for name, products in gradients_by_hand(family, "one", share).items():
            numbers = found.partitions.index[name].expand(products.shape).flatten()
            expected.index_add_(0, numbers, products.flatten() / len(shares))
    torch.testing.assert_close(found.signed[0], expected, rtol=1e-3, atol=1e-6)
    assert float(expected.abs().max()) > 1e-4


def test_rows_and_heads_add_up_to_modules(family):
    sums = {}
    for granularity in ("module", "head", "row"):
        found = merging.importance(recipe_of(family, "two"), SUITE, partition=granularity, device="cpu")
        sums[granularity] = {}
        for number, partition in enumerate(found.partitions):
            key = partition.key.partition("/head")[0].partition("/row")[0]
            sums[granularity][key] = sums[granularity].get(key, 0.0) + float(found.signed[0, number])
    assert sums["row"] == pytest.approx(sums["module"], abs=1e-9)
    assert sums["head"] == pytest.approx(sums["module"], abs=1e-9)


def test_elements_and_their_absolute_sums(family, tmp_path):
    options = {"elements": True, "elementwise": True, "at": "trapezoid", "device": "cpu"}
    found = merging.importance(recipe_of(family, "one"), SUITE, **options)
    found.save(tmp_path / "i.safetensors")
    loaded = merging.Importance.load(tmp_path / "i.safetensors")
    elements = loaded.elements(Checkpoint.open(family / "one"))
    low, high = gradients_by_hand(family, "one", 0), gradients_by_hand(family, "one", 1)
    expected = torch.zeros(len(found.partitions), dtype=torch.float64)
    for name in low:
        products = (low[name] + high[name]) / 2
        torch.testing.assert_close(elements.read(name).double(), products, rtol=1e-3, atol=1e-7)
        numbers = found.partitions.index[name].expand(products.shape).flatten()
        expected.index_add_(0, numbers, products.abs().flatten())
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(elements.read(name, 3, 9), elements.read(name)[3:9])
    torch.testing.assert_close(loaded.signed[0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("granularity", ["layer", "module"])
def test_exact_scores_by_hand(family, granularity):
    found = merging.importance(
        recipe_of(family, "one"), SUITE, how="exact", partition=granularity, device="cpu"
    )
    loaded = LoadedModel.load(family / "one")
    base = load_file(family / "base" / "model.safetensors")
    with torch.no_grad():
        clean = loss_of(loaded.model, loaded)
        for number in (0, 5, len(found.partitions) - 1):
            names = found.partitions[number].tensors
            changed = LoadedModel.load(family / "one").model
            for name in names:
                changed.get_parameter(name).copy_(base[name])
            rise = float(loss_of(changed, loaded) - clean)
            assert found.signed[0, number] == pytest.approx(-rise, abs=2e-6)
    assert float(found.values.max()) > 1e-4


def test_exact_heads_and_rows_on_a_sample(family):
    for granularity in ("head", "row"):
        found = merging.importance(
            recipe_of(family, "one"), SUITE, how="exact", partition=granularity, sample=6, device="cpu"
        )
        known = found.signed[0].isfinite().nonzero().flatten().tolist()
        assert len(known) == 6
        assert not found.partitions.outside[known].any()
        loaded = LoadedModel.load(family / "one")
        base = load_file(family / "base" / "model.safetensors")
        clean = loss_of(loaded.model, loaded)
        for number in known[:3]:
            changed = LoadedModel.load(family / "one").model
            with torch.no_grad():
                for name in found.partitions[number].tensors:
                    parameter = changed.get_parameter(name)
                    mask = (found.partitions.index[name] == number).expand(parameter.shape)
                    parameter[mask] = base[name][mask]
                rise = float(loss_of(changed, loaded) - clean)
            assert found.signed[0, number] == pytest.approx(-rise, abs=2e-6)
        with pytest.raises(MergingError, match="exact scores exist for a sample only"):
            found.scores(Checkpoint.open(family / "base"), [Checkpoint.open(family / "one")])


def test_what_was_put_back_returns_bit_by_bit(bf16_family):
    base, expert = (Checkpoint.open(bf16_family / name) for name in ("base", "one"))
    model = LoadedModel.load(bf16_family / "one").model
    before = {name: value.clone() for name, value in model.named_parameters()}
    partitions = make_partitions({n: t.shape for n, t in base.tensors.items()}, base.config, "head")
    moved = MovedModel(model, base, expert)
    key = [partition.key for partition in partitions].index("layers.1/o/head 2")
    with moved.put_back(partitions, torch.tensor([key])):
        weight = model.get_parameter("model.layers.1.self_attn.o_proj.weight")
        put = base.read("model.layers.1.self_attn.o_proj.weight").float()
        assert torch.equal(weight[:, 16:24], put[:, 16:24])
        assert torch.equal(weight[:, :16], before["model.layers.1.self_attn.o_proj.weight"][:, :16])
    moved.move(0.5)
    moved.move(1)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_one_gradient_lives_at_a_time(family, monkeypatch):
    base, expert = (Checkpoint.open(family / name) for name in ("base", "one"))
    loaded = LoadedModel.load(family / "one")
    moved = MovedModel(loaded.model, base, expert)
    partitions = make_partitions({n: t.shape for n, t in base.tensors.items()}, base.config, "row")
    alive, seen = [], set()
    original = type(moved).change

    def change(self, name, start, stop):
        alive.append(sum(parameter.grad is not None for parameter in loaded.model.parameters()))
        seen.add(name)
        return original(self, name, start, stop)

    monkeypatch.setattr(type(moved), "change", change)
    task = AnswerTask.of(Calibration.of(SUITE, 16), loaded)
    for _ in gradient_sums(moved, partitions, task, task.batches):
        assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert seen == set(base.tensors)
    assert set(alive) == {1}


def test_prompts_are_masked_and_the_end_belongs_to_the_answer(family):
    loaded = LoadedModel.load(family / "one")
    task = AnswerTask.of(Calibration.of(SUITE, 16), loaded)
    assert task.weights.tolist() == [3, 3, 6, 2, 2]
    found = task.sums(loaded.model, range(5)).detach().double()
    torch.testing.assert_close(
        found.sum() / task.weights.sum(), loss_of(loaded.model, loaded).detach().double()
    )
    ids, mask, labels = task._padded(range(5))
    for row, item in enumerate(SUITE.items):
        sequence, wanted = answers_and_labels(loaded, item)
        assert ids[row, : len(sequence)].tolist() == sequence
        assert labels[row].tolist() == wanted + [-100] * (ids.shape[1] - len(wanted))
        assert mask[row].sum() == len(sequence)
    task.pad = 7  # what fills the rows must not matter
    torch.testing.assert_close(task.sums(loaded.model, range(5)).detach().double(), found)


def test_the_grouping_of_examples_does_not_matter(family, monkeypatch):
    whole = merging.importance(recipe_of(family, "one"), SUITE, device="cpu")
    monkeypatch.setattr("merging.importances.calibration.BATCH_TOKENS", 12)
    loaded = LoadedModel.load(family / "one")
    assert len(AnswerTask.of(Calibration.of(SUITE, 16), loaded).batches) == 4
    parts = merging.importance(recipe_of(family, "one"), SUITE, device="cpu")
    torch.testing.assert_close(parts.signed, whole.signed, rtol=1e-4, atol=1e-7)
    assert parts.experts[0].expert_loss == pytest.approx(whole.experts[0].expert_loss, rel=1e-6)


def test_samples_are_spaced_over_the_file(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": str(n), "answer": "a"}) for n in range(10)) + "\n")
    chosen = Calibration.of(file, 4)
    assert [item.prompt for item in chosen.items] == ["0", "2", "5", "7"]
    assert chosen.places[3] == f"{file}, line 8"
    assert len(Calibration.of(file, 99).items) == 10


def test_shuffled_answers_are_all_foreign(family):
    loaded = LoadedModel.load(family / "one")
    task = AnswerTask.of(Calibration.of(SUITE, 16), loaded)
    mixed = task.shuffled(3)
    assert [prompt for prompt, _ in mixed.sequences] == [prompt for prompt, _ in task.sequences]
    assert sorted(answer for _, answer in mixed.sequences) == sorted(answer for _, answer in task.sequences)
    assert all(one[1] is not two[1] for one, two in zip(mixed.sequences, task.sequences, strict=True))
    assert mixed.sequences == task.shuffled(3).sequences


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "holds no items"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"', "line 2: not valid JSON"),
        ('\n{"prompt": "a", "answer": ""}\n', "line 2: its answer is empty"),
        (
            '{"prompt": "a", "answer": "b"}\n\n' + json.dumps({"prompt": "a" * 60, "answer": "b" * 9}),
            "line 3: prompt and answer have 70 tokens, and one reads at most 64",
        ),
    ],
)
def test_bad_calibration_is_named_by_line(family, tmp_path, lines, reason):
    file = tmp_path / "c.jsonl"
    file.write_text(lines)
    with pytest.raises(MergingError, match=reason):
        merging.importance(recipe_of(family, "one"), file, device="cpu")


def test_every_expert_needs_its_own_data(family, tmp_path):
    recipe = recipe_of(family, "one", "two")
    with pytest.raises(MergingError, match=r"nothing for the expert 'two'.*two=FILE"):
        merging.importance(recipe, {"one": SUITE})
    with pytest.raises(MergingError, match=r"no expert 'tow'.*Did you mean 'two'"):
        merging.importance(recipe, {"one": SUITE, "tow": SUITE})
    other = Suite("other", SUITE.items[:3])
    found = merging.importance(recipe, {"one": SUITE, str(family / "two"): other}, device="cpu")
    alone = merging.importance(recipe_of(family, "two"), other, device="cpu")
    assert torch.equal(found.signed[1], alone.signed[0])
    assert found.experts[0].data != found.experts[1].data


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"how": "exakt"}, "how 'exakt': unknown.*Did you mean 'exact'"),
        ({"partition": "heads"}, "Did you mean 'head'"),
        ({"at": "middle"}, "at 'middle': unknown"),
        ({"samples": 0}, "samples: 0 is not possible"),
        ({"sampels": 3}, "no option 'sampels'.*Did you mean 'samples'"),
        ({"how": "exact", "elements": True}, "need how 'gradient'"),
    ],
)
def test_bad_options(family, options, reason):
    with pytest.raises(MergingError, match=reason):
        merging.importance(recipe_of(family, "one"), SUITE, **options)


def test_models_that_do_not_fit_are_refused(family, tmp_path):
    shutil.copytree(family / "one", tmp_path / "one")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    recipe = Recipe(
        merge_method="ties",
        base_model=str(family / "base"),
        models=(ModelEntry(model=str(tmp_path / "one")),),
    )
    with pytest.raises(MergingError, match=r"model\.norm\.weight"):
        merging.importance(recipe, SUITE)
    with pytest.raises(MergingError, match="base_model"):
        merging.importance(Recipe(merge_method="linear", models=recipe.models), SUITE)


def test_the_file_keeps_everything_and_orders_by_fingerprint(family, tmp_path):
    found = merging.importance(recipe_of(family, "one", "two", "three"), SUITE, partition="row", device="cpu")
    found.save(tmp_path / "i.safetensors")
    loaded = merging.Importance.load(tmp_path / "i.safetensors")
    assert loaded.description == found.description
    assert torch.equal(loaded.signed, found.signed)
    assert torch.equal(loaded.change, found.change)
    base, one, two, three = (Checkpoint.open(family / n) for n in ("base", "one", "two", "three"))
    scores = loaded.scores(base, [three, one])
    assert torch.equal(scores.values, found.signed.abs()[[2, 0]])
    assert scores.partitions[7] == found.partitions[7]
    entry = load_file(tmp_path / "i.safetensors")["importance/1/model.layers.0.mlp.up_proj.weight"]
    assert entry.shape == (48, 1)
    assert loaded.elements(two) is None
    in_memory = StateDict(load_file(family / "one" / "model.safetensors"))
    assert fingerprint(in_memory) == one.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["i.safetensors"]


def test_a_foreign_model_is_named(family, tmp_path):
    found = merging.importance(recipe_of(family, "one"), SUITE, device="cpu")
    base, one, two = (Checkpoint.open(family / name) for name in ("base", "one", "two"))
    found.require_models(base, [one])
    with pytest.raises(
        MergingError, match=rf"nothing of the expert two \(fingerprint {two.fingerprint[:8]}\)"
    ):
        found.require_models(base, [one, two])
    wrong = rf"made with the base base \(fingerprint {base.fingerprint[:8]}\), but the base here is two"
    with pytest.raises(MergingError, match=wrong):
        found.require_models(two, [one])


def test_files_that_hold_no_importance(family, tmp_path):
    with pytest.raises(MergingError, match="there is no file"):
        merging.Importance.load(tmp_path / "none.safetensors")
    model = family / "one" / "model.safetensors"
    with pytest.raises(MergingError, match="holds no importance"):
        merging.Importance.load(model)
    found = merging.importance(recipe_of(family, "one"), SUITE, device="cpu")
    before = model.read_bytes()
    with pytest.raises(MergingError, match="it is not overwritten"):
        found.save(model)
    assert model.read_bytes() == before
    found.save(tmp_path / "i.safetensors")
    found.save(tmp_path / "i.safetensors")
    whole = (tmp_path / "i.safetensors").read_bytes()
    (tmp_path / "i.safetensors").write_bytes(
        whole.replace(b"importance/0/model.norm", b"importance/0/model.nurm")
    )
    with pytest.raises(MergingError, match="missing or damaged"):
        merging.Importance.load(tmp_path / "i.safetensors")
    (tmp_path / "i.safetensors").write_bytes(whole.replace(b'how\\":\\"gradient', b'how\\":\\"gradiant'))
    with pytest.raises(MergingError, match=r"damaged or of another version .how"):
        merging.Importance.load(tmp_path / "i.safetensors")


def test_the_second_time_nothing_is_run(family, tmp_path, monkeypatch):
    recipe, options = recipe_of(family, "one"), {"device": "cpu", "cache": tmp_path / "cache"}
    first = merging.importance(recipe, SUITE, elements=True, **options)

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(LoadedModel, "load", refuse)
    again = merging.importance(recipe, SUITE, elements=True, **options)
    assert torch.equal(again.signed, first.signed)
    assert again.elements(Checkpoint.open(family / "one")) is not None
    for other in ({"at": "expert"}, {"partition": "head"}, {"samples": 3}, {"seed": 1}):
        with pytest.raises(AssertionError, match="a model was loaded"):
            merging.importance(recipe, SUITE, elements=True, **options, **other)
    [kept] = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(AssertionError, match="a model was loaded"):
        merging.importance(recipe, SUITE, elements=True, **options)


def test_closing_the_events_cancels_at_once(family):
    wanted = Measurement(how="exact", partition="row", sample=100_000)
    events = merging.measure_importance(recipe_of(family, "one"), SUITE, wanted, device="cpu")
    shares = [event.share for event, _ in zip(events, range(60), strict=False)]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 0.5
    started = time.perf_counter()
    events.close()
    assert time.perf_counter() - started < 1


def test_gpt2_with_its_own_names_and_axes(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import save_llama

    save_llama(tmp_path / "base")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=64, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    for name in ("base", "one"):
        if name == "one":
            shutil.copytree(tmp_path / "base", tmp_path / "one")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
    found = merging.importance(recipe_of(tmp_path, "one"), SUITE, partition="head", device="cpu")
    keys = [partition.key for partition in found.partitions]
    assert "layers.1/k/head 1" in keys
    assert int((found.values[0] > 0).sum()) == len(keys)
    module = merging.importance(recipe_of(tmp_path, "one"), SUITE, device="cpu")
    fused = [partition.key for partition in module.partitions].index("layers.1/qkv")
    heads = [
        number
        for number, key in enumerate(keys)
        if key.startswith(("layers.1/q", "layers.1/k", "layers.1/v"))
    ]
    assert len(heads) == 6
    assert float(found.signed[0, heads].sum()) == pytest.approx(float(module.signed[0, fused]), abs=1e-9)


def test_elements_need_room(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MergingError, match="No space left on device"):
        Elements({"a": (2, 3)})


def test_a_model_that_is_not_finite_is_refused(family, tmp_path):
    shutil.copytree(family / "one", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, tmp_path / "broken" / "model.safetensors")
    recipe = Recipe(
        merge_method="ties",
        base_model=str(family / "base"),
        models=(ModelEntry(model=str(tmp_path / "broken")),),
    )
    with pytest.raises(MergingError, match=r"loss of broken .* is not finite"):
        merging.importance(recipe, SUITE, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [{"how": "exact"}, {"at": "trapezoid", "partition": "row"}])
def test_gpu_and_cpu_agree(family, options):
    recipe = recipe_of(family, "one")
    cpu, gpu = (merging.importance(recipe, SUITE, device=device, **options) for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu.signed, cpu.signed, rtol=1e-2, atol=1e-5)


def test_a_result_is_the_last_step(family):
    base, expert = (Checkpoint.open(family / name) for name in ("base", "one"))
    loaded = LoadedModel.load(family / "one")
    partitions = make_partitions({n: t.shape for n, t in base.tensors.items()}, base.config, "module")
    task = AnswerTask.of(Calibration.of(SUITE, 16), loaded)
    measures = ExpertMeasures("one", MovedModel(loaded.model, base, expert), task, partitions, Measurement())
    *steps, result = measures.run()
    assert isinstance(result, Measured)
    assert steps[-1].done == steps[-1].total
    assert result.change.sum() == pytest.approx(
        sum(float((expert.read(n).double() - base.read(n).double()).square().sum()) for n in base.tensors),
        rel=1e-6,
    )


def test_a_pass_under_way_stops_too(family):
    """Closing must not wait for a long forward or backward pass to end."""
    base, expert = (Checkpoint.open(family / name) for name in ("base", "one"))
    loaded = LoadedModel.load(family / "one")
    stop, layers = threading.Event(), []
    moved = MovedModel(loaded.model, base, expert, stop)
    task = AnswerTask.of(Calibration.of(SUITE, 16), loaded)
    for number, layer in enumerate(loaded.model.model.layers):
        layer.register_forward_hook(lambda *_, number=number: layers.append(number))
    loaded.model.model.layers[0].register_forward_hook(lambda *_: stop.set())
    with pytest.raises(Stopped):
        task.sums(loaded.model, range(5))
    assert layers == [0]
    stop.clear()
    partitions = make_partitions({n: t.shape for n, t in base.tensors.items()}, base.config, "module")
    loaded.model.model.layers[0]._forward_hooks.popitem()
    loaded.model.get_parameter("model.layers.2.mlp.up_proj.weight").register_hook(lambda _: stop.set())
    with pytest.raises(Stopped):
        list(gradient_sums(moved, partitions, task, task.batches))
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_a_long_step_beats_and_can_be_left():
    stop, ended = threading.Event(), threading.Event()

    def work():
        yield 1
        stop.wait(30)
        ended.set()
        raise Stopped

    events = heartbeats(work(), stop)
    assert [next(events), next(events)] == [1, None]
    started = time.perf_counter()
    events.close()
    assert time.perf_counter() - started < 1
    assert ended.wait(5)


def test_what_goes_wrong_on_the_thread_is_raised_where_it_is_awaited():
    def work():
        yield 1
        raise MergingError("broken")

    events = heartbeats(work(), threading.Event())
    assert next(events) == 1
    with pytest.raises(MergingError, match="broken"):
        next(events)
