"""The process in which a tokenizer.json is tried before it is loaded beside everything else: `merging.tokenizing.tokenizer_check`
starts it as a file. Compiled code that fails there takes its process with it, and some files fill the memory.

It may import nothing of merging: that would load torch.
"""

from __future__ import annotations

import contextlib
import resource
import string
import sys

PROBE = string.printable + "a" * 2000 + " The quick brown fox, 3.14 ×\n\n\t" * 20
PROBE += "".join(map(chr, [*range(0xA0, 0x3000, 5), *range(0x4E00, 0x9FFF, 97), *range(0x1F300, 0x1F700, 7)]))
FIRST = 256
"""Ids that are decoded one by one."""


def main(file: str, seconds: int, most_bytes: int) -> None:
    """Ends with 0 where the tokenizer does what it should; else the last line says what it does not."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for special in (False, True):
            with contextlib.suppress(Exception):  # it may know no word for what it does not know
                tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=special).ids)
        for number in range(FIRST):
            with contextlib.suppress(Exception):
                tokenizer.decode([number])
    except BaseException as error:  # a panic of compiled code is no Exception
        lines = str(error).strip()[:1000].splitlines()
        print(lines[0][:160] if lines else type(error).__name__)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
