"""Strangers on a shared server: whatever they type, upload or forge is answered by a clear sentence, with no traceback in the
log; nothing outside is read or written, and nobody sees another's merges, models or token."""

from __future__ import annotations

import html
import json
import logging
import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

from app import PAGES
from components.family import Family
from components.merge.recipe import default_recipe
from components.preview.store import Desk, shared_pages
from components.preview.views import Choice
from components.server.backend import hub_desk, job_store, visits
from components.server.strangers import FORGED, MOST_WAITING
from components.shared import still_here
from merging.cli import main
from merging.hub.client import Hub
from merging.references import Reference
from tests.hostile_page import ADA, BOB, OWNERS_TOKEN, SECRET, Visitor, served
from tests.hub_server import TOKEN, HubServer

MILLION = "x" * 10**6
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{later}: &{later} [{','.join([f'*{earlier}'] * 9)}]\n"
    for earlier, later in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = '{"a": ' * 20_000
UP = "../../../../../../etc/passwd"
ONLY = "This server opens only the demo models"
NOT_THERE = "no such finished merge of yours"
NOT_CHOSEN = "none of the chosen models"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    hub = HubServer()
    with served(tmp_path_factory.mktemp("hostile"), hub) as running:
        running.hub = hub
        yield running
    hub.close()


@pytest.fixture
def ada(server) -> Visitor:
    return Visitor(server)


@pytest.fixture(autouse=True)
def quiet(server, capfd, caplog):
    """No traceback in the server's log, and nothing written outside."""
    caplog.set_level(logging.ERROR)
    before = tree(server.outside)
    yield
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    assert [record for record in caplog.records if record.exc_info] == []
    assert tree(server.outside) == before
    kept = {path.name for path in server.settings.runs.iterdir()}
    assert {name for name in kept if len(name) == 32} <= {ADA, BOB}


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(file), file.stat().st_size) for file in folder.rglob("*"))


def file(path: object) -> dict:
    """A file as a page names it that was uploaded."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def refused(said: str, words: str) -> None:
    said = html.unescape(said.replace('\\"', '"'))
    assert words in said, said[-1500:]
    assert SECRET not in said
    assert "root:x:0" not in said
    assert len(said) < 10_000 or MILLION in said


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/etc/passwd", ONLY),
        (UP, ONLY),
        ("{outside}/model", ONLY),
        ("{outside}/../outside/model", ONLY),
        ("{runs}/by-name", ONLY),
        ("{runs}/" + BOB + "/{bobs}/model", ONLY),
        ("~root/x", ONLY),
        ("a\0b", ONLY),
        ("org/../..", ONLY),
        ("org/..", ONLY),
        ("demo:../../examples", "There is no demo model"),
        ("demo:math/../../..", "There is no demo model"),
        ("demo:math@../../x", "There is no demo model"),
        ("demo:math+/etc/passwd", ONLY),
        ("run:{bobs}", NOT_THERE),
        ("run:" + BOB + "/{bobs}", NOT_THERE),
        ("run:../" + BOB, NOT_THERE),
        (MILLION, "a name has at most 1,000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_models_that_are_typed(server, ada, typed, words):
    named = {"{outside}": server.outside, "{runs}": server.settings.runs, "{bobs}": server.bobs}
    for mark, value in named.items():
        typed = typed.replace(mark, str(value))
    refused(ada.fire("Base", "submit", "Base", typed), words)


DEMO = "\nbase_model: examples/demo/base\nmodels: [{model: examples/demo/math}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases expand to"),
        ("!!python/object/apply:os.system ['touch {outside}/x']", "not valid YAML"),
        ("!!python/name:os.system" + DEMO, "not valid YAML"),
        ("a: &a\n  b: *a", "The recipe was not applied"),
        ("merge_method: ties\nbase_model: /etc/passwd\nmodels: [{model: " + UP + "}]", NOT_CHOSEN),
        ("merge_method: linear\nmodels: [{model: org/private}]", NOT_CHOSEN),
        ("merge_method: linear\nmodels: [{model: '{outside}/model'}]", NOT_CHOSEN),
        ('merge_method: linear\nmodels: [{model: "a\\0b"}]', "The recipe was not applied"),
        ("merge_method: linear\nmodels: [{model: org/../..}]", NOT_CHOSEN),
        (
            "importance: '{outside}/x.safetensors'\nmerge_method: apl" + DEMO,
            "files are not read by this page",
        ),
        ("chat_template: /etc/passwd\nmerge_method: ties" + DEMO, NOT_CHOSEN),
        ("tokenizer: {source: " + UP + "}\nmerge_method: ties" + DEMO, NOT_CHOSEN),
        ("merge_method: ../../x" + DEMO, "The recipe was not applied"),
        ("seed: -1\nmerge_method: ties" + DEMO, "seed"),
        ("lambda: 1" + "0" * 5000 + "\nmerge_method: ties" + DEMO, "The recipe was not applied"),
        ("seed: " + "1:" * 30_000 + "1", "more than 100 digits"),
        ("merge_method: 0x" + "f" * 60_000, "more than 100 digits"),
        ("exclude: ['" + "[" * 60_000 + "']" + DEMO, "at most 500 characters"),
        ("overrides: [{tensors: '" + "[" * 60_000 + "', parameters: {}}]" + DEMO, "at most 500 characters"),
        ("parameters: {density: .nan}\nmerge_method: ties" + DEMO, "density"),
        (MILLION, "more than 64,000 characters"),
        (5, FORGED),
    ],
    ids=lambda value: str(value)[:40],
)
def test_recipes_that_are_pasted(server, ada, text, words):
    text = text.replace("{outside}", str(server.outside)) if isinstance(text, str) else text
    refused(ada.fire("apply-yaml-button", "click", "recipe-yaml", text), words)


@pytest.mark.parametrize(
    ("name", "event", "field", "value", "words"),
    [
        ("Use token", "click", "Access token", MILLION, "no access token"),
        ("Use token", "click", "Access token", "hf_x\r\nAuthorization: x", "no access token"),
        ("hub-search", "input", "hub-search", {"ask": MILLION}, "At most 100 letters"),
        ("hub-search", "input", "hub-search", {"ask": UP}, "No model of the Hub"),
        ("Tokens of the result", "input", "Tokens of the result", UP, '"data": [null]'),
        ("chat-send", "click", "chat-input", MILLION, "at most 4,000 can be asked"),
        ("chat-send", "click", "chat-system", MILLION, "at most 4,000 can be asked"),
        ("chat-send", "click", "chat-input", "half \ud800", FORGED),
        ("chat-send", "click", "chat-seed", "x", FORGED),
        ("chat-send", "click", "chat-temperature", {"a": 1}, FORGED),
        ("chat-example-0", "click", "chat-example-0", {"a": MILLION}, FORGED),
        ("chat-model-0", "input", "Column 1", "job:{bobs}", "not in the list of choices"),
        ("chat-model-0", "input", "Column 1", UP, "not in the list of choices"),
        ("layers-run", "click", "layers-column", "job:{bobs}", "has no model now"),
        ("layers-run", "click", "layers-answer", ["x"], FORGED),
        ("tokens-show", "click", "tokens-judge", -1, "has no model now"),
        ("merge-button", "click", "lambda (λ)", [], FORGED),
        ("merge-button", "click", "lambda (λ)", True, FORGED),
        ("merge-button", "click", "lambda (λ)", 10**30, FORGED),
        ("merge-button", "click", "lambda (λ)", {"filter": UP}, FORGED),
        ("merge-button", "click", "merge-zero_sum", {"a": 1}, FORGED),
        ("merge-button", "click", "merge-elect_on", [], FORGED),
        ("merge-published", "input", "merge-published", UP, '"success": true'),
        ("merge-keep-blocks", "input", "merge-keep-blocks", [UP, MILLION], '"success": true'),
        ("preview-brush-set", "click", "preview-brush-number", file("/etc/passwd"), FORGED),
        ("preview-brush-set", "click", "preview-brush-what", UP, '"success": true'),
        ("Your merges", "input", "Your merges", "{bobs}", "No merge yet"),
        ("Your merges", "input", "Your merges", "../" + BOB + "/{bobs}", "No merge yet"),
        ("export-list", "input", "export-list", "{bobs}", "Nothing to take home yet"),
        ("export-list", "input", "export-list", {"id": [None]}, FORGED),
        ("export-name", "change", "export-name", UP, "org/name"),
        ("export-name", "change", "export-name", "org/../x", "org/name"),
        ("export-name", "change", "export-name", MILLION, "org/name"),
        ("export-push-run", "click", "export-name", "org/x", "no longer there"),
        ("extraction-start", "click", "Rank", 10**30, FORGED),
        ("extraction-start", "click", "Rank", -1, "less than minimum value 1"),
        ("Add the text", "click", "Perplexity of a text", MILLION, "at most 200,000 are read"),
        ("importance-compute", "click", "Examples an expert", 10**9, "greater than maximum value 64"),
        ("importance-compute", "click", "Gradients at", UP, "not in the list of choices"),
        ("importance-text-0", "blur", "importance-text-0", MILLION, "kB of examples"),
        ("importance-text-0", "blur", "importance-text-0", DEEP, "begins like JSON but is none"),
        (
            "importance-text-0",
            "blur",
            "importance-text-0",
            '{"prompt": {"a": 1}, "answer": 5}',
            "needs the texts",
        ),
        ("history-search", "input", "history-search", MILLION, "No run has all these words"),
        ("history-runs", "input", "history-runs", "{run}", '"visible": false'),
        ("history-note", "blur", "history-note", MILLION, "may have 2,000 characters"),
        ("history-note", "blur", "history-note", "mine now", "no longer there"),
        ("grid-run", "click", "grid-across-low", "x", FORGED),
        ("grid-run", "click", "grid-across-steps", 10**9, "greater than maximum value"),
        ("grid-run", "click", "grid-what", [UP, 5], "Choose at least one task"),
        ("tune-run", "click", "tune-budget", 10**12, "greater than maximum value"),
        ("tune-run", "click", "tune-budget", [5], FORGED),
        ("tune-run", "click", "tune-strategy", UP, "Choose one of: tpe"),
        ("compare-who", "change", "compare-who", ["job:{bobs}", UP], '"success": true'),
        ("compare-who", "change", "compare-who", ["job:{bobs}", None], FORGED),
    ],
    ids=lambda value: str(value)[:30],
)
def test_fields_of_all_tabs(server, ada, name, event, field, value, words):
    value = json.loads(json.dumps(value).replace("{bobs}", server.bobs).replace("{run}", server.run_of_bob))
    refused(ada.fire(name, event, field, value), words)


@pytest.mark.parametrize(
    ("name", "event"),
    [("map", "select"), ("preview-map", "select"), ("preview-map", "brush"), ("grid-map", "select"), ("hub-search", "select")],
)  # fmt: skip
def test_events_that_no_chart_sends(ada, name, event):
    """Each is answered, and nothing comes of it."""
    for data in (
        None,
        {"index": [-1, 10**9], "id": "org/../..", "role": "base", "row": -1},
        {"cells": [[10**9, -1]] * 10_000, "range": {"x": ["a", None], "y": 5}},
    ):
        assert '"success": true' in ada.fire(name, event, data=data)


@pytest.mark.parametrize("label", ["compare-upload", "Upload a text file", "importance-upload-0"])
def test_uploads(server, ada, label, tmp_path):
    def sent(name: str, content: bytes) -> str:
        answer = server.client.post("/gradio_api/upload", files={"files": (name, content)})
        return answer.json()[0] if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    uploads = server.settings.kept / "uploads"
    for path in ("/etc/passwd", server.outside / "secret.txt", uploads / ".." / ".." / "outside" / "secret.txt",
                 server.settings.history, "http://127.0.0.1:9/x", "a\0b", ""):  # fmt: skip
        refused(ada.fire(label, "upload", label, file(path)), FORGED)
    evil = Path(sent("../../../evil.jsonl", f"no lines of JSON for {label}\n".encode() * 5))
    assert evil.name == "evil.jsonl"
    assert evil.is_relative_to(uploads)
    link = evil.with_name("link.jsonl")
    link.symlink_to(server.outside / "secret.txt")
    refused(ada.fire(label, "upload", label, file(link)), FORGED)
    assert server.client.get(f"/gradio_api/file={link}").status_code == 403
    archive = tmp_path / "links.zip"
    with zipfile.ZipFile(archive, "w") as made:
        linked = zipfile.ZipInfo("../../link")
        linked.external_attr = 0o120777 << 16
        made.writestr(linked, "/etc/passwd")
    name = "suite.txt" if "text" in label else "suite.jsonl"
    refused(ada.fire(label, "upload", label, file(sent(name, archive.read_bytes() + b"\xff"))), "as text")
    assert "exceeded maximum allowed size of 5000000" in sent("big.txt", b"x" * 5_000_001)


def test_files_that_the_server_does_not_send(server):
    home = Path.home()
    model = server.settings.runs / BOB / server.bobs / "model"
    for path in ("/etc/passwd", UP, "app.py", Path("README.md").resolve(), model / "config.json", server.settings.history,
                 server.outside / "secret.txt", home / ".cache/huggingface/token", "file:///etc/passwd",
                 f"http://127.0.0.1:{server.settings.port}/config"):  # fmt: skip
        assert server.client.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    page = server.client.get("/config").text
    assert str(server.settings.runs) not in page
    assert BOB not in page
    assert OWNERS_TOKEN not in page


@pytest.mark.parametrize(
    ("number", "values"),
    [(-1, []), (10**9, []), ("x", []), (None, []), (4, None), (4, "x"), (4, []), (4, {"a": 1}), ([4], []), ("of the page alone", [])],
    ids=str,
)  # fmt: skip
def test_requests_that_are_none(ada, number, values):
    if number == "of the page alone":
        number = next(id for id, one in ada.server.app.fns.items() if one.fn is None)
    said = ada.send(number, values)
    assert said[:3] in ("400", "404", "422") or '"success": false' in said, said


def test_a_request_that_is_too_long_is_not_read(server):
    answer = server.client.post("/gradio_api/queue/join", content=b"[" * 9_000_000)
    assert (answer.status_code, answer.text[:45]) == (413, "This request has more than 8,000,000 bytes, a")

    many = b'{"data": [' + b"[]," * 300_000 + b"[]]}"
    answer = server.client.post("/gradio_api/queue/join", content=many)
    assert (answer.status_code, answer.text[:40]) == (413, "This request has more than 200,000 value")

    def endless():
        for _ in range(100):
            yield b"x" * 100_000

    assert server.client.post("/gradio_api/queue/join", content=endless()).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "file=https://example.org/x", "file=HTTP://example.org", "file/https://example.org", "proxy=https://example.org/x",
        "proxy=http://127.0.0.1:9", "deep_link?session_hash=x", "stream/x/y/1/playlist.m3u8", "vibe-code", "dev/reload",
    ],
)  # fmt: skip
def test_what_no_page_uses_is_closed(server, path):
    answer = server.client.get(f"/gradio_api/{path}")
    assert (answer.status_code, answer.text) == (403, "This server does not do that.")


def test_files_are_kept_of_nobody_who_sends_them_elsewhere(server):
    before = tree(server.settings.kept)
    for path in ("process_recording", "component_server", "run/x"):
        answer = server.client.post(f"/gradio_api/{path}", files={"video": ("a.mp4", b"x" * 1000)})
        assert answer.status_code in (400, 403, 422), path
    many = [("files", (f"{n}.txt", bytes([n]) * 900_000)) for n in range(9)]
    answer = server.client.post("/gradio_api/upload", files=many)
    assert (answer.status_code, answer.text[:30]) == (413, "One file is uploaded at a time")

    def endless():
        yield b"x" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert server.client.post("/gradio_api/upload", content=endless(), headers=headers).status_code == 413
    assert tree(server.settings.kept) == before


@pytest.mark.parametrize(
    "body",
    [
        None, [], "x", {}, {"data": 1}, {"component_id": 10**9}, {"component_id": "x"}, {"component_id": [1]},
        {"fn_name": "launch"}, {"fn_name": "__class__"}, {"fn_name": 5}, {"session_hash": [1]}, {"data": None},
        {"data": MILLION}, {"data": {"token": [], "key": {}, "value": 10**400}},
    ],
    ids=lambda body: str(body)[:40],
)  # fmt: skip
def test_functions_of_components(server, body):
    """The one that follows a slider answers nothing to whoever has no page; there is no other."""
    usual = {"component_id": live_part(server), "fn_name": "move", "data": {}, "session_hash": "x"}
    asked = usual | body if isinstance(body, dict) else body
    answer = server.client.post("/gradio_api/component_server", json=asked)
    assert (answer.status_code, answer.text) == (200, "null") or answer.status_code in (400, 404, 422)


def live_part(server) -> int:
    return next(id for id, block in server.app.blocks.items() if "pv-live" in (block.elem_classes or []))


def test_a_slider_on_its_way_to_a_number_that_is_none(server, ada):
    """The page's token is its own; what it sends with it is looked at."""
    pages = shared_pages()
    token = pages.token(ada.session)
    family = Family.demo(server.settings.demo)
    pages.look(token, Desk(default_recipe(family), family, Choice()))
    for value in (10**400, -(10**30), True, "x", [1], {"a": 1}):
        asked = {"token": token, "key": "density", "value": value}
        body = {
            "component_id": live_part(server),
            "fn_name": "move",
            "data": asked,
            "session_hash": ada.session,
        }
        answer = server.client.post("/gradio_api/component_server", content=json.dumps(body))
        assert (answer.status_code, answer.text) == (200, "null"), value


def test_pages_that_are_no_longer_there_are_forgotten(server):
    """Each takes more than a megabyte."""
    assert server.app.app.state_holder.capacity == PAGES


def test_who_has_a_page_open_is_there(server, ada):
    """Also who only looks at it, for longer than things are kept."""
    number = next(n for n, one in server.app.fns.items() if getattr(one.fn, "func", None) is still_here)
    begun = time.time()
    assert '"success": true' in ada.send(number, [ADA])
    assert visits(server.settings).last(ADA) >= begun


def test_one_page_does_not_fill_the_queue(server, ada):
    number, _ = server.handler("export-name", "change")
    asked = {"data": ["org/x"], "fn_index": number, "session_hash": ada.session}
    codes = [
        server.client.post("/gradio_api/queue/join", json=asked).status_code for _ in range(MOST_WAITING + 1)
    ]
    assert codes == [200] * MOST_WAITING + [503]
    assert '"success": true' in Visitor(server).fire("export-name", "change", "export-name", "org/x")


def test_a_page_that_calls_itself_endlessly_is_not_known(server):
    visitor = Visitor(server)
    visitor.session = "s" * 10**6
    assert visitor.fire("export-list", "input").startswith("400")


@pytest.mark.parametrize(
    "owner", [None, "", 5, [BOB], {"owner": BOB}, "../" + BOB, BOB.upper(), "local", "b" * 10**6]
)
def test_whoever_has_no_name_gets_nothing_of_anybodys(server, owner):
    said = Visitor(server, owner).fire("export-list", "input", "export-list", server.bobs)
    assert SECRET not in said
    assert "Nothing to take home yet" in said or FORGED in said


def test_the_servers_own_token_is_used_for_nobody(server, ada):
    """Even of a private model that lies in the cache, because somebody who may read it has downloaded it."""
    hub = server.hub
    commit = hub.add("org/private", server.settings.demo / "math", private=True)
    mine = Hub(TOKEN)
    *_, done = mine.download(mine.pin(Reference.parse("org/private")))
    assert done.folder.is_relative_to(server.settings.hub_cache)
    hub.forget()
    hub_desk(server.settings).take_token(BOB, TOKEN)
    for named in ("org/private", f"org/private@{commit}"):
        for step in ("submit", "look up", "blur"):
            said = ada.look_up() if step == "look up" else ada.fire("Base", step, "Base", named)
        refused(said, "is no model of the Hub, or a private one")
        recipe = f"merge_method: linear\nmodels: [{{model: {named}}}]"
        refused(ada.fire("apply-yaml-button", "click", "recipe-yaml", recipe), NOT_CHOSEN)
    ada.fire("hub-search", "input", "hub-search", {"ask": "private"})
    asked = [token for _, _, token in hub.seen]
    assert len(asked) > 2
    assert set(asked) == {None}
    assert os.environ["HF_TOKEN"] == OWNERS_TOKEN
    assert os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


@pytest.mark.parametrize(
    "recipe",
    [
        BOMB,
        "!!python/object/apply:os.system ['touch {outside}/x']",
        "a: &a\n  b: *a",
        "[" * 30_000,
        "merge_method: linear\nmodels: [{model: " + UP + "}]",
        "merge_method: linear\nmodels: [{model: org/../..}]",
        'merge_method: linear\nmodels: [{model: "a\\0b"}]',
        "merge_method: linear\nmodels: [{model: " + "x" * 10**5 + "}]",
        "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1" + "0" * 5000 + "}}]",
        "merge_method: linear\nseed: 0x" + "f" * 10_000,
        "\x00\x01\xff",
        "",
    ],
    ids=lambda text: text[:30],
)
def test_recipe_files_of_the_command_line(server, tmp_path, capfd, monkeypatch, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.replace("{outside}", str(server.outside)), encoding="latin-1")
    monkeypatch.setattr(sys, "argv", ["merging", "check", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert 20 < len(said.err) < 3000
    assert "root:x:0" not in said.err


def test_jobs_of_all_kinds_are_their_owners(server):
    store = job_store(server.settings)
    for id in (server.bobs, "../" + BOB, f"../{BOB}/{server.bobs}", "", None, 5, [server.bobs]):
        assert store.get(ADA, id) is None
        assert store.model(ADA, id) is None
        assert not store.cancel(ADA, id)
        assert not store.delete(ADA, id)
    assert store.model(BOB, server.bobs) is not None
