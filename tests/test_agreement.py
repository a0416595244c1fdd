"""The agreement report: rank correlations, intervals, removal curves, and what the command line says of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import merging
from merging.commands.importance import advice
from merging.importances.agreement import (
    CHANGE,
    SIZE,
    Correlation,
    ExpertAgreement,
    Tables,
    correlate,
    orders,
    ranks,
    removal_counts,
    spearman,
    summarise,
)
from merging.importances.calibration import AnswerTask, Calibration
from merging.inference import LoadedModel
from merging.recipe import ModelEntry, Recipe

DEMO = Path(__file__).parent.parent / "examples" / "demo"
EXPERTS = ("math", "code", "words")


def test_ranks_share_their_mean_where_values_tie():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        (
            [106, 100, 86, 101, 99, 103, 97, 113, 112, 110],
            [7, 27, 2, 50, 28, 29, 20, 12, 6, 17],
            -0.1757575758,
        ),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486832981),
    ],
)
def test_spearman(one, two, expected):
    assert spearman(torch.tensor(one), torch.tensor(two)) == pytest.approx(expected, abs=1e-9)


def test_no_order_no_correlation():
    assert spearman(torch.tensor([1.0]), torch.tensor([2.0])) is None
    assert spearman(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0])) is None


def test_the_interval_is_that_of_resampled_examples():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    noisy = exact + 0.5 * torch.randn(12, 9, generator=generator, dtype=torch.float64)
    fixed = {CHANGE: torch.arange(9.0), SIZE: torch.ones(9)}
    tokens = torch.randint(1, 9, (12,), generator=generator).double()
    tables = Tables(exact, {"same": 2 * exact, "noisy": noisy}, fixed, tokens)
    found, ahead = correlate(tables, seed=1, score="same")
    by_name = {one.predictor: one for one in found}
    assert by_name["same"] == Correlation("same", pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert by_name[SIZE] == Correlation(SIZE, None, None, None)
    noise = by_name["noisy"]
    whole = spearman((noisy.sum(0) / tokens.sum()).abs(), (exact.sum(0) / tokens.sum()).abs())
    assert noise.spearman == pytest.approx(whole)
    assert -1 <= noise.low < noise.spearman < noise.high <= 1
    draws = torch.Generator().manual_seed(1)
    values = []
    for _ in range(200):
        chosen = torch.randint(12, (12,), generator=draws)
        values.append(spearman(noisy[chosen].sum(0).abs(), exact[chosen].sum(0).abs()))
    values.sort()  # 2.5 % of 199 steps between 200 values: place 4.975
    assert noise.low == pytest.approx(0.025 * values[4] + 0.975 * values[5], abs=1e-9)
    assert ahead == 1.0
    assert correlate(tables, seed=1, score="same") == (found, ahead)


def test_removal_counts_and_orders():
    assert removal_counts(42) == (0, 1, 2, 4, 8, 16, 32, 42)
    assert removal_counts(1) == (0, 1)
    partitions = torch.tensor([1, 3, 4])
    scores = {"score": torch.tensor([9.0, 1.0, 9.0, 5.0, 5.0])}
    found = orders(scores, partitions, seed=0, repeats=4)
    assert [order.tolist() for order in found["score"]] == [[3, 4, 1]]
    assert len(found["random"]) == 4
    assert all(sorted(order.tolist()) == [1, 3, 4] for order in found["random"])


def expert(mine: float | None, null: float | None) -> ExpertAgreement:
    rows = (Correlation("g", mine, None, None), Correlation(CHANGE, null, None, None))
    return ExpertAgreement("e", (), (), {}, rows, (), {}, None, False)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.5, 0.4), (0.3, 0.35)], True),
        ([(0.5, 0.4), (0.3, 0.45)], False),
        ([(0.4, 0.4)], False),
        ([(None, None)], False),
        ([(None, None), (0.5, 0.4)], True),
    ],
)
def test_recommended_only_where_the_score_beats_the_change(pairs, expected):
    assert summarise("g", [expert(*pair) for pair in pairs], 16, 0).recommended is expected


def test_advice_names_the_null_predictors_that_do_as_well():
    def one(score: float, change: float, size: float, shuffled: float):
        values = {"gradient at base": score, CHANGE: change, SIZE: size, "shuffled answers at base": shuffled}
        rows = tuple(Correlation(name, value, None, None) for name, value in values.items())
        return ExpertAgreement("e", (), (), {}, rows, (), {}, None, False)

    good = summarise("gradient at base", [one(0.6, 0.1, 0.2, 0.3), one(0.4, 0.1, 0.6, 0.3)], 16, 0)
    assert good.mean("gradient at base") == pytest.approx(0.5)
    assert good.as_good == ()
    assert advice(good).endswith("than ‖δ‖² does.")
    doubtful = summarise("gradient at base", [one(0.2, -0.1, 0.3, 0.25)], 16, 0)
    assert doubtful.recommended
    assert doubtful.as_good == (SIZE, "shuffled answers at base")
    assert "but no better than size and shuffled answers at base: trust it little" in advice(doubtful)
    bad = summarise("gradient at base", [one(0.2, 0.5, 0, 0)], 16, 0)
    assert bad.as_good == (CHANGE,)
    assert advice(bad).startswith("APL is not recommended here")


def demo_recipe() -> Recipe:
    return Recipe(
        merge_method="task_arithmetic",
        base_model=str(DEMO / "base"),
        models=tuple(ModelEntry(model=str(DEMO / name)) for name in EXPERTS),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> merging.Importance:
    """The demo family's importance with its report, through the file."""
    data = {name: DEMO / "data" / name / "calibration.jsonl" for name in EXPERTS}
    found = merging.importance(
        demo_recipe(), data, at="expert", partition="layer", device="cpu", agreement=True, samples=8
    )
    file = tmp_path_factory.mktemp("report") / "importance.safetensors"
    found.save(file)
    loaded = merging.Importance.load(file)
    assert loaded.agreement == found.agreement
    return loaded


def test_the_report_over_the_demo_family(measured):
    report = measured.agreement
    assert (report.score, report.examples, report.resamples) == ("gradient at expert", 8, 200)
    assert [one.expert for one in report.experts] == list(EXPERTS)
    predictors = [
        f"{w} at {at}"
        for w in ("gradient", "shuffled answers")
        for at in ("base", "expert", "midpoint", "trapezoid")
    ]
    for number, one in enumerate(report.experts):
        assert one.keys == tuple(f"layers.{block}" for block in range(6))
        assert [c.predictor for c in one.correlations] == [*predictors, CHANGE, SIZE]
        inside = ~measured.partitions.outside
        torch.testing.assert_close(
            torch.tensor(one.predictions["gradient at expert"], dtype=torch.float64),
            measured.values[number][inside],
            rtol=1e-3,
            atol=1e-7,
        )
        torch.testing.assert_close(
            torch.tensor(one.predictions[CHANGE], dtype=torch.float64), measured.change[number][inside]
        )
        exact = torch.tensor(one.exact)
        for c in one.correlations:
            assert c.spearman == spearman(torch.tensor(one.predictions[c.predictor]), exact)
            if c.spearman is not None:
                assert -1 <= c.low <= c.high <= 1
        assert one.spearman(SIZE) is None  # all blocks of the demo family are equally large
        assert one.recommended == (one.spearman(report.score) > one.spearman(CHANGE))


def test_removal_curves_run_from_the_expert_to_the_base(measured):
    for number, one in enumerate(measured.agreement.experts):
        facts = measured.experts[number]
        assert one.counts == (0, 1, 2, 4, 6)
        assert list(one.curves) == ["gradient at expert", CHANGE, "random"]
        ends = {curve[-1] for curve in one.curves.values()}
        for curve in one.curves.values():
            assert curve[0] == pytest.approx(facts.expert_loss, abs=1e-9)
            assert curve[-1] == pytest.approx(min(ends), abs=1e-6)
        assert facts.base_loss > facts.expert_loss
        [top] = [
            key
            for key, value in zip(one.keys, one.predictions[CHANGE], strict=True)
            if value == max(one.predictions[CHANGE])
        ]
        rise = one.exact[one.keys.index(top)]
        assert abs(one.curves[CHANGE][1] - one.curves[CHANGE][0]) == pytest.approx(rise, abs=1e-7)


def test_example_sums_are_those_of_the_whole_set(measured):
    loaded = LoadedModel.load(DEMO / "math")
    task = AnswerTask.of(Calibration.of(DEMO / "data" / "math" / "calibration.jsonl", 8), loaded)
    with torch.no_grad():
        together = task.sums(loaded.model, range(8)).double()
        alone = torch.cat([task.sums(loaded.model, [number]) for number in range(8)]).double()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert float(together.sum() / task.weights.sum()) == pytest.approx(
        measured.experts[0].expert_loss, rel=1e-4
    )


def test_exact_importance_reports_on_gradients_too():
    data = DEMO / "data" / "code" / "calibration.jsonl"
    recipe = demo_recipe().model_copy(update={"models": (ModelEntry(model=str(DEMO / "code")),)})
    options = {"how": "exact", "partition": "head", "sample": 5, "samples": 2, "device": "cpu"}
    found = merging.importance(recipe, data, agreement=True, **options)
    [one] = found.agreement.experts
    known = found.signed[0].isfinite()
    assert int(known.sum()) == len(one.keys) == 5
    assert one.exact == pytest.approx(found.values[0][known].tolist(), abs=1e-12)
    assert list(one.curves) == ["exact", CHANGE, "random"]
    assert one.counts == (0, 1, 2, 4, 5)
    assert math.isfinite(one.spearman("gradient at base"))


def test_the_command_line(tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(demo_recipe().to_yaml())
    data = [f"--data={name}={DEMO / 'data' / name / 'calibration.jsonl'}" for name in EXPERTS]
    out = tmp_path / "out" / "importance.safetensors"
    options = ("--partition", "layer", "--at", "midpoint", "--samples", "2", "--agreement", "--device", "cpu")
    done = command_line("importance", recipe, *data, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    for part in (
        "gradient importance at midpoint",
        "layers.",
        "‖δ‖²",
        "recommended here",
        f"{out}: written.",
    ):
        assert part in done.stdout
    again = command_line("importance", recipe, *data, "--out", out, *options, "--json")
    content = json.loads(again.stdout)
    assert (content["partition"], content["samples"], content["path"]) == ("layer", 2, str(out))
    loaded = merging.Importance.load(out)
    assert content["experts"][2]["fingerprint"] == merging.Checkpoint.open(DEMO / "words").fingerprint
    top = content["experts"][0]["top"][0]
    assert abs(top["signed"]) == pytest.approx(float(loaded.values[0].max()))
    assert content["agreement"]["recommended"] is loaded.agreement.recommended
    assert len(list((tmp_path / "mergescope" / "importance").iterdir())) == 1


def test_wrong_usage_and_mistakes_on_the_command_line(tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(demo_recipe().to_yaml())
    out = tmp_path / "i.safetensors"
    assert command_line("importance", recipe, "--out", out).returncode == 2
    assert command_line("importance", "--data", "x").returncode == 2
    for arguments, reason in (
        (["--data", "math=nowhere.jsonl"], "error: calibration: nothing for the expert 'code'"),
        (["--data", "nowhere.jsonl"], "error: The suite nowhere.jsonl cannot be read"),
        (["--data", "a.jsonl", "--how", "exakt"], "error: how 'exakt': unknown"),
        (["--data", "a=b", "--data", "a=c"], "error: --data: an expert has two files"),
        (["--data", "a=b", "--data", "c"], "error: --data c: give NAME=FILE"),
    ):
        done = command_line("importance", recipe, "--out", out, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith(reason), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
    nowhere = tmp_path / "recipe.yaml" / "i.safetensors"
    for place, reason in ((recipe, "is no importance file"), (nowhere, "importance cannot be written")):
        done = command_line("importance", recipe, "--data", "nowhere.jsonl", "--out", place)
        assert done.returncode == 1
        assert reason in done.stderr, "before the data are read, and long before anything is measured"
