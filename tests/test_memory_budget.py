"""A memory budget: smaller pieces, the same result, and a refusal where not even one row fits."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import METHODS, MergingError, PlanError
from merging.folders.room import parse_bytes
from merging.plan import KEEP_BYTES
from tests.conftest import save_llama, tune

SMALL = "110kB"
"""Room for a row or two of the largest of the family's tensors."""
SUM_UP = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "pcb", "ram", "dppa"}
"""Methods that need a sum over a tensor: another grid may change the last bit of it."""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """One block: at a row or two a piece, a model is hundreds of pieces."""
    root = tmp_path_factory.mktemp("one_block")
    save_llama(root / "base", num_hidden_layers=1)
    for seed, name in enumerate(("one", "two", "three"), 1):
        tune(root / "base", root / name, seed=seed)
    return root


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "pcb", "dppa", "slerp", "sce"]
)
def test_results_do_not_depend_on_it(family, write_recipe, tmp_path, method):
    experts = ("one", "two", "three")[: METHODS[method].experts_wanted or 3]
    known = METHODS[method].parameters()
    for scope in ("tensor", "model") if "scope" in known else (None,):
        keys = {"profile": "paper", **({"scope": scope} if scope else {})}
        if method in {"slerp", "nearswap"}:
            keys["parameters"] = {"t": 0.3}
        recipe = write_recipe(family, method, experts, **keys)
        assert rows_at_once(merging.check(recipe, memory=SMALL)) <= 2 < rows_at_once(merging.check(recipe))
        usual = weights(merging.merge(recipe, tmp_path / "usual"))
        small = weights(merging.merge(recipe, tmp_path / "small", memory=SMALL))
        for name, values in usual.items():
            if method in SUM_UP:
                torch.testing.assert_close(small[name], values, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(small[name].view(torch.int32), values.view(torch.int32)), (name, scope)


def rows_at_once(plan):
    """The most rows of a matrix in one piece."""
    return max(
        stop - start
        for tensor in plan.tensors
        if "down_proj" in tensor.info.name
        for start, stop in tensor.row_blocks
    )


def test_the_estimate_stays_below_it(family, write_recipe, monkeypatch):
    recipe = write_recipe(family, "ties", scope="model")
    for workers in (1, 8):
        monkeypatch.setattr("merging.plan.workers_here", lambda workers=workers: workers)
        for memory in (80_000, 200_000, 10**6):
            assert merging.check(recipe, memory=memory).memory <= memory
    assert merging.check(recipe, memory=1 << 30).keep(KEEP_BYTES) == KEEP_BYTES, (
        "the usual, as without a budget"
    )


def test_what_is_kept_between_scans_follows_it(family, write_recipe, tmp_path):
    recipe = write_recipe(family, "ties", scope="model", profile="paper")
    *_, usual = merging.run(recipe, tmp_path / "usual")
    *_, small = merging.run(recipe, tmp_path / "small", memory=SMALL)
    assert small.bytes_read > 1.9 * usual.bytes_read


def test_a_row_that_does_not_fit_is_named_with_what_to_set(family, write_recipe):
    recipe = write_recipe(family, "ties")
    with pytest.raises(PlanError) as refused:
        merging.check(recipe, memory=5000)
    (problem,) = refused.value.problems
    assert re.match(
        r"memory: 'model\.layers\.0\.mlp\.down_proj\.weight' needs 73\.7 kB, for a row of all models", problem
    )
    assert "5 kB are allowed" in problem
    enough = re.search(r"set memory to (\w+) or more", problem)[1]
    assert merging.check(recipe, memory=enough).memory <= parse_bytes(enough)


def test_a_vector_that_is_needed_whole_does_not_fit(tmp_path, write_recipe):
    method = next(name for name, one in METHODS.items() if one.whole_vectors)
    for number, name in enumerate(("base", "one", "two")):
        (tmp_path / "family" / name).mkdir(parents=True)
        values = torch.randn(40_000, generator=torch.Generator().manual_seed(number))
        save_file({"vector": values}, tmp_path / "family" / name / "model.safetensors")
    experts = ("one", "two")[: METHODS[method].experts_wanted]
    recipe = write_recipe(tmp_path / "family", method, experts, profile="paper")
    with pytest.raises(
        PlanError, match=r"memory: 'vector' needs .* for the whole of all models .* set memory to"
    ):
        merging.check(recipe, memory="1MB")


def test_the_command_says_it_too(family, write_recipe, tmp_path, command_line):
    recipe, out = write_recipe(family, "ties"), tmp_path / "results" / "out"
    for command in (["check", recipe], ["merge", recipe, out]):
        done = command_line(*command, "--memory", "5kB")
        assert done.returncode == 1
        assert "set memory to 1MB or more" in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("said", "bytes"),
    [("512MB", 512_000_000), ("1.5 GiB", 3 << 29), ("2gb", 2_000_000_000), (77, 77), ("8", 8)],
)
def test_sizes_as_people_write_them(said, bytes):
    assert parse_bytes(said) == bytes


@pytest.mark.parametrize(
    "said", ["lots", "", "-1MB", "1e9", "3 cows", "9" * 400 + "GB", "٣GB", json.dumps({})]
)
def test_what_is_no_size(family, write_recipe, said):
    with pytest.raises(MergingError, match=r"memory: .* is no number of bytes; write for example 512MB"):
        merging.check(write_recipe(family, "ties"), memory=said)
