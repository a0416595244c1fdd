"""What `spaces` does on a ZeroGPU Space, on a machine without a GPU: version 0.51 of its generators, read from its source.

A decorated generator function runs in a forked process that is kept for the next call. Its arguments and all that it yields
are pickled; of its errors only a `gr.Error` comes back, of others the class's name. Closing the generator is seen in the
worker at its next yield, and waited for. In the process that forks torch says there is a GPU, and whoever touches it fails.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import wraps
from queue import Queue

import gradio as gr
import torch
from gradio.context import LocalContext

FORK = multiprocessing.get_context("fork")
lent: list[dict] = []
"""Every call: for how many seconds, for whom, and in which process."""
workers: list[Worker] = []
forked = False


def _forbidden() -> None:
    raise RuntimeError("CUDA was touched in the process that has no GPU")


def patch() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda._lazy_init = _forbidden


def unpatch() -> None:
    torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init = REAL


REAL = torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init
if os.environ.get("SPACES_ZERO_GPU"):
    patch()


class Worker:
    """A forked process; the end of its results is None, or the end of the process."""

    def __init__(self, task):
        self.arguments, self.results = FORK.SimpleQueue(), FORK.SimpleQueue()
        self.stop = FORK.Event()
        self.process = FORK.Process(target=self._serve, args=(task,), daemon=True)
        self.process.start()
        threading.Thread(target=self._tell_the_end, daemon=True).start()

    def _tell_the_end(self):
        self.process.join()
        self.results.put(pickle.dumps(("lost", None)))

    def _serve(self, task):
        global forked
        forked = True
        unpatch()
        while True:
            arguments = pickle.loads(self.arguments.get())
            self.stop.clear()
            with ThreadPoolExecutor() as executor:
                executor.submit(copy_context().run, self._iterate, task, arguments)
            self.results.put(pickle.dumps(("end", None)))

    def _iterate(self, task, arguments):
        events = task(*arguments)
        while True:
            try:
                event = next(events)
            except StopIteration:
                return
            except Exception as error:
                told = error if isinstance(error, gr.Error) else type(error).__name__
                self.results.put(pickle.dumps(("error", told)))
                return
            if self.stop.is_set():
                events.close()
                return
            self.results.put(pickle.dumps(("event", event)))


def GPU(duration):
    def decorate(task):
        @wraps(task)
        def call(*arguments):
            if forked:
                yield from task(*arguments)
                return
            request = LocalContext.request.get(None)
            worker = workers.pop() if workers and workers[-1].process.is_alive() else Worker(task)
            visitor = request.headers.get("x-ip-token") if request is not None else None
            lent.append({"seconds": duration(*arguments), "visitor": visitor, "process": worker.process.pid})
            worker.arguments.put(pickle.dumps(arguments))
            yield from _answers(worker)

        return call

    return decorate


def _answers(worker):
    """The events of a call; a thread takes them from the worker, so that it never waits for who reads them."""
    told: Queue = Queue()

    def take():
        while True:
            kind, value = pickle.loads(worker.results.get())
            if kind == "end":
                workers.append(worker)
            told.put((kind, value))
            if kind != "event":
                return

    with ThreadPoolExecutor(1) as executor:
        executor.submit(take)
        while True:
            kind, value = told.get()
            if kind == "end":
                return
            if kind == "lost":
                raise gr.Error("GPU task aborted", title="ZeroGPU worker error", print_exception=False)
            if kind == "error":
                raise value if isinstance(value, gr.Error) else gr.Error(value, title="ZeroGPU worker error")
            try:
                yield value
            except GeneratorExit:
                worker.stop.set()
                raise
