"""What is ready when the first visitor comes."""

from __future__ import annotations

import dataclasses
import sys

from components.family import Family
from components.inspect.reports import Reports, report_key
from components.merge.recipe import default_recipe
from components.preview.store import Previews, asked_for
from components.server.backend import job_store, model_cache
from components.server.settings import Settings
from components.server.warm_up import warm_up
from merging import check


def test_the_first_visitor_finds_report_preview_and_models_of_the_demo(tmp_path):
    settings = Settings(runs=tmp_path, device="cpu")
    demo, reports, previews = Family.demo(settings.demo), Reports(), Previews()
    warm_up(settings, reports, previews)
    assert reports.get(report_key(check(demo.recipe()))) is not None
    assert previews.get(asked_for(default_recipe(demo), demo).key) is not None
    assert len(model_cache(settings)) == 0, "on one's own machine no model is loaded unasked"
    shared = dataclasses.replace(settings, single_owner=False)
    warm_up(shared, reports, previews)
    assert len(model_cache(shared)) == 4
    assert "transformers" in sys.modules
    assert job_store(shared).list("") == []
    assert not list(tmp_path.rglob("*.safetensors")), "nothing of it is kept"


def test_without_a_demo_nothing_is_warmed_up(tmp_path):
    reports, previews = Reports(), Previews()
    warm_up(Settings(runs=tmp_path, demo=tmp_path / "none"), reports, previews)
    assert not previews.find(lambda preview: True)
