"""Chat templates, rendered with limits on time, memory and length in a process that may be lost.

Within our own process nothing could stop a template: Jinja's sandbox counts no steps, and one operation such as 9**9**9
holds the interpreter for good. What renders is transformers' own function, so a prompt is what `apply_chat_template` makes.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from merging.errors import MergingError

MOST_TEMPLATE = 1 << 20
"""Characters of a template; the longest in use have about 20 thousand."""
MOST_TEXT = 2_000_000
"""Characters of a prompt."""
SECONDS = 2.0
"""Of processor time for one prompt; it takes about a millisecond."""
MOST_BYTES = 1 << 30
MOST_IDLE = 2
"""Processes that are kept for the next prompt, of about 60 MB each."""
LIMITS = {
    "time": f"it was stopped after {SECONDS:g} seconds; it loops, or computes too much",
    "length": f"it writes more than {MOST_TEXT:,} characters",
    "memory": f"it needs more than {MOST_BYTES >> 20:,} MB of memory",
    "crash": "it ended the process that renders it",
}
CRASH = {"limit": "crash"}
KEPT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_TIME",
    "TZ",
)
"""Of the environment: a token that is there is no business of a template."""

_idle: list[_Renderer] = []
_lock = threading.Lock()


class TemplateError(MergingError):
    """A chat template does not render: its own error, or a limit; the text is the reason alone."""


def render(template: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]) -> str:
    """The prompt that a chat template writes for a conversation that awaits its next reply.

    Args:
        tokens: the special tokens by their names, as templates know them: `bos_token` and the like.

    Raises:
        TemplateError: the template fails, or is over a limit.
        MergingError: no process for it can be started.
    """
    if len(template) > MOST_TEMPLATE:
        raise TemplateError(f"it has {len(template):,} characters; {MOST_TEMPLATE:,} are the most")
    request = json.dumps({"template": template, "messages": list(messages), "tokens": dict(tokens)}).encode()
    renderer = _take()
    kept = renderer.ready
    answer = renderer.answer(request)
    if kept and answer == CRASH:  # it may have been ended before it was asked
        renderer.close()
        renderer = _Renderer()
        answer = renderer.answer(request)
    if "text" in answer or "error" in answer:
        _keep(renderer)
    else:
        renderer.close()
    return _text(answer)


def prepare() -> None:
    """Start what the first prompt needs, and do not wait for it."""
    with _lock:
        if not _idle:
            _idle.append(_Renderer())


def _text(answer: dict[str, str]) -> str:
    if "limit" in answer:
        raise TemplateError(LIMITS[answer["limit"]])
    if "error" in answer:
        raise TemplateError(answer["error"].rstrip("."))
    return answer["text"]


class _Renderer:
    """One process of `template_worker`; it ends with its standard input."""

    def __init__(self) -> None:
        worker = Path(__file__).with_name("template_worker.py")
        limits = [str(SECONDS), str(MOST_BYTES), str(MOST_TEXT)]
        self.ready = False
        try:
            # -P: the modules beside the worker are called as some of Python's own
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(worker), *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={
                    **{name: os.environ[name] for name in KEPT if name in os.environ},
                    "HF_HUB_OFFLINE": "1",
                },
                start_new_session=True,
            )
        except OSError as error:
            raise MergingError(
                f"No process for chat templates can be started ({error.strerror}). Close other programs and try again."
            ) from None

    def answer(self, request: bytes) -> dict[str, str]:
        """What the worker says, or which limit ended it."""
        if not self.ready and self._said() is None:
            self.close()
            raise MergingError(
                "The process for chat templates does not start. Check that transformers and jinja2 are installed and that "
                "memory is free."
            )
        self.ready = True
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()
        if (said := self._said()) is not None:
            return said
        return {"limit": "time"} if self.process.wait() == -signal.SIGPROF else CRASH

    def _said(self) -> dict[str, str] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


def _take() -> _Renderer:
    with _lock:
        while _idle:
            if (renderer := _idle.pop()).process.poll() is None:
                return renderer
            renderer.close()
        return _Renderer()


def _keep(renderer: _Renderer) -> None:
    with _lock:
        if len(_idle) < MOST_IDLE:
            _idle.append(renderer)
            return
    renderer.close()


def _forget() -> None:
    """In a fork: the processes belong to the parent."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


def _end() -> None:
    while _idle:
        _idle.pop().close()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
