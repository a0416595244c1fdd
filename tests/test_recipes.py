"""Every recipe that comes with the project runs as it is."""

from pathlib import Path

import pytest

import merging

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "examples" / "recipes").glob("*.yaml")), ids=lambda f: f.stem
)
def test_shipped_recipes_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = merging.merge(recipe, tmp_path / "out")
    assert (
        merging.Checkpoint.open(out).parameters
        == merging.Checkpoint.open(ROOT / "examples" / "demo" / "base").parameters
    )


def test_a_shipped_merge_answers(tmp_path, monkeypatch):
    from merging.evaluation import evaluate
    from merging.inference import LoadedModel
    from merging.judging.suites import Suite

    monkeypatch.chdir(ROOT)
    out = merging.merge(ROOT / "examples" / "recipes" / "demo-ties.yaml", tmp_path / "out")
    suite = Suite.load(ROOT / "examples" / "demo" / "data" / "code" / "validation.jsonl")
    base = evaluate(LoadedModel.load(ROOT / "examples" / "demo" / "base"), suite)
    assert evaluate(LoadedModel.load(out), suite).score > base.score + 0.05
