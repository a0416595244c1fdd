"""What every method says of its coefficients, and that looking at a merge changes no bit of it."""

from __future__ import annotations

import json

import pytest
import torch
from references.family import number_of_experts, small_family
from references.fate import plan_of
from references.importance import made_up_importance
from safetensors.torch import save_file
from test_methods_contract import choices, options_for

import merging
from merging import METHODS, MergingError, check
from merging.checkpoint import StateDict
from merging.engine import MemorySink, NoSink, run_plan
from merging.inspecting.fate import FATES, FateWatch, Origin
from merging.inspecting.sums import total
from merging.inspection import inspect_recipe, preview_plan
from merging.methods import Method
from merging.output import write_merge

ELEMENTWISE = [name for name, method in METHODS.items() if method.elementwise]
DTYPES = [torch.float32, torch.bfloat16]


def settings_of(method):
    switched = [{"elect": True}] if "elect" in METHODS[method].parameters() else []
    return [options_for(method) | choice for choice in [*choices(method), *switched]]


def plan_for(method, dtype, options, shape=(12, 6)):
    base, models = small_family(number_of_experts(method), dtype=dtype, shape=shape)
    if METHODS[method].needs_importance:
        options = {**options, "importance": made_up_importance(base, models, "row")}
    return plan_of(base if METHODS[method].needs_base else None, models, method, **options), base


def run(plan, watches=()):
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    for _ in run_plan(plan, sink, device="cpu", watches=watches):
        pass
    return sink.tensors


def same_bytes(one, other):
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ELEMENTWISE)
def test_explained_coefficients_are_those_that_merge(method, dtype, monkeypatch):
    """Bit by bit; and what has a coefficient has a factor before the election, too."""
    kind, seen, outvoted = METHODS[method], [], False
    elects = any("explain" in vars(parent) for parent in kind.__mro__ if parent is not Method)
    explain = kind.explain

    def recorded(self, piece, known):
        seen.append((self, piece, known, explain(self, piece, known)))
        return seen[-1][-1]

    monkeypatch.setattr(kind, "explain", recorded)
    for options in settings_of(method):
        run(plan_for(method, dtype, options)[0], [FateWatch()])
    monkeypatch.undo()
    for configured, piece, known, explained in seen:
        merging_with = configured.coefficients(piece, known)
        assert merging_with.shape == explained.coefficients.shape
        assert torch.equal(_bytes(merging_with), _bytes(explained.coefficients))
        used, voting = (values.expand(piece.models.shape) != 0 for values in explained)
        assert not (used & ~voting & (piece.deltas != 0)).any()
        outvoted |= bool((voting & ~used & (piece.deltas != 0)).any())
    assert seen
    assert outvoted == elects


def _bytes(values):
    return values.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_looking_changes_no_bit(method, dtype):
    """Random methods included, whatever words their parameters have; and every change has one fate."""
    for options in settings_of(method):
        plan, base = plan_for(method, dtype, options)
        names = {name: name for name in base}
        watch = FateWatch(None if plan.base is not None else Origin(StateDict(base, "base"), names))
        assert same_bytes(run(plan, [watch]), run(plan))
        for found in watch.result().values():
            assert (found.energy is not None) == METHODS[method].elementwise
            for t in range(len(found.along)):
                if found.energy is not None:
                    assert sum(found.share(t, fate) for fate in FATES) == pytest.approx(1, abs=1e-9)
                    assert sum(found.energy[t]) == pytest.approx(found.gram[t][t], rel=1e-12)


def save_family(folder, base, models):
    for name, tensors in {"base": base, **{f"model {t}": m for t, m in enumerate(models, 1)}}.items():
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")


def recipe_file(folder, method, count=2, **keys):
    content = {
        "merge_method": method,
        "profile": "paper",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model {t}")} for t in range(1, count + 1)],
        **keys,
    }
    file = folder / f"{method}.yaml"
    file.write_text(json.dumps(content))
    return file


def test_a_written_merge_can_be_watched(tmp_path):
    """The fates a merge records of what it wrote are those of its preview; the files are the same with and without."""
    base, models = small_family(2, dtype=torch.bfloat16)
    save_family(tmp_path, base, models)
    file = recipe_file(tmp_path, "dare_ties", parameters={"density": 0.5}, seed=3)
    watch = FateWatch()
    for _ in write_merge(check(file), tmp_path / "watched", device="cpu", watches=[watch]):
        pass
    merging.merge(file, tmp_path / "plain", device="cpu")
    one, other = (tmp_path / name / "model.safetensors" for name in ("watched", "plain"))
    assert one.read_bytes() == other.read_bytes()
    *_, preview = preview_plan(check(file), device="cpu")
    assert preview.tensors == watch.result()


def test_a_recipe_that_names_its_importance(tmp_path):
    base, models = small_family(2)
    save_family(tmp_path, base, models)
    importance = made_up_importance(base, models, "row")
    importance.save(tmp_path / "importance.safetensors")
    file = recipe_file(tmp_path, "apl", importance=str(tmp_path / "importance.safetensors"))
    *_, preview = preview_plan(check(file), device="cpu")
    *_, expected = preview_plan(plan_of(base, models, "apl", importance=importance), device="cpu")
    assert {n: t.elements for n, t in preview.tensors.items()} == {n: v.numel() for n, v in base.items()}
    for name, found in preview.tensors.items():
        assert found.gram == expected.tensors[name].gram
    whole = total(preview.tensors.values())
    assert sum(whole.share(0, fate) for fate in FATES) == pytest.approx(1, abs=1e-9)
    assert 0.05 < whole.share(0, "dropped") < 0.5
    assert whole.share(0, "outvoted") == 0


def test_the_familys_base_is_where_changes_begin(tmp_path):
    """A recipe of a method that uses no base may name one, for its preview and its report."""
    base, models = small_family(2)
    save_family(tmp_path, base, models)
    *_, report = inspect_recipe(check(recipe_file(tmp_path, "linear")), device="cpu")
    *_, based = inspect_recipe(check(recipe_file(tmp_path, "task_arithmetic")), device="cpu")
    assert report.tensors == based.tensors
    for found in report.preview.tensors.values():
        assert found.energy is None
        inner = found.gram
        for t in (0, 1):
            expected = (inner[0][t] + inner[1][t]) / 2 / inner[t][t]
            assert found.projection(t) == pytest.approx(expected, rel=1e-4)
        assert found.residual() == pytest.approx(0, abs=1e-4)


def test_slices_of_different_models_have_no_map(tmp_path):
    base, models = small_family(2)
    save_family(tmp_path, base, models)
    for name in ("base", "model 1", "model 2"):
        config = {"model_type": "llama", "num_hidden_layers": 2}
        (tmp_path / name / "config.json").write_text(json.dumps(config))

    def source(number, first):
        return {"sources": [{"model": str(tmp_path / f"model {number}"), "layer_range": [first, first + 1]}]}

    stack = {"merge_method": "passthrough", "slices": [source(1, 0), source(2, 1)]}
    (tmp_path / "stack.yaml").write_text(json.dumps(stack))
    plan = check(tmp_path / "stack.yaml")
    for look in (preview_plan, inspect_recipe):
        with pytest.raises(
            MergingError, match="slices are made of different models, which do not fit one map"
        ):
            list(look(plan, device="cpu"))
    stack["slices"] = [source(1, 1), source(1, 0)]
    (tmp_path / "turned.yaml").write_text(json.dumps(stack))
    turned = check(tmp_path / "turned.yaml")
    *_, preview = preview_plan(turned, device="cpu", origin=StateDict(base, "base"))
    for found in preview.tensors.values():
        assert found.projection(0) == pytest.approx(1, abs=1e-12)
        assert found.residual() == pytest.approx(0, abs=1e-6)


def test_every_piece_of_progress_comes_before_the_preview():
    base, models = small_family(2)
    plan = plan_of(base, models, "task_arithmetic")
    *before, last = preview_plan(plan, device="cpu")
    assert [event.share for event in before] == sorted(event.share for event in before)
    assert last.dtypes == dict.fromkeys(base, "F32")
    assert len(before) == sum(1 for _ in run_plan(plan, NoSink(), device="cpu")) - 1
