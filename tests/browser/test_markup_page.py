"""Names of strangers are shown as they are written, wherever they are shown: none of them becomes a part of the page."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from tests.conftest import save_llama, tune

pytestmark = pytest.mark.browser

MARK = "<img src=x onerror=window.ran=1>"
LINK = "<a href='javascript:window.ran=1'>${window.ran=1}{{1}}%{z}"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A base and two experts whose folders, tensors, tokens and licences are markup."""
    root = tmp_path_factory.mktemp("hostile")
    base = save_llama(root / f"base {MARK}")
    tensors = load_file(base / "model.safetensors")
    for name in (MARK, LINK.replace("'", "")):
        tensors[f"model.layers.0.{name}.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (base / "tokenizer.json").write_text(
        re.sub(
            r'"[a-f]": ',
            lambda letter: letter[0].replace('"', f'"{MARK}', 1),
            (base / "tokenizer.json").read_text(),
        )
    )
    (base / "README.md").write_text(f"---\nlicense: {json.dumps(MARK)}\n---\n")
    experts = [
        tune(base, root / f"{number} {name}", seed=number) for number, name in enumerate((MARK, LINK), 1)
    ]
    for expert in experts:
        shutil.copy(base / "README.md", expert)
    return base, experts


def test_no_name_becomes_markup(page, hostile, quiet, console_errors):
    base, experts = hostile

    def nothing_ran() -> None:
        quiet(page)
        assert page.evaluate("window.ran") is None
        assert page.locator('img[src="x"], a[href^="javascript"]').count() == 0

    page.get_by_role("button", name="Remove expert 3").click()
    for label, folder in zip(("Base", "Expert 1", "Expert 2"), (base, *experts), strict=True):
        field = page.get_by_label(label, exact=True)
        field.fill(str(folder))
        field.press("Enter")
        expect(page.get_by_text(folder.name).first).to_be_visible()
    nothing_ran()
    page.get_by_role("tab", name="2 Inspect").click()
    page.locator("#map .nsewdrag").first.wait_for()
    page.locator("#map .nsewdrag").first.hover(position={"x": 20, "y": 20})
    page.locator("#map .nsewdrag").first.click(position={"x": 20, "y": 20})
    page.locator("#story h2").wait_for()
    nothing_ran()
    page.get_by_role("tab", name="3 Merge").click()
    page.get_by_role("button", name=re.compile("^Merge")).first.click()
    page.locator("#merge-result .mg-facts, #merge-result [role=alert]").first.wait_for()
    nothing_ran()
    for name in ("4 Chat", "5 Compare"):
        page.get_by_role("tab", name=name).click()
        nothing_ran()
    assert console_errors == []
