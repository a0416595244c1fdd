"""The worked numbers of golden/methods.json, the steps on the way among them, against the code that merges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merging import METHODS, merge_state_dicts, noise, ops
from merging.methods import Group
from merging.methods.apl import drop_ratios, partition_weights
from merging.methods.dppa import Linears, amplified, densities
from merging.pieces import Piece

CASES = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())["cases"]
}
OPTIONS = {"density", "sign", "weight", "profile", "scope", "lambda", "t", "ratio", "variant"}
METHOD = {
    "linear": "linear",
    "task-arithmetic": "task_arithmetic",
    "magnitude-prune": "magnitude",
    "ties-two-experts": "ties",
    "ties-sign-total": "ties",
    "ties-sign-frequency": "ties",
    "ties-weighted-mergekit": "ties",
    "ties-mostly-zero": "ties",
    "ties-two-tensors-model-scope": "ties",
    "ties-two-tensors-tensor-scope": "ties",
    "ties-zero-sum-majority": "ties",
    "ties-zero-sum-majority-negative": "ties",
    "pcb-root": "pcb",
    "pcb-paper-softmax": "pcb",
    "pcb-two-tensors-model-scope": "pcb",
    "slerp": "slerp",
    "slerp-antiparallel": "slerp",
    "karcher": "karcher",
}
"""Cases that are one merge from inputs to `merged`, `result`, `trimmed` or `kept`."""
BY_STEPS = {
    "dare-fixed-mask",
    "dare-ties-fixed-masks",
    "della-keep-probabilities",
    "della-elect-and-fuse",
    "dppa-densities",
    "dppa-equal-significance",
    "dpa-amplify",
    "dpa-amplify-loose-larger",
    "apl-drop-ratios",
    "apl-weights",
}
ELSEWHERE = {"apl-importance-scalar-net"}
"""In test_importance.py."""
LATER = {"tsv-m", "iso-c", "magic-wsc", "kinship", "dpa-search"}


def tensors(value):
    content = value if isinstance(value, dict) else {"only": value}
    return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in content.items()}


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, wanted):
    torch.testing.assert_close(found.double(), exact(wanted), atol=2e-6, rtol=0)


def merge(case, method, **more):
    """Merge a case's inputs; task vectors lie over a base of zeros."""
    inputs = CASES[case]["inputs"]
    options = {key: value for key, value in inputs.items() if key in OPTIONS} | more
    if "deltas" in inputs or "delta" in inputs:
        models = [tensors(value) for value in inputs.get("deltas") or [inputs["delta"]]]
        base = {name: torch.zeros_like(value) for name, value in models[0].items()}
    else:
        models = [tensors(value) for value in inputs.get("models") or [inputs["model"]]]
        base = tensors(inputs["base"]) if "base" in inputs else None
    return merge_state_dicts(base, models, method, **options)


def survey(deltas, name, **options):
    """A configured method, one tensor as a piece over a base of zeros, and what the survey finds there."""
    method = METHODS[name].configure("paper", options)
    models = torch.tensor(deltas, dtype=torch.float32)
    piece = Piece("only", 0, torch.zeros_like(models[0]), models, torch.ones(len(models)))
    scans, answer = method.survey(Group({"only": tuple(models.shape[1:])}, len(models))), None
    while True:
        try:
            accumulator = scans.send(answer)
        except StopIteration as stop:
            return method, piece, stop.value
        accumulator.update(piece)
        answer = accumulator.result()


def deal(monkeypatch, masks):
    """Let the dice fall so that exactly these elements are kept."""
    values = torch.where(torch.tensor(masks, dtype=torch.bool), 0, noise.ONE - 1)
    monkeypatch.setattr(noise, "piece_uniform", lambda piece, seed: values.view(piece.models.shape))


def test_every_case_has_its_place():
    assert set(CASES) == {*METHOD, *BY_STEPS, *ELSEWHERE, *LATER}


@pytest.mark.parametrize("case", METHOD)
def test_worked_numbers(case):
    expected = CASES[case]["expected"]
    wanted = next(expected[word] for word in ("merged", "result", "kept", "trimmed") if word in expected)
    merged = merge(case, METHOD[case])
    for name, value in (wanted if isinstance(wanted, dict) else {"only": wanted}).items():
        close(merged[name], value)


def test_the_trims_of_ties():
    case = CASES["ties-two-experts"]
    method, piece, known = survey(case["inputs"]["deltas"], "ties", density=0.4)
    close(method.factors(piece, known.sparsity) * piece.deltas, case["expected"]["trimmed"])


def test_zeros_count_as_zeros_in_the_achieved_density():
    case = CASES["ties-mostly-zero"]
    method, _, known = survey([case["inputs"]["delta"]], "ties", density=0.5)
    attained = method.attained(known)
    assert attained.kept == (5,)
    assert attained.nonzero[0] / attained.elements == case["expected"]["achieved_density"]


@pytest.mark.parametrize("rescale", ["expected", "l1"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_with_a_given_mask(method, rescale, monkeypatch):
    case = CASES["dare-fixed-mask"]
    deal(monkeypatch, [case["inputs"]["keep_mask"]])
    close(merge("dare-fixed-mask", method, rescale=rescale)["only"], case["expected"][f"{rescale}_rescale"])


def test_dare_ties_with_given_masks(monkeypatch):
    inputs, expected = (CASES["dare-ties-fixed-masks"][word] for word in ("inputs", "expected"))
    deal(monkeypatch, inputs["keep_masks"])
    method, piece, known = survey(inputs["deltas"], "dare_ties", density=0.5)
    close(method.factors(piece, known.sparsity) * piece.deltas, expected["dropped"])
    close(merge("dare-ties-fixed-masks", "dare_ties")["only"], expected["merged_mean"])
    close(merge("dare-ties-fixed-masks", "dare_ties", normalize=False)["only"], expected["merged_sum"])


def test_della_keep_probabilities(monkeypatch):
    inputs, expected = (CASES["della-keep-probabilities"][word] for word in ("inputs", "expected"))
    row = torch.tensor([inputs["row"]])
    table = ops.rank_probabilities(4, inputs["density"], inputs["epsilon"])
    order = ops.order_in_rows(ops.Changes(row))[0].long()
    keep = torch.empty_like(table)[None].scatter_(-1, order, table[None])
    close(keep, [expected["keep"]])
    deal(monkeypatch, [[1, 1, 1, 1]])
    options = {"density": inputs["density"], "epsilon": inputs["epsilon"], "lambda": 1.0}
    for shape in ((4,), (1, 4), (1, 2, 2)):
        base, model = {"a": torch.zeros(shape)}, {"a": row.view(shape)}
        for method in ("della", "della_linear"):
            merged = merge_state_dicts(base, [model], method, **options)["a"]
            close(merged.view(4), expected["if_all_kept"])


def test_della_elects_and_fuses():
    merged = merge("della-elect-and-fuse", "della", density=1.0)
    close(merged["only"], CASES["della-elect-and-fuse"]["expected"]["merged"])


def test_the_steps_of_pcb():
    case = CASES["pcb-root"]
    _, piece, known = survey(case["inputs"]["deltas"], "pcb", ratio=0.5)
    close(piece.deltas.sign() * known.formula.magnitudes(piece), case["expected"]["clamped"])
    above = torch.maximum(known.formula.score(piece), known.threshold[:, None])
    close(ops.minmax(above, known.threshold, known.top), case["expected"]["scale"])


@pytest.mark.parametrize("case", ["dppa-densities", "dppa-equal-significance"])
def test_the_densities_of_dppa(case):
    inputs, expected = CASES[case]["inputs"], CASES[case]["expected"]
    blocks, linears = (exact(inputs[f"{part}_significance"]) for part in ("block", "linear"))
    names = tuple(f"linear {number}" for number in range(len(linears)))
    of_block = torch.arange(len(blocks)).repeat_interleave(len(linears) // len(blocks))
    found = densities(
        blocks, linears, Linears(names, exact(inputs["sizes"]), of_block), inputs["p"], inputs["nu"]
    )
    close(found, expected["density"])


@pytest.mark.parametrize(
    ("case", "rule", "word"),
    [
        ("dpa-amplify", "strictest", "delta"),
        ("dpa-amplify", "authors", "delta"),
        ("dpa-amplify-loose-larger", "strictest", "delta"),
        ("dpa-amplify-loose-larger", "authors", "delta_rule_authors"),
    ],
)
def test_the_amplification_of_dppa(case, rule, word):
    inputs, expected = CASES[case]["inputs"], CASES[case]["expected"]
    strict, loose = (torch.tensor(inputs[f"kept_at_{p}"]) for p in ("0.9", "0.8"))
    keep = torch.stack([strict != 0, loose != 0])[None]
    close(amplified(keep, inputs["amplify"], rule)[0] * loose, expected[word])


def test_the_drop_ratios_of_apl():
    inputs = CASES["apl-drop-ratios"]["inputs"]
    found = drop_ratios(exact(inputs["importance"]), exact(inputs["sizes"]), inputs["p"], inputs["tau1"])
    close(found, CASES["apl-drop-ratios"]["expected"]["drop"])


def test_the_weights_of_apl():
    """The file has a row for each partition, the code one for each expert."""
    inputs = CASES["apl-weights"]["inputs"]
    found = partition_weights(exact(inputs["relative_importance"]), inputs["tau2"])
    close(found.T, CASES["apl-weights"]["expected"]["weights"])
