"""Every method over one family: which recipe each gets, and a run over all of them."""

from __future__ import annotations

import pytest

from merging import METHODS, MergingError, Progress
from merging.judging.every_method import (
    Scored,
    _Run,
    every_method,
    nothing,
    nowhere,
    parents,
    try_every_method,
)
from merging.judging.suites import Item, Suite
from merging.judging.trials import Trials
from merging.memory.whatif import Residents
from merging.recipe import ModelEntry, Recipe

SUITE = Suite("letters", (Item("ab", "b"), Item("abc", "c")))


def recipe_of(family, experts=("one", "two", "three"), **keys) -> Recipe:
    models = tuple(ModelEntry(model=str(family / name), parameters={"weight": 0.3}) for name in experts)
    return Recipe(
        merge_method="ties", **{"base_model": str(family / "base"), "models": models, "seed": 3, **keys}
    )


def scored(attempts, known, keep) -> list[Scored]:
    events = _Run(Trials(Residents()), (SUITE,), known, keep).all(attempts)
    return [event for event in events if isinstance(event, Scored)]


def test_every_method_has_its_papers_values_and_the_models(family):
    attempts = every_method(recipe_of(family, parameters={"density": 0.9}, out_dtype="float32"))
    assert [attempt.method for attempt in attempts] == list(METHODS)
    for attempt in attempts:
        if attempt.recipe is None:
            assert attempt.reason.endswith(".")
            continue
        kept = attempt.recipe
        assert (kept.profile, kept.seed, kept.out_dtype, kept.parameters) == ("paper", 3, "float32", {})
        assert all(not entry.parameters for entry in kept.models)


def test_methods_for_two_get_the_first_two_and_say_so(family):
    found = {attempt.method: attempt for attempt in every_method(recipe_of(family))}
    assert found["slerp"].recipe.base_model == str(family / "one")
    assert [entry.model for entry in found["slerp"].recipe.models] == [str(family / "two")]
    assert found["slerp"].reason == "It is made for two models: of one and two only."
    assert found["nuslerp"].recipe.base_model is None
    assert len(found["nuslerp"].recipe.models) == 2
    pair = {attempt.method: attempt for attempt in every_method(recipe_of(family, ("one", "two")))}
    assert pair["slerp"].reason == ""


def test_what_cannot_be_tried_says_why(family):
    found = {attempt.method: attempt for attempt in every_method(recipe_of(family))}
    assert "importance" in found["apl"].reason
    assert "parents" in found["passthrough"].reason
    assert found["ties"].recipe is not None
    alone = {attempt.method: attempt for attempt in every_method(recipe_of(family, ("one",)))}
    assert "two experts" in alone["slerp"].reason
    baseless = {a.method: a for a in every_method(recipe_of(family, base_model=None))}
    assert "base" in baseless["ties"].reason
    assert baseless["linear"].recipe is not None


def test_slices_and_no_experts_are_refused(family):
    with pytest.raises(MergingError, match="slices"):
        every_method(Recipe(merge_method="linear", slices=({"sources": []},)))
    with pytest.raises(MergingError, match="no experts"):
        every_method(Recipe(merge_method="linear"))


def test_a_run_has_a_row_for_every_parent_and_method(family):
    recipe, trials = recipe_of(family), Trials(Residents(), "cpu")
    calibration = Suite("letters", (Item("ab", "b"), Item("abc", "c"), Item("b", "a")))
    events = list(try_every_method(recipe, [SUITE], trials, calibration=calibration))
    rows = [event for event in events if isinstance(event, Scored)]
    tried = [name for name in METHODS if name != "passthrough"]
    assert [row.attempt.title for row in rows] == ["passthrough", "base", "one", "two", "three", *tried]
    assert {row.attempt.title for row in rows if not row.results} == {"passthrough"}
    assert all(row.problem == "" for row in rows if row.results)
    ties = next(row for row in rows if row.attempt.title == "ties")
    assert trials.score(ties.attempt.recipe, [SUITE]) == ties.results
    shares = [event.share for event in events if isinstance(event, Progress)]
    assert shares[-1] == 1


def test_one_method_that_fails_does_not_stop_the_others(family, tmp_path):
    recipe = recipe_of(family, importance=str(tmp_path / "gone.safetensors"))
    apl = [attempt for attempt in every_method(recipe) if attempt.method == "apl"]
    rows = scored([*apl, *parents(recipe)], nothing, nowhere)
    assert "gone.safetensors" in rows[0].problem
    assert [row.score is not None for row in rows] == [False, True, True, True, True]


def test_what_is_known_is_not_asked_again(family):
    recipe, kept = recipe_of(family), {}
    linear = next(attempt for attempt in every_method(recipe) if attempt.method == "linear")
    attempts = [linear, parents(recipe)[1]]

    def keep(subject, suite, result):
        kept.setdefault(subject, {})[suite.fingerprint] = result

    first = scored(attempts, nothing, keep)
    assert [row.subject for row in first] == list(kept)
    assert [row.draft is None for row in first] == [False, True]
    again = scored(attempts, lambda subject: kept[subject], nowhere)
    assert [(row.results, row.seconds) for row in again] == [(row.results, None) for row in first]
