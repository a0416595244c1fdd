"""`python -m merging`: the same calls as the Python API, for a terminal and for scripts.

A front end beside the page: it alone of this package may use `components.figures`, to write a report as a page.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from merging import api
from merging.checkpoint import Checkpoint
from merging.commands.evaluation import evaluate
from merging.commands.export import export, print_gguf
from merging.commands.extraction import extraction
from merging.commands.health import health, health_of, print_health
from merging.commands.hub import download, fetch, missing_models, say_commits
from merging.commands.importance import importance
from merging.commands.mergekit_flags import Flags, MergeCommand, known
from merging.commands.push import push_folder
from merging.commands.terminal import INTERRUPTED, follow
from merging.commands.tuning import tune
from merging.effective import summary
from merging.errors import MergingError, OutputError, PlanError
from merging.events import Event, Progress
from merging.folders.room import bytes_text, input_problem
from merging.hub.client import Hub
from merging.importances.artefact import Importance
from merging.inspecting.advice import Advice, advice, kinship
from merging.methods import METHODS
from merging.plan import Plan
from merging.recipe import Recipe, read_text
from merging.reports import text as report_text
from merging.reports.folder import ensure_report_folder, write_report
from merging.reports.full import checked_scope, full_report
from merging.reports.report import Report

app = typer.Typer(
    name="merging",
    help="Check, merge, inspect and score language models from mergekit recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RecipePath = Annotated[Path, typer.Argument(help="A recipe in mergekit's YAML.", metavar="RECIPE")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="What the tensors of a merge may take of memory, such as 512MB; torch itself comes on top."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, one JSON object a line.")]


app.command()(importance)
app.command()(export)
app.command()(evaluate)
app.command("health")(health)
app.command()(tune)
app.command()(download)
app.command("push")(push_folder)
app.command("extract")(extraction)


def main() -> None:
    """Run the command line. Exit code 0: done, 1: a MergingError (its text on stderr), 2: wrong usage, 130: Ctrl-C."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except MergingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_at_once()
        raise


def _leave_at_once() -> None:
    """End without waiting for a loop that is being compiled, or for torch to be taken down, which takes half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the merge methods and their parameters."""
    if as_json:
        _print_json({name: method.model_json_schema(by_alias=True) for name, method in METHODS.items()})
        return
    table = Table("method", "when to use it", "parameters", box=None, pad_edge=False)
    for name, method in METHODS.items():
        table.add_row(name, method.when_to_use, ", ".join(method.parameters()))
    Console().print(table)


@app.command()
def check(
    recipe: RecipePath,
    values: Annotated[
        bool,
        typer.Option(
            "--effective", help="Also show the value every parameter really gets, tensor by tensor."
        ),
    ] = False,
    memory: Memory = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe against its models' headers; lists every problem at once, reads no weight.

    Of Hub models that are not on this machine only the headers, the config and the tokenizer are fetched.
    """
    hub = Hub.from_environment()
    try:
        plan = api.check(recipe, memory=memory, hub=hub)
    except PlanError as error:
        if as_json:
            _print_json({"ok": False, "problems": error.problems})
            raise typer.Exit(1) from None
        raise
    if as_json:
        shown = {"effective": [one.as_json() for one in plan.effective()]} if values else {}
        to_download = {pinned.reference: hub.missing(pinned) for pinned in missing_models(plan)}
        _print_json(
            {
                "ok": True,
                "warnings": plan.warnings,
                **_size(plan),
                "to_download": to_download,
                "tokens": plan.tokens.as_json() if plan.tokens else None,
                **shown,
            }
        )
        return
    size = _size(plan)
    print(
        f"{recipe}: can run. {plan.recipe.merge_method} of {size['experts']} models, {size['tensors']} tensors."
    )
    print(
        f"parameters {size['parameters']:,} · reads {bytes_text(size['bytes_read'])} · writes {bytes_text(size['bytes_written'])}"
    )
    say_commits(plan, hub)
    for line in plan.tokens.lines() if plan.tokens else ():
        print(line)
    for warning in plan.warnings:
        print(f"warning: {warning}")
    for line in summary(plan.effective()) if values else ():
        print(line)


@app.command(
    cls=MergeCommand,
    epilog=f"mergekit-yaml's flags are understood as well: {', '.join(f'--{name}' for name in known())}.",
)
def merge(
    ctx: typer.Context,
    recipe: RecipePath,
    out: Annotated[
        Path, typer.Argument(help="Folder for the result; appears when it is complete.", metavar="OUT")
    ],
    device: Device = "auto",
    memory: Memory = None,
    look: Annotated[
        bool, typer.Option("--health/--no-health", help="Look afterwards whether the merged model is sound.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Merge into a folder that transformers loads, and look whether the result is sound.

    Hub models that are not on this machine are downloaded first, once the recipe has been checked by their headers.
    """
    flags: Flags = ctx.obj
    for note in flags.notes:
        print(f"note: {note}", file=sys.stderr)
    asked = recipe if flags.seed is None else flags.seeded(Recipe.load(recipe))
    device = flags.device if device == "auto" and flags.device else device
    hub = Hub.from_environment()
    fetch(hub, missing_models(api.check(asked, out, memory=memory, hub=hub)))
    events = api.run(asked, out, device=device, memory=memory, files=flags.files)
    finished = follow(events, describe, quiet=flags.quiet)
    looked = health_of(finished.path, api.check(asked), device) if look else None
    if as_json:
        _print_json({**_plain(finished), **({"health": looked.as_json()} if looked else {})})
        return
    if not flags.quiet:
        print(f"{finished.path}: written in {finished.seconds:.1f} s ({bytes_text(finished.bytes_written)}).")
        if finished.relative_change is not None:
            print(
                f"relative change {finished.relative_change:.4g} · rounded away {finished.lost_share:.1%} of the changed "
                "weights"
            )
    for warning in finished.warnings:
        print(f"warning: {warning}")
    if looked is not None and not (flags.quiet and looked.ok):
        print_health(looked)
    if not flags.quiet:
        print_gguf(finished.path, Checkpoint.open(finished.path).config)


@app.command()
def inspect(
    recipe: RecipePath,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report: its numbers, tensors.csv, and report.html to open offline."
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            help="Estimate from a stratified sample of this share of the weights; prints the 95 % interval of every "
            "relative change. A sample takes up to 2 GB of memory; where the share needs more, as many rows as fit are "
            "looked at, or every weight from a fifth on. No preview of DPPA, Model Stock and APL's cuts by importance."
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Show the conflict after trimming to it; by default the recipe's.")
    ] = None,
    scope: Annotated[str | None, typer.Option(help="Trim by tensor, layer or model.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure change and conflict of a recipe's experts, and what the recipe would make of them, without merging."""
    if out is not None:
        ensure_report_folder(out)
    plan = api.check(recipe)
    if out is not None:
        _keep_models(plan, out)
    events = full_report(plan, device=device, sample=sample, density=density, scope=checked_scope(scope))
    report = follow(events, describe)
    kin, found = kinship(report), advice(report, plan)
    written = write_report(report, _page(plan, report, found, recipe), out) if out is not None else []
    if as_json:
        named = {"base": plan.recipe.base_model or report.base, **({"path": str(out)} if out else {})}
        _print_json({**report_text.as_json(report, kin, found), **named})
        return
    headings, rows = report_text.block_table(report)
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
    for line in report_text.lines(report, kin, found):
        print(line)
    if out is not None:
        print(f"{out}: {', '.join(written)} written.")


def _keep_models(plan: Plan, out: Path) -> None:
    """Refuse a report inside a model's folder, or around one."""
    models = (one for one in (plan.reference, plan.base, *plan.experts) if isinstance(one, Checkpoint))
    problems = input_problem(out, [folder for model in models for folder in model.folders])
    if problems:
        raise OutputError(problems[0])


def _page(plan: Plan, report: Report, found: list[Advice], recipe: Path) -> str:
    """The report as a page; with the maps of importance where the recipe names a file of it."""
    try:
        from components.figures.page import Known, page_html
    except ImportError:
        raise MergingError(
            "--out: the page needs Mergescope's components folder and plotly; run this from the project's folder."
        ) from None
    known = None
    base = plan.base or plan.reference
    if plan.recipe.importance is not None:
        measured = Importance.load(plan.recipe.locate(plan.recipe.importance))
        known = Known(measured, tuple(measured.places(base, plan.experts)))
    return page_html(report, found, read_text(recipe), known=known)


def describe(event: Progress) -> str:
    """`merging · 128/291 tensors · 3.1 GB/s · 0:07 left`."""
    text = f"{event.stage} · {event.tensors_done}/{event.tensors} tensors · {event.bytes_per_second / 1e9:.1f} GB/s"
    if event.seconds_left is None:
        return text
    minutes, seconds = divmod(round(event.seconds_left), 60)
    return f"{text} · {minutes}:{seconds:02} left"


def _plain(event: Event) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(event), default=str))


def _size(plan: Plan) -> dict[str, int]:
    return {
        "experts": len(plan.experts),
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "bytes_read": plan.bytes_to_read,
        "bytes_written": plan.bytes_to_write,
    }


def _print_json(content: Any) -> None:
    print(json.dumps(content, default=str))
