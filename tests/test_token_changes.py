"""Which tokens changed and conflict most, against NumPy; memory over a large vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import merging
from components.family import Family
from merging.checkpoint import StateDict
from merging.errors import MergingError
from merging.heartbeats import Stopped
from merging.inspecting.tokens import token_changes
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe
from merging.tokenizing.vocabulary import Vocabulary, plan_vocabulary

ROOT = Path(__file__).parent.parent
NAME = "model.embed_tokens.weight"
ROWS, WIDTH = 300, 16


def plan_of(base, models, name=NAME):
    sources = [StateDict({name: model}, f"e{number}") for number, model in enumerate(models)]
    entries = [ModelEntry(model=source.label) for source in sources]
    recipe = Recipe(merge_method="task_arithmetic", base_model="base", models=tuple(entries), profile="paper")
    return plan_sources(recipe, StateDict({name: base}, "base"), list(zip(entries, sources, strict=True)))


@pytest.fixture
def embedding():
    """A base and two experts: rows changed to very different degrees, half of them by one expert alone."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(ROWS, WIDTH, generator=generator)
    scale = 0.01 + torch.rand(2, ROWS, 1, generator=generator) ** 3
    scale[0, ::4] = scale[1, 1::4] = 0
    changes = torch.randn(2, ROWS, WIDTH, generator=generator) * scale
    return base, [base + change for change in changes]


VOCABULARY = Vocabulary(
    texts={number: f"t{number}" for number in range(280)},
    special=frozenset({0, 7}),
    template=frozenset({7, 150}),
)


@pytest.mark.parametrize("piece_bytes", [2 << 20, 2000], ids=["one block", "many"])
def test_rankings_are_numpy_s(embedding, piece_bytes, monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", piece_bytes)
    base, models = embedding
    found = token_changes(plan_of(base, models), NAME, VOCABULARY, 12)
    deltas = np.stack([(model - base).double().numpy() for model in models])
    norms = np.linalg.norm(deltas, axis=2)
    for expert in range(2):
        order = np.argsort(-norms[expert], kind="stable")[:12]
        shown = found.changed[expert]
        assert [token.id for token in shown.tokens] == order.tolist()
        np.testing.assert_allclose(shown.sums.norm()[expert].numpy(), norms[expert][order], rtol=1e-12)
        relative = norms[expert][order] / np.linalg.norm(base.double().numpy()[order], axis=1)
        np.testing.assert_allclose(shown.sums.relative_change()[expert].numpy(), relative, rtol=1e-12)
    both = (deltas != 0).all(0)
    gross, net = (np.abs(deltas).sum(0) * both).sum(1), (np.abs(deltas.sum(0)) * both).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        conflict, shared = 1 - net / gross, both.sum(1)
        scores = np.nan_to_num(conflict - 1 / np.sqrt(shared), nan=-9, neginf=-9)
    order = np.argsort(-scores, kind="stable")[:12]
    assert [token.id for token in found.conflicting.tokens] == order.tolist()
    np.testing.assert_allclose(found.conflicting.sums.mass_conflict().numpy(), conflict[order], rtol=1e-10)
    opposite = (both & (np.sign(deltas[0]) != np.sign(deltas[1]))).sum(1) / np.maximum(shared, 1)
    assert found.conflicting.sums.opposite_share(0).tolist() == opposite[order].tolist()
    assert found.changed_rows.tolist() == (deltas != 0).any(2).sum(1).tolist() == [225, 225]
    assert found.shared_rows == int((shared > 0).sum()) == 150
    assert found.damaged_rows == 0
    assert found.rows == ROWS


def test_marked_tokens_are_reported_whatever_their_rank(embedding):
    found = token_changes(plan_of(*embedding), NAME, VOCABULARY, 3)
    assert [(token.id, token.mark) for token in found.marked.tokens] == [
        (0, "special"),
        (7, "special, chat template"),
        (150, "chat template"),
    ]
    assert found.marked.sums.norm()[0, 0] == 0  # expert 0 left every fourth row


def test_rows_behind_the_vocabulary_are_padding(embedding):
    base, models = embedding
    models[0][290] += 100
    shown = token_changes(plan_of(base, models), NAME, VOCABULARY, 1).changed[0]
    assert [(token.text, token.mark) for token in shown.tokens] == [("#290", "padding row")]


def test_rows_that_share_few_elements_do_not_lead_the_conflict():
    base = torch.zeros(2, 64)
    one, two = torch.zeros(2, 64), torch.zeros(2, 64)
    one[0, 0], two[0, 0] = 1, -1  # all of one shared element cancels
    one[1], two[1] = 1, -0.9
    found = token_changes(plan_of(base, [base + one, base + two]), NAME, Vocabulary(), 2)
    assert [token.id for token in found.conflicting.tokens] == [1, 0]
    assert found.conflicting.sums.mass_conflict().tolist() == pytest.approx([1 - 0.1 / 1.9, 1.0], rel=1e-6)


def test_equal_rows_are_listed_by_id():
    base = torch.zeros(40, 4)
    plan = plan_of(base, [base + 1, base - 1])
    found = token_changes(plan, NAME, Vocabulary(), 5)
    for shown in (*found.changed, found.conflicting):
        assert [token.id for token in shown.tokens] == [0, 1, 2, 3, 4]


def test_damaged_rows_come_first_and_are_counted(embedding):
    base, models = embedding
    models[0][33, 2] = float("nan")
    models[1][44, 5] = float("-inf")
    found = token_changes(plan_of(base, models), NAME, VOCABULARY, 4)
    assert found.damaged_rows == 2
    assert [one.tokens[0].id for one in found.changed] == [33, 44]
    assert found.changed[0].sums.relative_change()[:, 0].isnan().tolist() == [True, False]
    assert not {33, 44} & {token.id for token in found.conflicting.tokens}


def test_nothing_changed_gives_empty_lists():
    base = torch.ones(10, 4)
    found = token_changes(plan_of(base, [base.clone(), base.clone()]), NAME, Vocabulary(), 5)
    assert [one.tokens for one in (*found.changed, found.conflicting, found.marked)] == [()] * 4
    assert found.changed_rows.tolist() == [0, 0]
    assert found.changed[0].sums.norm().shape == (2, 0)


def test_an_embedding_without_rows():
    found = token_changes(plan_of(torch.ones(0, 4), [torch.ones(0, 4)]), NAME, Vocabulary())
    assert found.rows == 0
    assert found.changed[0].tokens == ()


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "transformer.wpe.weight"])
def test_rows_that_are_no_tokens_are_refused(name):
    base = torch.ones(4, 4)
    with pytest.raises(MergingError, match="its rows are no tokens"):
        token_changes(plan_of(base, [base + 1], name), name, Vocabulary())


def test_reading_can_be_stopped(embedding, monkeypatch):
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 2000)
    calls = iter(range(3))
    with pytest.raises(Stopped):
        token_changes(plan_of(*embedding), NAME, VOCABULARY, stop=lambda: next(calls, None) is None)


def test_the_demo_family_with_its_tied_head():
    plan = merging.check(Family.demo(ROOT / "examples" / "demo").recipe())
    vocabulary = plan_vocabulary(plan)
    assert vocabulary.problem is None
    found = token_changes(plan, NAME, vocabulary, 100)
    base, math = (source.read(NAME).double().numpy() for source in (plan.reference, plan.experts[0]))
    norms = np.linalg.norm((math - base).astype(np.float32).astype(np.float64), axis=1)
    # never written in an answer, so that the tied head only ever pushed it down
    assert found.changed[0].tokens[0].text == "?" == vocabulary.texts[int(norms.argmax())]
    assert len(found.changed[0].tokens) == 100
    marked = {token.text: token.mark for token in found.marked.tokens}
    assert marked["<end>"] == "special, chat template"
    assert marked["<pad>"] == "special"
    with pytest.raises(MergingError, match="is no tensor of this recipe"):
        token_changes(plan, "lm_head.weight", vocabulary)


def test_a_large_vocabulary_is_read_in_little_memory(tmp_path):
    """262,144 tokens of 64 numbers, base and three experts: 256 MiB in float32, of which blocks are alive at once."""
    script = """
import json, resource, sys
from pathlib import Path
from merging.plan import make_plan
from merging.recipe import ModelEntry, Recipe
from merging.inspecting.tokens import token_changes
from merging.tokenizing.vocabulary import Vocabulary

root, name = Path(sys.argv[1]), "model.embed_tokens.weight"
recipe = Recipe(merge_method="task_arithmetic", base_model=str(root / "base"), profile="paper",
                models=tuple(ModelEntry(model=str(root / f"e{n}")) for n in range(3)))
plan = make_plan(recipe)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
found = token_changes(plan, name, Vocabulary(), 20)
print(json.dumps({"kib": peak() - before, "ids": [t.id for t in found.changed[2].tokens], "rows": found.rows}))
"""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1 << 18, 64, generator=generator)
    for number in range(-1, 3):
        folder = tmp_path / ("base" if number < 0 else f"e{number}")
        folder.mkdir()
        model = base.clone()
        if number >= 0:
            model[1000 * number :: 4097] += 1 + torch.arange(len(model[1000 * number :: 4097]))[:, None] / 100
        save_file({NAME: model}, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    last = (1 << 18) - 1 - ((1 << 18) - 1 - 2000) % 4097
    assert found["ids"] == [last - 4097 * step for step in range(20)]
    assert found["kib"] < 100 << 10, found
