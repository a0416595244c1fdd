"""A shared server with two visitors, and requests to it that no page would send."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.models.events import look_up
from components.server.backend import job_store, run_history
from components.server.settings import Settings
from components.server.strangers import CACHE_VARIABLES
from merging.judging.history import Draft

OWNERS_TOKEN = "hf_TokenOfWhoRunsThisServer"
ADA, BOB = "a" * 32, "b" * 32
SECRET = "nobody-elses-business"
PATIENCE = 60.0


class Server:
    """The app as a Space starts it, in this process. BOB has a finished merge, whose title is `SECRET`; `outside` holds a
    model and a text that nobody may read."""

    def __init__(self, settings: Settings, outside: Path, app: Any):
        self.settings, self.outside, self.app = settings, outside, app
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=PATIENCE)
        self.bobs = self._merge_of_bob()
        draft = Draft(recipe="merge_method: linear\n", models=(), subject="s", title=SECRET)
        self.run_of_bob = run_history(settings).add(BOB, draft).id

    def _merge_of_bob(self) -> str:
        def work(out: Path) -> Iterator[Any]:
            shutil.copytree(self.settings.demo / "math", out)
            yield {"seconds": 1.0, "tensors": 1, "parameters": 1}

        store = job_store(self.settings)
        id = store.start(BOB, "merge", work, title=SECRET, recipe="merge_method: linear\n")
        assert store.wait(BOB, id, PATIENCE).state == "done"
        return id

    def handler(self, name: str, event: str) -> tuple[int, Any]:
        """The number of what an event of a component calls on the server, and Gradio's record of it."""
        named = [
            id
            for id, block in self.app.blocks.items()
            if name
            in (getattr(block, "elem_id", None), getattr(block, "label", None), getattr(block, "value", None))
        ]
        for number, one in self.app.fns.items():
            if one.fn is not None and any(target == (id, event) for id in named for target in one.targets):
                return number, one
        raise LookupError(f"{name}: nothing happens at {event}")


class Visitor:
    """A browser that sends what it likes; `owner` is what it says it keeps."""

    def __init__(self, server: Server, owner: Any = ADA):
        self.server, self.owner, self.session = server, owner, secrets.token_hex(6)

    def fire(self, name: str, event: str, field: str = "", value: Any = None, data: Any = None) -> str:
        """All that the server says to an event, with one field's value in place of what the page had."""
        number, one = self.server.handler(name, event)
        values = [self._usual(block) for block in one.inputs]
        if field:
            places = [n for n, block in enumerate(one.inputs) if self._is(block, field)]
            assert places, f"{name}: no input is called {field}"
            values[places[0]] = value
        return self.send(number, values, data)

    def look_up(self) -> str:
        """What the page asks by itself once a model of the Hub was typed."""
        number = next(n for n, one in self.server.app.fns.items() if getattr(one.fn, "func", None) is look_up)
        return self.send(number, [None, self.owner])

    def send(self, number: Any, values: Any, data: Any = None, **more: Any) -> str:
        """The answers to a raw request, as text."""
        asked = {"data": values, "fn_index": number, "session_hash": self.session, "event_data": data, **more}
        answer = self.server.client.post(
            "/gradio_api/queue/join", content=json.dumps(asked), headers={"content-type": "application/json"}
        )
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        said = []
        with self.server.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    said.append(json.dumps(message, ensure_ascii=False))
                    if message["msg"] in ("process_completed", "close_stream"):
                        break
        return "\n".join(said)

    def _usual(self, block: Any) -> Any:
        if getattr(block, "storage_key", "") == "mergescope-owner":
            return self.owner
        return None if type(block).__name__ == "State" else block.value

    def _is(self, block: Any, field: str) -> bool:
        return field in (getattr(block, "label", None), getattr(block, "elem_id", None))


@contextmanager
def served(folder: Path, hub: Any) -> Iterator[Server]:
    """The app on a free port with all its folders in `folder`, and this machine's own token in the environment."""
    from huggingface_hub import constants

    import app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = folder / "outside"
    shutil.copytree(Settings().demo / "math", outside / "model")
    (outside / "secret.txt").write_text(SECRET * 20)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("GRADIO_TEMP_DIR", "HF_HUB_DISABLE_IMPLICIT_TOKEN", *CACHE_VARIABLES):
            patch.setenv(variable, "")
            os.environ.pop(variable)
        patch.setattr(constants, "HF_HUB_CACHE", "elsewhere")
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "home" / "token"))
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", OWNERS_TOKEN)
        patch.setenv("SPACE_ID", "someone/mergescope")
        for name, value in (
            ("RUNS", folder / "runs"),
            ("PORT", port),
            ("HOST", "127.0.0.1"),
            ("DEVICE", "cpu"),
        ):
            patch.setenv(f"MERGESCOPE_{name}", str(value))
        settings = Settings.from_environment()
        app.keep_apart(settings)
        page = app.build_app(settings)
        app.serve(page, settings, prevent_thread_lock=True, quiet=True)
        patch.delenv("SPACE_ID")
        server = Server(settings, outside, page)
        try:
            yield server
        finally:
            server.client.close()
            page.close(verbose=False)
            job_store(settings).close()
