"""Models that hold the same tensors under other names: files leave out, or add, what is around a model.

`h.0.ln_1.weight` and `transformer.h.0.ln_1.weight` are one weight of GPT-2; transformers loads both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

from merging.anatomy import locate
from merging.checkpoint import Checkpoint
from merging.tokenizing.view import Lender, View


class Renamed(View):
    """A model under the names of another; `names` gives its own name for every tensor."""

    def __init__(self, model: Checkpoint, names: Mapping[str, str]):
        super().__init__(Lender(model, names), {})
        self.tensors = {name: self.tensors[name] for name in names}
        new, own = next((new, own) for new, own in names.items() if new != own)
        said = f"{self.label}: calls its tensors '{own}' where the first model says '{new}'; they are taken to be the same."
        self.remarks = (*model.remarks, said)

    @property
    def tied(self) -> bool:
        return self.model.tied

    @cached_property
    def fingerprint(self) -> str:
        """The model's own: these are its weights."""
        return self.model.fingerprint


def named_like(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """`model` with the names that `reference` has for its tensors, where one prefix is all that they differ by."""
    ours, theirs = reference.tensors, model.tensors
    if prefix := _prefix(ours, theirs):
        names = {name if name in ours else name.removeprefix(prefix): name for name in theirs}
    elif prefix := _prefix(theirs, ours):
        names = {prefix + name if prefix + name in ours else name: name for name in theirs}
    else:
        return model
    return Renamed(model, names)


def _prefix(shorter: Collection[str], longer: Collection[str]) -> str:
    """What some names begin with that others leave out; empty where that does not make one of the other."""
    lost = next((name for name in shorter if name not in longer and locate(name).block is not None), None)
    for name in longer:
        prefix = name.removesuffix(f".{lost}") + "."
        if name.endswith(f".{lost}") and not any(one.startswith(prefix) for one in shorter):
            return prefix
    return ""
