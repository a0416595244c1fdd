"""Few globs for many tensors: what an override or an exclusion names. No widgets here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product

from merging.anatomy import in_block, locate, number_of


def globs_for(chosen: Collection[str], everything: Sequence[str]) -> list[str]:
    """Globs (`fnmatchcase`) that match all chosen names and no other of `everything`, as few as are easily read.

    Whole blocks become `model.layers.3.*`, one module in all blocks `*.mlp.down_proj.weight`, neighbouring blocks
    `model.layers.[2-4].…`; what has no such form is named tensor by tensor.
    """
    wanted, names = set(chosen), list(dict.fromkeys(everything))
    left = [name for name in names if name in wanted]
    if len(left) == len(names):
        return ["*"] if names else []
    stacks, outside = _stacks(names)
    found = [glob for stack in stacks for glob in stack.globs(wanted, names)]
    found += [escaped(name) for name in outside if name in wanted]
    reached = {name for glob in found for name in matching(glob, names)}
    return found if reached == wanted else [escaped(name) for name in left]


def matching(glob: str, names: Iterable[str]) -> list[str]:
    """The names a glob matches, in their order."""
    return [name for name in names if fnmatchcase(name, glob)]


def escaped(name: str) -> str:
    """The glob that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def number_globs(numbers: Collection[int]) -> Iterator[str]:
    """Globs that match exactly these numbers as they are written: `[2-4]`, `1[0-2]`, `17`."""
    tens: dict[str, list[int]] = {}
    for number in sorted(numbers):
        text = str(number)
        tens.setdefault(text[:-1], []).append(int(text[-1]))
    for head, digits in tens.items():
        parts = [
            f"{low}-{high}" if high - low > 1 else f"{low}{high}"[: 1 + high - low]
            for low, high in runs(digits)
        ]
        inside = "".join(parts)
        yield f"{head}{inside if len(digits) == 1 else f'[{inside}]'}"


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs of neighbours, first and last of each."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _stacks(names: Sequence[str]) -> tuple[list[_Stack], list[str]]:
    """The names by what stands before their block's number, and those outside the blocks."""
    stacks: dict[str, _Stack] = {}
    outside = []
    for name in names:
        block = locate(name).block
        if block is None:
            outside.append(name)
            continue
        zero, one = in_block(name, 0), in_block(name, 1)  # these differ in the number alone
        start = next(
            index for index, letters in enumerate(zip(zero, one, strict=True)) if len(set(letters)) > 1
        )
        stack = stacks.setdefault(name[:start], _Stack(name[:start]))
        stack.cells.setdefault(number_of(block), {})[zero[start + 1 :]] = name
    return list(stacks.values()), outside


class _Stack:
    """The tensors of blocks under one prefix: block -> what follows its number (`.mlp.up_proj.weight`) -> name."""

    def __init__(self, before: str):
        self.before = before
        self.cells: dict[int, dict[str, str]] = {}

    def globs(self, wanted: set[str], names: Sequence[str]) -> list[str]:
        """Globs for the wanted tensors of these blocks: the shorter of two ways to cut them into rectangles."""
        by_suffix: dict[str, set[int]] = {}
        by_block: dict[int, set[str]] = {}
        for block, cells in self.cells.items():
            for suffix, name in cells.items():
                if name in wanted:
                    by_suffix.setdefault(suffix, set()).add(block)
                    by_block.setdefault(block, set()).add(suffix)
        suffixes_of: dict[frozenset[int], list[str]] = {}
        for suffix, blocks in by_suffix.items():
            suffixes_of.setdefault(frozenset(blocks), []).append(suffix)
        blocks_of: dict[frozenset[str], list[int]] = {}
        for block, suffixes in by_block.items():
            blocks_of.setdefault(frozenset(suffixes), []).append(block)
        ways = (
            [
                glob
                for blocks, suffixes in suffixes_of.items()
                for glob in self._rectangle(blocks, suffixes, names)
            ],
            [
                glob
                for suffixes, blocks in blocks_of.items()
                for glob in self._rectangle(blocks, suffixes, names)
            ],
        )
        return min(ways, key=len)

    def _rectangle(
        self, blocks: Collection[int], suffixes: Collection[str], names: Sequence[str]
    ) -> list[str]:
        """Globs for exactly these suffixes in these blocks, each of which has all of them."""
        wanted = {self.cells[block][suffix] for block, suffix in product(blocks, suffixes)}
        columns = self._columns(blocks, suffixes)
        for rows in (["*"] if len(blocks) > 1 else [], list(number_globs(blocks))):
            found = [self._exact(row, column, wanted, names) for row, column in product(rows, columns)]
            if found and all(found):
                return [glob for glob in found if glob]
        return [escaped(name) for name in names if name in wanted]

    def _exact(self, row: str, column: str, wanted: set[str], names: Sequence[str]) -> str | None:
        """The shortest way to write block pattern and suffix pattern that matches nothing but `wanted`."""
        ways = [f"{escaped(self.before)}{row}{column}"]
        if row == "*":
            ways.insert(0, f"{escaped(self.before)}*" if column == ".*" else f"*{column}")
        return next((glob for glob in ways if wanted.issuperset(matching(glob, names))), None)

    def _columns(self, blocks: Collection[int], suffixes: Collection[str]) -> list[str]:
        """Patterns of suffixes: whole subtrees as `.self_attn.*`, one part of all experts as `.experts.*.w1.weight`."""
        present = list(dict.fromkeys(suffix for block in sorted(blocks) for suffix in self.cells[block]))
        return _by_letter(list(_subtrees("", [suffix for suffix in present if suffix in suffixes], present)))


def _subtrees(root: str, chosen: Sequence[str], present: Sequence[str]) -> Iterator[str]:
    """Patterns for the chosen of the suffixes that begin with `root`; a subtree of which all are chosen becomes one."""
    if len(chosen) == len(present) > 1 and root not in present:
        yield f"{escaped(root)}.*"
        return
    branches: dict[str, list[str]] = {}
    for suffix in present:
        head = suffix[len(root) :].split(".", 2)
        branches.setdefault(f"{root}.{head[1]}" if len(head) > 1 else suffix, []).append(suffix)
    numbered = _numbered(branches, chosen, present)
    yield from numbered
    left = {suffix for suffix in chosen if not any(fnmatchcase(suffix, glob) for glob in numbered)}
    for branch, inside in branches.items():
        picked = [suffix for suffix in inside if suffix in left]
        if len(inside) == 1 or branch == root:
            yield from map(escaped, picked)
        elif picked:
            yield from _subtrees(branch, picked, inside)


def _by_letter(patterns: Sequence[str]) -> list[str]:
    """Patterns that differ in one letter at the same place as one: `.self_attn.[qkv]_proj.weight`."""
    left, found = [pattern for pattern in patterns if "[" not in pattern], []
    while left:
        alike: dict[tuple[str, str], list[str]] = {}
        for pattern in left:
            for place, letter in enumerate(pattern):
                if letter.isalnum():
                    alike.setdefault((pattern[:place], pattern[place + 1 :]), []).append(pattern)
        (start, end), together = max(alike.items(), key=lambda one: len(one[1]), default=(("", ""), []))
        if len(together) < 2:
            break
        letters = "".join(pattern[len(start)] for pattern in together)
        found.append(f"{start}[{letters}]{end}")
        left = [pattern for pattern in left if pattern not in together]
    return [*found, *left, *(pattern for pattern in patterns if "[" in pattern)]


def _numbered(branches: Collection[str], chosen: Sequence[str], present: Sequence[str]) -> list[str]:
    """Patterns for suffixes that are chosen under every number they have: `.experts.*.w1.weight`."""
    numbers = [branch for branch in branches if branch.rpartition(".")[2].isdecimal()]
    if len(numbers) < 2:
        return []
    root = escaped(numbers[0].rpartition(".")[0])
    tails = dict.fromkeys(
        suffix[len(branch) :] for branch in numbers for suffix in chosen if suffix.startswith(f"{branch}.")
    )
    globs = [f"{root}.*{escaped(tail)}" for tail in tails]
    return [glob for glob in globs if set(chosen).issuperset(matching(glob, present))]
