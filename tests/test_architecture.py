"""The arrows of the design: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN_IN_MERGING = {"gradio", "plotly", "components", "app", "pandas", "spaces"}
FRONT_END = {"components.figures.page"}
HEAVY_AT_IMPORT = {"transformers", "tokenizers"}
RUN_A_MODEL = {
    "folders/refusals.py",
    "inference.py",
    "evaluation.py",
    "importance.py",
    "tokenizing/template_worker.py",
    "tokenizing/tokenizer_worker.py",
}
# methods see only what tensor arithmetic needs; nothing imports the command line or the job runner
METHODS_MAY_IMPORT = {
    "merging.ops",
    "merging.statistics",
    "merging.noise",
    "merging.pieces",
    "merging.errors",
    "merging.methods",
    "merging.anatomy",
    "merging.partitions",
    "merging.partition_cut",
    "merging.geometry",
    "merging.cuts",
}
LEAVES = {"merging.cli", "merging.jobs", "merging.api", "merging.__main__"}


def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, as dotted names (`from merging import ops` counts as merging.ops)."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            known_module = (ROOT / f"{node.module.replace('.', '/')}").is_dir()
            found |= {f"{node.module}.{a.name}" if known_module else node.module for a in node.names}
    return found


def inside(file: Path) -> str:
    return file.relative_to(ROOT / "merging").as_posix()


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", files("merging"), ids=lambda f: str(f.relative_to(ROOT)))
def test_merging_knows_no_interface(file):
    found = imports(file)
    if file == ROOT / "merging" / "cli.py":
        # the command line is a second front end: it writes a report as a page, and loads plotly only then
        found -= FRONT_END
        assert not FRONT_END & imports(file, top_level_only=True)
    assert not {name.split(".")[0] for name in found} & FORBIDDEN_IN_MERGING


@pytest.mark.parametrize("file", files("merging"), ids=lambda f: str(f.relative_to(ROOT)))
def test_transformers_only_where_a_model_is_run(file):
    roots = {name.split(".")[0] for name in imports(file)}
    if inside(file) in RUN_A_MODEL:
        roots = {name.split(".")[0] for name in imports(file, top_level_only=True)}
    assert not roots & HEAVY_AT_IMPORT


def test_numba_is_needed_by_the_compiled_loops_alone():
    naming = [file for file in files("merging") if "numba" in file.read_text()]
    needing = [file.name for file in naming if "numba" in str(imports(file, top_level_only=True))]
    assert needing == ["kernels.py"]


@pytest.mark.parametrize("file", files("merging/methods"), ids=lambda f: f.name)
def test_methods_import_only_arithmetic(file):
    ours = {name for name in imports(file) if name.split(".")[0] == "merging"}
    assert all(any(name == ok or name.startswith(ok + ".") for ok in METHODS_MAY_IMPORT) for name in ours), (
        ours
    )


@pytest.mark.parametrize("file", files("merging"), ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_imports_the_outer_layers(file):
    if file.name in {"__init__.py", "__main__.py", "cli.py"}:
        return
    assert not imports(file) & LEAVES


@pytest.mark.parametrize("file", files("components/figures"), ids=lambda f: f.name)
def test_figures_know_no_gradio(file):
    assert "gradio" not in {name.split(".")[0] for name in imports(file)}


def test_the_page_of_a_report_loads_no_gradio():
    code = "import sys, components.figures.page; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_engine_order():
    """engine -> plan -> recipe -> methods -> statistics -> ops; no arrow points back."""
    order = [
        "ops",
        "geometry",
        "pieces",
        "noise",
        "anatomy",
        "partitions",
        "statistics",
        "cuts",
        "partition_cut",
        "methods",
        "values",
        "recipe",
        "sources",
        "settings",
        "plan",
        "reading",
        "engine",
    ]
    for position, name in enumerate(order):
        folder = ROOT / "merging" / name
        sources = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        later = {f"merging.{other}" for other in order[position + 1 :]}
        for source in sources:
            found = {".".join(module.split(".")[:2]) for module in imports(source)}
            assert not found & later, (name, found & later)


MAY_CALL_OUT = {
    "hub/client.py",
    "hub/download.py",
    "hub/requests.py",
    "hub/push.py",
    "hub/push_errors.py",
    "hub/upload.py",
    "hub/remote.py",
    "commands/hub.py",
    "commands/push.py",
    "cli.py",
    "api.py",
}


@pytest.mark.parametrize("file", files("merging"), ids=lambda f: str(f.relative_to(ROOT)))
def test_only_the_hub_modules_call_out(file):
    """Plans, engine and jobs read the Hub's cache; who asks the Hub is who was told to."""
    if inside(file) not in MAY_CALL_OUT:
        assert not imports(file) & {"merging.hub.client", "merging.hub.requests", "huggingface_hub.utils"}
