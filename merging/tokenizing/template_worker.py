"""The process in which chat templates run: a line of JSON in, a line of JSON out. `merging.tokenizing.templates` starts it as a file.

A template is a program of whoever made the model. Here it may use up a processor or the memory without harm: the kernel
ends this process at the first limit, whatever it is doing, and even where its parent is gone.

It may import nothing of merging: that would load torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys


def main(seconds: float, most_bytes: int, most_characters: int) -> None:
    """Answer every request on stdin; each may take `seconds` of processor time."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    from transformers.utils.chat_template_utils import render_jinja_template

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            text = render_jinja_template(
                [request["messages"]],
                chat_template=request["template"],
                add_generation_prompt=True,
                **request["tokens"],
            )[0][0]
            answer = {"text": text} if len(text) <= most_characters else {"limit": "length"}
        except MemoryError:
            answer = {"limit": "memory"}
        except Exception as error:  # a template may raise anything
            lines = str(error).strip()[:1000].splitlines()
            answer = {"error": lines[0][:160] if lines else type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
