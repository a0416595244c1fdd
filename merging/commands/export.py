"""`python -m merging export`: a recipe for mergekit, and a merged folder for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from merging.checkpoint import Checkpoint
from merging.errors import MergingError
from merging.gguf import gguf_lines
from merging.output import config_of
from merging.plan import make_plan
from merging.recipe import Recipe
from merging.writer import MARKER, require_merged


def export(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe, or the folder of a finished merge.", metavar="RECIPE")
    ],
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Leave out what mergekit cannot express, and say so.")
    ] = False,
) -> None:
    """Print a recipe as mergekit's YAML, with every value that differs from its defaults written out, and the command that
    makes a GGUF file of the merged folder OUT. RECIPE may be the folder of a finished merge."""
    folder, config = Path("OUT"), {}
    if recipe.is_dir():
        require_merged(recipe)
        folder, config, recipe = recipe.resolve(), Checkpoint.open(recipe).config, recipe / MARKER
    loaded = Recipe.load(recipe)
    print(loaded.to_mergekit(approximate=approximate), end="")
    if not config:
        with suppress(MergingError):  # the models need not be here for the YAML
            plan = make_plan(loaded)
            config = config_of(plan, plan.reference) if isinstance(plan.reference, Checkpoint) else {}
    print_gguf(folder, config, "# ")


def print_gguf(folder: Path, config: Mapping[str, Any], before: str = "") -> None:
    """What llama.cpp needs to know, a line each."""
    for line in gguf_lines(folder, config):
        print(f"{before}{line}")
