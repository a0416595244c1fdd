"""What happens in the Merge tab: plain functions from values to values.

`stored` is what the browser keeps as owner, `watched` the id of the job that runs. Ids come from the browser and mean
nothing until the job store has found them for this owner.
"""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

from components.downloads import forget_zip
from components.export.parcels import zip_merge
from components.family import Family
from components.forms import read_numbers, shown
from components.inspect.reports import shared_reports
from components.merge.cards import KIND, card, fits, merges, newest_of
from components.merge.form import MergeForm, preset_note, profile_note
from components.merge.html import (
    default_text,
    notice_html,
    plan_html,
    problems_html,
    progress_html,
    result_html,
    warnings_html,
)
from components.merge.presets import advice, profile_changes, with_preset
from components.merge.recipe import check, default_recipe, one_click_recipe, title, to_form, to_recipe
from components.merge.yaml import MAX_YAML, from_yaml
from components.preview.brush import settled
from components.runs import recorded
from components.server.backend import job_store
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from components.server.zero_gpu import on_gpu, size_of
from components.shared import owner_id
from components.toasts import toast
from merging import METHODS, MergingError, Recipe
from merging.job_records import Job

NOT_STARTED = "The merge was not started"
NEW_SEEDS = 10_000
NOT_APPLIED = "Edited. Apply the YAML to use it; a change in the form replaces it."


def default_label(family: Family) -> str:
    """The text of the one-click button."""
    numbers = {2: "two", 3: "three", 4: "four", 5: "five"}
    experts = len(family.experts)
    if experts < 2:
        return "Merge now"
    return f"Merge these {numbers.get(experts, experts)} now"


def judge(form: MergeForm, recipe: Recipe, family: Family, watched: str) -> list[Any]:
    """Recipe, YAML, apply button, plan line, readiness, merge button, advice, and each problem at its field."""
    checked = check(recipe)
    ready = checked.plan is not None
    report = shared_reports().of_experts(family.experts)
    return [
        recipe,
        recipe.to_yaml(),
        gr.update(interactive=False, variant="secondary"),
        plan_html(checked),
        ready,
        gr.update(interactive=ready and not watched),
        warnings_html(advice(checked.plan, family, report)),
        *form.mark(recipe, family, checked.problems),
    ]


def refill(form: MergeForm, recipe: Recipe, family: Family, watched: str, note: str = "") -> list[Any]:
    """Everything that shows the recipe: what `judge` gives, and the whole form."""
    judged = judge(form, recipe, family, watched)
    return [*judged[: -len(form.fields.marked)], *form.show(recipe, family, note)]


def edit(form: MergeForm, recipe: Recipe, family: Family, watched: str, *values: Any) -> list[Any]:
    """A number or switch of the form changed."""
    return judge(form, to_recipe(recipe, family, form.read(values, recipe)), family, watched)


def edit_list(
    form: MergeForm, name: str, recipe: Recipe, family: Family, watched: str, text: Any
) -> list[Any]:
    """A list of numbers changed, by a visitor or because the form shows another recipe; then there is nothing to do."""
    values, fixed = to_form(recipe, family)
    if name not in values or name in fixed or read_numbers(text) == read_numbers(shown(values[name])):
        return [gr.skip() for _ in range(7 + len(form.fields.marked))]
    return judge(form, to_recipe(recipe, family, {**values, name: text}), family, watched)


def restructure(form: MergeForm, recipe: Recipe, family: Family, watched: str, *values: Any) -> list[Any]:
    """Method, profile or experts changed, and with them what the form shows."""
    changed, note = settled(to_recipe(recipe, family, form.read(values, recipe)))
    if changed.profile != recipe.profile and changed.merge_method == recipe.merge_method:
        note = profile_note(changed.profile, *profile_changes(recipe, changed.profile))
    return refill(form, changed, family, watched, note)


def preset(
    form: MergeForm, recipe: Recipe, family: Family, watched: str, published: str | None = None
) -> list[Any]:
    """All parameters back to the paper's values, or to other published ones."""
    chosen = with_preset(recipe, published)
    return refill(form, chosen, family, watched, preset_note(chosen, published))


def take_published(
    form: MergeForm, recipe: Recipe, family: Family, watched: str, published: Any
) -> list[Any]:
    """Other published values; nothing for a choice of an earlier method, or for a dropdown that was left without one,
    which Gradio calls input as well."""
    if not isinstance(published, str) or published not in METHODS[recipe.merge_method].presets:
        return [gr.skip() for _ in range(7 + len(form.outputs))]
    return preset(form, recipe, family, watched, published)


def new_seed(form: MergeForm, recipe: Recipe, family: Family, watched: str, *values: Any) -> list[Any]:
    """Another random seed, small enough to be read, and all else as the form shows it: its last change may still be on
    its way to the recipe."""
    now = to_recipe(recipe, family, form.read(values, recipe))
    return refill(form, now.model_copy(update={"seed": secrets.randbelow(NEW_SEEDS)}), family, watched)


def take(form: MergeForm, recipe: Recipe, family: Family, watched: str) -> list[Any]:
    """A recipe that was changed elsewhere."""
    return refill(form, recipe, family, watched)


def look_again(recipe: Recipe, family: Family) -> str:
    """The advice once more: an inspection may have ended since."""
    return warnings_html(advice(check(recipe).plan, family, shared_reports().of_experts(family.experts)))


def yaml_edited() -> list[Any]:
    """The YAML is ahead of the form: apply button, plan line, readiness, merge button."""
    apply = gr.update(interactive=True, variant="primary")
    return [apply, notice_html(NOT_APPLIED), False, gr.update(interactive=False)]


def apply_yaml(form: MergeForm, text: str, recipe: Recipe, family: Family, watched: str) -> list[Any]:
    """Take the recipe from the YAML, or say all that is wrong with it and change nothing else."""
    imported, problems = from_yaml(text or "", family)
    if imported is None:
        unchanged = [gr.skip() for _ in (None, *form.outputs)]
        words = problems_html("The recipe was not applied", problems)
        return [gr.skip(), gr.skip(), gr.skip(), words, False, gr.update(interactive=False), *unchanged]
    return refill(form, imported, family, watched)


def take_family(form: MergeForm, recipe: Recipe, family: Family, watched: str) -> list[Any]:
    """Other models were chosen: the same method over them, at its default values."""
    fresh = default_recipe(family, recipe.merge_method)
    can_start = check(default_recipe(family)).plan is not None and not watched
    button = gr.update(value=default_label(family), interactive=can_start)
    return [*refill(form, fresh, family, watched), default_text(family.names), button]


def start_default(settings: Settings, family: Family, stored: Any) -> list[Any]:
    """The one-click merge."""
    return start(settings, one_click_recipe(family), family, stored)


def start_shown(
    form: MergeForm, settings: Settings, recipe: Recipe, family: Family, stored: Any, *values: Any
) -> list[Any]:
    """Queue a merge of what the form shows: its last change may still be on its way to the recipe."""
    return start(settings, settled(to_recipe(recipe, family, form.read(values, recipe)))[0], family, stored)


def start(settings: Settings, recipe: Recipe, family: Family, stored: Any) -> list[Any]:
    """Queue a merge: watched job, timer, progress, cancel, merge and default buttons, result and its buttons."""
    store, owner = job_store(settings), owner_id(settings, stored)
    if not settings.single_owner and owner != stored:
        raise toast("This browser has no identity yet. Reload the page.", NOT_STARTED)
    checked = check(recipe)
    if checked.plan is None:
        raise toast(" ".join(checked.problems), NOT_STARTED)
    name = title(recipe, family)
    try:
        require_room(settings, checked.plan.bytes_to_write, "This merge", owner)
        id = store.start(
            owner,
            KIND,
            on_gpu(size_of(checked.plan), recorded, settings, owner, recipe, name),
            title=name,
            recipe=recipe.to_yaml(),
        )
    except MergingError as error:
        raise toast(str(error), NOT_STARTED) from None
    job = store.get(owner, id)
    if job is not None and not job.active:  # it was quicker than this answer; the timer shows how it ended
        job = job.model_copy(update={"state": "running"})
    hidden = [gr.update(visible=False) for _ in range(6)]
    return [*_running(job, ready=True, can_default=True), result_html(job), *hidden]


def cancel(settings: Settings, watched: str, stored: Any) -> dict[str, Any]:
    """Ask the job to stop; the timer shows when it has."""
    job_store(settings).cancel(owner_id(settings, stored), watched)
    return gr.update(interactive=False, value="Cancelling")


def tick(settings: Settings, watched: str, ready: bool, family: Family, stored: Any) -> list[Any]:
    """One look at the running job."""
    job = job_store(settings).get(owner_id(settings, stored), watched)
    if job is not None and job.active:
        skipped = [gr.skip() for _ in range(12)]
        return [gr.skip(), gr.skip(), progress_html(job), *skipped]
    return attach(settings, ready, family, stored, shown=watched)


def attach(settings: Settings, ready: bool, family: Family, stored: Any, *, shown: str = "") -> list[Any]:
    """Everything about this owner's jobs as it is now: the running one is watched; `shown`, or the newest of the family,
    is shown."""
    owner = owner_id(settings, stored)
    active = [job for job in merges(settings, owner) if job.active]
    watched = active[-1] if active else None
    chosen = job_store(settings).get(owner, shown) or newest_of(settings, owner, family)
    can_default = check(default_recipe(family)).plan is not None
    return [*_running(watched, ready=ready, can_default=can_default), *card(settings, owner, chosen)]


def other_family(settings: Settings, shown: str, family: Family, stored: Any) -> list[Any]:
    """Other models were chosen: a card about others makes room for the newest merge of these, or for none."""
    owner = owner_id(settings, stored)
    job = job_store(settings).get(owner, shown)
    kept = job is not None and (job.active or fits(job, family))
    return card(settings, owner, job if kept else newest_of(settings, owner, family))


def newest(settings: Settings, stored: Any) -> str:
    """The id of this owner's newest finished merge, or nothing."""
    done = [job.id for job in merges(settings, owner_id(settings, stored)) if job.state == "done"]
    return done[0] if done else ""


def show(settings: Settings, id: str, stored: Any) -> list[Any]:
    """Another of the earlier merges was chosen."""
    owner = owner_id(settings, stored)
    return card(settings, owner, job_store(settings).get(owner, id))


def delete(settings: Settings, shown: str, family: Family, stored: Any) -> list[Any]:
    """Forget the job on the card and show the newest one of the family."""
    store, owner = job_store(settings), owner_id(settings, stored)
    if store.delete(owner, shown):
        forget_zip(shown)
    return card(settings, owner, newest_of(settings, owner, family))


def reuse(form: MergeForm, settings: Settings, shown: str, stored: Any, *state: Any) -> list[Any]:
    """Load the recipe of the job on the card into form and YAML."""
    recipe, family, watched = state
    job = job_store(settings).get(owner_id(settings, stored), shown)
    if job is None or job.recipe is None:
        raise toast("This merge is no longer there.", "The recipe was not loaded")
    return apply_yaml(form, job.recipe[:MAX_YAML], recipe, family, watched)


def download(settings: Settings, shown: str, stored: Any) -> dict[str, Any]:
    """Make the zip of the model on the card."""
    try:
        path = zip_merge(settings, owner_id(settings, stored), shown)
    except MergingError as error:
        raise toast(str(error), "The download was not made") from None
    return gr.update(value=str(path))


def _running(job: Job | None, *, ready: bool, can_default: bool) -> list[Any]:
    """Watched job, timer, progress, and the buttons that depend on whether something runs."""
    active = job is not None and job.active
    return [
        job.id if job is not None and active else "",
        gr.Timer(active=active),
        progress_html(job),
        gr.update(interactive=active, visible=active, value="Cancel"),
        gr.update(interactive=ready and not active),
        gr.update(interactive=can_default and not active),
    ]
